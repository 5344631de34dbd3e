"""Does a LoRA learn its concept, and does it leave the rest alone? Scores of few pictures, in features."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from dopsd_app.checks.health_rules import complaint
from dopsd_app.checks.previews import Pair, draw_pairs
from dopsd_app.jobs.events import HealthMeasured, Warned, measured_in, read_events
from dopsd_app.jobs.runs import Run
from dopsd_app.method.encode import EncodedPrompt
from dopsd_app.models.catalog import find_facts
from dopsd_app.models.protocol import BaseModel, Conditioning


@dataclass(frozen=True)
class Health:
    """How a LoRA stands; the base itself has drift 0 and quality 1."""

    concept: float  # likeness of the concept's pictures to the training pictures; 1 at the most
    following: float | None  # 1: always what the prompt says; 0: by chance; None: it cannot be measured
    drift: float  # how far neutral prompts' pictures have moved from the base's; 1: as far as any others are
    quality: float  # 1: as clean as the base's pictures, above it cleaner ones; 0: like nothing known


def health_of(
    training: Tensor, base: Tensor, lora: Tensor, base_neutral: Tensor, lora_neutral: Tensor
) -> Health:
    """Scores features (N, T, D), by token, of what base and LoRA drew from the same prompts and noise.

    Concept and drift are cosines of features that do not say where, following and quality of those that do.
    Following: of two prompts, how often the LoRA's picture of one is more like the base's of that than of the
    other. Quality: likeness to the nearest of base and training, by how like those are to each other, 1 at
    the most. Features of any two pictures are alike; what is common to the training pictures and the base's
    own is taken off first. The LoRA's have no part in that: they would move what they are measured with.
    """
    known, drawn = torch.cat([training, base, base_neutral]), torch.cat([lora, lora_neutral])
    common = known.mean((0, 1))
    learned = (training.mean(1) - common).mean(0, keepdim=True)
    moved = cosine_similarity(lora_neutral.mean(1) - common, base_neutral.mean(1) - common)
    return Health(
        concept=cosine_similarity(lora.mean(1) - common, learned).mean().item(),
        following=_following(base.flatten(1), lora.flatten(1)),
        drift=1 - moved.mean().item(),
        quality=_quality(known.flatten(1), drawn.flatten(1)),
    )


def _following(base: Tensor, lora: Tensor) -> float | None:
    if len(base) == 1:
        return None
    # Likenesses themselves say little, for the concept changes all pictures; their order tells prompts apart.
    likeness = _cosines(lora - lora.mean(0), base - base.mean(0))
    others = ~torch.eye(len(base), dtype=torch.bool, device=base.device)
    return (likeness.diagonal()[:, None] - likeness)[others].sign().mean().item()


def _quality(known: Tensor, drawn: Tensor) -> float:
    """How like the nearest known picture drawn ones are, by how like that known ones are; at most 1."""
    among = _cosines(known, known).fill_diagonal_(-1).amax(1).mean()
    return (_cosines(drawn, known).amax(1).mean() / among).clamp(0, 1).item()


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    """Of all pairs (N, M) of features (N, D) and (M, D); no larger tensor is made, for D may be a million."""
    return normalize(a, dim=1) @ normalize(b, dim=1).T


@dataclass(frozen=True)
class HealthPictures:
    """What health is judged by: what base and LoRA drew from the same prompts and noise."""

    prompts: tuple[str, ...]  # with the concept in them
    training: Sequence[Image.Image]  # cropped as the student is to draw them
    base: Sequence[Image.Image]  # of the prompts
    lora: Sequence[Image.Image]
    base_neutral: Sequence[Image.Image]  # of prompts that have nothing to do with the concept
    lora_neutral: Sequence[Image.Image]

    def at_base(self) -> "HealthPictures":
        """The same before anything was learned."""
        return replace(self, lora=self.base, lora_neutral=self.base_neutral)


def features_health(base_model: BaseModel, drawn: HealthPictures) -> Health:
    """By the features of the base model's own vision tower; pictures are cropped to the drawn ones' size."""
    size = drawn.base[0].size

    def features(pictures: Sequence[Image.Image]) -> Tensor:
        # By token they are many: 20 pictures of 1024 pixels a side take 0.2 GB, which a card may not have.
        return torch.stack([base_model.picture_features(ImageOps.fit(p, size)).cpu() for p in pictures])

    groups = (drawn.training, drawn.base, drawn.lora, drawn.base_neutral, drawn.lora_neutral)
    return health_of(*map(features, groups))


def judged_health(drawn: HealthPictures) -> Health:
    """By what the judge sees in pictures of the built-in base.

    Concept is the share of what makes the creature of the training pictures; following, that of what prompts
    say of the scene, by chance 0; drift, that of neutral pictures which the LoRA has changed, by chance 1;
    quality, likeness to the world's own drawing of what the judge sees, by the base's.
    """
    from dopsd_app.checks.judge.classifier import ATTRIBUTES, CONCEPT, chance_of, judge, load_judge
    from dopsd_app.checks.judge.likeness import likeness_to_the_world
    from dopsd_app.checks.judge.world import scene_asked_in  # other bases run without that folder

    model = load_judge()
    training, lora, before, after = (
        judge(list(pictures), model)
        for pictures in (drawn.training, drawn.lora, drawn.base_neutral, drawn.lora_neutral)
    )
    right = torch.stack([lora[name] == training[name].mode().values for name in CONCEPT])
    changed = torch.stack([after[name] != before[name] for name in ATTRIBUTES])
    asked = [
        (name, row, index)
        for row, prompt in enumerate(drawn.prompts)
        for name, index in scene_asked_in(prompt)
    ]
    following = None
    if asked:
        share = sum(int(lora[name][row] == index) for name, row, index in asked) / len(asked)
        chance = chance_of(name for name, _, _ in asked)
        following = (share - chance) / (1 - chance)
    return Health(
        concept=right.float().mean().item(),
        following=following,
        drift=changed.float().mean().item() / (1 - chance_of(ATTRIBUTES)),
        quality=likeness_to_the_world([*drawn.lora, *drawn.lora_neutral])
        / likeness_to_the_world([*drawn.base, *drawn.base_neutral]),
    )


class HealthMeter:
    """Measures a run's LoRA on its preview prompts and on prompts that have nothing to do with it."""

    def __init__(
        self,
        run: Run,
        base_model: BaseModel,
        training: Sequence[Image.Image],
        prompts: tuple[str, ...],
        neutral: tuple[Conditioning, ...],
        size: tuple[int, int],
        step: int,
    ):
        self.run, self.base_model, self.neutral, self.size = run, base_model, neutral, size
        self.training, self.prompts = training, prompts
        # What was measured behind the checkpoint that the run goes on from will be measured again.
        self.measured = [
            health for health in measured_in(read_events(run.events_file)) if health.step <= step
        ]

    def measure(self, step: int, pairs: list[Pair]) -> Iterator[HealthMeasured | Warned]:
        """The base's own health once, then the LoRA's, with a warning where it becomes bad.

        `pairs` are the base's and the student's pictures. Nothing comes of a base model without a measure.
        """
        config = self.run.config
        scoring = find_facts(config.base_model, config.revision).scoring(config)
        if scoring == "none":
            return
        judged = scoring == "judge"
        # From no picture, of an edit too: what it draws from words alone should not change.
        others = [EncodedPrompt(conditioning, self.size) for conditioning in self.neutral]
        neutral = draw_pairs(self.run, self.base_model, config, others, "neutral")
        sides = [side for both in (pairs, neutral) for side in zip(*both, strict=True)]
        drawn = HealthPictures(self.prompts, self.training, *sides)
        score = judged_health if judged else partial(features_health, self.base_model)
        try:
            found = {step: score(drawn)}
            if not self.measured:
                found = {0: score(drawn.at_base()), **found}
        finally:
            self.base_model.free_encoders()  # the vision tower came for the features
        for number, health in found.items():
            before = self.measured[-1:]
            self.measured.append(HealthMeasured(number, **asdict(health)))
            yield self.measured[-1]
            message = complaint(self.measured[-1], judged)
            if message != (complaint(before[0], judged) if before else ""):
                yield Warned(step, message, "health")
