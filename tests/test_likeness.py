"""How clean pictures are: likeness to the world's own drawing of what they show."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from dopsd_app.checks.judge.likeness import likeness_to_the_world, ssim
from dopsd_app.checks.judge.world import draw, random_concept, random_scene


def test_even_pictures_differ_by_their_brightness_only():
    bright, dark = (torch.full((1, 3, 9, 9), value) for value in (200.0, 100.0))
    steady = 2.55**2
    assert ssim(bright, dark).item() == pytest.approx((2 * 200 * 100 + steady) / (200**2 + 100**2 + steady))
    assert ssim(bright, bright).item() == pytest.approx(1)


def test_of_one_window_it_is_the_formula_of_means_variances_and_covariance():
    a, b = np.random.default_rng(1).integers(0, 256, (2, 7, 7))
    means = (2 * a.mean() * b.mean() + 2.55**2) / (a.mean() ** 2 + b.mean() ** 2 + 2.55**2)
    (variance_a, covariance), (_, variance_b) = np.cov(a.ravel(), b.ravel())
    spread = (2 * covariance + 7.65**2) / (variance_a + variance_b + 7.65**2)
    one, other = (torch.from_numpy(values)[None, None].double() for values in (a, b))
    assert ssim(one, other).item() == pytest.approx(means * spread)
    # Eight columns are two windows, of which the second is the first one moved on by a column.
    wide, wider = (torch.cat([values, values[..., :1]], -1) for values in (one, other))
    halves = [ssim(wide[..., n : n + 7], wider[..., n : n + 7]).item() for n in (0, 1)]
    assert ssim(wide, wider).item() == pytest.approx(sum(halves) / 2)


def test_the_worlds_own_pictures_are_like_it_and_blurred_or_mixed_ones_are_less():
    rng = np.random.default_rng(0)
    own = [Image.fromarray(draw(random_concept(rng), random_scene(rng))) for _ in range(8)]
    blurred = [picture.filter(ImageFilter.GaussianBlur(1.5)) for picture in own]
    mixed = [Image.blend(one, other, 0.3) for one, other in pairwise(own)]
    assert likeness_to_the_world(own) > 0.97  # the judge may mistake an attribute of one
    assert likeness_to_the_world(blurred) < 0.9
    assert likeness_to_the_world(mixed) < 0.9
