"""The on-policy walk: the student takes its own few steps, and the teacher judges every state on the way."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dopsd_app.config import TrainConfig
from dopsd_app.method.adapters import as_teacher
from dopsd_app.models.protocol import BaseModel, Conditioning


@dataclass(frozen=True)
class RolloutStep:
    """One visited state of B examples."""

    sigma: Tensor  # scalar
    latents: Tensor  # (B, C, h, w), where the student stands; no gradient
    student_velocity: Tensor  # (B, C, h, w), with gradient
    teacher_velocity: Tensor  # (B, C, h, w), no gradient

    @property
    def student_denoised(self) -> Tensor:
        """The picture that the student sees from here, as latents (B, C, h, w)."""
        return self.latents - self.sigma * self.student_velocity

    @property
    def teacher_denoised(self) -> Tensor:
        """The picture that the teacher sees from here, as latents (B, C, h, w)."""
        return self.latents - self.sigma * self.teacher_velocity

    def first(self) -> tuple[Tensor, Tensor]:
        """What student and teacher see of the first example: denoised latents (1, C, h, w), no gradient."""
        return self.student_denoised[:1].detach(), self.teacher_denoised[:1]


def training_sigmas(base_model: BaseModel, config: TrainConfig, size: tuple[int, int]) -> Tensor:
    """The sigmas (K + 1,) of a roll-out at this height and width: of the model's own few, evenly chosen ones.

    Not the scheduler's own grid of K: where its shift depends on the number of steps, that is another one.
    """
    every = config.num_inference_steps // config.rollout_steps  # which divides them
    return base_model.sigmas(config.num_inference_steps, *size)[::every]


def rollout(
    base_model: BaseModel,
    student: list[Conditioning],
    teacher: list[Conditioning],
    noise: Tensor,
    sigmas: Tensor,
    on_policy: bool = True,
) -> Iterator[RolloutStep]:
    """Walks from `noise` (B, C, h, w) along `sigmas` (K + 1) by the student's velocity (arXiv 2605.05204).

    Off policy, by the teacher's: the student then learns from states that are not its own.
    The states are detached: the steps share no graph: each can be backpropagated and freed on its own.
    """
    latents = noise
    for sigma, sigma_next in pairwise(sigmas):
        with as_teacher(base_model.transformer):
            teacher_velocity = base_model.predict_velocity(latents, sigma, teacher)
        student_velocity = base_model.predict_velocity(latents, sigma, student)
        yield RolloutStep(sigma, latents, student_velocity, teacher_velocity)
        followed = student_velocity.detach() if on_policy else teacher_velocity
        latents = latents + (sigma_next - sigma) * followed


@torch.no_grad()
def sample(base_model: BaseModel, conditionings: list[Conditioning], noise: Tensor, sigmas: Tensor) -> Tensor:
    """Latents (B, C, h, w) that the active weights draw from `noise`: Euler steps, as the pipeline takes."""
    latents = noise
    for sigma, sigma_next in pairwise(sigmas):
        latents = latents + (sigma_next - sigma) * base_model.predict_velocity(latents, sigma, conditionings)
    return latents
