"""What a run shows while it trains: its own roll-out, and pictures of fixed prompts and seeds."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo
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

LONGEST_SIDE = 512  # pixels, of a roll-out's pictures: they are many, and each is one of a few steps
SMALL = 256  # pixels, up to which a picture is saved without loss
THUMBNAIL = 256  # pixels, of the picture in a LoRA file: ModelSpec's advice
GAP = 4  # pixels between pictures of a sheet

Pair = tuple[Image.Image, Image.Image]  # the base's picture and the student's


def save_rollout(
    run: Run, step: int, base_model: BaseModel, states: Sequence[tuple[Tensor, Tensor]]
) -> PreviewSaved:
    """The states of a roll-out of this very step, small: all of the student's, then all of the teacher's."""
    files = []
    for who, row in zip(("student", "teacher"), zip(*states, strict=True), strict=True):
        for number, denoised in enumerate(row):
            picture = _thumbnail(base_model.decode(denoised)[0])
            files.append(_save(run, f"{step:06d}_{who}_{number}.webp", picture))
    return PreviewSaved(step, "rollout", tuple(files))


def draw_bases(
    run: Run, base_model: BaseModel, config: TrainConfig, prompts: Sequence[EncodedPrompt], kind: str = "base"
) -> Iterator[int]:
    """Draws what the base makes of every prompt; tells before each that is still to be drawn its number.

    The base's pictures never change: they are drawn once, and kept as `<kind>_<index>.png`.
    """
    for index, prompt in enumerate(prompts):
        if not _base_file(run, kind, index).exists():
            yield index
            with as_base(base_model.transformer):
                picture = draw(base_model, config, prompt.conditioning, _noise_of(config, index), prompt.size)
            save_picture(picture, _base_file(run, kind, index), _describe(config, prompt, picture, 0, index))


def draw_pairs(
    run: Run,
    base_model: BaseModel,
    config: TrainConfig,
    prompts: Sequence[EncodedPrompt],
    kind: str = "base",
) -> list[Pair]:
    """For every prompt the base's picture and the student's, at the native steps."""
    for _ in draw_bases(run, base_model, config, prompts, kind):
        pass
    pairs = []
    for index, prompt in enumerate(prompts):
        drawn = draw(base_model, config, prompt.conditioning, _noise_of(config, index), prompt.size)
        with Image.open(_base_file(run, kind, index)) as picture:
            pairs.append((picture.convert("RGB"), drawn))
    return pairs


def _noise_of(config: TrainConfig, index: int) -> int:
    """Which noise a prompt's picture is drawn from.

    Where features tell pictures apart, all are drawn from one: two of them then differ by what their prompts
    say, and by nothing else. A judge needs no such help, and sees more from a noise for each.
    """
    return 0 if _one_noise(config) else index


@lru_cache(maxsize=1)
def _one_noise(config: TrainConfig) -> bool:
    # Asked for every picture; the answer is in the headers of all of the base model's files.
    return find_facts(config.base_model, config.revision).scoring(config) == "eyes"


def _base_file(run: Run, kind: str, index: int) -> Path:
    return run.previews / f"{kind}_{index}.png"


def save_bases(run: Run, prompts: Sequence[EncodedPrompt]) -> Iterator[PreviewSaved]:
    """What each prompt starts from, if from anything, and what the base makes of it: before any step."""
    if any(prompt.source for prompt in prompts):
        sources = [
            _save(run, f"source_{index}.webp", prompt.source) if prompt.source else ""
            for index, prompt in enumerate(prompts)
        ]
        yield _saved(run, 0, "sources", prompts, sources)
    bases = [f"{run.previews.name}/{_base_file(run, 'base', index).name}" for index in range(len(prompts))]
    yield _saved(run, 0, "samples", prompts, bases)


def save_samples(
    run: Run, step: int, prompts: Sequence[EncodedPrompt], pictures: Sequence[Image.Image]
) -> PreviewSaved:
    """A picture of the student's for every prompt.

    The first that starts from no other is kept small too: it goes into the LoRA file, and what is drawn from
    a person's own picture shows much of that.
    """
    drawn = list(zip(prompts, pictures, strict=True))
    if first := next((picture for prompt, picture in drawn if prompt.source is None), None):
        save_picture(_thumbnail(first, THUMBNAIL), _thumbnail_file(run, step))
    config = run.config
    files = [
        _save(
            run, f"{step:06d}_sample_{index}.webp", picture, _describe(config, prompt, picture, step, index)
        )
        for index, (prompt, picture) in enumerate(drawn)
    ]
    return _saved(run, step, "samples", prompts, files)


def _saved(
    run: Run, step: int, kind: str, prompts: Sequence[EncodedPrompt], files: Sequence[str]
) -> PreviewSaved:
    return PreviewSaved(step, kind, tuple(files), tuple(prompt.text for prompt in prompts), run.config.seed)


def _describe(config: TrainConfig, prompt: EncodedPrompt, picture: Image.Image, step: int, index: int) -> str:
    """What a picture was drawn from, as many programs write it; a person's words come first.

    Without a `Seed`: no program draws this picture from the run's.
    """
    facts = {
        "Steps": config.num_inference_steps,
        "Size": f"{picture.width}x{picture.height}",
        "Training step": step,
        "Noise": f"{_noise_of(config, index) + 1} of the training's seed {config.seed}",
    }
    return prompt.text + "\n" + ", ".join(f"{name}: {value}" for name, value in facts.items())


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


def _save(run: Run, name: str, picture: Image.Image, description: str = "") -> str:
    """A picture as a file in the previews folder; returns its path in the run folder."""
    save_picture(picture, run.previews / name, description)
    return f"{run.previews.name}/{name}"


def _thumbnail(picture: Image.Image, longest: int = LONGEST_SIDE) -> Image.Image:
    small = picture.copy()
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return small


def save_picture(picture: Image.Image, path: Path, description: str = "") -> None:
    """Saves a picture as PNG, WebP or JPEG through a temporary name: never half of it, and none by a kill.

    A description goes in as other programs read it: `parameters` of a PNG, the user's comment of a WebP.
    """
    options: dict[str, Any] = {"quality": 90}
    if path.suffix == ".webp":  # a small one costs nothing, and loses most of its colours
        options["lossless"] = max(picture.size) <= SMALL
    if description and path.suffix == ".png":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("parameters", description)
    elif description:
        options["exif"] = Image.Exif()
        options["exif"].get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = (
            b"UNICODE\0" + description.encode("utf-16-be")
        )
    content = BytesIO()
    picture.save(content, format=path.suffix[1:], **options)
    replace_file(path, content.getvalue())
