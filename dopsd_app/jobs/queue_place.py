"""Where jobs stand in the queue, what comes before them, and how long that takes."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dopsd_app.jobs.card import automatic_cards
from dopsd_app.jobs.job import Job, kind_or_none
from dopsd_app.jobs.kinds import TRAIN
from dopsd_app.jobs.promise import read_promise
from dopsd_app.jobs.queue import computing, waiting_jobs

SecondsLeft = Callable[[Job], float | None]  # of a training that is at work; None where nobody knows


@dataclass(frozen=True)
class Place:
    """A waiting job's place."""

    before: tuple[Job, ...]  # at work, and then those that wait, in their order
    seconds: float | None  # until it begins: that of the trainings before it; None where that is not known

    @property
    def number(self) -> int:
        """In the queue, those included that are at work."""
        return len(self.before) + 1


def queue_places(runs_dir: Path, seconds_left: SecondsLeft) -> dict[str, Place]:
    """The places of all waiting jobs, by their ids."""
    waiting = waiting_jobs(runs_dir)
    if not waiting:
        return {}
    before = computing(runs_dir)
    # When each card is free. One job is at work on each; a drawing gives way, and a check takes minutes.
    free: list[float | None] = [_left(job, seconds_left) for job in before]
    free += [0.0] * (len(automatic_cards()) - len(free))
    known = [seconds for seconds in free if seconds is not None]
    heapq.heapify(known)
    all_known, found = len(known) == len(free), {}
    for job in waiting:
        begins = heapq.heappop(known) if known and all_known else None
        found[job.id] = Place(tuple(before), begins)
        before = [*before, job]
        needed = _needed(job)
        if begins is None or needed is None:
            all_known = False
        else:
            heapq.heappush(known, begins + needed)
    return found


def _left(job: Job, seconds_left: SecondsLeft) -> float | None:
    return seconds_left(job) if kind_or_none(job) == TRAIN else 0.0


def _needed(job: Job) -> float | None:
    """Seconds that a waiting job will take, as its plan has promised."""
    if job.kind != TRAIN:
        return 0.0
    promise, status = read_promise(job.path), job.status
    if promise is None:
        return None
    return promise.loading + promise.seconds_left(status.steps - status.step, promise.seconds_per_step)
