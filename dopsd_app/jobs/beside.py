"""Drawing while a run trains: its process has the base model in memory, and draws between two steps.

What it can draw is an offer in the run's folder. Who asks for more is told why not, and when it will be free.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from dopsd_app.config import TrainConfig
from dopsd_app.files import make_value, replace_file, retry
from dopsd_app.jobs.card import what_computes
from dopsd_app.jobs.events import StepDone, read_events
from dopsd_app.jobs.job import RunError, kind_or_none
from dopsd_app.jobs.kinds import TRAIN
from dopsd_app.jobs.promise import measured_pace, read_promise
from dopsd_app.jobs.queue import is_card_to_spare, statuses
from dopsd_app.jobs.runs import Run
from dopsd_app.models.architecture import UNTAUGHT
from dopsd_app.models.base_download import needs_fetching
from dopsd_app.models.catalog import find_base_model, find_facts
from dopsd_app.progress import words_for_count, words_for_time
from dopsd_app.schema import check_schema, stamp, without_stamp

OFFER = "offer.json"  # in the folder of a run
SCHEMA = 1
SEEING = ("teacher_context", "teacher_picture_minimum", "teacher_picture_maximum")


@dataclass(frozen=True)
class Offer:
    """What a training's process can draw between its steps, by the base model that it has loaded."""

    quantization: str  # of the loaded weights
    resolution: int = 0  # pixels, at the most
    sources: int = 0  # pictures to start from, at the most
    lora_numbers: int = 0  # that a LoRA may have, at the most
    encoders_by_layer: bool = False  # whether there is room for one layer of them alone
    refusal: str = ""  # why it draws nothing: what follows "it is being trained, and"


@dataclass(frozen=True)
class Wanted:
    """What a drawing needs."""

    config: TrainConfig  # with the weights that its LoRA was trained on
    sources: int = 0  # pictures to start from
    teaches: bool = False  # whether it shows what the teacher sees; else what a LoRA draws


def keep_offer(run: Run, offer: Offer) -> None:
    """Puts it into the run's folder."""
    replace_file(run.path / OFFER, json.dumps({**stamp(SCHEMA), **asdict(offer)}))


def drop_offer(run: Run) -> None:
    """Takes back what the process before could draw: for one that begins, and has not loaded anything."""
    (run.path / OFFER).unlink(missing_ok=True)


def read_offer(run: Run) -> Offer | None:
    """What a run's process can draw; None before it has said so, or where that cannot be read."""
    try:
        fields = json.loads(retry((run.path / OFFER).read_bytes))
        check_schema(fields, SCHEMA, run.id)
        return make_value(Offer, without_stamp(fields))
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def check_room(runs_dir: Path, wanted: Wanted) -> None:
    """Raises `RunError` where nobody could draw this soon: with the reason, and when it will be free.

    Raises `BaseModelError` for a base model that cannot be read.
    """
    if is_card_to_spare(runs_dir):
        return
    trainings = [(Run(job.path), now) for job, now in statuses(runs_dir) if kind_or_none(job) == TRAIN]
    at_work = [run for run, status in trainings if status.live]
    refusals = [(run, why_not(run, read_offer(run), wanted)) for run in at_work]
    if any(not reason for _, reason in refusals):
        return
    begins = any(read_offer(run) is None for run in at_work)
    for run, reason in refusals:
        when = "Draw when it has done its first step." if begins else when_free(runs_dir)
        raise RunError(f"{run.id} is being trained, and {reason}. {when}")
    for run, status in trainings:
        if status.busy:
            raise RunError(f"{run.id} waits to be trained. Draw when it is at its steps, or take it back.")
    if computes := what_computes():
        raise RunError(f"{computes} is at work, and one job runs at a time. Draw when it has ended.")


def who_draws(runs_dir: Path, wanted: Wanted) -> Run | None:
    """The run at work whose process can draw this between two steps; None where there is none."""
    for job, now in statuses(runs_dir):
        if now.live and kind_or_none(job) == TRAIN:
            run = Run(job.path)
            if not why_not(run, read_offer(run), wanted):
                return run
    return None


def why_not(run: Run, offer: Offer | None, wanted: Wanted) -> str:
    """Why a run's process cannot draw this: what follows "it is being trained, and"; empty where it can."""
    if offer is None:
        return "has not come to its first step"
    return offer.refusal or next(_differences(run.config, offer, wanted), "")


def _differences(trained: TrainConfig, offer: Offer, wanted: Wanted) -> Iterator[str]:
    config = wanted.config
    context = config.teacher_context if wanted.teaches else UNTAUGHT
    if needs_fetching(config.base_model, config.revision, context):
        yield "this needs a base model, or a part of one, that is not here yet"
    if not _same_base(trained, config):
        yield "this needs another base model"
    if config.quantization not in ("auto", offer.quantization):
        yield f"its base model is loaded in other weights than this needs ({config.quantization})"
    if wanted.teaches and any(getattr(config, name) != getattr(trained, name) for name in SEEING):
        yield "its teacher sees pictures in another way than this one"
    if config.resolution > offer.resolution:
        yield f"there is room for pictures of {offer.resolution} pixels beside it, not of {config.resolution}"
    if wanted.sources > offer.sources:
        many = words_for_count(offer.sources, "source picture") if offer.sources else "no source picture"
        yield f"there is room for {many} beside it, not for {wanted.sources}"
    numbers = find_facts(config.base_model, config.revision).sizes_for(config).lora_parameters(config.rank)
    if not wanted.teaches and numbers > offer.lora_numbers:
        yield f"there is no room for a second LoRA of rank {config.rank} beside it"


def _same_base(trained: TrainConfig, config: TrainConfig) -> bool:
    """Whether it is the very folder that is loaded, in the same precision and place."""
    if (config.precision, config.device) != (trained.precision, trained.device):
        return False
    loaded = find_base_model(trained.base_model, trained.revision, UNTAUGHT)
    return find_base_model(config.base_model, config.revision, UNTAUGHT).folder == loaded.folder


def when_free(runs_dir: Path, how_to_stop: str = "") -> str:
    """A sentence: when the trainings of this folder, those that wait included, will have ended."""
    runs = [Run(job.path) for job, now in statuses(runs_dir) if now.busy and kind_or_none(job) == TRAIN]
    others = words_for_count(len(runs) - 1, "training")
    all_of_them = f"It, with {others} that {'wait' if len(runs) > 2 else 'waits'}," if runs[1:] else "It"
    seconds = [_seconds_left(run) for run in runs]
    if not seconds or None in seconds:
        return f"Draw when it has ended, or stop it{how_to_stop}."
    left = words_for_time(max(1.0, sum(each for each in seconds if each)))
    return f"{all_of_them} will have ended in {left}; or stop it{how_to_stop}."


def _seconds_left(run: Run) -> float | None:
    """Of a run that is at work or waits; None where nothing is known."""
    status, promise = run.status, read_promise(run.path)
    steps = [event for event in read_events(run.events_file) if isinstance(event, StepDone)]
    pace = measured_pace(steps) or (promise.seconds_per_step if promise else None)
    if pace is None:
        return None
    left = status.steps - status.step
    loading = promise.loading if promise and not (status.live and steps) else 0.0
    return loading + (promise.seconds_left(left, pace) if promise else left * pace)
