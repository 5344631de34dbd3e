"""Pictures outside a run: what a LoRA draws, and what the teacher sees before any training."""

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from dopsd_app.base_models import Conditioning, load_base_model
from dopsd_app.config import TrainConfig
from dopsd_app.encode import crop_example, encode_examples
from dopsd_app.events import KnownFailure, PhaseProgress
from dopsd_app.lora_file import save_lora
from dopsd_app.pictures import Example, bucket
from dopsd_app.previews import draw, grid
from dopsd_app.runs import LORA_FILE, Run, complete_checkpoints, latest_checkpoint

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
) -> Iterator[Path]:
    """Draws every prompt with every seed: the official pipeline, the run's LoRA, the native step count.

    `checkpoint` takes the LoRA of that step instead of the finished one (or of the newest checkpoint);
    `base_too` draws the same noise without the LoRA as well. Yields each PNG file in `out`. Raises
    `KnownFailure` where there is no LoRA.
    """
    config = run.config
    if checkpoint is None and not run.lora_file.exists() and (newest := latest_checkpoint(run)):
        checkpoint = int(newest.name)  # the run is not finished
    pipeline, conditionings, size = _load(run, config, prompts, checkpoint, strength)
    out.mkdir(parents=True, exist_ok=True)
    variant = f"_step{checkpoint}" if checkpoint is not None else ""
    variant += f"_strength{strength:g}" if strength != 1 else ""
    for number, (prompt, conditioning) in enumerate(zip(prompts, conditionings, strict=True), start=1):
        for seed in seeds:
            name = f"{number}-{_file_name(prompt)}_{seed}"
            yield _draw(pipeline, config, conditioning, seed, size, out / f"{name}{variant}.png")
            if base_too:
                pipeline.disable_lora()
                yield _draw(pipeline, config, conditioning, seed, size, out / f"{name}_base.png")
                pipeline.enable_lora()


def _load(
    run: Run, config: TrainConfig, prompts: Sequence[str], checkpoint: int | None, strength: float
) -> tuple[DiffusionPipeline, list[Conditioning], tuple[int, int]]:
    """The pipeline with the LoRA in it, the encoded prompts and the (height, width) to draw them at."""
    with _lora_folder(run, config, checkpoint) as folder:
        base_model = load_base_model(config)
        base_model.load_encoders()
        conditionings = [base_model.encode_student(prompt) for prompt in prompts]
        base_model.free_encoders()
        base_model.load_transformer()
        pipeline = base_model.make_pipeline()
        pipeline.load_lora_weights(folder, weight_name=LORA_FILE, adapter_name="lora")
        pipeline.set_adapters("lora", strength)
    pipeline.set_progress_bar_config(disable=True)
    size = bucket(1, 1, config.resolution, base_model.picture_multiple)
    return pipeline, conditionings, size


def _lora_folder(run: Run, config: TrainConfig, checkpoint: int | None):
    """A context that gives the folder of the finished LoRA file, or of one made from a checkpoint."""
    if checkpoint is None and run.lora_file.exists():
        return nullcontext(run.path)
    folders = {int(folder.name): folder for folder in complete_checkpoints(run)}
    if checkpoint not in folders:
        steps = ", ".join(map(str, folders))
        wanted = "LoRA or checkpoint" if checkpoint is None else f"checkpoint of step {checkpoint}"
        raise KnownFailure(f"{run.id} has no {wanted}. Checkpoints there are: {steps or 'none'}.")
    # Windows keeps a file that safetensors has mapped; what it cannot remove, it may leave to the system.
    temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    student = load_file(folders[checkpoint] / "student.safetensors")
    save_lora(Path(temporary.name) / LORA_FILE, student, config, checkpoint)
    return temporary


def _draw(
    pipeline: DiffusionPipeline,
    config: TrainConfig,
    conditioning: Conditioning,
    seed: int,
    size: tuple[int, int],
    file: Path,
) -> Path:
    picture = pipeline(
        prompt_embeds=[conditioning.prompt_embeds],
        height=size[0],
        width=size[1],
        num_inference_steps=config.num_inference_steps,
        guidance_scale=0.0,
        generator=torch.Generator().manual_seed(seed),  # on the CPU: the same picture on every machine
    ).images[0]
    picture.save(file)
    return file


def _file_name(prompt: str) -> str:
    return re.sub(r"\W+", "-", prompt.lower()).strip("-")[:60] or "picture"


def teacher_check(config: TrainConfig, examples: Sequence[Example], out: Path) -> Iterator[PhaseProgress]:
    """Draws up to 4 examples untrained: a row each of the picture, the student's view and the teacher's.

    Student and teacher start from the same noise. Training can teach what the teacher shows, no more.
    The picture is in `out` after the last event.
    """
    base_model, shown = load_base_model(config), tuple(examples[:CHECKED])
    with tempfile.TemporaryDirectory() as cache:
        encoded = yield from encode_examples(base_model, config, shown, (), Path(cache))
    base_model.load_transformer()
    rows = []
    for index, (example, conditionings) in enumerate(zip(shown, encoded.examples, strict=True)):
        yield PhaseProgress("drawing", index, len(shown))
        picture = crop_example(example, config, base_model)
        size = (picture.height, picture.width)
        pair = (conditionings.student[0], conditionings.teacher[0])
        rows.append(
            [picture, *(draw(base_model, config, conditioning, index, size) for conditioning in pair)]
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    grid(rows).save(out)
    yield PhaseProgress("drawing", len(shown), len(shown))
