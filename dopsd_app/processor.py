"""The processor of this computer: how much of it there is, and how much of it is wanted."""

import functools
import os
import time

import psutil

REMEMBERED = 5  # seconds that an answer is good for
WATCHED = 0.1  # seconds that the processor is looked at
BUSY = 90  # percent: from here on threads wait, and only the load average tells how many


def count_cores() -> int:
    """The cores that this process and its like may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux: a container may have been given only some
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_load() -> float:
    """How many threads want the cores that we may use: those at work, and those that wait for one.

    What this process itself does is left out: it waits for the answer, a tenth of a second.
    """
    return _read_load(round(time.monotonic() / REMEMBERED))


@functools.lru_cache(maxsize=1)
def _read_load(moment: int) -> float:
    """The same; `moment` makes the memory short."""
    percent = psutil.cpu_percent(WATCHED)
    at_work = percent / 100 * count_cores()
    # The average is of a minute: it also remembers what has ended, such as a drawing of our own.
    return max(at_work, average_load()) if percent >= BUSY else at_work


def average_load() -> float:
    """As `read_load`, over the last minute and at once; what we ourselves did is in it.

    Windows has no such figure: there psutil begins to count when it is first asked.
    """
    return psutil.getloadavg()[0] * count_cores() / (psutil.cpu_count() or 1)
