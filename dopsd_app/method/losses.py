"""What the student is corrected by: pure functions, a number for each example."""

import torch.nn.functional as F
from torch import Tensor

from dopsd_app.method.rollout import RolloutStep

PSO_SLOPE, PSO_KEPT = 5.0, 0.5  # of the hinge on the errors' difference, and the share of the own picture's


def distillation_loss(step: RolloutStep, kind: str = "denoised") -> Tensor:
    """Mean squared difference of student and teacher for each example, (B,) (D-OPSD, arXiv 2605.05204).

    "denoised" compares the denoised latents, as the released code does; "velocity" compares the velocities,
    as the paper states. Since denoised = latents - sigma * velocity, the first is sigma**2 times the second.
    """
    if kind == "velocity":
        difference = step.student_velocity - step.teacher_velocity
    else:
        difference = step.student_denoised - step.teacher_denoised
    return difference.square().flatten(1).mean(1)


def flow_matching_loss(velocity: Tensor, noise: Tensor, latents: Tensor) -> Tensor:
    """Mean squared error of velocities (B, C, h, w) for each picture, (B,) (arXiv 2210.02747)."""
    return (velocity - (noise - latents)).square().flatten(1).mean(1)


def preference_loss(better: Tensor, worse: Tensor) -> Tensor:
    """The error on a picture is to fall below that on the model's own, all (B,) (PSO, arXiv 2410.03190).

    A share of the latter is learned too, so that less is forgotten.
    """
    return F.relu(1 - PSO_SLOPE * (worse - better)) + PSO_KEPT * worse
