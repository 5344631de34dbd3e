"""What a run shows while it trains: its own roll-out, and pictures of fixed prompts and seeds."""

from io import BytesIO
from pathlib import Path

from PIL import Image
from torch import Tensor

from dopsd_app import draws
from dopsd_app.adapters import as_base
from dopsd_app.base_models import BaseModel, Conditioning
from dopsd_app.config import TrainConfig
from dopsd_app.events import PreviewSaved
from dopsd_app.rollout import RolloutStep, sample
from dopsd_app.runs import Run, replace_file

LONGEST_SIDE = 512  # pixels, of one picture in a preview
GAP = 4  # pixels between pictures


def first_of(step: RolloutStep) -> tuple[Tensor, Tensor]:
    """What student and teacher saw from one state: denoised latents (1, C, h, w) of the first example."""
    return step.student_denoised[:1].detach(), step.teacher_denoised[:1]


def save_rollout(
    run: Run, step: int, base_model: BaseModel, film: list[tuple[Tensor, Tensor]]
) -> PreviewSaved:
    """The student's filmstrip above the teacher's: the states of a roll-out of this very step."""
    strips = [[base_model.decode(denoised)[0] for denoised in strip] for strip in zip(*film, strict=True)]
    return PreviewSaved(step, "rollout", (_save(run, f"{step:06d}_rollout.webp", strips),))


def save_samples(
    run: Run,
    step: int,
    base_model: BaseModel,
    config: TrainConfig,
    prompts: tuple[Conditioning, ...],
    size: tuple[int, int],
) -> PreviewSaved:
    """A row for every prompt, the base's picture beside the student's: one noise, the native steps."""
    rows = []
    for index, prompt in enumerate(prompts):
        base = run.previews / f"base_{index}.png"  # it never changes, so that it is drawn once
        if not base.exists():
            with as_base(base_model.transformer):
                save_picture(draw(base_model, config, prompt, index, size), base)
        with Image.open(base) as picture:
            rows.append([picture.convert("RGB"), draw(base_model, config, prompt, index, size)])
    return PreviewSaved(step, "samples", (_save(run, f"{step:06d}_samples.webp", rows),))


def draw(
    base_model: BaseModel, config: TrainConfig, conditioning: Conditioning, index: int, size: tuple[int, int]
) -> Image.Image:
    """One picture of `size` (height, width) by the active weights, at the native steps."""
    noise = draws.draw_noise(base_model.latent_shape(*size), config.seed, 0, index, draws.PREVIEW)[None]
    sigmas = base_model.sigmas(config.num_inference_steps, *size)
    return base_model.decode(sample(base_model, [conditioning], noise.to(base_model.device), sigmas))[0]


def grid(rows: list[list[Image.Image]]) -> Image.Image:
    """Rows of pictures with small gaps; a row is as high as its first picture."""
    width = max(sum(picture.width + GAP for picture in row) - GAP for row in rows)
    sheet = Image.new("RGB", (width, sum(row[0].height + GAP for row in rows) - GAP), "white")
    top = 0
    for row in rows:
        left = 0
        for picture in row:
            sheet.paste(picture, (left, top))
            left += picture.width + GAP
        top += row[0].height + GAP
    return sheet


def _save(run: Run, name: str, rows: list[list[Image.Image]]) -> str:
    """Thumbnails in a grid, as a file in the previews folder; returns its path in the run folder."""
    for row in rows:
        for picture in row:
            picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    save_picture(grid(rows), run.previews / name)
    return f"{run.previews.name}/{name}"


def save_picture(picture: Image.Image, path: Path) -> None:
    """Saves a picture as PNG or WebP through a temporary name: nobody sees half of it, a kill leaves none."""
    content = BytesIO()
    picture.save(content, format=path.suffix[1:], quality=90)
    replace_file(path, content.getvalue())
