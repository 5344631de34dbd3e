"""What a LoRA draws and what the teacher sees: for the command line, and as jobs of a warm worker."""

import json
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path

from diffusers.training_utils import free_memory
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dopsd_app.check_base import fetch_and_check
from dopsd_app.checks.teacher_check import teacher_check
from dopsd_app.checks.verdict import CHECK_FILE
from dopsd_app.config import TrainConfig
from dopsd_app.data.pictures import hash_pixels, read_examples
from dopsd_app.errors import KnownFailure
from dopsd_app.files import replace_file
from dopsd_app.jobs.drawing import BASE, CheckRequest, Column, Drawing, PictureRequest, Row, check_sources
from dopsd_app.jobs.events import Event
from dopsd_app.jobs.job import Job
from dopsd_app.jobs.kept_plan import KeptPlan, read_kept_plan
from dopsd_app.jobs.lora_file import check_intact, find_lora, read_facts
from dopsd_app.jobs.runs import Run, known_run
from dopsd_app.method.encode import read_sources
from dopsd_app.models.architecture import UNTAUGHT
from dopsd_app.models.base_download import fetch_base_model, needs_fetching
from dopsd_app.models.catalog import public_name
from dopsd_app.models.load import choose_device
from dopsd_app.models.loaded_model import LoadedModel
from dopsd_app.planning.plan import plan_drawing
from dopsd_app.progress import PhaseProgress

BASE_PICTURES = 16  # of the base that a warm worker remembers: some megabytes each


def generate(
    run: Run,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    out: Path,
    strength: float = 1.0,
    checkpoint: int | None = None,
    base_too: bool = False,
    sources: Sequence[Path] = (),
) -> Iterator[Path]:
    """Draws every prompt with every seed: the official pipeline, the run's LoRA, the native step count.

    `checkpoint` takes the LoRA of that step instead of the finished one (or of the newest checkpoint);
    `base_too` draws the same noise without the LoRA as well; `sources` are the pictures to start from, where
    the base model edits. Yields each PNG file in `out`. Raises `KnownFailure` where there is no LoRA, and for
    pictures that it cannot start from.
    """
    config, column = run.config, Column(checkpoint, strength)
    lora = find_lora(run, checkpoint)  # what is not there, or damaged, raises before anything is loaded
    check_intact(run, lora)
    check_sources(run, len(sources))
    model = LoadedModel(config, plan_drawing(config, read_kept_plan(run.path)), teaches=False)
    pictures = read_sources(sources, config, model.base_model)
    rows = [Row(prompt, seed) for prompt in prompts for seed in seeds]
    columns = (column, BASE)[: 1 + base_too]
    out.mkdir(parents=True, exist_ok=True)
    variant = "" if lora == run.lora_file else f"_step{int(lora.parent.name)}"
    variant += f"_strength{strength:g}" if strength != 1 else ""
    source = f"-from-{_file_name(sources[0].stem)}" if sources else ""
    for row, place, picture in draw_cells(model, run, rows, columns, pictures):
        number, seed = 1 + row // len(seeds), rows[row].seed
        name = f"{number}-{_file_name(rows[row].prompt)}{source}_{seed}"
        file = out / f"{name}{'_base' if place else variant}.png"
        _save(picture, file, _facts(run, rows[row], columns[place]))
        yield file


def draw_cells(
    model: LoadedModel,
    run: Run,
    rows: Sequence[Row],
    columns: Sequence[Column],
    sources: Sequence[Image.Image] = (),
    draw_base: Callable[[Row, Callable[[], Image.Image]], Image.Image] = lambda row, draw: draw(),
) -> Iterator[tuple[int, int, Image.Image]]:
    """Draws every row with every column; yields the places of row and column, and the picture.

    Each prompt is encoded once, and each LoRA file loaded once: row by row, all that one file draws.
    `draw_base` may know what the base draws of a row. Raises `KnownFailure` for a LoRA that is not there or
    is damaged.
    """
    config = run.config
    conditionings = model.encode([row.prompt for row in rows])
    model.load_transformer()
    for lora, places in _by_file(run, columns):
        if lora and not model.has_lora(lora):
            check_intact(run, lora)
        for number, (row, conditioning) in enumerate(zip(rows, conditionings, strict=True)):
            for place in places:
                strength = columns[place].strength
                if lora and strength:
                    model.load_lora(lora, strength)
                draw = partial(
                    model.draw, conditioning, config, row.seed, with_lora=bool(strength), sources=sources
                )
                yield number, place, draw() if strength else draw_base(row, draw)


def _by_file(run: Run, columns: Sequence[Column]) -> list[tuple[Path | None, list[int]]]:
    """The places of the columns by the LoRA file that they need; the base's are with the first."""
    files: dict[Path, list[int]] = {}
    for place, column in enumerate(columns):
        if column.strength:
            files.setdefault(find_lora(run, column.checkpoint), []).append(place)
    bases = [place for place, column in enumerate(columns) if not column.strength]
    if not files:
        return [(None, bases)]
    (first, places), *others = files.items()
    return [(first, sorted(bases + places)), *others]


def _facts(run: Run, row: Row, column: Column) -> dict:
    """What a picture's file tells of it."""
    lora = find_lora(run, column.checkpoint) if column.strength else None
    step = read_facts(lora).get("steps") if lora else None
    return {
        "run": run.id,
        "base_model": public_name(run.config.base_model),
        "prompt": row.prompt,
        "seed": row.seed,
        "step": step,
        "strength": column.strength,
        "num_inference_steps": run.config.num_inference_steps,
    }


def _save(picture: Image.Image, file: Path, facts: dict) -> None:
    """Saves a picture as PNG with its facts in it, as JSON; never half of it."""
    told = PngInfo()
    told.add_text("dopsd", json.dumps(facts))
    content = BytesIO()
    picture.save(content, format="PNG", pnginfo=told)
    replace_file(file, content.getvalue())


def _file_name(prompt: str) -> str:
    return re.sub(r"\W+", "-", prompt.lower()).strip("-")[:60] or "picture"


# --- jobs of the warm worker


class DrawingCache:
    """What a warm worker keeps from one drawing to the next: the loaded base and its last own pictures."""

    def __init__(self):
        self.model: LoadedModel | None = None
        self.base_pictures: dict[tuple, Image.Image] = {}  # by what they were drawn for, the last at the end

    def model_for(
        self, config: TrainConfig, kept: KeptPlan | None = None, *, teaches: bool = False
    ) -> LoadedModel:
        """The model of a configuration's base: the one that is loaded, where it matches.

        A LoRA is drawn with on the weights that it was trained on, as its run's plan tells.
        """
        if kept:
            config = replace(config, quantization=kept.plan.quantization)
        if self.model is None or not self.model.matches(config, teaches=teaches):
            self.clear()  # before the next one needs the memory
            self.model = LoadedModel(config, plan_drawing(config), teaches=teaches)
        return self.model

    def clear(self) -> None:
        """Gives the memory back."""
        self.model = None
        self.base_pictures.clear()
        free_memory()

    def base_of(
        self, config: TrainConfig, sources: Sequence[Image.Image]
    ) -> Callable[[Row, Callable[[], Image.Image]], Image.Image]:
        """For `draw_cells`: the base's pictures of the last rows, which no LoRA changes, are remembered."""
        pixels = tuple(hash_pixels(source) for source in sources)
        same = (config.num_inference_steps, config.resolution, pixels)

        def draw_base(row: Row, draw: Callable[[], Image.Image]) -> Image.Image:
            picture = self.base_pictures.pop((row, *same), None) or draw()
            self.base_pictures[row, *same] = picture
            for oldest in list(self.base_pictures)[:-BASE_PICTURES]:
                del self.base_pictures[oldest]
            return picture

        return draw_base


drawing_cache = DrawingCache()  # this process serves one job after the other


@contextmanager
def _nothing_half_loaded() -> Generator[None]:
    """After an unexpected failure the next job loads anew: what is there may be half of it."""
    try:
        yield
    except KnownFailure:
        raise
    except Exception:
        drawing_cache.clear()
        raise


def draw(job: Job) -> Generator[Event, None, dict]:
    """A job's pictures: every row of its request with every column, told one by one."""
    drawing = Drawing(job.path)
    request = drawing.asked_for(PictureRequest)
    run = known_run(job.runs_dir, request.run_id)
    config = run.config
    yield PhaseProgress("loading", 0, 2)
    choose_device(config)
    yield from fetch_base_model(config.base_model, config.revision, UNTAUGHT)
    with _nothing_half_loaded():
        model = drawing_cache.model_for(config, read_kept_plan(run.path))
        sources = read_sources(drawing.sources, config, model.base_model)
        yield PhaseProgress("loading", 1, 2)
        rows, columns = request.rows, request.columns
        model.encode([row.prompt for row in rows])
        model.load_transformer()
        yield PhaseProgress("drawing", 0, request.cells)
        draw_base = drawing_cache.base_of(config, sources)
        cells = draw_cells(model, run, rows, columns, sources, draw_base)
        for done, (row, column, picture) in enumerate(cells, start=1):
            _save(picture, drawing.cell(row, column), _facts(run, rows[row], columns[column]))
            yield PhaseProgress("drawing", done, request.cells)
    return {"pictures": request.cells}


def check_teacher(job: Job) -> Generator[Event, None, dict]:
    """A job's check of what the teacher sees; its pictures and CHECK_FILE appear in the job's folder."""
    request = Drawing(job.path).asked_for(CheckRequest)
    yield PhaseProgress("loading", 0, 3)
    config = request.config
    choose_device(config)
    if needs_fetching(config.base_model, config.revision, config.teacher_context):
        drawing_cache.clear()  # the check of what is fetched loads it beside what is loaded
    yield from fetch_and_check(config, job.runs_dir)
    with _nothing_half_loaded():
        examples = read_examples(request.folder, minimum_side=request.config.minimum_side).examples
        model = drawing_cache.model_for(config, teaches=True)
        yield from teacher_check(model, config, examples, job.path)
    return {"check": CHECK_FILE}
