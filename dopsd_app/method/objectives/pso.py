"""Pairwise sample optimization: training pictures before the base's own."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dopsd_app.config import TrainConfig
from dopsd_app.method.losses import flow_matching_loss, preference_loss
from dopsd_app.method.objectives.made import draw_samples
from dopsd_app.method.objectives.protocol import Batch, Material, Objective
from dopsd_app.method.randomness import CHOICE, SIGMA, STATE, draw_noises, draw_uniform
from dopsd_app.method.rollout import training_sigmas
from dopsd_app.models.protocol import BaseModel


class Pso(Objective):
    """PSO (arXiv 2410.03190), as its code personalizes.

    At one of the few steps' sigmas for each, a training picture is compared with what the untrained base drew
    from the same caption. Both errors share a graph: a pass is of twice as many pictures.
    """

    def __init__(self, base_model: BaseModel, config: TrainConfig, material: Material):
        super().__init__(base_model, config, material)
        self.own = draw_samples(base_model, config, material.examples, "student")

    def losses(self, batch: Batch, step: int) -> Iterator[Tensor]:
        base_model, config, examples = self.base_model, self.config, len(self.material.examples)
        choice, place = (
            draw_uniform(config.seed, step, batch.positions, config.batch_size, purpose)
            for purpose in (CHOICE, SIGMA)
        )
        which = (choice * (len(self.own) // examples)).long().tolist()
        own = [self.own[i + n * examples] for i, n in zip(batch.indices, which, strict=True)]
        pictures = [*(self.material.latents[index] for index in batch.indices), *(p.latents for p in own)]
        both = torch.stack(pictures)
        noise = draw_noises(both.shape[1:], config.seed, step, batch.positions, STATE).to(both)
        noise = noise.repeat(2, 1, 1, 1)
        sigmas = training_sigmas(base_model, config, batch.size).to(both)
        sigma = sigmas[(place * config.rollout_steps).long()].repeat(2)
        level = sigma[:, None, None, None]
        prompts = [picture.prompt for picture in own] * 2
        velocity = base_model.predict_velocity((1 - level) * both + level * noise, sigma, prompts)
        better, worse = flow_matching_loss(velocity, noise, both).chunk(2)
        yield preference_loss(better, worse).sum() / config.batch_size
