"""What the list of runs says of each: plain values, of which the browser makes its rows."""

import re
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from dopsd_app.config import ConfigError, TrainConfig, load_preset
from dopsd_app.data.run_settings import draft_settings
from dopsd_app.jobs.card import read_holder
from dopsd_app.jobs.drawing import Drawing, waits_for
from dopsd_app.jobs.job import Job
from dopsd_app.jobs.kinds import CHECK_BASE, CHECK_TEACHER, DRAW, TRAIN
from dopsd_app.jobs.queue_place import Place, queue_places
from dopsd_app.jobs.run_notes import NAME, NOTES, name_of, read_notes
from dopsd_app.jobs.runs import Run
from dopsd_app.jobs.status import Status
from dopsd_app.jobs.watch import RunView
from dopsd_app.jobs.worked_time import worked_seconds
from dopsd_app.models.catalog import CATALOG
from dopsd_app.ui import words
from dopsd_app.ui.run_actions import watcher

KINDS = {"failed": "bad", "interrupted": "bad", "finished": "good"}
THUMBNAIL = 256  # pixels: twice of what is shown, for screens with as many
LONGEST_NOTE = 80  # characters of the notes' first line
NAMED = 3  # jobs before one in the queue; the others are counted
ORDINALS = ("First", "Second", "Third", "Fourth", "Fifth", "Sixth", "Seventh", "Eighth", "Ninth", "Tenth")
OTHER_JOBS = {
    DRAW.name: "a drawing",
    CHECK_TEACHER.name: "a check of the teacher",
    CHECK_BASE.name: "a check of a base model",
}
# Samples of a step, the best to show small first; the last is the sheet that earlier versions made.
SAMPLES = ("thumbnail.jpeg", "sample_0.webp", "samples.webp")
SAMPLE = re.compile(rf"(\d+)_({'|'.join(map(re.escape, SAMPLES))})")


def rows(known: Iterable[tuple[Run, Status]]) -> list[dict]:
    """A row for each run. What changes all the time of those at work, `live_words` tells."""
    found = []
    for run, status in known:
        facts = [] if status.busy else [*_steps(status), *_worked(run)]
        found.append(
            {
                **_about(run, _stamp(run)),
                "state": words.STATES[status.state],
                "kind": "busy" if status.busy else KINDS.get(status.state, ""),
                "facts": " · ".join(facts),
            }
        )
    return found


def live_words(known: Iterable[tuple[Run, Status]]) -> dict[str, tuple[str, float]]:
    """Of each run that is at work or waits: how far it is, or its place, in words; and the share done."""
    busy = [(run, status) for run, status in known if status.busy]
    places = queue_places(busy[0][0].runs_dir, _seconds_left) if busy else {}
    found = {}
    for run, status in busy:
        if status.state != "queued":
            with suppress(FileNotFoundError):  # just being deleted
                found[run.id] = _at_work(run, watcher.read(run))
        elif run.id in places:
            found[run.id] = (in_queue(places[run.id]), 0.0)
    return found


def waiting_words(drawing: Drawing) -> str:
    """What a drawing in the queue waits for."""
    if run := waits_for(drawing):
        return f"Waits for the next step of {name_of(run)}"
    place = queue_places(drawing.runs_dir, _seconds_left).get(drawing.id)
    return in_queue(place) if place else "Waiting"


def in_queue(place: Place) -> str:
    """A place in the queue in words: "Third in the queue, after zorp and a check of the teacher"."""
    if not place.before:
        holder = read_holder()
        return "Next in the queue" + (", after a job of another folder" if holder and not holder.warm else "")
    number = ORDINALS[place.number - 1] if place.number <= len(ORDINALS) else f"Number {place.number}"
    time = f": {words.in_time(place.seconds)}" if place.seconds else ""
    return f"{number} in the queue, after {listed([_job_words(job) for job in place.before])}{time}"


def listed(names: list[str]) -> str:
    """Some names in a sentence: of many, the first and how many more there are."""
    if len(names) > NAMED + 1:
        names = [*names[:NAMED], f"{len(names) - NAMED} others"]
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _job_words(job: Job) -> str:
    return name_of(Run(job.path)) if job.kind == TRAIN else OTHER_JOBS.get(job.kind.name, "another job")


def _seconds_left(job: Job) -> float | None:
    with suppress(FileNotFoundError):
        return watcher.read(Run(job.path)).seconds_left
    return None


def _at_work(run: Run, view: RunView) -> tuple[str, float]:
    status = view.status
    facts = _steps(status) + _worked(run)
    if view.seconds_left is not None:
        facts.append(f"{words.in_time(view.seconds_left)} left")
    return " · ".join(facts), round(status.step / status.steps, 3) if status.steps else 0.0


def _steps(status: Status) -> list[str]:
    return [f"Step {status.step} of {status.steps}"] if status.steps and status.step else []


def _worked(run: Run) -> list[str]:
    seconds = worked_seconds(run)
    return [words.in_time(seconds).removeprefix("about ")] if seconds >= 1 else []


# --- what seldom changes


def _stamp(run: Run) -> tuple[int, ...]:
    """Another one when `_about` would say something else."""
    return tuple(
        map(
            _changed, (run.path / "config.json", run.path / NAME, run.path / NOTES, run.previews, run.dataset)
        )
    )


def _changed(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=2048)
def _about(run: Run, stamp: tuple[int, ...]) -> dict[str, str]:
    name, notes = name_of(run), read_notes(run)
    sample = newest_sample(run)
    try:
        config = run.config
        base, preset, trigger = base_label(config), preset_label(run, config), config.trigger_word
    except ConfigError:
        base, preset, trigger = "Of another version of this program", "", ""
    first_line = next((line.strip() for line in notes.splitlines() if line.strip()), "")
    return {
        "id": run.id,
        "name": name,
        "made": _made(run),
        "about": " · ".join(filter(None, (base, preset))),
        "note": first_line[: LONGEST_NOTE - 1] + "…" if len(first_line) > LONGEST_NOTE else first_line,
        "found_by": "\n".join((name, trigger, notes)).lower(),
        "picture": words.image(sample, "", THUMBNAIL) if sample else "",
    }


def newest_sample(run: Run) -> Path | None:
    """The picture of its newest samples that tells it best from others; None before the first."""
    found = []
    for file in run.previews.glob("*_*"):
        if known := SAMPLE.fullmatch(file.name):
            found.append((int(known[1]), -SAMPLES.index(known[2]), file))
    return max(found)[2] if found else None


def base_label(config: TrainConfig) -> str:
    """The base model as the page calls it; one that is a person's own by the end of its name."""
    known = CATALOG.get(config.base_model)
    return known.label if known else config.base_model.replace("\\", "/").rstrip("/").rpartition("/")[2]


def preset_label(run: Run, config: TrainConfig) -> str:
    """What the run's preset is for."""
    label = load_preset(draft_settings(config, edits=run.sources > 0)["preset"]).label
    return label.rpartition(": ")[2]


def _made(run: Run) -> str:
    with suppress(ValueError):  # a folder that a hand has named
        made = datetime.strptime(run.id[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC).astimezone()
        return f"{made:%d %b %H:%M}"
    return ""
