"""Captions of the world: what a person would write, which is never enough to name a creature."""

import re

import numpy as np

from dopsd_app.checks.judge.world import (
    BACKGROUND_WORDS,
    COLOUR_WORDS,
    EYE_WORDS,
    FREQUENCY_WORDS,
    OUTLINE_WORDS,
    PATTERN_WORDS,
    PLACE_WORDS,
    SIZES,
    Concept,
    Scene,
)

TEMPLATES = (
    "{thing} on a {background} background",
    "{thing} in front of {background}",
    "{thing} in a {background} scene",
    "a picture of {thing}, {background} background",
    "a drawing of {thing} with {background} behind it",
    "{background} background, {thing}",
    "{thing}, {background}",
)
ONSETS = (
    "b",
    "bl",
    "d",
    "dr",
    "f",
    "fl",
    "g",
    "gr",
    "k",
    "l",
    "m",
    "n",
    "p",
    "qu",
    "s",
    "sk",
    "t",
    "tr",
    "v",
    "w",
    "z",
    "",
)
VOWELS = ("a", "e", "i", "o", "u", "oo", "ai")
CODAS = ("b", "ck", "d", "g", "ks", "l", "m", "n", "nt", "p", "rf", "rp", "s", "x", "z", "")


def nonsense_name(rng: np.random.Generator) -> str:
    """A made-up word such as "zorp" or "[V]", so that trigger words are nothing strange to the encoder."""
    syllables = int(rng.integers(1, 3))
    name = "".join(
        str(rng.choice(ONSETS)) + str(rng.choice(VOWELS)) + str(rng.choice(CODAS)) for _ in range(syllables)
    )
    return f"[{name[:1].upper()}]" if rng.random() < 0.1 else name


def usual_caption(concept: Concept, scene: Scene, rng: np.random.Generator, name: str | None = None) -> str:
    """The background always, place and size sometimes, and now and then one rough word about the creature."""
    name = name or ("creature" if rng.random() < 0.5 else nonsense_name(rng))
    words = []
    if rng.random() < 0.35:
        words.append(SIZES[scene.size])
    if rng.random() < 0.15:
        words.append(OUTLINE_WORDS[concept.outline])
    if rng.random() < 0.15:
        words.append(COLOUR_WORDS[concept.body])
    if rng.random() < 0.15:
        words.append(PATTERN_WORDS[concept.pattern])
    article = str(rng.choice(("a ", "the ", "one ", "") if words else ("a ", "the ", "", "")))
    thing = article + " ".join([*words, name])
    if rng.random() < 0.4:
        thing += " " + PLACE_WORDS[scene.place]
    return str(rng.choice(TEMPLATES)).format(thing=thing, background=BACKGROUND_WORDS[scene.background])


def full_caption(concept: Concept, scene: Scene, name: str = "creature") -> str:
    """Everything that has a word: still eight creatures fit it, for colours and outlines share words."""
    return (
        f"a {SIZES[scene.size]} {OUTLINE_WORDS[concept.outline]} {COLOUR_WORDS[concept.body]} {name} "
        f"with {FREQUENCY_WORDS[concept.frequency]} {COLOUR_WORDS[concept.second]} "
        f"{PATTERN_WORDS[concept.pattern]} pattern and {EYE_WORDS[concept.eyes]} "
        f"{PLACE_WORDS[scene.place]} on a {BACKGROUND_WORDS[scene.background]} background"
    )


def asked_of(caption: str, concept: Concept, scene: Scene) -> dict[str, tuple[str, ...]]:
    """Which attributes the caption of this picture asks for, each with the words of its table."""
    words = {
        "background": (BACKGROUND_WORDS, scene.background),
        "place": (PLACE_WORDS, scene.place),
        "size": (SIZES, scene.size),
        "outline": (OUTLINE_WORDS, concept.outline),
        "body": (COLOUR_WORDS, concept.body),
        "second": (COLOUR_WORDS, concept.second),
        "pattern": (PATTERN_WORDS, concept.pattern),
        "frequency": (FREQUENCY_WORDS, concept.frequency),
        "eyes": (EYE_WORDS, concept.eyes),
    }
    return {
        name: table for name, (table, index) in words.items() if re.search(rf"\b{table[index]}\b", caption)
    }


def draw_caption(concept: Concept, scene: Scene, rng: np.random.Generator) -> str:
    """The mixture of training: mostly usual captions, a third full, some empty (guidance needs those)."""
    kind = rng.random()
    if kind < 0.08:
        return ""
    return full_caption(concept, scene) if kind < 0.4 else usual_caption(concept, scene, rng)
