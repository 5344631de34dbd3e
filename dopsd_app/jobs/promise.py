"""What a person was promised of a run's time, and what becomes of that as soon as steps are measured."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dopsd_app.files import read_value, replace_file, retry
from dopsd_app.jobs.events import StepDone
from dopsd_app.processor import average_load, count_cores
from dopsd_app.progress import words_for_time

PROMISE = "promise.json"  # in the run's folder
SCHEMA = 1
WARMING_UP = 1  # first steps of a process, which are slower than the others
LEAST_STEPS = 3  # that are measured before they count for more than the plan
RECENT = 20  # steps whose time tells how fast a run is now
FAR_OFF = 1.5  # times the promised time, and at least so many seconds more: sooner nobody is told
WORTH_TELLING = 30.0
CROWDED = 0.5  # other programs' threads for each core, from which on they are named as the reason


@dataclass(frozen=True)
class Promise:
    """The plan's figures of a run's time."""

    loading: float  # seconds before the first step
    seconds_per_step: float
    previews: float  # what they take beside a step, in steps
    slowness: float  # how many times the time of a computer that does nothing else is reckoned with
    schema: int = SCHEMA

    def seconds_left(self, steps: int, pace: float) -> float:
        """For so many more steps of `pace` seconds each, with their previews."""
        return steps * (1 + self.previews) * pace

    def seconds(self, steps: int) -> float:
        """Of a whole run of so many steps, as promised."""
        return self.loading + self.seconds_left(steps, self.seconds_per_step)


def keep_promise(run_folder: Path, promise: Promise) -> None:
    """Puts it into the folder of a run that is to start."""
    replace_file(run_folder / PROMISE, json.dumps(asdict(promise), indent=2))


def read_promise(run_folder: Path) -> Promise | None:
    """What was promised of this run; None for one that was started without a plan, or by another version."""
    try:
        promise = read_value(Promise, retry((run_folder / PROMISE).read_bytes))
    except (OSError, ValueError):
        return None
    return promise if promise.schema == SCHEMA and promise.seconds_per_step > 0 else None


def measured_pace(steps: Sequence[StepDone]) -> float | None:
    """Seconds per step of a run's last steps; None before the first. Those that warm up count while alone."""
    seconds = [step.seconds for step in steps]
    return _last_pace(seconds) if seconds else None


def _last_pace(seconds: list[float]) -> float:
    return statistics.median(seconds[WARMING_UP:][-RECENT:] or seconds)


def expected_seconds(promise: Promise, steps: Sequence[StepDone], total: int) -> float:
    """Of a whole run of `total` steps, by those that it has done: what is left takes as long as the last."""
    before, left = steps[0].step - 1, total - steps[-1].step
    seconds = [step.seconds for step in steps]
    trained = sum(seconds) + promise.seconds_per_step * before
    return promise.loading + (1 + promise.previews) * (trained + left * _last_pace(seconds))


def words_for_delay(promise: Promise | None, steps: Sequence[StepDone], total: int) -> str:
    """One sentence, where a run of `total` steps takes far longer than promised; else "".

    For a run that is at work now: its own threads are taken for a part of the load.
    """
    if promise is None or len(steps) < WARMING_UP + LEAST_STEPS:
        return ""
    promised, now = promise.seconds(total), expected_seconds(promise, steps, total)
    if now <= FAR_OFF * promised or now - promised < WORTH_TELLING:
        return ""
    on_card = steps[-1].peak_memory > 0
    others = average_load() - (1 if on_card else count_cores())
    why = ", since other programs use the processor" if others >= CROWDED * count_cores() else ""
    return f"It takes longer than planned: {words_for_time(now)} instead of {words_for_time(promised)}{why}."
