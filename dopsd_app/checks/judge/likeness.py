"""How clean pictures are, whatever they show: their likeness to the world's own drawing of it."""

from dataclasses import fields
from typing import TypeVar

import numpy as np
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from dopsd_app.checks.judge.classifier import judge, load_judge, to_pixels
from dopsd_app.checks.judge.world import Concept, Scene, draw

Kind = TypeVar("Kind", Concept, Scene)
WINDOW = 7  # pixels a side
LUMINANCE, CONTRAST = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (B,) of pictures (B, C, H, W) of 0 to 255: the mean over windows and channels.

    Windows are even and lie inside, variances are those of samples, as in scikit-image, which the app does
    not need otherwise. Source: Wang et al. 2004, doi 10.1109/TIP.2003.819861.
    """

    def mean(values: Tensor) -> Tensor:
        return avg_pool2d(values, WINDOW, stride=1)

    sample = WINDOW**2 / (WINDOW**2 - 1)
    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b = (sample * (mean(x * x) - m * m) for x, m in ((a, mean_a), (b, mean_b)))
    covariance = sample * (mean(a * b) - mean_a * mean_b)
    alike = (2 * mean_a * mean_b + LUMINANCE) * (2 * covariance + CONTRAST)
    most = (mean_a**2 + mean_b**2 + LUMINANCE) * (variance_a + variance_b + CONTRAST)
    return (alike / most).mean((1, 2, 3))


def _pick(kind: type[Kind], seen: dict[str, int]) -> Kind:
    return kind(**{field.name: seen[field.name] for field in fields(kind)})


def likeness_to_the_world(pictures: list[Image.Image]) -> float:
    """Mean structural similarity with the world's own pictures of what the judge sees; 1: the very same."""
    attributes = judge(pictures, load_judge())
    own = []
    for index in range(len(pictures)):
        seen = {name: int(values[index]) for name, values in attributes.items()}
        own.append(draw(_pick(Concept, seen), _pick(Scene, seen)))
    drawn, meant = ((to_pixels(rows).double() + 1) * 127.5 for rows in (pictures, np.stack(own)))
    return ssim(drawn, meant).mean().item()
