"""How clean pictures are: likeness to the world's own drawing of what they show."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from skimage.metrics import structural_similarity

from pocket.likeness import likeness_to_the_world, ssim
from pocket.world import draw, random_concept, random_scene


def test_structural_similarity_is_scikit_images():
    rng = np.random.default_rng(1)
    a, noise = rng.integers(0, 256, (2, 3, 20, 24, 3), dtype=np.uint8)
    b = (a // 4 * 3 + noise // 4).astype(np.uint8)
    found = ssim(*(torch.from_numpy(pictures).permute(0, 3, 1, 2).double() for pictures in (a, b)))
    expected = [
        structural_similarity(*pair, channel_axis=2, data_range=255) for pair in zip(a, b, strict=True)
    ]
    assert found.numpy() == pytest.approx(np.array(expected), abs=1e-9)
    assert 0.2 < found.min() < found.max() < 0.99


def test_the_worlds_own_pictures_are_like_it_and_blurred_or_mixed_ones_are_less():
    rng = np.random.default_rng(0)
    own = [Image.fromarray(draw(random_concept(rng), random_scene(rng))) for _ in range(8)]
    blurred = [picture.filter(ImageFilter.GaussianBlur(1.5)) for picture in own]
    mixed = [Image.blend(one, other, 0.3) for one, other in pairwise(own)]
    assert likeness_to_the_world(own) > 0.97  # the judge may mistake an attribute of one
    assert likeness_to_the_world(blurred) < 0.9
    assert likeness_to_the_world(mixed) < 0.9
