"""The training run: a generator of events.

`accelerate launch -m dopsd_app.train FOLDER` makes one run on several cards, with a process for each.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dopsd_app.gpus import settle_on_own_card

if __name__ == "__main__":  # before torch is imported
    settle_on_own_card()

import torch
from diffusers.training_utils import free_memory
from PIL.Image import Image

from dopsd_app.beside import Beside
from dopsd_app.check_base import fetch_and_check
from dopsd_app.checks.health import HealthMeter
from dopsd_app.checks.health_rules import PROMPTS, SHOWN, best_step
from dopsd_app.checks.lora_check import check_lora
from dopsd_app.checks.previews import read_thumbnail
from dopsd_app.checks.run_previews import RunPreviews
from dopsd_app.config import OBJECTIVES, TrainConfig
from dopsd_app.data.pictures import Example, read_examples
from dopsd_app.errors import KnownFailure, is_out_of_memory
from dopsd_app.jobs import worker
from dopsd_app.jobs.beside import drop_offer
from dopsd_app.jobs.card import CardLock, ask_for_card, card_name, read_holder, wait_for_card
from dopsd_app.jobs.events import (
    CheckpointSaved,
    Event,
    Finished,
    LoraChecked,
    MemoryPlanned,
    Resumed,
    StepDone,
    Stopped,
    Warned,
)
from dopsd_app.jobs.job import Job, RunError, place_command, take_commands
from dopsd_app.jobs.kept_plan import KeptPlan, keep_plan, read_kept_plan
from dopsd_app.jobs.launcher import STOP_SIGNALS
from dopsd_app.jobs.queue import describe
from dopsd_app.jobs.runs import Run, complete_checkpoints, latest_checkpoint, pin_revision
from dopsd_app.method.adapters import adapter_arrays
from dopsd_app.method.checkpoint import load_checkpoint, save_checkpoint
from dopsd_app.method.encode import (
    Encoded,
    EncodedExample,
    Prompt,
    crop_example,
    encode_examples,
)
from dopsd_app.method.lora_file import save_lora
from dopsd_app.method.lora_metadata import describe_lora
from dopsd_app.method.objectives import make_objective
from dopsd_app.method.objectives.protocol import Material, Objective
from dopsd_app.method.processes import ALONE, Ended, Processes, joined
from dopsd_app.method.step import HalfUpdatedError, optimizer_step, prepare
from dopsd_app.models.catalog import find_base_model, find_facts
from dopsd_app.models.load import choose_device, load_base_model
from dopsd_app.models.memory_plan import ComputersMemoryError, MemoryPlan
from dopsd_app.models.protocol import BaseModel, Transformer
from dopsd_app.planning.machine import Machine, read_machine
from dopsd_app.planning.memory import Fitted, next_smaller, program_bytes, words_for_plan
from dopsd_app.planning.plan import choose_plan
from dopsd_app.planning.slow_steps import SlowSteps
from dopsd_app.progress import PhaseProgress

DOING = {
    "encoding": "captions were read",
    "training": "it trained",
    "drawing": "pictures were drawn",
    "computer": "the computer's own was set aside for the card",
}


def train(run: Run, processes: Processes = ALONE) -> Iterator[Event]:
    """Trains the run's LoRA by its objective, from its newest checkpoint if there is one.

    Of several processes it is the first one's part; the others' is `assist`.
    """
    config = run.config
    drop_offer(run)
    _check_shares(config, processes)
    # Before torch looks at a card, or a base model is checked: what that takes would count as others'.
    machine = read_machine()
    device = choose_device(config)  # what cannot compute here is told before gigabytes are fetched
    yield from fetch_and_check(config, run.runs_dir)
    # Whatever the Hub has later: a resumed run, its pictures and its card are of this very commit.
    pin_revision(run, find_base_model(config.base_model, config.revision, config.teacher_context).commit)
    yield from _train_within_memory(run, machine, device, processes)


@dataclass
class _Place:
    """How far a training came: where memory ran out, if it does."""

    step: int  # that is done, and kept in a checkpoint where it is not the last one's
    phase: str = "encoding"  # of `Memory`
    missed: int = 0  # step whose preview it was, which is still to be drawn; 0: it was none
    asked: bool = False  # whether a person has asked for that one


def _train_within_memory(run: Run, machine: Machine, device: str, processes: Processes) -> Iterator[Event]:
    """Trains by the run's memory plan; where memory runs out, by the next smaller one, from the last step.

    Of several processes none can go on alone: then they end, and the run is resumed by the smaller plan.
    """
    config, sources = run.config, run.sources
    sizes = find_facts(config.base_model, config.revision).sizes_for(config, sources)
    kept = read_kept_plan(run.path)
    fitted = choose_plan(config, machine, sources=sources, kept=kept, begun=_last_kept(run) > 0)
    if fitted.budget.on_gpu != (device == "cuda"):
        raise KnownFailure(
            "The card's driver does not say what memory it has. Try again, or restart the computer."
        )
    place = _Place(0)
    while True:
        _keep_plan(run, fitted)
        hold_to(fitted)
        place.step, place.phase = _last_kept(run), "encoding"
        words = words_for_plan(fitted, sizes)
        yield MemoryPlanned(place.step, fitted.memory.peak, fitted.budget.device, words)
        smaller = partial(next_smaller, config, sizes, fitted)
        try:
            can_shrink = partial(_can_shrink, smaller, processes)
            beside = Beside(run, fitted, processes)
            yield from _train(run, fitted.plan, place, can_shrink, processes, beside)
            return
        except Exception as error:
            phase = "computer" if isinstance(error, ComputersMemoryError) else place.phase
            following = smaller(phase) if is_out_of_memory(error) else None
            if following is None:
                raise
            fitted = following
            if processes.count > 1:
                _keep_plan(run, fitted)
                raise
        # Now that the error is gone, which held what the training had loaded.
        free_memory()
        yield Warned(
            place.step,
            f"Memory ran out while {DOING[phase]}. Training goes on from step {place.step} in a way"
            f" that takes less: {words_for_plan(fitted, sizes)}",
        )


def _keep_plan(run: Run, fitted: Fitted) -> None:
    before = read_kept_plan(run.path)
    beside = before.beside if before else 0
    keep_plan(run.path, KeptPlan(fitted.plan, dict(fitted.budget.ran_out), beside))


def _can_shrink(smaller: Callable[[str], Fitted | None], processes: Processes, phase: str) -> bool:
    return processes.count == 1 and smaller(phase) is not None


def hold_to(fitted: Fitted) -> None:
    """Lets this process take no more of the card than was planned for: whatever else wants it later finds it.

    Smaller work space for cuBLAS counts only in a process that has not computed yet.
    """
    if not fitted.budget.on_gpu:
        return
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":16:8" if fitted.plan.halves else ":4096:8"
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (fitted.budget.device - program_bytes(True)) / total))


def _train(
    run: Run,
    memory_plan: MemoryPlan,
    place: _Place,
    can_shrink: Callable[[str], bool],
    processes: Processes,
    beside: Beside,
) -> Iterator[Event]:
    config = run.config
    base_model = load_base_model(config, memory_plan)
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
    place.phase = "training"
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
    keep = partial(_keep_step, run, base_model.transformer, optimizer, meter, about)
    slow = SlowSteps(base_model.device.type == "cuda")
    place.step = step
    previews = RunPreviews(run, base_model, encoded.prompts, shown, meter)
    bases = previews.before(step)
    yield from _drawn(bases, place, can_shrink, lambda: None, "Drawing what the base model makes of it")
    late = 0 < step == place.missed  # its roll-out is gone: that of the next step is shown
    if late:
        drawing = previews.of(step, (), place.asked)
        yield from _drawn(drawing, place, can_shrink, lambda: None, f"The preview of step {step}")
        place.missed = 0
        if step == config.steps:  # with the picture that was just drawn
            yield CheckpointSaved(step, keep(step).relative_to(run.path).as_posix())
    while step < config.steps:
        step += 1
        try:
            done = optimizer_step(base_model, config, encoded.examples, objective, optimizer, step, processes)
        except Exception as error:
            if is_out_of_memory(error):
                if step > 1 and not isinstance(error, HalfUpdatedError):
                    optimizer.zero_grad()
                    keep(step - 1)
                place.step = _last_kept(run)
            raise
        yield StepDone(step, done.loss, done.grad_norm, done.seconds, _peak_memory(base_model.device))
        place.step = step
        if (word := slow.judge(done.seconds)) is not None:
            yield Warned(step, word, "pace")
        commands = take_commands(run)
        asked = "preview-now" in commands
        if asked or late or previews.due(step):
            late = False
            drawing = previews.of(step, done.rollout_states, asked)
            again = partial(_draw_again, run, keep, place, commands)
            yield from _drawn(drawing, place, can_shrink, again, f"The preview of step {step}")
        if commands & {"stop", "save-now"} or step % config.checkpoint_every == 0 or step == config.steps:
            yield CheckpointSaved(step, keep(step).relative_to(run.path).as_posix())
        if "stop" in commands and step < config.steps:
            yield Stopped(step)
            return
        if step < config.steps:
            beside.draw_next(base_model)
    place.phase = "drawing"
    yield from _finish(run, base_model, encoded.examples[0], step, about(step, read_thumbnail(run, step)))


def _keep_step(
    run: Run,
    transformer: Transformer,
    optimizer: torch.optim.Optimizer,
    meter: HealthMeter,
    about: Callable[[int, bytes], Mapping[str, str]],
    step: int,
) -> Path:
    """Saves the checkpoint of a step; returns its folder."""
    best = best_step(meter.measured, {int(folder.name) for folder in complete_checkpoints(run)})
    metadata = about(step, read_thumbnail(run, step))
    return save_checkpoint(run, step, transformer, optimizer, metadata, keep=best)


def _last_kept(run: Run) -> int:
    checkpoint = latest_checkpoint(run)
    return int(checkpoint.name) if checkpoint else 0


def _make_objective(
    base_model: BaseModel, config: TrainConfig, crops: Sequence[Image], encoded: Encoded
) -> Objective:
    # Not kept on disk: the autoencoder is there, and takes less time than a step.
    shown_pictures = crops if OBJECTIVES[config.objective].latents else ()
    latents = tuple(base_model.encode_picture(picture) for picture in shown_pictures)
    return make_objective(base_model, config, Material(encoded.examples, latents, encoded.neutral))


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


def _drawn(
    drawing: Iterator[Event],
    place: _Place,
    can_shrink: Callable[[str], bool],
    again: Callable[[], None],
    what: str,
) -> Iterator[Event]:
    """The events of a drawing: what goes wrong with it does not end the training.

    Where a smaller plan has room for it, `again` sees to it that nothing is lost until that is taken.
    """
    place.phase = "drawing"
    try:
        yield from drawing
    except Exception as error:  # whatever it is: the training is worth more
        if is_out_of_memory(error) and can_shrink("drawing"):
            again()
            raise
        free_memory()
        yield Warned(place.step, f"{what} failed, training goes on: {error}")
    place.phase = "training"


def _draw_again(run: Run, keep: Callable[[int], Path], place: _Place, commands: Collection[str]) -> None:
    """What was asked for is not forgotten; the preview comes first when the step is loaded again."""
    keep(place.step)
    place.missed, place.asked = place.step, "preview-now" in commands
    for command in set(commands) - {"preview-now"}:
        place_command(run, command)


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
        kept = read_kept_plan(run.path)
        assert kept is not None  # the first process has kept it before it encoded
        base_model = load_base_model(config, kept.plan)
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
