"""The sizes that pictures are cropped to."""

import random

import pytest
from diffusers.training_utils import generate_aspect_ratio_buckets

from dopsd_app.config import load_preset, make_config
from dopsd_app.data.crops import list_buckets, nearest_bucket
from dopsd_app.models.buckets import side_multiple


@pytest.mark.parametrize("resolution", [64, 512, 768, 1000, 1024, 1536])
@pytest.mark.parametrize("multiple", [8, 16, 32])
def test_the_buckets_are_those_of_diffusers(resolution, multiple):
    assert list(list_buckets(resolution, multiple)) == generate_aspect_ratio_buckets(resolution, multiple)


def test_the_multiple_of_the_sides_is_known_before_anything_is_loaded():
    config = make_config({**load_preset("pocket").settings})
    assert side_multiple(config) == 8
    assert side_multiple(make_config({"base_model": "ann/unknown"})) == 16


@pytest.mark.parametrize(
    ("width", "height", "resolution", "multiple", "expected"),
    [
        (500, 500, 64, 8, (64, 64)),
        (4000, 3990, 1024, 16, (1024, 1024)),
        (1500, 1000, 1024, 16, (832, 1248)),  # 1024 / sqrt(1.5) = 836.1, 1024 * sqrt(1.5) = 1254.1
        (1920, 1080, 1024, 16, (768, 1360)),  # 768.0, 1365.3
        (1080, 1920, 1024, 16, (1360, 768)),
        (5000, 1000, 1024, 16, (720, 1456)),  # the widest: 724.1, 1448.2
        (1000, 5000, 1024, 16, (1456, 720)),
        (400, 300, 512, 32, (448, 576)),  # 443.4, 591.2
    ],
)
def test_a_bucket_has_the_area_and_nearly_the_shape(width, height, resolution, multiple, expected):
    assert nearest_bucket(width, height, resolution, multiple) == expected


def test_buckets_keep_their_promises_for_every_shape():
    for width in range(256, 2048, 61):
        height, bucket_width = nearest_bucket(width, 700, 512, 16)
        assert height % 16 == bucket_width % 16 == 0
        assert abs(height * bucket_width / 512**2 - 1) < 0.06
        if 350 <= width <= 1400:
            assert 0.8 < (bucket_width / height) / (width / 700) < 1.25
        assert nearest_bucket(700, width, 512, 16) == (bucket_width, height)


@pytest.mark.parametrize(("resolution", "multiple"), [(64, 16), (512, 16), (1024, 32)])
def test_no_other_bucket_keeps_more_of_a_picture(resolution, multiple):
    def kept(size, width, height):
        """The share of the picture's area that is left when it is cropped to the shape of this size."""
        wide = size[1] / size[0] / (width / height)
        return min(wide, 1 / wide)

    chance = random.Random(0)
    for _ in range(2000):
        width, height = chance.randint(256, 4096), chance.randint(256, 4096)
        found = nearest_bucket(width, height, resolution, multiple)
        others = (kept(size, width, height) for size in generate_aspect_ratio_buckets(resolution, multiple))
        assert kept(found, width, height) == pytest.approx(max(others))
