"""What the student is corrected by: pure functions of a rollout step."""

from torch import Tensor

from dopsd_app.method.rollout import RolloutStep


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
