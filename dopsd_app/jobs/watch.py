"""What there is to see of a run at this moment, for whoever watches it: the page."""

import statistics
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import psutil

from dopsd_app.jobs.events import (
    Event,
    EventReader,
    Failed,
    Finished,
    HealthMeasured,
    LoraChecked,
    PreviewSaved,
    StepDone,
    Stopped,
    Warned,
    measured_in,
)
from dopsd_app.jobs.promise import Promise, measured_pace, read_promise, words_for_delay
from dopsd_app.jobs.runs import Run
from dopsd_app.jobs.status import Status
from dopsd_app.jobs.worked_time import worked_seconds
from dopsd_app.progress import DownloadProgress

CURVE_POINTS = 500  # of a loss curve: more cannot be seen, and all of it goes over the wire
SHOWN_PREVIEWS = 24  # at once: any single one of them can be asked for
KEPT_READERS = 8  # runs whose events are held in memory between two looks

ENDINGS = (Finished, Stopped, Failed)

T = TypeVar("T")


@dataclass(frozen=True)
class Rollout:
    """The states of one roll-out: what student and teacher saw from each."""

    step: int
    student: tuple[Path, ...]
    teacher: tuple[Path, ...]  # empty where an earlier version saved one picture of both


@dataclass(frozen=True)
class Samples:
    """What was drawn of the same prompts and noise at each step; a picture that is missing is None."""

    prompts: tuple[str, ...] = ()
    seed: int = 0
    sources: tuple[Path | None, ...] = ()  # what the prompts start from; empty where none starts from any
    steps: tuple[tuple[int, tuple[Path, ...]], ...] = ()  # a picture for each prompt; step 0 is the base's

    @property
    def few(self) -> "Samples":
        """Of many steps those that are shown: the base's, and what `thin_out` leaves of the others."""
        first = 1 if self.steps and self.steps[0][0] == 0 else 0
        return replace(self, steps=(*self.steps[:first], *thin_out(self.steps[first:])))


@dataclass(frozen=True)
class RunView:
    """A run as its folder tells it now."""

    status: Status
    curve: tuple[tuple[float, float], ...]  # (step, mean loss around it), at most CURVE_POINTS
    seconds_per_step: float | None  # of the last steps; None before the first
    memory: int  # bytes: the peak on the GPU, or on a CPU what the worker uses now; 0 when it is gone
    rollouts: tuple[Rollout, ...]  # oldest first
    samples: Samples
    sheets: tuple[tuple[int, Path], ...]  # by step, of earlier versions: samples of all prompts in one
    health: tuple[HealthMeasured, ...]  # by step; that of step 0 is the base's, the zero line
    warnings: tuple[str, ...]
    download: DownloadProgress | None  # how far the base model has been fetched, while it is
    check: str  # what the check of the LoRA file found; empty before it
    passed: bool  # whether that was good
    seconds: float | None  # that its processes worked, until its end; None before
    promise: Promise | None  # what the plan said of its time

    @property
    def seconds_left(self) -> float | None:
        """Time to the end, while the run trains: at the pace of its last steps; before them, as promised."""
        status, promise = self.status, self.promise
        if status.state in ("loading", "encoding", "drawing") and promise and status.step == 0:
            return promise.seconds(status.steps)
        if self.seconds_per_step is None or status.state not in ("training", "beside"):
            return None
        left = status.steps - status.step
        return promise.seconds_left(left, self.seconds_per_step) if promise else left * self.seconds_per_step


class RunWatcher:
    """Looks at runs again and again, and reads only what was added to their events since the last look."""

    def __init__(self):
        self._readers: OrderedDict[Path, tuple[EventReader, dict]] = OrderedDict()
        self._lock = threading.Lock()  # two tabs may look at once

    def read(self, run: Run) -> RunView:
        """How the run stands; raises `FileNotFoundError` when it was deleted."""
        # The status first: whoever then reads "finished" finds the events that led there.
        status = run.status
        with self._lock:
            reader, summary = self._readers.pop(run.events_file, None) or (EventReader(run.events_file), {})
            if reader.poll() or not summary:
                summary = _summary(run, reader.events)
            self._readers[run.events_file] = reader, summary
            while len(self._readers) > KEPT_READERS:
                self._readers.popitem(last=False)
        promise = read_promise(run.path)
        shown = {k: v for k, v in summary.items() if k not in ("peak_memory", "steps")}
        if status.state == "training" and (delay := words_for_delay(promise, summary["steps"], status.steps)):
            shown["warnings"] += (delay,)
        memory = summary["peak_memory"] or _memory_of(status)
        return RunView(status=status, memory=memory, promise=promise, **shown)


def _memory_of(status: Status) -> int:
    try:
        return psutil.Process(status.pid).memory_info().rss if status.live else 0
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # it ended between two looks
        return 0


def _summary(run: Run, events: list[Event]) -> dict:
    steps = [event for event in events if isinstance(event, StepDone)]
    previews = [event for event in events if isinstance(event, PreviewSaved)]
    check = next((event for event in reversed(events) if isinstance(event, LoraChecked)), None)
    return {
        "curve": decimate([(step.step, step.loss) for step in steps]),
        "steps": steps,
        "seconds_per_step": measured_pace(steps),
        "peak_memory": steps[-1].peak_memory if steps else 0,
        "rollouts": tuple(_rollouts(run, previews)),
        "samples": _samples(run, previews),
        "sheets": tuple(thin_out(_sheets(run, previews))),
        "health": measured_in(events),
        "warnings": standing_warnings([event for event in events if isinstance(event, Warned)]),
        "download": events[-1] if events and isinstance(events[-1], DownloadProgress) else None,
        "check": check.summary if check else "",
        "passed": bool(check and check.passed),
        "seconds": worked_seconds(run) if events and isinstance(events[-1], ENDINGS) else None,
    }


def standing_warnings(warned: list[Warned]) -> tuple[str, ...]:
    """What still holds of all that was warned of, in its order."""
    last = {event.about: event for event in warned}
    holding = [event for event in warned if not event.about or event is last[event.about]]
    return tuple(event.message for event in holding if event.message)


def decimate(points: list[tuple[int, float]]) -> tuple[tuple[float, float], ...]:
    """At most CURVE_POINTS means of equally many neighbours each; the last one may have fewer."""
    width = -(-len(points) // CURVE_POINTS) or 1
    groups = (points[start : start + width] for start in range(0, len(points), width))
    return tuple((statistics.fmean(x for x, _ in g), statistics.fmean(y for _, y in g)) for g in groups)


def thin_out(found: Sequence[T], most: int = SHOWN_PREVIEWS) -> list[T]:
    """At most so many of them: the newest half as they are, and evenly chosen ones of those before."""
    if len(found) <= most:
        return list(found)
    newest = most // 2
    earlier, others = found[:-newest], most - newest
    chosen = [earlier[round(n * (len(earlier) - 1) / (others - 1))] for n in range(others)]
    return [*chosen, *found[-newest:]]


def _of_kind(previews: list[PreviewSaved], kind: str) -> list[PreviewSaved]:
    """The last preview of this kind at each step: one may be asked for twice, or repeated after a resume."""
    return list({preview.step: preview for preview in previews if preview.kind == kind}.values())


def _rollouts(run: Run, previews: list[PreviewSaved]) -> list[Rollout]:
    found = []
    for preview in _of_kind(previews, "rollout"):
        files = tuple(run.path / file for file in preview.files)
        half = -(-len(files) // 2)
        found.append(Rollout(preview.step, files[:half], files[half:]))
    return found


def _samples(run: Run, previews: list[PreviewSaved]) -> Samples:
    drawn = [preview for preview in _of_kind(previews, "samples") if preview.prompts]
    if not drawn:
        return Samples()
    drawn.sort(key=lambda preview: preview.step)
    sources = [preview.files for preview in _of_kind(previews, "sources")]
    return Samples(
        drawn[-1].prompts,
        drawn[-1].seed,
        tuple(run.path / file if file else None for file in sources[-1]) if sources else (),
        tuple((preview.step, tuple(run.path / file for file in preview.files)) for preview in drawn),
    )


def _sheets(run: Run, previews: list[PreviewSaved]) -> list[tuple[int, Path]]:
    return [
        (preview.step, run.path / preview.files[0])
        for preview in _of_kind(previews, "samples")
        if preview.files and not preview.prompts
    ]
