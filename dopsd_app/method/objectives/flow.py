"""Flow matching on pictures, which several objectives have in common."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dopsd_app.config import TrainConfig
from dopsd_app.method.losses import flow_matching_loss
from dopsd_app.method.randomness import SIGMA, draw_noises, draw_uniform
from dopsd_app.models.protocol import BaseModel, Conditioning


@dataclass(frozen=True)
class Picture:
    """A picture to learn from, and the student's conditioning for it."""

    latents: Tensor  # (C, h, w)
    prompt: Conditioning
    size: tuple[int, int]  # height and width in pixels


def flow_losses(
    base_model: BaseModel,
    config: TrainConfig,
    pictures: Sequence[Picture],
    step: int,
    positions: Sequence[int],
    purpose: int = SIGMA,
) -> Iterator[Tensor]:
    """The shares of pictures at these positions in the mean velocity error of a step, by picture size.

    What is drawn at random is drawn for `purpose`: another for each kind of picture.
    """
    by_size: dict[tuple[int, int], list[tuple[int, Picture]]] = {}
    for position, picture in zip(positions, pictures, strict=True):
        by_size.setdefault(picture.size, []).append((position, picture))
    for size, group in by_size.items():
        places, alike = zip(*group, strict=True)
        latents = torch.stack([picture.latents for picture in alike])
        uniform = draw_uniform(config.seed, step, places, config.batch_size, purpose).to(latents)
        sigma = shifted(base_model, uniform, size)
        noise = draw_noises(latents.shape[1:], config.seed, step, places, purpose).to(latents)
        level = sigma[:, None, None, None]
        noisy = (1 - level) * latents + level * noise
        velocity = base_model.predict_velocity(noisy, sigma, [picture.prompt for picture in alike])
        yield flow_matching_loss(velocity, noise, latents).sum() / config.batch_size


def shifted(base_model: BaseModel, time: Tensor, size: tuple[int, int]) -> Tensor:
    """Sigmas of times between 0 and 1 in the scheduler's own time, as common trainers draw them.

    sigma = shift * time / (1 + (shift - 1) * time); the shift is read off the middle of two steps.
    """
    middle = base_model.sigmas(2, *size)[1].item()
    shift = middle / (1 - middle)
    return shift * time / (1 + (shift - 1) * time)
