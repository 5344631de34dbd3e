"""The training run: a generator of events.

`accelerate launch -m dopsd_app.train FOLDER` makes one run on several cards, with a process for each.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from dopsd_app.gpus import settle_on_own_card

if __name__ == "__main__":  # before torch is imported
    settle_on_own_card()

import torch
from PIL.Image import Image
from torch import Tensor

from dopsd_app.check_base import fetch_and_check
from dopsd_app.checks.health import HealthMeter
from dopsd_app.checks.health_rules import PROMPTS, SHOWN, best_step
from dopsd_app.checks.lora_check import check_lora
from dopsd_app.checks.previews import Pair, draw_pairs, read_thumbnail, save_rollout, save_samples
from dopsd_app.config import OBJECTIVES, TrainConfig
from dopsd_app.data.pictures import Example, read_examples
from dopsd_app.jobs import worker
from dopsd_app.jobs.card import CardLock, ask_for_card, card_name, read_holder, wait_for_card
from dopsd_app.jobs.events import (
    CheckpointSaved,
    Event,
    Finished,
    HealthMeasured,
    LoraChecked,
    PreviewSaved,
    Resumed,
    StepDone,
    Stopped,
    Warned,
)
from dopsd_app.jobs.job import Job, RunError, take_commands
from dopsd_app.jobs.launcher import STOP_SIGNALS
from dopsd_app.jobs.queue import describe
from dopsd_app.jobs.runs import Run, complete_checkpoints, pin_revision
from dopsd_app.method.adapters import adapter_arrays
from dopsd_app.method.checkpoint import load_checkpoint, save_checkpoint
from dopsd_app.method.encode import (
    Encoded,
    EncodedExample,
    EncodedPrompt,
    Prompt,
    crop_example,
    encode_examples,
)
from dopsd_app.method.lora_file import save_lora
from dopsd_app.method.lora_metadata import describe_lora
from dopsd_app.method.objectives import make_objective
from dopsd_app.method.objectives.protocol import Material, Objective
from dopsd_app.method.processes import ALONE, Ended, Processes, joined
from dopsd_app.method.step import optimizer_step, prepare
from dopsd_app.models.catalog import find_base_model, find_facts
from dopsd_app.models.load import choose_device, load_base_model
from dopsd_app.models.protocol import BaseModel
from dopsd_app.progress import PhaseProgress


def train(run: Run, processes: Processes = ALONE) -> Iterator[Event]:
    """Trains the run's LoRA by its objective, from its newest checkpoint if there is one.

    Of several processes it is the first one's part; the others' is `assist`.
    """
    config = run.config
    _check_shares(config, processes)
    choose_device(config)  # what cannot compute here is told before gigabytes are fetched
    yield from fetch_and_check(config, run.runs_dir)
    # Whatever the Hub has later: a resumed run, its pictures and its card are of this very commit.
    pin_revision(run, find_base_model(config.base_model, config.revision, config.teacher_context).commit)
    config = run.config
    base_model = load_base_model(config)
    examples = read_examples(run.dataset, minimum_side=config.minimum_side).examples
    facts = find_facts(config.base_model, config.revision)
    about = partial(describe_lora, config, facts, tuple(example.captions for example in examples))
    prompts, shown = choose_prompts(config, examples, facts.scoring(config) != "none")
    yield PhaseProgress("loading", 0, 2)
    encoded = yield from encode_examples(
        base_model, config, examples, prompts, facts.neutral_prompts, run.path.parent / ".cache"
    )
    processes.meet()  # what is encoded is there for the others too
    yield PhaseProgress("loading", 1, 2)
    base_model.load_transformer()
    optimizer = prepare(base_model, config)
    if base_model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(base_model.device)  # the encoders' memory is given back
    yield PhaseProgress("loading", 2, 2)

    size = (encoded.examples[0].height, encoded.examples[0].width)
    crops = [crop_example(example, config, base_model) for example in examples]
    step = yield from load_checkpoint(run, base_model.transformer, optimizer)
    processes.meet()  # what is damaged is put aside
    objective = _make_objective(base_model, config, crops, encoded)
    texts = tuple(prompt.text for prompt in prompts)
    meter = HealthMeter(run, base_model, crops, texts, encoded.neutral, size, step)
    _check_devices(processes.meet(base_model.device.type))
    yield Resumed(step)
    while step < config.steps:
        step += 1
        done = optimizer_step(base_model, config, encoded.examples, objective, optimizer, step, processes)
        yield StepDone(step, done.loss, done.grad_norm, done.seconds, _peak_memory(base_model.device))
        commands = take_commands(run)
        if "preview-now" in commands or _previews_at(config, step):
            draw = partial(draw_pairs, run, base_model, config, encoded.prompts)
            yield from _save_previews(
                run, step, base_model, done.rollout_states, draw, encoded.prompts[:shown], meter
            )
        if commands & {"stop", "save-now"} or step % config.checkpoint_every == 0 or step == config.steps:
            best = best_step(meter.measured, {int(folder.name) for folder in complete_checkpoints(run)})
            metadata = about(step, read_thumbnail(run, step))
            folder = save_checkpoint(run, step, base_model.transformer, optimizer, metadata, keep=best)
            yield CheckpointSaved(step, folder.relative_to(run.path).as_posix())
        if "stop" in commands and step < config.steps:
            yield Stopped(step)
            return
    yield from _finish(run, base_model, encoded.examples[0], step, about(step, read_thumbnail(run, step)))


def _make_objective(
    base_model: BaseModel, config: TrainConfig, crops: Sequence[Image], encoded: Encoded
) -> Objective:
    # Not kept on disk: the autoencoder is there, and takes less time than a step.
    shown_pictures = crops if OBJECTIVES[config.objective].latents else ()
    latents = tuple(base_model.encode_picture(picture) for picture in shown_pictures)
    return make_objective(base_model, config, Material(encoded.examples, latents, encoded.neutral))


def _previews_at(config: TrainConfig, step: int) -> bool:
    return bool(config.preview_every) and (step % config.preview_every == 0 or step == config.steps)


def choose_prompts(
    config: TrainConfig, examples: Sequence[Example], scored: bool
) -> tuple[tuple[Prompt, ...], int]:
    """What is drawn at a preview, and how many of them are shown: the others are for the health alone.

    Of an edit, each starts from the pictures of an example: a caption from its own, and what a person has
    asked for from one example's after the other.
    """
    captions = [Prompt(example.captions[0], example.source_images) for example in examples]
    asked = [
        Prompt(text, examples[number % len(examples)].source_images)
        for number, text in enumerate(config.preview_prompts)
    ]
    shown = tuple(dict.fromkeys(asked or captions[:SHOWN]))  # the same twice would tell nothing
    more = [caption for caption in dict.fromkeys(captions) if caption not in shown and scored]
    return (*shown, *more[: max(0, PROMPTS - len(shown))]), len(shown)


def _save_previews(
    run: Run,
    step: int,
    base_model: BaseModel,
    rollout_states: Sequence[tuple[Tensor, Tensor]],
    draw_samples: Callable[[], list[Pair]],
    shown: Sequence[EncodedPrompt],
    meter: HealthMeter,
) -> Iterator[PreviewSaved | HealthMeasured | Warned]:
    try:
        if rollout_states:
            yield save_rollout(run, step, base_model, rollout_states)
        pairs = draw_samples()
        yield save_samples(run, step, shown, pairs)
        yield from meter.measure(step, pairs)
    except Exception as error:  # whatever it is, most of all out of memory: the training is worth more
        if base_model.device.type == "cuda":
            torch.cuda.empty_cache()
        yield Warned(step, f"The preview of step {step} failed, training goes on: {error}")


def _finish(
    run: Run, base_model: BaseModel, example: EncodedExample, step: int, metadata: Mapping[str, str]
) -> Iterator[Event]:
    config = run.config
    run.check_file.unlink(missing_ok=True)  # of a shorter training: it must not vouch for this file
    save_lora(run.lora_file, adapter_arrays(base_model.transformer, "student"), config.strength, metadata)
    check = check_lora(run.lora_file, base_model, config, example.student[0], example.height, example.width)
    check.save(run.check_file)
    if check.problems:
        yield Warned(step, check.summary)
    yield LoraChecked(step, not check.problems, check.summary)
    yield Finished(step, run.lora_file.name)


def _peak_memory(device: torch.device) -> int:
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0


def use_repeatable_kernels() -> None:
    """For a process that has not used CUDA yet: a resumed run is to train the same LoRA there too.

    A kernel that cannot only warns in the log; attention's backward pass on a card is one.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)
    # torch puts an object with this property in the module's place.
    torch.utils.deterministic.fill_uninitialized_memory = False  # ty: ignore[missing-attribute]


def work(job: Job) -> Generator[Event]:
    """The job of a worker process: as `train`, with kernels that repeat themselves, on the chosen card."""
    config = Run(job.path).config
    if config.card and config.device != "cpu" and config.card != card_name():
        raise RunError(
            "The card that this run was made for is not here any more. Start a new run, with another `card`."
        )
    use_repeatable_kernels()
    yield from train(Run(job.path))


# --- with several processes


def assist(run: Run, processes: Processes) -> Iterator[Event]:
    """The part of each process beside the first: its shares of the steps, until that has ended.

    It writes nothing into the run, and nobody hears what it yields. Ends with `Ended`.
    """
    processes.meet()  # the first one fetches and encodes alone
    lock = CardLock()  # given back when this process ends
    with processes.together():
        config = run.config
        _take_own_card(run, lock)
        base_model = load_base_model(config)
        examples = read_examples(run.dataset, minimum_side=config.minimum_side).examples
        neutral = find_facts(config.base_model, config.revision).neutral_prompts
        cache = run.path.parent / ".cache"
        encoded = yield from encode_examples(base_model, config, examples, (), neutral, cache)
        base_model.load_transformer()
        optimizer = prepare(base_model, config)
    with processes.together(base_model.device.type):
        step = yield from load_checkpoint(run, base_model.transformer, optimizer)
        crops = [crop_example(example, config, base_model) for example in examples]
        objective = _make_objective(base_model, config, crops, encoded)
    while step < config.steps:
        step += 1
        optimizer_step(base_model, config, encoded.examples, objective, optimizer, step, processes)
    processes.meet()


def _check_shares(config: TrainConfig, processes: Processes) -> None:
    if processes.count > config.batch_size:
        raise RunError(
            f"{processes.count} processes cannot share the {config.batch_size} pictures of a step: start as"
            " many as `batch_size` at the most."
        )


def _check_devices(devices: Sequence[str]) -> None:
    if len(set(devices)) > 1:
        raise RunError(
            f"The processes compute on {', '.join(devices)}: start as many as there are cards that can be"
            " used, or set `device` to cpu."
        )


def _take_own_card(run: Run, lock: CardLock) -> None:
    """Takes the card of a process beside the first one; a processor is nobody's own."""
    if card_name() == "cpu" or run.config.device == "cpu":
        return
    if not wait_for_card(lock, run.runs_dir, describe(run), seconds=2):
        raise RunError("Another job uses its card. Wait for its end, or start fewer processes.")


def main(arguments: list[str]) -> int:
    """Makes the run in this folder, alone or with the processes that a launcher has started beside it."""
    run = Run(Path(arguments[0]).absolute()) if len(arguments) == 1 else None
    if run is None or not (run.path / "config.json").is_file():
        print("Name the folder of one run, as `python -m dopsd_app train --prepare-only` makes it.")
        return 2
    use_repeatable_kernels()
    with joined(partial(worker.explain, job=run)) as processes:
        if processes.leads:
            while (holder := read_holder()) and holder.warm:  # the page's, which only keeps a model loaded
                ask_for_card()
                time.sleep(0.1)
            return worker.work(run, partial(_lead, processes=processes))
        for number in STOP_SIGNALS:  # the first process stops, and says so
            signal.signal(number, signal.SIG_IGN)
        with suppress(Ended):
            for _ in assist(run, processes):
                pass
    return 0


def _lead(job: Job, processes: Processes) -> Generator[Event]:
    try:
        yield from train(Run(job.path), processes)
    finally:
        processes.end()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
