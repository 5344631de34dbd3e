"""Does a LoRA learn its concept, and does it leave the rest alone? Scores of few pictures, in features."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dopsd_app.base_models import BaseModel, Conditioning
from dopsd_app.catalog import find_facts
from dopsd_app.events import HealthMeasured, Warned, read_events
from dopsd_app.health_rules import complaint, measured_in
from dopsd_app.previews import Pair, draw_pairs
from dopsd_app.runs import Run


@dataclass(frozen=True)
class Health:
    """How a LoRA stands; the base itself has following 1 and drift 0."""

    concept: float  # likeness of the concept's pictures to the training pictures; 1 at the most
    following: float | None  # 1: the prompts' own pictures, as the base's; 0: by chance; None: but one prompt
    drift: float  # how far neutral prompts' pictures have moved from the base's; 1: as far as any others are


def health_of(
    training: Tensor, base: Tensor, lora: Tensor, base_neutral: Tensor, lora_neutral: Tensor
) -> Health:
    """Scores features (N, D) of pictures that base and LoRA drew from the same prompts and noise.

    Following: of two prompts, how often the LoRA's picture of one is more like the base's of that than of the
    other. Features of any two pictures are alike; what is common to the training pictures and the base's own
    is taken off first. The LoRA's have no part in that: they would move the measure they are measured with.
    """
    common = torch.cat([training, base, base_neutral]).mean(0)
    learned = (training - common).mean(0, keepdim=True)
    return Health(
        concept=cosine_similarity(lora - common, learned).mean().item(),
        following=_following(base, lora),
        drift=1 - cosine_similarity(lora_neutral - common, base_neutral - common).mean().item(),
    )


def _following(base: Tensor, lora: Tensor) -> float | None:
    if len(base) == 1:
        return None
    # Likenesses themselves say little, for the concept changes all pictures; their order tells prompts apart.
    likeness = cosine_similarity((lora - lora.mean(0))[:, None], base - base.mean(0), dim=-1)
    others = ~torch.eye(len(base), dtype=torch.bool, device=base.device)
    return (likeness.diagonal()[:, None] - likeness)[others].sign().mean().item()


def seen_health(base_model: BaseModel, *groups: Sequence[Image.Image]) -> Health:
    """`health_of` pictures in its order, by the features of the base model's own vision tower."""
    features = base_model.picture_features
    return health_of(*(torch.stack([features(picture) for picture in group]) for group in groups))


def judged_health(
    training: Sequence[Image.Image],
    base: Sequence[Image.Image],
    lora: Sequence[Image.Image],
    base_neutral: Sequence[Image.Image],
    lora_neutral: Sequence[Image.Image],
) -> Health:
    """The same of the built-in base's pictures, by what its judge sees in them.

    Concept is the share of what makes the creature of the training pictures, and drift the share of neutral
    pictures that is not as the base drew it. Its features saturate: to them, half of a creature is all of it.
    """
    from pocket.judge import ATTRIBUTES, CONCEPT, features, judge, load_judge

    model = load_judge()
    seen, drawn, before, after = (
        judge(list(pictures), model) for pictures in (training, lora, base_neutral, lora_neutral)
    )
    creature = {name: seen[name].mode().values for name in CONCEPT}

    def alike(one: dict[str, Tensor], other: dict[str, Tensor], names: Iterable[str]) -> float:
        return torch.stack([one[name] == other[name] for name in names]).float().mean().item()

    chance = sum(1 / count for count in ATTRIBUTES.values()) / len(ATTRIBUTES)
    return Health(
        concept=alike(drawn, creature, CONCEPT),
        following=_following(features(list(base), model), features(list(lora), model)),
        drift=(1 - alike(after, before, ATTRIBUTES)) / (1 - chance),
    )


class HealthMeter:
    """Measures a run's LoRA on its preview prompts and on prompts that have nothing to do with it."""

    def __init__(
        self,
        run: Run,
        base_model: BaseModel,
        training: Sequence[Image.Image],
        neutral: tuple[Conditioning, ...],
        size: tuple[int, int],
        step: int,
    ):
        self.run, self.base_model, self.neutral, self.size = run, base_model, neutral, size
        self.training = list(training)  # cropped as the student is to draw them
        # What was measured behind the checkpoint that the run goes on from will be measured again.
        self.measured = [
            health for health in measured_in(read_events(run.events_file)) if health.step <= step
        ]

    def measure(self, step: int, pairs: list[Pair]) -> Iterator[HealthMeasured | Warned]:
        """The base's own health once, then the LoRA's, with a warning where it becomes bad.

        `pairs` are the base's and the student's pictures.
        """
        config = self.run.config
        neutral = draw_pairs(self.run, self.base_model, config, self.neutral, self.size, "neutral")
        score = (
            judged_health
            if find_facts(config.base_model).has_judge
            else partial(seen_health, self.base_model)
        )
        (base, lora), (base_neutral, lora_neutral) = zip(*pairs, strict=True), zip(*neutral, strict=True)
        found = {step: score(self.training, base, lora, base_neutral, lora_neutral)}
        if not self.measured:
            found = {0: score(self.training, base, base, base_neutral, base_neutral), **found}
        self.base_model.free_encoders()  # the vision tower came for the features
        for number, health in found.items():
            before = self.measured[-1:]
            self.measured.append(HealthMeasured(number, **asdict(health)))
            yield self.measured[-1]
            said = complaint(self.measured[-1])
            if said and said not in map(complaint, before):
                yield Warned(step, said)
