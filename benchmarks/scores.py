"""The columns of the methods' table: what the judge of the base's world sees in a method's pictures."""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.concepts import SIDE, ConceptData, NeutralData
from dopsd_app.checks.judge.classifier import features, judge, load_judge
from dopsd_app.checks.judge.likeness import likeness_to_the_world
from dopsd_app.checks.judge.world import Concept, draw
from dopsd_app.method import randomness
from dopsd_app.method.rollout import sample
from dopsd_app.models.protocol import BaseModel, Conditioning
from pocket.judge import agreement
from pocket.measure import following

BATCH = 8  # the fastest on a processor
OTHER_STEPS = (1, 2, 32)  # beside the few of the base: what is left with fewer, and what the few cost


def features_of(pictures: Sequence[Image.Image] | np.ndarray) -> Tensor:
    """The judge's features (N, 192)."""
    return features(pictures if isinstance(pictures, np.ndarray) else list(pictures), load_judge())


def draw_pictures(
    base_model: BaseModel,
    prompts: Sequence[Conditioning],
    steps: int,
    seed: int = 0,
    one_noise: bool = False,
) -> list[Image.Image]:
    """One picture for each prompt by the active weights, from `one_noise` or each from noise of its own."""
    shape = base_model.latent_shape(SIDE, SIDE)
    pictures = []
    for start in range(0, len(prompts), BATCH):
        part = list(prompts[start : start + BATCH])
        noise = torch.stack(
            [
                randomness.draw_noise(shape, seed, 0, 0 if one_noise else start + index, randomness.PREVIEW)
                for index in range(len(part))
            ]
        ).to(base_model.device)
        latents = sample(base_model, part, noise, base_model.sigmas(steps, SIDE, SIDE))
        pictures += base_model.decode(latents)
    return pictures


def copying(drawn: Tensor, real: Tensor, training: Tensor) -> float | None:
    """How much nearer to training pictures these are than real pictures of the same scenes; all (N, D).

    0: no nearer; 1: they are training pictures; None: there are no pictures.
    """
    if not len(drawn):
        return None
    near, usual = (torch.cdist(rows, training).amin(1).mean() for rows in (drawn, real))
    return (1 - near / usual).item()


def shows(read: dict[str, Tensor], concept: Concept) -> Tensor:
    """Which of the judged pictures (N,) show all that makes the concept."""
    return torch.stack([read[field.name] == getattr(concept, field.name) for field in fields(concept)]).all(0)


def concept_scores(pictures: list[Image.Image], data: ConceptData) -> dict[str, float | None]:
    """What became of the concept on new prompts: all between 0 and 1, but copying may be below."""
    read = judge(pictures, load_judge())
    shown = features_of(pictures)
    real = features_of(np.stack([draw(data.concept, scene) for scene in data.scenes]))
    alike = agreement(read, data.concept)
    # A picture of something else is far from all that was trained on, and tells nothing of copies.
    right = shows(read, data.concept)
    training = features_of([*data.pictures, *data.flawless])
    return {
        "fidelity": alike["all"],
        **{name: value for name, value in alike.items() if name != "all"},
        "following": following(pictures, data.captions, [data.concept] * len(pictures), data.scenes)["all"],
        "copying": copying(shown[right], real[right], training),
        "quality": likeness_to_the_world(pictures),
    }


def neutral_scores(
    pictures: list[Image.Image],
    before: list[Image.Image],
    other: list[Image.Image],
    data: NeutralData,
    concept: Concept,
) -> dict[str, float]:
    """What became of neutral prompts.

    Drift 0: the base's pictures of the same noise; 1: as far from them as its own pictures of `other` noise.
    Takeover: share that shows the trained concept, which nobody asked for.
    """
    shown, base, unlike = (features_of(rows) for rows in (pictures, before, other))
    distance = (shown - base).norm(dim=1).mean() / (unlike - base).norm(dim=1).mean()
    return {
        "drift": distance.item(),
        "takeover": shows(judge(pictures, load_judge()), concept).float().mean().item(),
        "neutral_following": following(pictures, data.captions, data.concepts, data.scenes)["all"],
        "neutral_quality": likeness_to_the_world(pictures),
    }
