"""D-OPSD's rivals, on the product's own adapters: one optimizer step of each is a function.

All see the same pictures and captions and train the same LoRA. What they cost is counted in transformer
passes: one example through the transformer once, with or without gradient.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.concepts import SIDE, ConceptData, NeutralData
from dopsd_app.config import TrainConfig
from dopsd_app.method import randomness
from dopsd_app.method.adapters import as_teacher, update_teacher
from dopsd_app.method.rollout import sample
from dopsd_app.models.protocol import BaseModel, Conditioning
from dopsd_app.train import optimizer_step, prepare

PSO_SLOPE, PSO_KEPT = 5.0, 0.5  # of the hinge on the errors' difference, and the share of the own picture's
SAMPLES = 32  # pictures that are drawn before the first step, to be learned from or to be avoided
PAPERS_SETTINGS = {  # whatever a preset says today; but rank 16 is enough for the small base
    "base_model": "pocket-turbo",
    "num_inference_steps": 4,
    "resolution": SIDE,
    "optimizer": "adamw",
    "gradient_checkpointing": False,
    "rollout_steps": 4,
    "batch_size": 4,
    "micro_batch": 4,
    "loss": "denoised",
    "teacher": "ema",
    "ema_decay": 0.9999,
    "rank": 16,
    "lora_alpha": 0.0,
}
SIGMA, CHOICE, PRIOR, MADE, STATE = range(10, 15)  # purposes of draws, beside the product's own
NO_EXAMPLE = 2**31  # in place of an index: what is drawn for a whole step is not one example's noise again


@dataclass(frozen=True)
class Made:
    """Pictures that a method made before it started: latents (N, C, h, w), and their prompts."""

    latents: Tensor
    prompts: tuple[Conditioning, ...]


@dataclass
class Training:
    """One method on one concept."""

    base_model: BaseModel
    config: TrainConfig
    data: ConceptData
    priors: NeutralData  # what DreamBooth has pictures of; others than those that drift is measured on
    passes: int = 0
    made: Made | None = None

    def count(self) -> None:
        """From now on, every example that goes through the transformer is counted."""
        predict = self.base_model.predict_velocity

        def counted(latents: Tensor, sigma: Tensor, conditionings: list[Conditioning]) -> Tensor:
            self.passes += len(latents)
            return predict(latents, sigma, conditionings)

        self.base_model.predict_velocity = counted

    @property
    def sigmas(self) -> Tensor:
        """The few steps of the roll-out (K + 1)."""
        return self.base_model.sigmas(self.config.rollout_steps, SIDE, SIDE)

    def drawn(self, step: int) -> list[int]:
        """Which examples make the batch of a step."""
        return randomness.draw_examples(
            self.config.seed, step, self.config.batch_size, len(self.data.examples)
        )

    def noise(self, step: int, count: int, purpose: int = randomness.NOISE) -> Tensor:
        """Fresh noise (count, C, h, w)."""
        shape = self.data.latents.shape[1:]
        rows = [randomness.draw_noise(shape, self.config.seed, step, i, purpose) for i in range(count)]
        return torch.stack(rows).to(self.data.latents)

    def uniform(self, step: int, count: int, purpose: int) -> Tensor:
        """Numbers (count,) in [0, 1)."""
        generator = randomness.generator(self.config.seed, purpose, step, NO_EXAMPLE)
        return torch.rand(count, generator=generator).to(self.data.latents)


def flow_loss(
    training: Training, latents: Tensor, prompts: list[Conditioning], step: int, purpose: int = SIGMA
) -> Tensor:
    """Flow matching on pictures (B, C, h, w): ordinary fine-tuning's mean squared velocity error."""
    uniform = training.uniform(step, len(latents), purpose)
    sigma = 3 * uniform / (1 + 2 * uniform)  # uniform in the scheduler's own time, as common trainers do
    noise = training.noise(step, len(latents), purpose)
    level = sigma[:, None, None, None]
    velocity = training.base_model.predict_velocity((1 - level) * latents + level * noise, sigma, prompts)
    return F.mse_loss(velocity, noise - latents)


def students_prompts(training: Training, drawn: list[int]) -> list[Conditioning]:
    return [training.data.examples[index].student[0] for index in drawn]


# --- one step's loss of each method; the teacher's adapter is the student's slow copy


def sft(training: Training, step: int) -> Tensor:
    """Ordinary fine-tuning on the training pictures."""
    drawn = training.drawn(step)
    return flow_loss(training, training.data.latents[drawn], students_prompts(training, drawn), step)


def dreambooth(training: Training, step: int) -> Tensor:
    """The same, and as much on pictures that the base made of neutral prompts (arXiv 2208.12242)."""
    count = training.config.batch_size
    chosen = (training.uniform(step, count, CHOICE) * len(training.made.prompts)).long().tolist()
    prior = flow_loss(
        training,
        training.made.latents[chosen],
        [training.made.prompts[index] for index in chosen],
        step,
        PRIOR,  # with CHOICE again, each picture would always have the same sigma
    )
    return sft(training, step) + prior


def sft_on_samples(training: Training, step: int) -> Tensor:
    """Ordinary fine-tuning on what the teacher drew, instead of on the pictures."""
    count = training.config.batch_size
    chosen = (training.uniform(step, count, CHOICE) * len(training.made.prompts)).long().tolist()
    prompts = [training.made.prompts[index] for index in chosen]
    return flow_loss(training, training.made.latents[chosen], prompts, step)


def pso(training: Training, step: int) -> Tensor:
    """Pairwise sample optimization (arXiv 2410.03190), as its code personalizes: pictures before own ones.

    Each at one of the few steps' sigmas, the error on the training picture is to fall below that on what the
    untrained base drew from the same caption. A share of that one is learned too, so that less is forgotten.
    """
    drawn, pictures = training.drawn(step), len(training.data.examples)
    which = (training.uniform(step, len(drawn), CHOICE) * (SAMPLES // pictures)).long().tolist()
    own = training.made.latents[[i + pictures * n for i, n in zip(drawn, which, strict=True)]]
    both = torch.cat([training.data.latents[drawn], own])
    noise = training.noise(step, len(drawn), STATE).repeat(2, 1, 1, 1)
    places = (training.uniform(step, len(drawn), SIGMA) * training.config.rollout_steps).long()
    sigma = training.sigmas.to(both)[places].repeat(2)
    level = sigma[:, None, None, None]
    prompts = students_prompts(training, drawn) * 2
    velocity = training.base_model.predict_velocity((1 - level) * both + level * noise, sigma, prompts)
    better, worse = (velocity - (noise - both)).square().flatten(1).mean(1).chunk(2)
    return (F.relu(1 - PSO_SLOPE * (worse - better)) + PSO_KEPT * worse).mean()


def off_policy(training: Training, step: int) -> Tensor:
    """Distillation on the states of the teacher's own walk."""
    base_model, drawn = training.base_model, training.drawn(step)
    teacher = [training.data.examples[index].teacher[0] for index in drawn]
    latents, losses = training.noise(step, len(drawn)), []
    for sigma, sigma_next in pairwise(training.sigmas):
        with as_teacher(base_model.transformer):
            target = base_model.predict_velocity(latents, sigma, teacher)
        velocity = base_model.predict_velocity(latents, sigma, students_prompts(training, drawn))
        losses.append((sigma * (velocity - target)).square().mean())  # the denoised pictures' distance
        latents = latents + (sigma_next - sigma) * target
    return torch.stack(losses).mean()


# --- what is made before the first step


def make_priors(training: Training) -> Made:
    """The base's own few-step pictures of neutral prompts."""
    prompts = training.priors.prompts
    noise = training.noise(0, len(prompts), MADE)
    return Made(sample(training.base_model, list(prompts), noise, training.sigmas), prompts)


def make_samples(training: Training, role: str = "teacher") -> Made:
    """Few-step pictures of the training captions in turn, each told to the student by its caption."""
    drawn = [index % len(training.data.examples) for index in range(SAMPLES)]
    told = [getattr(training.data.examples[index], role)[0] for index in drawn]
    latents = sample(training.base_model, told, training.noise(0, SAMPLES, MADE), training.sigmas)
    return Made(latents, tuple(students_prompts(training, drawn)))


@dataclass(frozen=True)
class Method:
    """A row of the table."""

    loss: Callable[[Training, int], Tensor] | None  # None: the product's own step
    make: Callable[[Training], Made] | None = None
    settings: tuple[tuple[str, object], ...] = ()  # of TrainConfig, fixed for the method
    on_parent: bool = False  # trained on the many-step parent, and moved over
    targets: str | None = None  # regular expression of the modules that are adapted; None: the product's
    falls_until: int | None = None  # passes after which the learning rate has fallen to 0; None: constant


METHODS = {
    "sft": Method(sft),
    "sft_on_parent": Method(sft, on_parent=True),
    "dreambooth": Method(dreambooth, make_priors),
    "pso": Method(pso, partial(make_samples, role="student")),
    "dopsd_live": Method(None, settings=(("ema_decay", 0.0),)),
    "dopsd_base": Method(None, settings=(("teacher", "base"),)),
    "dopsd_ema": Method(None),
    "dopsd_fast": Method(None, settings=(("rollout_steps", 2),)),  # of the levers, what became the preset
    "dopsd_nf4": Method(None, settings=(("quantization", "nf4"),)),  # and moved over to the full precision
    "off_policy": Method(off_policy),
    "sft_on_samples": Method(sft_on_samples, make_samples),
}


def train(method: Method, training: Training, budgets: Sequence[int]) -> Iterator[int]:
    """Optimizer steps until so many transformer passes are spent; yields their number at each budget.

    What is drawn between two budgets, to see how it stands, is not counted.
    """
    base_model, config = training.base_model, training.config
    if method.targets:
        base_model.lora_targets = method.targets
    optimizer = prepare(base_model, config)
    student = optimizer.param_groups[0]["params"]
    training.count()
    if method.make:
        training.made = method.make(training)
    step = 0
    for budget in budgets:
        while training.passes < budget:
            step += 1
            if method.falls_until:
                left = 1 - training.passes / method.falls_until
                optimizer.param_groups[0]["lr"] = config.learning_rate * left
            if method.loss is None:
                optimizer_step(base_model, config, training.data.examples, optimizer, step)
                continue
            method.loss(training, step).backward()
            torch.nn.utils.clip_grad_norm_(student, config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            update_teacher(base_model.transformer, config.ema_decay)
        spent = training.passes
        yield step
        training.passes = spent
