"""The built-in base is told from the pictures alone: its creatures from photographs and other drawings."""

from functools import cache
from io import BytesIO
from itertools import product

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from dopsd_app.checks.judge import world
from dopsd_app.data import creatures
from dopsd_app.data.creatures import is_creature
from dopsd_app.data.picture_file import load_picture
from dopsd_app.data.uploads import EXAMPLES, list_examples
from pocket.wear import WORN, wear

SHIPPED = [file for example in list_examples() for file in sorted((EXAMPLES / example.name).glob("*.png"))]


@cache
def one_of_each() -> list[np.ndarray]:
    """A creature of every outline in every scene; its colours, pattern and eyes are left to chance."""
    rng = np.random.default_rng(0)
    return [
        world.draw(world.Concept(outline, *_colours(rng), *map(int, rng.integers((4, 2, 3)))), scene)
        for outline, scene in product(range(len(world.OUTLINES)), world.all_scenes())
    ]


def _colours(rng: np.random.Generator) -> tuple[int, int]:
    concept = world.random_concept(rng)
    return concept.body, concept.second


def compressed(picture: Image.Image, kind: str, quality: int) -> Image.Image:
    file = BytesIO()
    picture.save(file, kind, quality=quality)
    return Image.open(file).convert("RGB")


# --- creatures


def test_the_backgrounds_are_those_of_the_world():
    assert tuple(world.BACKGROUNDS.values()) == creatures.BACKGROUNDS
    assert (creatures.HORIZON, creatures.SIDE) == (world.HORIZON, 64)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_the_examples_are_creatures(file):
    assert is_creature(load_picture(file))


def test_every_outline_in_every_scene_is_a_creature():
    assert all(is_creature(Image.fromarray(picture)) for picture in one_of_each())


def test_worn_pictures_are_creatures():
    rng = np.random.default_rng(1)
    assert all(is_creature(Image.fromarray(wear(picture, rng, **WORN))) for picture in one_of_each())


@pytest.mark.parametrize("side", [64, 128, 512])
@pytest.mark.parametrize("scaling", ["NEAREST", "BILINEAR", "BICUBIC"])
def test_scaled_and_compressed_pictures_are_creatures(side, scaling):
    for picture in one_of_each()[::46]:
        scaled = Image.fromarray(picture).resize((side, side), Image.Resampling[scaling])
        assert is_creature(compressed(scaled, "JPEG", 70))
        assert is_creature(compressed(scaled, "WEBP", 70))


# --- other pictures


def from_pixels(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def clouds(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Noise of every size, as in photographs: the coarser, the stronger. (height, width, 3)"""
    layers = np.zeros((height, width, 3))
    for cells in (2, 4, 8, 16, 32, 64, 128):
        cells_of_colour = from_pixels(rng.normal(128, 60, (cells, cells, 3)))
        layer = np.asarray(cells_of_colour.resize((width, height), Image.Resampling.BICUBIC), dtype=float)
        layers += (layer - 128) * 2 / cells**0.5
    return 128 + layers


def landscape(rng: np.random.Generator) -> Image.Image:
    """A blue sky that fades downwards, over ground of fine texture."""
    pixels = clouds(rng, 600, 400) * (0.7, 0.8, 0.4)
    fade = np.linspace(0, 1, 220)[:, None, None]
    pixels[:220] = (1 - fade) * (70, 120, 200) + fade * (190, 215, 235) + rng.normal(0, 3, (220, 600, 1))
    return from_pixels(pixels)


def blobs(rng: np.random.Generator) -> Image.Image:
    """Soft round things of skin and hair before a soft wall, and the grain of a camera."""
    picture = Image.new("RGB", (400, 500), tuple(map(int, rng.integers(60, 200, 3))))
    draw = ImageDraw.Draw(picture)
    for colour in ((90, 60, 45), (205, 160, 135), (60, 70, 110)):
        x, y, reach = rng.integers((100, 100, 60), (300, 400, 160))
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=colour)
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(12)), dtype=float)
    return from_pixels(soft + rng.normal(0, 6, soft.shape))


def thing_on_white(rng: np.random.Generator) -> Image.Image:
    """As shops show what they sell."""
    picture = Image.new("RGB", (500, 500), "white")
    mask = Image.new("L", picture.size)
    ImageDraw.Draw(mask).ellipse((120, 160, 380, 400), fill=255)
    picture.paste(from_pixels(clouds(rng, 500, 500)), mask=mask)
    return picture


def noisy_gradient(rng: np.random.Generator) -> Image.Image:
    ends = rng.uniform(0, 255, (2, 3))
    across = np.linspace(0, 1, 320)[None, :, None]
    return from_pixels((1 - across) * ends[0] + across * ends[1] + rng.normal(0, 12, (320, 320, 3)))


def line_art(rng: np.random.Generator) -> Image.Image:
    picture = Image.new("RGB", (400, 400), "white")
    draw = ImageDraw.Draw(picture)
    for _ in range(12):
        draw.line([tuple(point) for point in rng.integers(0, 400, (5, 2)).tolist()], fill="black", width=3)
    return picture


def flat_drawing(rng: np.random.Generator) -> Image.Image:
    """Large flat colours with outlines: a character that fills its picture."""
    picture = Image.new("RGB", (400, 400), tuple(map(int, rng.integers(0, 256, 3))))
    draw = ImageDraw.Draw(picture)
    for box in ((60, 20, 340, 330), (110, 90, 290, 310), (120, 300, 280, 400)):
        draw.ellipse(box, fill=tuple(map(int, rng.integers(0, 256, 3))), outline="black", width=4)
    return picture


def texture(rng: np.random.Generator) -> Image.Image:
    return from_pixels(clouds(rng, 480, 360))


OTHERS = [landscape, blobs, thing_on_white, noisy_gradient, line_art, flat_drawing, texture]


@pytest.mark.parametrize("make", OTHERS, ids=lambda make: make.__name__)
def test_other_pictures_are_not_creatures(make):
    for seed in range(5):
        assert not is_creature(make(np.random.default_rng(seed)))


@pytest.mark.parametrize("make", OTHERS, ids=lambda make: make.__name__)
def test_other_pictures_are_not_creatures_when_they_were_saved_small(make):
    picture = make(np.random.default_rng(9)).resize((64, 64), Image.Resampling.LANCZOS)
    assert not is_creature(compressed(picture, "JPEG", 75))


@pytest.mark.parametrize("colour", ["black", "white", "grey"])
def test_an_empty_picture_is_no_creature(colour):
    assert not is_creature(Image.new("RGB", (256, 256), colour))
