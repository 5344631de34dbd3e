"""What the training loop asks of an objective, and what it gives to it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dopsd_app.config import TrainConfig
from dopsd_app.method.encode import EncodedExample
from dopsd_app.models.protocol import BaseModel, Conditioning


@dataclass(frozen=True)
class Material:
    """What a run has to learn from."""

    examples: tuple[EncodedExample, ...]
    latents: tuple[Tensor, ...]  # (C, h, w) of the training pictures; empty where the objective needs none
    neutral: tuple[Conditioning, ...]  # prompts that have nothing to do with them: of prior pictures


@dataclass(frozen=True)
class Batch:
    """Examples of one picture size, which go through the transformer together."""

    positions: tuple[int, ...]  # in the step's batch: what is drawn at random is drawn for a position
    indices: tuple[int, ...]  # which examples they are
    student: list[Conditioning]
    teacher: list[Conditioning]  # empty where the objective needs none
    size: tuple[int, int]  # height and width of the pictures


class Objective(Protocol):
    """What training minimises; what it needs stands in `config.OBJECTIVES`.

    Objectives inherit from it, for those that show no roll-out.
    """

    base_model: BaseModel
    config: TrainConfig
    material: Material
    # Of the step's first example: `RolloutStep.first` by state.
    rollout_states: Sequence[tuple[Tensor, Tensor]] = ()

    def __init__(self, base_model: BaseModel, config: TrainConfig, material: Material):
        self.base_model, self.config, self.material = base_model, config, material

    def losses(self, batch: Batch, step: int) -> Iterator[Tensor]:
        """Scalars whose sum over the passes of a step is the mean over its batch.

        Each is backpropagated before the next is asked for. Nothing may depend on what else is in the pass.
        """
        ...
