"""One optimizer step, the same for every objective: draw, backpropagate, clip, update student and teacher."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dopsd_app.config import TrainConfig
from dopsd_app.errors import KnownFailure
from dopsd_app.method import randomness
from dopsd_app.method.adapters import adapter_weights, add_adapters, update_teacher
from dopsd_app.method.encode import EncodedExample
from dopsd_app.method.objectives.protocol import Batch, Objective
from dopsd_app.method.processes import ALONE, Processes
from dopsd_app.method.recompute import recompute_blocks
from dopsd_app.models.protocol import BaseModel


def prepare(base_model: BaseModel, config: TrainConfig) -> torch.optim.Optimizer:
    """Puts student and teacher on the loaded transformer and returns the student's optimizer."""
    add_adapters(base_model.transformer, base_model.lora_targets, config)
    recompute_blocks(base_model, base_model.fetch)
    if config.optimizer == "adamw8bit":
        import bitsandbytes  # slow to import, and not every run needs it

        optimizer_class = bitsandbytes.optim.AdamW8bit
    else:
        optimizer_class = torch.optim.AdamW
    student = adapter_weights(base_model.transformer, "student").values()
    return optimizer_class(student, lr=config.learning_rate, betas=(0.9, 0.999), weight_decay=0.0)


class HalfUpdatedError(RuntimeError):
    """An update that failed amid the student's weights: they are those of no step."""


@dataclass(frozen=True)
class OptimizerStep:
    """What one optimizer step came to."""

    loss: float  # mean over the examples, and over the states where the objective visits any
    grad_norm: float  # before clipping
    seconds: float
    rollout_states: Sequence[tuple[Tensor, Tensor]]  # the objective's, of this step


def optimizer_step(
    base_model: BaseModel,
    config: TrainConfig,
    examples: tuple[EncodedExample, ...],
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    step: int,
    processes: Processes = ALONE,
) -> OptimizerStep:
    """One step for the batch that belongs to `step`; the same for every micro-batch size.

    Of several processes, each backpropagates its share of the batch, and all make the same step.
    """
    started = time.perf_counter()

    def backpropagate() -> Iterator[Tensor]:
        for drawn in micro_batches(config, examples, step, processes):
            for loss in objective.losses(draw_batch(config, examples, step, drawn), step):
                loss.backward()  # at once: one graph is alive at a time, and the gradient is the same
                yield loss.detach()

    student_weights = optimizer.param_groups[0]["params"]
    total = processes.add_up(student_weights, backpropagate())
    norm = torch.nn.utils.clip_grad_norm_(student_weights, config.max_grad_norm)
    # Read together: a card would wait for the processor after each that is read, and then for its next work.
    loss, grad_norm = torch.stack([total, norm]).tolist()
    if not math.isfinite(grad_norm):  # one such step would spoil student, teacher and every later checkpoint
        raise KnownFailure(
            f"The gradient of step {step} is not a number, so training cannot go on. Start a run with a"
            f" lower `learning_rate` than {config.learning_rate}; the checkpoints before it can be tried."
        )
    try:
        optimizer.step()
    except Exception as error:
        raise HalfUpdatedError(f"The update of step {step} failed: {error}") from error
    optimizer.zero_grad()
    update_teacher(base_model.transformer, config.ema_decay)
    return OptimizerStep(loss, grad_norm, time.perf_counter() - started, objective.rollout_states)


def micro_batches(
    config: TrainConfig, examples: tuple[EncodedExample, ...], step: int, processes: Processes = ALONE
) -> list[dict[int, int]]:
    """This process's share of the step's batch in passes of one picture size: position -> which example."""
    drawn = randomness.draw_examples(config.seed, step, config.batch_size, len(examples))
    by_size: dict[tuple[int, int], list[int]] = {}
    for position in processes.share(range(config.batch_size)):
        example = examples[drawn[position]]
        by_size.setdefault((example.height, example.width), []).append(position)
    return [
        {position: drawn[position] for position in positions[start : start + config.micro_batch]}
        for positions in by_size.values()
        for start in range(0, len(positions), config.micro_batch)
    ]


def draw_batch(
    config: TrainConfig, examples: tuple[EncodedExample, ...], step: int, drawn: dict[int, int]
) -> Batch:
    """A pass of the step's batch, with a caption drawn for each of its positions."""
    student, teacher = [], []
    for position, index in drawn.items():
        example = examples[index]
        caption = randomness.draw_caption(config.seed, step, position, len(example.student))
        student.append(example.student[caption])
        teacher += example.teacher[caption : caption + 1]
    first = examples[next(iter(drawn.values()))]
    return Batch(tuple(drawn), tuple(drawn.values()), student, teacher, (first.height, first.width))
