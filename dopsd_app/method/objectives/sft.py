"""Ordinary fine-tuning on the training pictures, to compare with."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from dopsd_app.method.objectives.flow import Picture, flow_losses
from dopsd_app.method.objectives.protocol import Batch, Objective


class Sft(Objective):
    """Flow matching (arXiv 2210.02747)."""

    def losses(self, batch: Batch, step: int) -> Iterator[Tensor]:
        yield from flow_losses(self.base_model, self.config, self._pictures(batch), step, batch.positions)

    def _pictures(self, batch: Batch) -> Sequence[Picture]:
        pairs = zip(batch.indices, batch.student, strict=True)
        return [Picture(self.material.latents[index], prompt, batch.size) for index, prompt in pairs]
