"""Creatures that the built-in base never saw: what is learned from, and what is asked for then."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dopsd_app.checks.health_rules import PROMPTS
from dopsd_app.checks.judge.world import (
    BACKGROUND_WORDS,
    PLACE_WORDS,
    SIZES,
    Concept,
    Scene,
    all_scenes,
    draw,
    random_concept,
    random_scene,
)
from dopsd_app.method.encode import EncodedExample
from dopsd_app.models.protocol import NO_PICTURES, BaseModel, Conditioning, Pictures
from pocket.captions import usual_caption
from pocket.wear import WORN, wear

TRIGGER = "zorp"
MENTION_RATE = 0.5  # how often a caption mentions the size, and how often the place
PICTURES = 6  # training pictures of a concept
NEUTRAL = 32  # prompts of other creatures
SIDE = 64  # pixels
DEVELOPMENT, TEST = 5, 10  # concepts: settings are chosen on the first, and the table is made on the others


@cache
def concepts_of(part: str) -> tuple[Concept, ...]:
    """The concepts of "development" or "test": held out of the base's training, and none in both."""
    rng = np.random.default_rng(2026)
    found: list[Concept] = []
    while len(found) < DEVELOPMENT + TEST:
        concept = random_concept(rng, held_out=True)
        if concept not in found:
            found.append(concept)
    return tuple(found[:DEVELOPMENT] if part == "development" else found[DEVELOPMENT:])


def scene_caption(scene: Scene, rng: np.random.Generator) -> str:
    """What a person would write: the trigger, the background, and the size and the place now and then.

    A caption that says all leaves one picture only, and straight paths to it: ordinary fine-tuning then has
    no few steps to ruin. Real captions leave almost everything unsaid.
    """
    size = f"{SIZES[scene.size]} " if rng.random() < MENTION_RATE else ""
    place = f" {PLACE_WORDS[scene.place]}" if rng.random() < MENTION_RATE else ""
    return f"a {size}{TRIGGER}{place} on a {BACKGROUND_WORDS[scene.background]} background"


@dataclass(frozen=True)
class ConceptData:
    """One concept as a training run has it, and prompts of scenes that are not among its pictures."""

    concept: Concept
    flawless: tuple[Image.Image, ...]  # the training pictures before wear
    pictures: tuple[Image.Image, ...]
    examples: tuple[EncodedExample, ...]
    teacher: tuple[tuple[Conditioning, ...], ...]  # [caption][picture], also with other pictures
    watched_captions: tuple[str, ...]  # those that a run would draw for its health
    watched: tuple[Conditioning, ...]
    latents: Tensor  # (6, C, h, w) of the pictures
    scenes: tuple[Scene, ...]  # of the prompts
    captions: tuple[str, ...]  # the prompts' text, which need not say all of the scene
    prompts: tuple[Conditioning, ...]
    teacher_prompts: tuple[Conditioning, ...]  # the prompts, each with one of the training pictures


@dataclass(frozen=True)
class NeutralData:
    """Prompts that have nothing to do with any concept: a LoRA should leave their pictures alone."""

    captions: tuple[str, ...]
    concepts: tuple[Concept, ...]  # what the captions were written for; they name a part of it at most
    scenes: tuple[Scene, ...]
    prompts: tuple[Conditioning, ...]


def scenes_of(part: str, number: int) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """Six random scenes for a concept's training pictures, and all others for its prompts."""
    rng = np.random.default_rng((2027, number + 1000 * (part == "test")))
    shuffled = [all_scenes()[index] for index in rng.permutation(len(all_scenes()))]
    return tuple(shuffled[:PICTURES]), tuple(shuffled[PICTURES:])


def training_pictures(part: str, number: int, worn: bool) -> tuple[Image.Image, ...]:
    """The six, as the world draws them or as a person has them."""
    concept, (scenes, _) = concepts_of(part)[number], scenes_of(part, number)
    rng = np.random.default_rng((2031, number, int(part == "test")))
    drawn = [draw(concept, scene) for scene in scenes]
    return tuple(Image.fromarray(wear(picture, rng, **WORN) if worn else picture) for picture in drawn)


def captions_of(part: str, number: int) -> tuple[list[str], list[tuple[Scene, str]]]:
    """A concept's training captions, and its prompts with their scenes."""
    rng = np.random.default_rng((2030, number, int(part == "test")))
    scenes, new_scenes = scenes_of(part, number)
    captions = [scene_caption(scene, rng) for scene in scenes]
    asked = [(scene, scene_caption(scene, rng)) for scene in new_scenes]
    if part == "test":  # it is claimed that prompts are new; of the others, 18 of 210 are captions too
        asked = [(scene, caption) for scene, caption in asked if caption not in captions]
    return captions, asked


def encode_concept(base_model: BaseModel, part: str, number: int, worn: bool = True) -> ConceptData:
    """A concept of "development" or "test", its pictures and prompts; the encoders are loaded."""
    flawless = training_pictures(part, number, worn=False)
    pictures = training_pictures(part, number, worn)
    captions, asked = captions_of(part, number)
    scenes, prompts = zip(*asked, strict=True)
    watched = tuple(dict.fromkeys(captions))[:PROMPTS]
    teacher = tuple(
        tuple(base_model.encode(Pictures(picture), caption, "teacher") for picture in pictures)
        for caption in captions
    )
    examples = tuple(
        EncodedExample(
            (base_model.encode(NO_PICTURES, caption, "student"),), (teacher[index][index],), SIDE, SIDE
        )
        for index, caption in enumerate(captions)
    )
    return ConceptData(
        concepts_of(part)[number],
        flawless,
        pictures,
        examples,
        teacher,
        watched,
        tuple(base_model.encode(NO_PICTURES, caption, "student") for caption in watched),
        torch.stack([base_model.encode_picture(picture) for picture in pictures]),
        scenes,
        prompts,
        tuple(base_model.encode(NO_PICTURES, prompt, "student") for prompt in prompts),
        tuple(
            base_model.encode(Pictures(pictures[index % PICTURES]), prompt, "teacher")
            for index, prompt in enumerate(prompts)
        ),
    )


def encode_neutral(base_model: BaseModel, part: str) -> NeutralData:
    """Usual captions of held-out creatures, under names other than the trigger: "asked" or "prior" ones."""
    rng = np.random.default_rng((2028, int(part == "prior")))
    concepts = tuple(random_concept(rng, held_out=True) for _ in range(NEUTRAL))
    scenes = tuple(random_scene(rng) for _ in concepts)
    captions = tuple(
        usual_caption(concept, scene, rng, name="creature")
        for concept, scene in zip(concepts, scenes, strict=True)
    )
    return NeutralData(
        captions, concepts, scenes, tuple(base_model.encode(NO_PICTURES, c, "student") for c in captions)
    )
