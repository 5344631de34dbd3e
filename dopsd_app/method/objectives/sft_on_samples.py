"""Fine-tuning on what the teacher drew, instead of on the pictures: what D-OPSD is compared with."""

from collections.abc import Iterator

from torch import Tensor

from dopsd_app.config import TrainConfig
from dopsd_app.method.objectives.flow import flow_losses
from dopsd_app.method.objectives.made import choose, draw_samples
from dopsd_app.method.objectives.protocol import Batch, Material, Objective
from dopsd_app.models.protocol import BaseModel


class SftOnSamples(Objective):
    """Flow matching (arXiv 2210.02747) on samples of the teacher as it is before the first step."""

    def __init__(self, base_model: BaseModel, config: TrainConfig, material: Material):
        super().__init__(base_model, config, material)
        self.samples = draw_samples(base_model, config, material.examples, "teacher")

    def losses(self, batch: Batch, step: int) -> Iterator[Tensor]:
        chosen = choose(self.samples, self.config, step, batch.positions)
        yield from flow_losses(self.base_model, self.config, chosen, step, batch.positions)
