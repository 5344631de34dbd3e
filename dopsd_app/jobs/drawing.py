"""Asking for pictures: a LoRA's, or the teacher's before any training. A warm worker draws them."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from dopsd_app.config import TrainConfig, make_config
from dopsd_app.errors import KnownFailure
from dopsd_app.files import cut_name, make_value
from dopsd_app.jobs.beside import Wanted, check_room, who_draws
from dopsd_app.jobs.job import (
    Job,
    RunError,
    create_job,
    find_job,
    kind_or_none,
    start_lock,
    sweep,
    sweep_bytes,
)
from dopsd_app.jobs.kept_plan import read_kept_plan
from dopsd_app.jobs.kinds import CHECK_TEACHER, DRAW
from dopsd_app.jobs.lora_file import find_lora
from dopsd_app.jobs.queue import put_in_queue, send_command, start_next, statuses
from dopsd_app.jobs.runs import Run, known_run
from dopsd_app.jobs.status import Status
from dopsd_app.models import catalog
from dopsd_app.models.catalog import full_name

# Older ones are swept away when a new one is asked for.
MAX_DRAWINGS = 30  # of each run's pictures; and of all checks of the teacher
MAX_BYTES = 2 * 10**9  # of all runs' pictures
MAX_PROMPTS = 8
MAX_SEEDS = 4  # for each prompt
MAX_CELLS = 64  # pictures of one drawing
MAX_STRENGTH = 1.5  # twice what was trained ruins any picture


@dataclass(frozen=True)
class Column:
    """What pictures are drawn with: a LoRA of the run, at a strength; at 0 that is the base model alone."""

    checkpoint: int | None = None  # its step; None: the finished LoRA, or the newest checkpoint
    strength: float = 1.0


BASE = Column(strength=0.0)


@dataclass(frozen=True)
class Row:
    """What the pictures of a row have in common, besides what they start from: a prompt, and the noise."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class PictureRequest:
    """Prompts with seeds, each drawn with all of the columns from the same noise.

    The smallest is one prompt with one seed, by the base and by a LoRA. `Drawing.cell` tells the files.
    """

    run_id: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    columns: tuple[Column, ...] = (BASE, Column())

    @property
    def rows(self) -> list[Row]:
        """Every prompt with every seed."""
        return [Row(prompt, seed) for prompt in self.prompts for seed in self.seeds]

    @property
    def cells(self) -> int:
        """How many pictures it is."""
        return len(self.prompts) * len(self.seeds) * len(self.columns)


@dataclass(frozen=True)
class CheckRequest:
    """What the teacher sees in up to 4 pictures of a folder, before any training.

    `verdict.rows_drawn` and `verdict.read_check` read what comes of it from the job's folder.
    """

    config: TrainConfig
    folder: Path  # pictures and captions


Request = TypeVar("Request", PictureRequest, CheckRequest)


@dataclass(frozen=True, eq=False)
class Drawing(Job):
    """A job that draws: a picture of a LoRA beside the base's, or a check of the teacher."""

    @property
    def asked(self) -> PictureRequest | CheckRequest:
        """What was asked for; `RunError` where that cannot be read."""
        try:
            if self.kind == DRAW:
                return make_value(PictureRequest, self.request)
            return CheckRequest(make_config(self.request["config"]), Path(self.request["folder"]))
        except (TypeError, KeyError, ValueError) as error:
            raise RunError(
                f"{self.id} cannot be read: an earlier version asked for it, or its job.json is damaged. Ask"
                " for it again."
            ) from error

    def asked_for(self, kind: type[Request]) -> Request:
        """What was asked for, where it is of this kind; `RunError` where it is not."""
        if not isinstance(asked := self.asked, kind):
            raise RunError(f"{self.id} is another kind of drawing. Ask for it again.")
        return asked

    @property
    def sources(self) -> list[Path]:
        """The pictures that it starts from."""
        return sorted(self.path.glob("source_*.png"))

    def cell(self, row: int, column: int) -> Path:
        """The picture in this place, counted from 0, once it is drawn."""
        return self.path / f"picture_{row + 1}_{column + 1}.png"

    @property
    def pictures(self) -> list[Path]:
        """All that are drawn."""
        return list(self.path.glob("picture_*.png"))


def check_sources(run: Run, sources: int) -> None:
    """Raises `KnownFailure` where a run's LoRA cannot start from so many pictures, or has to from one."""
    from dopsd_app.data.source_pictures import MAX_SOURCES  # brings Pillow

    if not sources and run.sources:
        raise RunError(
            "This LoRA was trained to edit pictures: give it the source picture that it is to start from."
        )
    if sources > MAX_SOURCES:
        raise RunError(f"It starts from {MAX_SOURCES} source pictures at most, not from {sources}.")
    catalog.check_sources(run.config.base_model, run.config.revision, sources)


def check_request(run: Run, request: PictureRequest) -> None:
    """Raises `KnownFailure` for pictures that the run cannot draw, or that would be too many at once."""
    if not any(prompt.strip() for prompt in request.prompts):
        raise KnownFailure("Write a prompt first.")
    if len(request.prompts) > MAX_PROMPTS:
        raise KnownFailure(
            f"There are {len(request.prompts)} prompts. Draw {MAX_PROMPTS} at most at a time: one a line."
        )
    if not 1 <= len(request.seeds) <= MAX_SEEDS:
        raise KnownFailure(f"Draw each prompt with 1 to {MAX_SEEDS} seeds, not with {len(request.seeds)}.")
    if len(request.columns) < 2 and not any(column.strength for column in request.columns):
        raise KnownFailure("Choose what to compare with the base: a step, and a strength.")
    strengths = [column.strength for column in request.columns]
    if not (
        all(0 <= seed < 2**32 for seed in request.seeds)
        and all(0 <= strength <= MAX_STRENGTH for strength in strengths)
    ):
        raise KnownFailure(f"The seed is from 0 to 2**32 - 1, and the strength from 0 to {MAX_STRENGTH}.")
    if request.cells > MAX_CELLS:
        raise KnownFailure(
            f"These are {request.cells} pictures: {len(request.rows)} rows of {len(request.columns)}. Draw"
            f" {MAX_CELLS} at most at a time: leave out a prompt, a step, a strength or a seed."
        )
    for column in request.columns:
        find_lora(run, column.checkpoint)


def wanted_by(runs_dir: Path, request: PictureRequest | CheckRequest, sources: int) -> Wanted:
    """What a request needs; of a LoRA's picture, `sources` is how many pictures it starts from."""
    if isinstance(request, CheckRequest):
        from dopsd_app.data.source_pictures import count_copies  # brings Pillow

        return Wanted(request.config, count_copies(request.folder), teaches=True)
    run = known_run(runs_dir, request.run_id)
    config, kept = run.config, read_kept_plan(run.path)
    if kept:
        config = replace(config, quantization=kept.plan.quantization)
    return Wanted(config, sources)


def ask(runs_dir: Path, request: PictureRequest | CheckRequest, sources: Sequence[Path] = ()) -> Drawing:
    """Puts a request before the warm worker, and starts the worker where there is none.

    While a run trains, its process draws between two steps. `sources` are the pictures to start from: the job
    gets copies of its own, of their pixels only. Raises `RunError` where the run's process cannot draw this,
    while one waits to be trained, and for a LoRA that is not there.
    """
    from dopsd_app.data.picture_file import load_picture  # brings Pillow

    runs_dir = runs_dir.absolute()
    if isinstance(request, CheckRequest):
        # The worker has another current folder.
        config = replace(request.config, base_model=full_name(request.config.base_model))
        request, kind = replace(request, config=config, folder=request.folder.absolute()), CHECK_TEACHER
    else:
        run = known_run(runs_dir, request.run_id)
        check_request(run, request)
        check_sources(run, len(sources))
        kind = DRAW
    pictures = [load_picture(source) for source in sources]
    wanted = wanted_by(runs_dir, request, len(pictures))
    runs_dir.mkdir(parents=True, exist_ok=True)
    with start_lock(runs_dir):
        check_room(runs_dir, wanted)
        if isinstance(request, PictureRequest):
            sweep(runs_dir, kind, MAX_DRAWINGS - 1, lambda job: job.request.get("run_id") == request.run_id)
            sweep_bytes(runs_dir, kind, MAX_BYTES)
        else:
            sweep(runs_dir, kind, MAX_DRAWINGS - 1)
        job = create_job(runs_dir, kind, asdict(request))
        for number, picture in enumerate(pictures, start=1):
            picture.save(job.path / f"source_{number}.png", compress_level=1)
        put_in_queue(job)
    start_next(runs_dir)
    return Drawing(job.path)


def file_stem(number: int, row: Row, sources: Sequence[Path]) -> str:
    """How the file of a row's picture is called for a person; the number is the prompt's, from 1."""
    source = f"-from-{_file_name(sources[0].stem)}" if sources else ""
    return f"{number}-{_file_name(row.prompt)}{source}_{row.seed}"


def file_variant(run: Run, column: Column) -> str:
    """What follows that where another LoRA than the finished one draws, or at another strength."""
    lora = find_lora(run, column.checkpoint)
    variant = "" if lora == run.lora_file else f"_step{int(lora.parent.name)}"
    return variant + (f"_strength{column.strength:g}" if column.strength != 1 else "")


def _file_name(text: str) -> str:
    return cut_name(re.sub(r"\W+", "-", text.lower()).strip("-")[:60], 90) or "picture"


def read_drawing(runs_dir: Path, id: str) -> Drawing:
    """The picture or check of this id; `RunError` when there is none, or none any more."""
    return Drawing(find_job(runs_dir, id, DRAW, CHECK_TEACHER).path)


def follow(drawing: Drawing) -> Status:
    """How a drawing stands, for who waits for it: while it is in the queue, a card may have become free.

    Nobody else looks where the one who was to draw it was killed.
    """
    if (status := drawing.status).state == "queued":
        start_next(drawing.runs_dir)
        status = drawing.status
    return status


def waits_for(drawing: Drawing) -> Run | None:
    """The run whose process will draw it after its next step; None where that is another one's affair."""
    with suppress(KnownFailure, OSError):  # what it needs is gone, or cannot be read
        wanted = wanted_by(drawing.runs_dir, drawing.asked, len(drawing.sources))
        return who_draws(drawing.runs_dir, wanted)
    return None


def cancel(drawing: Drawing) -> None:
    """Takes a waiting drawing back at once; one that is being drawn ends after the picture at hand."""
    if drawing.status.busy:
        send_command(drawing, "stop")


def list_drawings(run: Run) -> list[Drawing]:
    """What was drawn with a run's LoRA, as far as it is kept, the newest first.

    What was cancelled or cut off is there with the pictures that it had made, and so is what the run's LoRA
    does not draw any more (`is_of_today`).
    """
    found = []
    for job, status in reversed(statuses(run.runs_dir)):
        if status.busy or kind_or_none(job) != DRAW:
            continue
        with suppress(RunError, OSError):  # damaged, or of an earlier version
            drawing = Drawing(job.path)
            if drawing.pictures and drawing.asked_for(PictureRequest).run_id == run.id:
                found.append(drawing)
    return found


def is_of_today(run: Run, drawing: Drawing) -> bool:
    """Whether its pictures are of the run's LoRA files as they are now: it was not trained further since."""
    asked = drawing.asked_for(PictureRequest)
    try:
        loras = [find_lora(run, column.checkpoint) for column in asked.columns if column.strength]
        drawn = min(picture.stat().st_mtime for picture in drawing.pictures)
        return all(lora.stat().st_mtime <= drawn for lora in loras)
    except (RunError, OSError, ValueError):  # a LoRA or a picture is gone
        return False


def unfinished_drawings(runs_dir: Path) -> list[Drawing]:
    """The drawings that wait or are being drawn, oldest first."""
    return [
        Drawing(job.path)
        for job, status in statuses(runs_dir)
        if status.busy and kind_or_none(job) in (DRAW, CHECK_TEACHER)
    ]
