"""Does a LoRA learn its concept, and does it leave the rest alone? Scores of few pictures, in features."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

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

    concept: float  # likeness of the concept's pictures to the training pictures, -1 to 1
    # Of two prompts, how often the LoRA's picture of one is more like the base's of that than of the other: 1
    # always, 0 by chance; None where there is but one prompt.
    following: float | None
    drift: float  # how far neutral prompts' pictures have moved from the base's, 0 to 2


def health_of(
    training: Tensor, base: Tensor, lora: Tensor, base_neutral: Tensor, lora_neutral: Tensor
) -> Health:
    """Scores features (N, D) of pictures that base and LoRA drew from the same prompts and noise.

    Features of any two pictures are alike; what is common to the training pictures and the base's own is
    taken off first. The LoRA's have no part in that: they would move the measure that they are measured with.
    """
    common = torch.cat([training, base, base_neutral]).mean(0)
    learned = (training - common).mean(0, keepdim=True)
    return Health(
        concept=cosine_similarity(lora - common, learned).mean().item(),
        following=_following(base, lora) if len(base) > 1 else None,
        drift=1 - cosine_similarity(lora_neutral - common, base_neutral - common).mean().item(),
    )


def _following(base: Tensor, lora: Tensor) -> float:
    # Likenesses themselves say little, for the concept changes all pictures; their order tells prompts apart.
    likeness = cosine_similarity((lora - lora.mean(0))[:, None], base - base.mean(0), dim=-1)
    others = ~torch.eye(len(base), dtype=torch.bool, device=base.device)
    return (likeness.diagonal()[:, None] - likeness)[others].sign().mean().item()


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
        eyes = _judge if find_facts(config.base_model).has_judge else self._vision
        training, base, lora = eyes(self.training), *(eyes(list(side)) for side in zip(*pairs, strict=True))
        base_neutral, lora_neutral = (eyes(list(side)) for side in zip(*neutral, strict=True))
        self.base_model.free_encoders()  # the vision tower came for the features
        found = {step: health_of(training, base, lora, base_neutral, lora_neutral)}
        if not self.measured:
            found = {0: health_of(training, base, base, base_neutral, base_neutral), **found}
        for number, health in found.items():
            before = self.measured[-1:]
            self.measured.append(HealthMeasured(number, **asdict(health)))
            yield self.measured[-1]
            said = complaint(self.measured[-1])
            if said and said not in map(complaint, before):
                yield Warned(step, said)

    def _vision(self, pictures: list[Image.Image]) -> Tensor:
        return torch.stack([self.base_model.picture_features(picture) for picture in pictures])


def _judge(pictures: list[Image.Image]) -> Tensor:
    from pocket.judge import features  # the built-in base's own; other bases run without that folder

    return features(pictures)
