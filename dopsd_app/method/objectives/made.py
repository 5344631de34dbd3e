"""Pictures that the base draws before the first step, to be learned from or to be avoided."""

from collections.abc import Sequence
from dataclasses import dataclass

from dopsd_app.config import TrainConfig
from dopsd_app.method.adapters import as_base
from dopsd_app.method.encode import EncodedExample
from dopsd_app.method.objectives.flow import Picture
from dopsd_app.method.objectives.protocol import Material
from dopsd_app.method.randomness import CHOICE, MADE, draw_noise, draw_uniform
from dopsd_app.method.rollout import sample
from dopsd_app.models.protocol import BaseModel, Conditioning

SAMPLES = 32  # pictures, at the least


@dataclass(frozen=True)
class ConditioningPair:
    """The conditioning that the base draws a picture from, and the one that the student learns it with."""

    base: Conditioning
    student: Conditioning
    size: tuple[int, int]  # height and width in pixels


def draw_first(
    base_model: BaseModel, config: TrainConfig, pairs: Sequence[ConditioningPair]
) -> tuple[Picture, ...]:
    """The bare base's pictures at the native steps: student and teacher start as it, and it never changes.

    So a run that goes on has the very same; one by one, they do not depend on `micro_batch` either.
    """
    with as_base(base_model.transformer):
        return tuple(_draw(base_model, config, number, pair) for number, pair in enumerate(pairs))


def _draw(base_model: BaseModel, config: TrainConfig, number: int, pair: ConditioningPair) -> Picture:
    noise = draw_noise(base_model.latent_shape(*pair.size), config.seed, 0, number, MADE)[None]
    sigmas = base_model.sigmas(config.num_inference_steps, *pair.size)
    latents = sample(base_model, [pair.base], noise.to(base_model.device), sigmas)
    return Picture(latents[0], pair.student, pair.size)


def draw_priors(base_model: BaseModel, config: TrainConfig, material: Material) -> tuple[Picture, ...]:
    """Pictures of the neutral prompts in turn, as large as the first example's."""
    size = (material.examples[0].height, material.examples[0].width)
    prompts = [material.neutral[number % len(material.neutral)] for number in range(SAMPLES)]
    return draw_first(base_model, config, [ConditioningPair(prompt, prompt, size) for prompt in prompts])


def draw_samples(
    base_model: BaseModel, config: TrainConfig, examples: Sequence[EncodedExample], role: str
) -> tuple[Picture, ...]:
    """Pictures of the examples in turn, and of the captions of each, by `role`'s conditioning.

    The n-th of example i is number i + n * len(examples); the student learns it with its caption.
    """
    pairs = []
    for number in range(max(SAMPLES, len(examples))):
        example = examples[number % len(examples)]
        caption = number // len(examples) % len(example.student)
        size = (example.height, example.width)
        pairs.append(ConditioningPair(getattr(example, role)[caption], example.student[caption], size))
    return draw_first(base_model, config, pairs)


def choose(
    pictures: Sequence[Picture], config: TrainConfig, step: int, positions: Sequence[int]
) -> list[Picture]:
    """One at random for each of these positions in the step's batch."""
    uniform = draw_uniform(config.seed, step, positions, config.batch_size, CHOICE)
    return [pictures[number] for number in (uniform * len(pictures)).long().tolist()]
