"""What a run tells: small frozen values, one JSON line each in the run folder."""

import dataclasses
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dopsd_app.files import make_value
from dopsd_app.models.base_report import Finding
from dopsd_app.progress import DownloadProgress, PhaseProgress


@dataclass(frozen=True)
class MemoryPlanned:
    """How the run is made to fit from here on: as its `memory_plan.json` says it."""

    step: int
    memory: int  # bytes at the most, of the device that trains
    budget: int  # bytes that it may take there
    message: str


@dataclass(frozen=True)
class Resumed:
    """Training goes on after `step`: what an earlier process recorded of later steps no longer counts."""

    step: int


@dataclass(frozen=True)
class StepDone:
    """One optimizer step; steps count from 1."""

    step: int
    loss: float  # mean over the examples and the visited states
    grad_norm: float  # before clipping
    seconds: float
    peak_memory: int  # bytes reserved on the GPU at the most; 0 on a CPU


@dataclass(frozen=True)
class PreviewSaved:
    """Preview pictures, as paths relative to the run folder.

    "rollout": every visited state of the student's, then of the teacher's. "samples": one of each prompt, the
    base's at step 0. "sources": what each prompt starts from, "" for nothing. An earlier version saved one
    picture of all, and named no prompts.
    """

    step: int
    kind: str
    files: tuple[str, ...]
    prompts: tuple[str, ...] = ()  # of each file but a roll-out's
    seed: int = 0


@dataclass(frozen=True)
class HealthMeasured:
    """How the LoRA stands, as `health` scores it; step 0 is the base model itself, the zero line."""

    step: int
    concept: float  # likeness to the training pictures, -1 to 1
    following: float | None  # how far prompts still count, -1 to 1; None where there is but one
    drift: float  # of neutral prompts' pictures from the base's, 0 to 2
    quality: float  # of all of them: 1 as clean as the base's, 0 like nothing known; cleaner ones are above 1


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint is complete in this folder, relative to the run folder."""

    step: int
    folder: str


@dataclass(frozen=True)
class LoraChecked:
    """The LoRA file was loaded back and compared with the trained student; details in lora_check.json."""

    step: int
    passed: bool
    summary: str


@dataclass(frozen=True)
class CaptionWritten:
    """A caption of one length for a picture; steps count the pictures that were looked at."""

    step: int
    key: str  # of the picture
    length: str
    text: str
    put: bool  # whether it stands where captions go: of this length, and no person wrote there meanwhile


@dataclass(frozen=True)
class Warned:
    """Something went wrong that does not end the run.

    Of one thing, the last word counts: an empty one says that all is well again.
    """

    step: int
    message: str
    about: str = ""  # "health", "pace", or nothing that could change


@dataclass(frozen=True)
class Finished:
    """All steps are done and the LoRA file is there."""

    step: int
    file: str


@dataclass(frozen=True)
class Stopped:
    """The person stopped the run; a checkpoint of this step is kept."""

    step: int


@dataclass(frozen=True)
class Failed:
    """The run cannot go on; `reason` is a sentence for the person, the trace is in log.txt."""

    step: int
    reason: str


Event = (
    PhaseProgress
    | DownloadProgress
    | MemoryPlanned
    | Resumed
    | StepDone
    | PreviewSaved
    | HealthMeasured
    | CheckpointSaved
    | LoraChecked
    | Finding
    | CaptionWritten
    | Warned
    | Finished
    | Stopped
    | Failed
)
EVENTS = {kind.__name__: kind for kind in Event.__args__}


def append_event(path: Path, event: Event) -> None:
    """Adds one line to an events file, in one write, so that a kill can tear only the last line."""
    line = json.dumps(
        {"event": type(event).__name__, "time": round(time.time(), 3), **dataclasses.asdict(event)}
    )
    with path.open("ab") as file:
        # A line torn by an earlier kill is closed first, so that it cannot swallow this one.
        torn = file.tell() and not _ends_with_newline(path)
        file.write((b"\n" if torn else b"") + line.encode() + b"\n")


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


class EventReader:
    """Follows an events file: `poll` returns what is new, `events` holds what counts so far, in order.

    Torn lines are dropped, and steps that a resume repeats are superseded.
    """

    def __init__(self, path: Path):
        self.path = path
        self.events: list[Event] = []
        self._offset = 0  # bytes read so far: always the start of a line

    def poll(self) -> list[Event]:
        """The events since the last poll; a `Resumed` among them has already cut `events`."""
        if not self.path.is_file():
            return []
        with self.path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        end = data.rfind(b"\n") + 1  # a last line without its newline is torn, or still being written
        self._offset += end
        new = [event for line in data[:end].split(b"\n")[:-1] if (event := _parse(line))]
        for event in new:
            if isinstance(event, Resumed):
                self.events = [earlier for earlier in self.events if not _superseded(earlier, event)]
            self.events.append(event)
        return new


def _superseded(earlier: Event, resumed: Resumed) -> bool:
    # A kill can come between Finished and the status that says so: then the end is recorded again.
    return getattr(earlier, "step", 0) > resumed.step or isinstance(earlier, LoraChecked | Finished)


def _parse(line: bytes) -> Event | None:
    timed = _parse_timed(line)
    return timed[1] if timed else None


def _parse_timed(line: bytes) -> tuple[float, Event] | None:
    try:
        fields = json.loads(line)
        kind, written = EVENTS[fields.pop("event")], float(fields.pop("time", 0))
        return written, make_value(kind, fields)
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
    ):  # torn by a kill, of another version, or by a hand
        return None


def read_events(path: Path) -> list[Event]:
    """The events that count, in order; see `EventReader`."""
    reader = EventReader(path)
    reader.poll()
    return reader.events


def read_timed_events(path: Path) -> list[tuple[float, Event]]:
    """All events with when they were told, in seconds since 1970; none where there is no file."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    return [timed for line in lines if (timed := _parse_timed(line))]


def measured_in(events: Iterable[Event]) -> tuple[HealthMeasured, ...]:
    """The last measurement of every step, by step; the base model's own is step 0."""
    health = {event.step: event for event in events if isinstance(event, HealthMeasured)}
    return tuple(health[step] for step in sorted(health))
