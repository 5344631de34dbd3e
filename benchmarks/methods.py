"""D-OPSD and its rivals: the product's objectives, in the product's own step, within so many passes.

All see the same pictures and captions and train the same LoRA. What they cost is counted in transformer
passes: one example through the transformer once, with or without gradient.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from benchmarks.concepts import SIDE, ConceptData, NeutralData
from dopsd_app.config import TrainConfig
from dopsd_app.method.objectives import make_objective
from dopsd_app.method.objectives.protocol import Material, Objective
from dopsd_app.method.step import optimizer_step, prepare
from dopsd_app.models.protocol import BaseModel, Conditioning

PAPERS_SETTINGS = {  # whatever a preset says today; but rank 16 is enough for the small base
    "base_model": "pocket-turbo",
    "num_inference_steps": 4,
    "resolution": SIDE,
    "optimizer": "adamw",
    "rollout_steps": 4,
    "batch_size": 4,
    "micro_batch": 4,
    "loss": "denoised",
    "teacher": "ema",
    "ema_decay": 0.9999,
    "rank": 16,
    "lora_alpha": 0.0,
    "quantization": "none",
}


@dataclass
class Training:
    """One method on one concept."""

    base_model: BaseModel
    config: TrainConfig
    data: ConceptData
    priors: NeutralData  # what DreamBooth has pictures of; others than those that drift is measured on
    passes: int = 0

    def count(self) -> None:
        """From now on, every example that goes through the transformer is counted."""
        predict = self.base_model.predict_velocity

        def counted(latents: Tensor, sigma: Tensor, conditionings: list[Conditioning]) -> Tensor:
            self.passes += len(latents)
            return predict(latents, sigma, conditionings)

        self.base_model.predict_velocity = counted

    @property
    def material(self) -> Material:
        """The concept as an objective gets it."""
        return Material(self.data.examples, tuple(self.data.latents), self.priors.prompts)


def products(training: Training) -> Objective:
    """The product's objective that the settings name; pictures that it draws first are counted too."""
    return make_objective(training.base_model, training.config, training.material)


@dataclass(frozen=True)
class Method:
    """A row of the table."""

    settings: tuple[tuple[str, object], ...] = ()  # of TrainConfig, fixed for the method
    objective: Callable[[Training], Objective] = products
    on_parent: bool = False  # trained on the many-step parent, and moved over
    targets: str | None = None  # regular expression of the modules that are adapted; None: the product's
    falls_until: int | None = None  # passes after which the learning rate has fallen to 0; None: constant


METHODS = {
    "sft": Method((("objective", "sft"),)),
    "sft_on_parent": Method((("objective", "sft"),), on_parent=True),
    "dreambooth": Method((("objective", "dreambooth"),)),
    "pso": Method((("objective", "pso"),)),
    "dopsd_live": Method((("ema_decay", 0.0),)),
    "dopsd_base": Method((("teacher", "base"),)),
    "dopsd_ema": Method(),
    "dopsd_fast": Method((("rollout_steps", 2),)),  # of the levers, what became the preset
    "dopsd_nf4": Method((("quantization", "nf4"),)),  # and moved over to the full precision
    "off_policy": Method((("objective", "off_policy"),)),
    "sft_on_samples": Method((("objective", "sft_on_samples"),)),
}


def train(method: Method, training: Training, budgets: Sequence[int]) -> Iterator[int]:
    """Optimizer steps until so many transformer passes are spent; yields their number at each budget.

    What is drawn between two budgets, to see how it stands, is not counted.
    """
    base_model, config = training.base_model, training.config
    if method.targets:
        base_model.lora_targets = method.targets
    optimizer = prepare(base_model, config)
    training.count()
    objective = method.objective(training)
    step = 0
    for budget in budgets:
        while training.passes < budget:
            step += 1
            if method.falls_until:
                left = 1 - training.passes / method.falls_until
                optimizer.param_groups[0]["lr"] = config.learning_rate * left
            optimizer_step(base_model, config, training.data.examples, objective, optimizer, step)
        spent = training.passes
        yield step
        training.passes = spent
