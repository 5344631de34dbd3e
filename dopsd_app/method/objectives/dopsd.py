"""On-policy self-distillation: the student walks, and a teacher who sees the picture corrects it."""

from collections.abc import Iterator

from torch import Tensor

from dopsd_app.method.losses import distillation_loss
from dopsd_app.method.objectives.protocol import Batch, Objective
from dopsd_app.method.randomness import draw_noises
from dopsd_app.method.rollout import rollout, training_sigmas


class Dopsd(Objective):
    """D-OPSD (arXiv 2605.05204)."""

    def losses(self, batch: Batch, step: int) -> Iterator[Tensor]:
        base_model, config = self.base_model, self.config
        shape = base_model.latent_shape(*batch.size)
        noise = draw_noises(shape, config.seed, step, batch.positions).to(
            base_model.device, non_blocking=True
        )
        sigmas = training_sigmas(base_model, config, batch.size)
        states = []
        for visited in rollout(base_model, batch.student, batch.teacher, noise, sigmas):
            yield distillation_loss(visited, config.loss).sum() / (config.batch_size * config.rollout_steps)
            states.append(visited.first())
        if 0 in batch.positions:
            self.rollout_states = states
