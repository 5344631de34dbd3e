"""Pictures outside a run: what a LoRA draws, and what the teacher sees before any training."""

import re
import tempfile
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from dopsd_app import draws
from dopsd_app.base_models import BaseModel, Conditioning, load_base_model
from dopsd_app.config import TrainConfig
from dopsd_app.encode import Encoded, crop_example, encode_examples
from dopsd_app.events import KnownFailure
from dopsd_app.lora_file import FILE_NAME, save_lora
from dopsd_app.pictures import Example
from dopsd_app.rollout import sample
from dopsd_app.runs import Run, latest_checkpoint

CHECKED = 4  # pictures in a teacher check


def generate(
    run: Run,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    out: Path,
    strength: float = 1.0,
    checkpoint: int | None = None,
    base_too: bool = False,
) -> list[Path]:
    """Draws every prompt with every seed: the official pipeline, the run's LoRA, the native step count.

    `checkpoint` takes the LoRA of that step instead of the finished one; `base_too` draws the same noise
    without the LoRA as well. Returns the PNG files in `out`. Raises `KnownFailure` where there is no LoRA.
    """
    config = run.config
    with _lora_folder(run, config, checkpoint) as folder:
        base_model = load_base_model(config)
        base_model.load_encoders()
        conditionings = [base_model.encode_student(prompt) for prompt in prompts]
        base_model.free_encoders()
        base_model.load_transformer()
        pipeline = base_model.make_pipeline()
        pipeline.load_lora_weights(folder, weight_name=FILE_NAME, adapter_name="lora")
        pipeline.set_adapters("lora", strength)
    pipeline.set_progress_bar_config(disable=True)
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for prompt, conditioning in zip(prompts, conditionings, strict=True):
        for seed in seeds:
            name = f"{_file_name(prompt)}_{seed}"
            files.append(_draw(pipeline, config, conditioning, seed, out / f"{name}.png"))
            if base_too:
                pipeline.disable_lora()
                files.append(_draw(pipeline, config, conditioning, seed, out / f"{name}_base.png"))
                pipeline.enable_lora()
    return files


def _lora_folder(run: Run, config: TrainConfig, checkpoint: int | None):
    """A context that gives the folder of the finished LoRA file, or of one made from a checkpoint."""
    if checkpoint is None and run.lora_file.exists():
        return nullcontext(run.path)
    folder = run.checkpoints / f"{checkpoint:06d}" if checkpoint is not None else latest_checkpoint(run)
    if folder is None or not (folder / "manifest.json").exists():
        steps = ", ".join(
            str(int(path.parent.name)) for path in sorted(run.checkpoints.glob("*/manifest.json"))
        )
        wanted = "LoRA or checkpoint" if folder is None else f"checkpoint of step {checkpoint}"
        raise KnownFailure(f"{run.id} has no {wanted}. Checkpoints there are: {steps or 'none'}.")
    temporary = tempfile.TemporaryDirectory()
    student = load_file(folder / "student.safetensors")
    save_lora(Path(temporary.name) / FILE_NAME, student, config, int(folder.name))
    return temporary


def _draw(
    pipeline: DiffusionPipeline, config: TrainConfig, conditioning: Conditioning, seed: int, file: Path
) -> Path:
    picture = pipeline(
        prompt_embeds=[conditioning.prompt_embeds],
        height=config.resolution,
        width=config.resolution,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=0.0,
        generator=torch.Generator().manual_seed(seed),  # on the CPU: the same picture on every machine
    ).images[0]
    picture.save(file)
    return file


def _file_name(prompt: str) -> str:
    return re.sub(r"\W+", "-", prompt.lower()).strip("-")[:60] or "picture"


def teacher_check(config: TrainConfig, examples: Sequence[Example], out: Path) -> Path:
    """Draws up to 4 examples untrained: a row each of the picture, the student's view and the teacher's.

    Student and teacher start from the same noise. Training can teach what the teacher shows, no more.
    """
    base_model, shown = load_base_model(config), tuple(examples[:CHECKED])
    with tempfile.TemporaryDirectory() as cache:
        encoded = _result_of(encode_examples(base_model, config, shown, (), Path(cache))).examples
    base_model.load_transformer()
    rows = []
    for index, (example, conditionings) in enumerate(zip(shown, encoded, strict=True)):
        picture = crop_example(example, config, base_model)
        pair = [conditionings.student[0], conditionings.teacher[0]]
        rows.append([picture, *_same_noise(base_model, config, pair, index, picture.height, picture.width)])
    out.parent.mkdir(parents=True, exist_ok=True)
    _grid(rows).save(out)
    return out


def _result_of(work: Generator[object, None, Encoded]) -> Encoded:
    """What a generator returns in the end, when nobody wants the events on the way."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def _same_noise(
    base_model: BaseModel,
    config: TrainConfig,
    conditionings: list[Conditioning],
    index: int,
    height: int,
    width: int,
) -> list[Image.Image]:
    noise = draws.draw_noise(base_model.latent_shape(height, width), config.seed, 0, index, draws.PREVIEW)
    noise = noise[None].to(base_model.device)
    sigmas = base_model.sigmas(config.num_inference_steps, height, width)
    return [base_model.decode(sample(base_model, [c], noise, sigmas))[0] for c in conditionings]


def _grid(rows: list[list[Image.Image]]) -> Image.Image:
    """Rows of pictures, each row as high as its own pictures."""
    gap = 4
    width = max(sum(picture.width + gap for picture in row) - gap for row in rows)
    grid = Image.new("RGB", (width, sum(row[0].height + gap for row in rows) - gap), "white")
    top = 0
    for row in rows:
        left = 0
        for picture in row:
            grid.paste(picture, (left, top))
            left += picture.width + gap
        top += row[0].height + gap
    return grid
