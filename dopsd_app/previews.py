"""What a run shows while it trains: its own roll-out, and pictures of fixed prompts and seeds."""

from PIL import Image
from torch import Tensor

from dopsd_app import draws
from dopsd_app.adapters import as_base
from dopsd_app.base_models import BaseModel, Conditioning
from dopsd_app.config import TrainConfig
from dopsd_app.events import PreviewSaved
from dopsd_app.rollout import RolloutStep, sample
from dopsd_app.runs import Run

LONGEST_SIDE = 512  # pixels, of one picture in a preview


def first_of(step: RolloutStep) -> tuple[Tensor, Tensor]:
    """What student and teacher saw from one state: denoised latents (1, C, h, w) of the first example."""
    return step.student_denoised[:1].detach(), step.teacher_denoised[:1]


def save_rollout(
    run: Run, step: int, base_model: BaseModel, film: list[tuple[Tensor, Tensor]]
) -> PreviewSaved:
    """Two filmstrips, student and teacher: one picture per visited state of a roll-out of this very step."""
    files = []
    for role, strip in zip(("student", "teacher"), zip(*film, strict=True), strict=True):
        pictures = [base_model.decode(denoised)[0] for denoised in strip]
        files.append(_save(run, f"{step:06d}_{role}.webp", _side_by_side([_thumbnail(p) for p in pictures])))
    return PreviewSaved(step, "rollout", tuple(files))


def save_samples(
    run: Run,
    step: int,
    base_model: BaseModel,
    config: TrainConfig,
    prompts: tuple[Conditioning, ...],
    size: tuple[int, int],
) -> PreviewSaved:
    """For every prompt a picture of the base and one of the student: one noise, the inference step count.

    The base's pictures never change, so that they are drawn once.
    """
    files = []
    for index, prompt in enumerate(prompts):
        base = f"base_{index}.webp"
        if not (run.previews / base).exists():
            with as_base(base_model.transformer):
                _save(run, base, _draw(base_model, config, prompt, index, size))
        lora = _draw(base_model, config, prompt, index, size)
        files += [f"{run.previews.name}/{base}", _save(run, f"{step:06d}_lora_{index}.webp", lora)]
    return PreviewSaved(step, "samples", tuple(files))


def _draw(
    base_model: BaseModel, config: TrainConfig, prompt: Conditioning, index: int, size: tuple[int, int]
) -> Image.Image:
    noise = draws.draw_noise(base_model.latent_shape(*size), config.seed, 0, index, draws.PREVIEW)[None]
    sigmas = base_model.sigmas(config.num_inference_steps, *size)
    return base_model.decode(sample(base_model, [prompt], noise.to(base_model.device), sigmas))[0]


def _thumbnail(picture: Image.Image) -> Image.Image:
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return picture


def _side_by_side(pictures: list[Image.Image]) -> Image.Image:
    width, height = pictures[0].size
    strip = Image.new("RGB", (width * len(pictures), height))
    for index, picture in enumerate(pictures):
        strip.paste(picture, (index * width, 0))
    return strip


def _save(run: Run, name: str, picture: Image.Image) -> str:
    run.previews.mkdir(exist_ok=True)
    unfinished = run.previews / f".{name}"
    picture.save(unfinished, format="WEBP", quality=90)
    unfinished.replace(run.previews / name)
    return f"{run.previews.name}/{name}"
