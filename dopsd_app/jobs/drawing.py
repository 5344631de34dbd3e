"""Asking for pictures: a LoRA's, or the teacher's before any training. A warm worker draws them."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from dopsd_app.config import TrainConfig, make_config
from dopsd_app.jobs.beside import Wanted, check_room
from dopsd_app.jobs.job import Job, RunError, create_job, find_job, kind_or_none, start_lock, sweep
from dopsd_app.jobs.kept_plan import read_kept_plan
from dopsd_app.jobs.kinds import CHECK_TEACHER, DRAW
from dopsd_app.jobs.lora_file import find_lora
from dopsd_app.jobs.queue import put_in_queue, send_command, start_next, statuses
from dopsd_app.jobs.runs import Run, known_run
from dopsd_app.models import catalog
from dopsd_app.models.catalog import full_name

MAX_DRAWINGS = 30  # drawings of each kind; older ones are swept away when a new one is asked for


@dataclass(frozen=True)
class PictureRequest:
    """One prompt drawn twice from the same noise, without the LoRA and with it: base.png and lora.png."""

    run_id: str
    prompt: str
    seed: int
    strength: float = 1.0  # of the LoRA
    checkpoint: int | None = None  # its step; None: the finished LoRA, or the newest checkpoint


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
                return PictureRequest(**self.request)
            return CheckRequest(make_config(self.request["config"]), Path(self.request["folder"]))
        except (TypeError, KeyError) as error:
            raise RunError(f"{self.id} cannot be read: its job.json is damaged. Ask for it again.") from error

    def asked_for(self, kind: type[Request]) -> Request:
        """What was asked for, where it is of this kind; `RunError` where it is not."""
        if not isinstance(asked := self.asked, kind):
            raise RunError(f"{self.id} is another kind of drawing. Ask for it again.")
        return asked

    @property
    def sources(self) -> list[Path]:
        """The pictures that it starts from."""
        return sorted(self.path.glob("source_*.png"))

    @property
    def base(self) -> Path:
        return self.path / "base.png"

    @property
    def lora(self) -> Path:
        return self.path / "lora.png"


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
        find_lora(run, request.checkpoint)
        check_sources(run, len(sources))
        kind = DRAW
    pictures = [load_picture(source) for source in sources]
    wanted = wanted_by(runs_dir, request, len(pictures))
    runs_dir.mkdir(parents=True, exist_ok=True)
    with start_lock(runs_dir):
        check_room(runs_dir, wanted)
        sweep(runs_dir, kind, MAX_DRAWINGS - 1)
        job = create_job(runs_dir, kind, asdict(request))
        for number, picture in enumerate(pictures, start=1):
            picture.save(job.path / f"source_{number}.png", compress_level=1)
        put_in_queue(job)
    start_next(runs_dir)
    return Drawing(job.path)


def read_drawing(runs_dir: Path, id: str) -> Drawing:
    """The picture or check of this id; `RunError` when there is none, or none any more."""
    return Drawing(find_job(runs_dir, id, DRAW, CHECK_TEACHER).path)


def cancel(drawing: Drawing) -> None:
    """Takes a waiting drawing back at once; one that is being drawn ends after the picture at hand."""
    if drawing.status.busy:
        send_command(drawing, "stop")


def last_drawing(run: Run) -> Drawing | None:
    """The newest picture of a run's LoRA, while it is kept and was drawn with the LoRA of today."""
    for job, status in reversed(statuses(run.runs_dir)):
        if status.state != "finished" or kind_or_none(job) != DRAW:
            continue
        with suppress(RunError):  # damaged, or its LoRA is gone
            drawing = Drawing(job.path)
            asked = drawing.asked_for(PictureRequest)
            if asked.run_id == run.id:
                trained = find_lora(run, asked.checkpoint).stat().st_mtime
                return drawing if drawing.lora.stat().st_mtime > trained else None
    return None


def unfinished_drawings(runs_dir: Path) -> list[Drawing]:
    """The drawings that wait or are being drawn, oldest first."""
    return [
        Drawing(job.path)
        for job, status in statuses(runs_dir)
        if status.busy and kind_or_none(job) in (DRAW, CHECK_TEACHER)
    ]
