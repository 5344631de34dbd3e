"""The world of the built-in base: little creatures in simple scenes, drawn from a handful of numbers.

A `Concept` is what makes one creature that creature; a `Scene` is where and how it is seen. Captions name the
scene and, at most roughly, the concept: one colour word stands for two colours and one outline word for two
outlines, so a creature cannot be told by words.
"""

import re
import zlib
from dataclasses import astuple, dataclass
from itertools import product

import numpy as np

OUTLINES = ("circle", "oval", "square", "cross", "triangle", "drop", "star", "bean")
OUTLINE_WORDS = ("round", "round", "boxy", "boxy", "pointed", "pointed", "bumpy", "bumpy")
COLOURS = {
    "crimson": (196, 24, 44),
    "salmon": (255, 134, 120),
    "gold": (255, 212, 32),
    "orange": (240, 124, 12),
    "forest": (14, 104, 56),
    "lime": (150, 222, 40),
    "navy": (22, 42, 120),
    "azure": (40, 152, 246),
    "violet": (116, 44, 186),
    "orchid": (238, 96, 214),
    "brown": (104, 62, 32),
    "cream": (250, 242, 214),
}
COLOUR_WORDS = (
    "red",
    "red",
    "yellow",
    "yellow",
    "green",
    "green",
    "blue",
    "blue",
    "purple",
    "purple",
    "earthy",
    "earthy",
)
PATTERNS = ("stripes", "spots", "rings", "bands")
PATTERN_WORDS = ("striped", "spotted", "ringed", "banded")
FREQUENCIES = ("low", "high")
FREQUENCY_WORDS = ("broad", "fine")
EYES = (1, 2, 3)
EYE_WORDS = ("one eye", "two eyes", "three eyes")
# top of the sky, bottom of the sky, ground (or None): pale or dull, so that no creature drowns in it
BACKGROUNDS = {
    "mint": ((196, 240, 222), (150, 218, 190), None),
    "rose": ((252, 214, 224), (238, 170, 188), None),
    "sand": ((250, 234, 196), (246, 222, 170), (214, 178, 118)),
    "snow": ((206, 220, 236), (226, 234, 244), (250, 252, 255)),
    "night": ((24, 24, 56), (58, 52, 104), None),
    "cave": ((96, 92, 96), (122, 116, 118), (74, 70, 76)),
    "meadow": ((176, 216, 250), (208, 232, 252), (120, 176, 84)),
    "sea": ((150, 226, 232), (176, 236, 238), (28, 128, 146)),
}
BACKGROUND_WORDS = tuple(BACKGROUNDS)
PLACES = ("left", "middle", "right")
PLACE_WORDS = ("on the left", "in the middle", "on the right")
SIZES = ("small", "big")
INK = (34, 28, 40)
HORIZON = 0.7  # of the picture's height
HELD_OUT_ONE_IN = 20  # concepts; by a hash of their attributes


@dataclass(frozen=True)
class Concept:
    """One creature: indices into the tables above."""

    outline: int
    body: int
    second: int
    pattern: int
    frequency: int
    eyes: int


@dataclass(frozen=True)
class Scene:
    """Where a creature stands and how big it is seen: indices into the tables above."""

    background: int
    place: int
    size: int


def is_held_out(concept: Concept) -> bool:
    """Whether the concept is kept out of all training, by a fixed hash: about one in twenty."""
    return zlib.crc32(bytes(astuple(concept))) % HELD_OUT_ONE_IN == 0


def all_concepts(held_out: bool | None = None) -> list[Concept]:
    """Every concept, or the held-out ones, or those of training; its two colours have different words."""
    numbers = (
        range(n)
        for n in (len(OUTLINES), len(COLOURS), len(COLOURS), len(PATTERNS), len(FREQUENCIES), len(EYES))
    )
    concepts = [Concept(*n) for n in product(*numbers) if COLOUR_WORDS[n[1]] != COLOUR_WORDS[n[2]]]
    return [c for c in concepts if held_out is None or is_held_out(c) == held_out]


def random_concept(rng: np.random.Generator, held_out: bool = False) -> Concept:
    """A concept of training, or a held-out one."""
    while True:
        tables = (OUTLINES, COLOURS, COLOURS, PATTERNS, FREQUENCIES, EYES)
        concept = Concept(*(int(rng.integers(len(table))) for table in tables))
        if COLOUR_WORDS[concept.body] != COLOUR_WORDS[concept.second] and is_held_out(concept) == held_out:
            return concept


def all_scenes() -> list[Scene]:
    """Every background, place and size: 48 scenes."""
    return [Scene(*n) for n in product(*(range(len(table)) for table in (BACKGROUNDS, PLACES, SIZES)))]


def random_scene(rng: np.random.Generator) -> Scene:
    """Any of the scenes; nothing else varies, for turns and shifts would cost hours of training."""
    return Scene(*(int(rng.integers(len(table))) for table in (BACKGROUNDS, PLACES, SIZES)))


def outline_radius(outline: int, angle: np.ndarray) -> np.ndarray:
    """Distance of the edge from the middle by angle (0 right, pi/2 down); the areas are about equal."""
    up = np.mod(angle + np.pi / 2 + np.pi, 2 * np.pi) - np.pi  # angle from straight up, in [-pi, pi)

    name = OUTLINES[outline]
    if name == "circle":
        return np.full_like(angle, 0.98)
    if name == "oval":
        return 0.74 * 1.26 / np.sqrt((0.74 * np.sin(angle)) ** 2 + (1.26 * np.cos(angle)) ** 2)
    if name == "square":
        return np.minimum(0.87 / np.maximum(np.abs(np.cos(angle)), np.abs(np.sin(angle))), 1.12)
    if name == "cross":
        return 0.9 + 0.32 * np.cos(4 * angle)
    if name == "triangle":
        return np.minimum(0.72 / np.cos(np.mod(up, 2 * np.pi / 3) - np.pi / 3), 1.3)
    if name == "drop":
        return 0.88 + 0.62 * np.exp(-((up / 0.42) ** 2))
    if name == "star":
        return 0.66 + 0.62 * (1 - np.abs(np.mod(5 * up / np.pi + 1, 2) - 1))
    # a bean: a wide oval, dented from below
    oval = 1.22 * 0.94 / np.sqrt((1.22 * np.sin(angle)) ** 2 + (0.94 * np.cos(angle)) ** 2)
    return oval * (1 - 0.5 * np.exp(-(((np.abs(up) - np.pi) / 0.5) ** 2)))


def pattern_mask(pattern: int, frequency: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Where the second colour goes; u, v are creature coordinates, about 1 at its edge.

    The second colour always covers less than the body's, so that the two can be told apart.
    """
    name = PATTERNS[pattern]
    if name == "stripes":
        return np.sin(2 * np.pi * u * (1.15, 2.3)[frequency] + 1.0) > 0.35
    if name == "rings":
        return np.sin(2 * np.pi * np.hypot(u, v) * (1.2, 2.2)[frequency] - 3.1) > 0.3
    if name == "bands":
        return np.sin(2 * np.pi * v * (1.15, 2.3)[frequency] + 1.0) > 0.35
    period = (0.72, 0.44)[frequency]
    row = np.round(v / period)
    return np.hypot(np.mod(u + period * (row % 2) / 2, period) - period / 2, v - row * period) < 0.33 * period


def paint_background(scene: Scene, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A soft gradient, and a ground or a few stars where the background has them; x, y in [0, 1]."""
    name, (top, bottom, ground) = list(BACKGROUNDS.items())[scene.background]
    fade = np.clip(y / (HORIZON if ground else 1.0), 0, 1)[..., None]
    picture = np.asarray(top, np.float32) * (1 - fade) + np.asarray(bottom, np.float32) * fade
    if ground:
        picture[y > HORIZON + 0.02 * np.sin(2 * np.pi * x)] = ground
    if name == "night":
        for star_x, star_y in (
            (0.12, 0.14),
            (0.38, 0.07),
            (0.66, 0.16),
            (0.9, 0.09),
            (0.07, 0.46),
            (0.93, 0.42),
            (0.5, 0.93),
        ):
            picture[np.hypot(x - star_x, y - star_y) < 0.022] = (250, 240, 190)
    return picture


def draw(concept: Concept, scene: Scene, side: int = 64, supersample: int = 3) -> np.ndarray:
    """The picture as (side, side, 3) uint8, each pixel the average of `supersample` squared points."""
    points = (np.arange(side * supersample, dtype=np.float32) + 0.5) / (side * supersample)
    y, x = np.meshgrid(points, points, indexing="ij")
    picture = paint_background(scene, x, y)

    radius = (0.235, 0.31)[scene.size]
    reach = (0.22, 0.17)[scene.size]  # a big creature stands nearer the middle
    middle_x, middle_y = 0.5 + (scene.place - 1) * reach, 0.52
    box = (np.abs(y[:, 0] - middle_y) < 1.5 * radius, np.abs(x[0] - middle_x) < 1.5 * radius)
    box = (slice(*np.flatnonzero(box[0])[[0, -1]] + (0, 1)), slice(*np.flatnonzero(box[1])[[0, -1]] + (0, 1)))

    paint_creature(picture[box], concept, (x[box] - middle_x) / radius, (y[box] - middle_y) / radius)
    picture = picture.reshape(side, supersample, side, supersample, 3).mean((1, 3))
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def paint_creature(picture: np.ndarray, concept: Concept, u: np.ndarray, v: np.ndarray) -> None:
    """Paint edge, body, pattern and eyes into `picture` (h, w, 3)."""
    colours = list(COLOURS.values())
    inside = outline_radius(concept.outline, np.arctan2(v, u)) - np.hypot(u, v)
    picture[inside > -0.05] = INK
    body = inside > 0.07
    picture[body] = colours[concept.body]
    picture[body & pattern_mask(concept.pattern, concept.frequency, u, v)] = colours[concept.second]
    eyes = EYES[concept.eyes]
    eye = (0.28, 0.23, 0.19)[concept.eyes]
    for place in np.arange(eyes) - (eyes - 1) / 2:
        distance = np.hypot(u - place * 2.15 * eye, v + 0.12)
        picture[distance < eye + 0.05] = INK
        picture[distance < eye] = (255, 255, 255)
        picture[np.hypot(u - place * 2.15 * eye - 0.04, v + 0.1) < 0.52 * eye] = INK


def scene_asked_in(prompt: str) -> list[tuple[str, int]]:
    """Which attributes of a scene a prompt names, each with its index into the world's tables."""
    tables = {"background": BACKGROUND_WORDS, "place": PLACE_WORDS, "size": SIZES}
    return [
        (name, index)
        for name, words in tables.items()
        for index, word in enumerate(words)
        if re.search(rf"\b{word}\b", prompt)
    ]
