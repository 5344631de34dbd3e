"""What a run shows while it trains: its own roll-out, and pictures of fixed prompts and seeds."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image
from torch import Tensor

from dopsd_app.config import TrainConfig
from dopsd_app.files import replace_file
from dopsd_app.jobs.events import PreviewSaved
from dopsd_app.jobs.runs import Run
from dopsd_app.method import randomness
from dopsd_app.method.adapters import as_base
from dopsd_app.method.encode import EncodedPrompt
from dopsd_app.method.rollout import sample
from dopsd_app.models.catalog import find_facts
from dopsd_app.models.protocol import BaseModel, Conditioning

LONGEST_SIDE = 512  # pixels, of one picture in a preview
THUMBNAIL = 256  # pixels, of the picture in a LoRA file: ModelSpec's advice
GAP = 4  # pixels between pictures

Pair = tuple[Image.Image, Image.Image]  # the base's picture and the student's


def save_rollout(
    run: Run, step: int, base_model: BaseModel, states: Sequence[tuple[Tensor, Tensor]]
) -> PreviewSaved:
    """The student's row above the teacher's: the states of a roll-out of this very step."""
    rows = [[base_model.decode(denoised)[0] for denoised in row] for row in zip(*states, strict=True)]
    return PreviewSaved(step, "rollout", (_save(run, f"{step:06d}_rollout.webp", rows),))


def draw_pairs(
    run: Run,
    base_model: BaseModel,
    config: TrainConfig,
    prompts: Sequence[EncodedPrompt],
    kind: str = "base",
) -> list[Pair]:
    """For every prompt the base's picture and the student's, at the native steps.

    Where features tell pictures apart, all are drawn from one noise: two of them then differ by what their
    prompts say, and by nothing else. A judge needs no such help, and sees more from a noise for each.
    The base's never change: they are drawn once, and kept as `<kind>_<index>.png`.
    """
    pairs, by_eyes = [], _by_eyes(config)
    for index, prompt in enumerate(prompts):
        noise = 0 if by_eyes else index
        base = run.previews / f"{kind}_{index}.png"
        if not base.exists():
            with as_base(base_model.transformer):
                save_picture(draw(base_model, config, prompt.conditioning, noise, prompt.size), base)
        drawn = draw(base_model, config, prompt.conditioning, noise, prompt.size)
        with Image.open(base) as picture:
            pairs.append((picture.convert("RGB"), drawn))
    return pairs


def _by_eyes(config: TrainConfig) -> bool:
    return find_facts(config.base_model, config.revision).scoring(config) == "eyes"


def save_samples(
    run: Run, step: int, prompts: Sequence[EncodedPrompt], pairs: Sequence[Pair]
) -> PreviewSaved:
    """A row for every prompt: what it starts from, if from anything, the base's picture and the student's.

    The student's first picture that starts from none is kept small too: it goes into the LoRA file, and what
    is drawn from a person's own picture shows much of that.
    """
    drawn = zip(prompts, pairs, strict=False)  # the other pairs are not shown
    if first := next((pair for prompt, pair in drawn if prompt.source is None), None):
        save_picture(_thumbnail(first[1], THUMBNAIL), _thumbnail_file(run, step))
    rows = [
        (prompt.source, *pair) if prompt.source else pair
        for prompt, pair in zip(prompts, pairs, strict=False)
    ]
    return PreviewSaved(step, "samples", (_save(run, f"{step:06d}_samples.webp", rows),))


def read_thumbnail(run: Run, step: int) -> bytes:
    """A small JPEG that the LoRA of this step drew; empty where there is none that can be read."""
    try:
        return _thumbnail_file(run, step).read_bytes()
    except OSError:  # most often: no preview at this step; the LoRA is worth more than its picture
        return b""


def _thumbnail_file(run: Run, step: int) -> Path:
    # On disk, so that a training that is resumed after its last step writes the same LoRA file.
    return run.previews / f"{step:06d}_thumbnail.jpeg"


def draw(
    base_model: BaseModel, config: TrainConfig, conditioning: Conditioning, index: int, size: tuple[int, int]
) -> Image.Image:
    """One picture of `size` (height, width) by the active weights, at the native steps."""
    noise = randomness.draw_noise(base_model.latent_shape(*size), config.seed, 0, index, randomness.PREVIEW)[
        None
    ]
    sigmas = base_model.sigmas(config.num_inference_steps, *size)
    return base_model.decode(sample(base_model, [conditioning], noise.to(base_model.device), sigmas))[0]


def grid(rows: list[list[Image.Image]]) -> Image.Image:
    """Rows of pictures with small gaps."""
    width = max(sum(picture.width + GAP for picture in row) - GAP for row in rows)
    heights = [max(picture.height for picture in row) for row in rows]
    sheet = Image.new("RGB", (width, sum(height + GAP for height in heights) - GAP), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for picture in row:
            sheet.paste(picture, (left, top))
            left += picture.width + GAP
        top += height + GAP
    return sheet


def _save(run: Run, name: str, rows: Sequence[Sequence[Image.Image]]) -> str:
    """Thumbnails in a grid, as a file in the previews folder; returns its path in the run folder."""
    save_picture(grid([[_thumbnail(picture) for picture in row] for row in rows]), run.previews / name)
    return f"{run.previews.name}/{name}"


def _thumbnail(picture: Image.Image, longest: int = LONGEST_SIDE) -> Image.Image:
    small = picture.copy()
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return small


def save_picture(picture: Image.Image, path: Path) -> None:
    """Saves a picture as PNG, WebP or JPEG through a temporary name: never half of it, and none by a kill."""
    content = BytesIO()
    picture.save(content, format=path.suffix[1:], quality=90)
    replace_file(path, content.getvalue())
