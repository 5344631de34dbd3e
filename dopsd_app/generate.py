"""What a LoRA draws and what the teacher sees: for the command line, and as jobs of a warm worker."""

import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from diffusers.training_utils import free_memory
from PIL import Image

from dopsd_app.check_base import fetch_and_check
from dopsd_app.checks.previews import save_picture
from dopsd_app.checks.teacher_check import teacher_check
from dopsd_app.checks.verdict import CHECK_FILE
from dopsd_app.config import TrainConfig
from dopsd_app.data.pictures import hash_pixels, read_examples
from dopsd_app.errors import KnownFailure
from dopsd_app.jobs.drawing import CheckRequest, Drawing, PictureRequest, check_sources
from dopsd_app.jobs.events import Event
from dopsd_app.jobs.job import Job
from dopsd_app.jobs.kept_plan import KeptPlan, read_kept_plan
from dopsd_app.jobs.lora_file import check_intact, find_lora
from dopsd_app.jobs.runs import Run, known_run
from dopsd_app.method.encode import read_sources
from dopsd_app.models.architecture import UNTAUGHT
from dopsd_app.models.base_download import fetch_base_model, needs_fetching
from dopsd_app.models.load import choose_device
from dopsd_app.models.loaded_model import LoadedModel
from dopsd_app.models.protocol import Conditioning
from dopsd_app.planning.plan import plan_drawing
from dopsd_app.progress import PhaseProgress


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
    config = run.config
    lora = find_lora(run, checkpoint)  # what is not there, or damaged, raises before anything is loaded
    check_intact(run, lora)
    check_sources(run, len(sources))
    model = LoadedModel(config, plan_drawing(config, read_kept_plan(run.path)), teaches=False)
    pictures = read_sources(sources, config, model.base_model)
    conditionings = model.encode(prompts)
    model.load_transformer()
    model.load_lora(lora, strength)
    out.mkdir(parents=True, exist_ok=True)
    variant = "" if lora == run.lora_file else f"_step{int(lora.parent.name)}"
    variant += f"_strength{strength:g}" if strength != 1 else ""
    source = f"-from-{_file_name(sources[0].stem)}" if sources else ""
    for number, (prompt, conditioning) in enumerate(zip(prompts, conditionings, strict=True), start=1):
        for seed in seeds:
            name = f"{number}-{_file_name(prompt)}{source}_{seed}"
            for suffix, with_lora in ((variant, True), ("_base", False))[: 1 + base_too]:
                file = out / f"{name}{suffix}.png"
                model.draw(conditioning, config, seed, with_lora, pictures).save(file)
                yield file


def _file_name(prompt: str) -> str:
    return re.sub(r"\W+", "-", prompt.lower()).strip("-")[:60] or "picture"


# --- jobs of the warm worker


class DrawingCache:
    """What a warm worker keeps from one drawing to the next: the loaded base and its last own picture."""

    def __init__(self):
        self.model: LoadedModel | None = None
        self.base_picture: tuple[tuple, Image.Image] | None = None  # what it was drawn for, and the picture

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
        self.model = self.base_picture = None
        free_memory()

    def draw_base(
        self,
        model: LoadedModel,
        conditioning: Conditioning,
        config: TrainConfig,
        request: PictureRequest,
        sources: Sequence[Image.Image],
    ) -> Image.Image:
        """The base's picture, remembered: another strength of the LoRA leaves it as it is."""
        pixels = tuple(hash_pixels(source) for source in sources)
        key = (request.prompt, request.seed, config.num_inference_steps, config.resolution, pixels)
        if self.base_picture is None or self.base_picture[0] != key:
            picture = model.draw(conditioning, config, request.seed, with_lora=False, sources=sources)
            self.base_picture = key, picture
        return self.base_picture[1]


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
    """A job's two pictures of one prompt from the same noise: base.png, and lora.png with a run's LoRA."""
    drawing = Drawing(job.path)
    request = drawing.asked_for(PictureRequest)
    run = known_run(job.runs_dir, request.run_id)
    config = run.config
    yield PhaseProgress("loading", 0, 3)
    choose_device(config)
    yield from fetch_base_model(config.base_model, config.revision, UNTAUGHT)
    with _nothing_half_loaded():
        model = drawing_cache.model_for(config, read_kept_plan(run.path))
        sources = read_sources(drawing.sources, config, model.base_model)
        conditioning = model.encode([request.prompt])[0]
        yield PhaseProgress("loading", 1, 3)
        model.load_transformer()
        yield PhaseProgress("loading", 2, 3)
        lora = find_lora(run, request.checkpoint)
        if not model.has_lora(lora):
            check_intact(run, lora)
        model.load_lora(lora, request.strength)
        yield PhaseProgress("drawing", 0, 2)
        base = drawing_cache.draw_base(model, conditioning, config, request, sources)
        save_picture(base, drawing.base)
        yield PhaseProgress("drawing", 1, 2)
        save_picture(model.draw(conditioning, config, request.seed, sources=sources), drawing.lora)
        yield PhaseProgress("drawing", 2, 2)
    return {"base": drawing.base.name, "lora": drawing.lora.name}


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
