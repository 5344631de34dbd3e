"""Fine-tuning that holds on to what the base draws of other prompts."""

from collections.abc import Iterator

from torch import Tensor

from dopsd_app.config import TrainConfig
from dopsd_app.method.objectives.flow import flow_losses
from dopsd_app.method.objectives.made import choose, draw_priors
from dopsd_app.method.objectives.protocol import Batch, Material
from dopsd_app.method.objectives.sft import Sft
from dopsd_app.method.randomness import PRIOR
from dopsd_app.models.protocol import BaseModel


class DreamBooth(Sft):
    """SFT, and as much on prior pictures, which the base made of neutral prompts (arXiv 2208.12242)."""

    def __init__(self, base_model: BaseModel, config: TrainConfig, material: Material):
        super().__init__(base_model, config, material)
        self.priors = draw_priors(base_model, config, material)

    def losses(self, batch: Batch, step: int) -> Iterator[Tensor]:
        yield from super().losses(batch, step)
        priors = choose(self.priors, self.config, step, batch.positions)
        # For a purpose of their own: with that of the choice, each picture would always have the same sigma.
        yield from flow_losses(self.base_model, self.config, priors, step, batch.positions, PRIOR)
