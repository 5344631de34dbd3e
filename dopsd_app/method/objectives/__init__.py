"""What training minimises: a file for each, and their facts in `config.OBJECTIVES`."""

from dopsd_app.config import TrainConfig
from dopsd_app.method.objectives.dopsd import Dopsd
from dopsd_app.method.objectives.dreambooth import DreamBooth
from dopsd_app.method.objectives.off_policy import OffPolicy
from dopsd_app.method.objectives.protocol import Material, Objective
from dopsd_app.method.objectives.pso import Pso
from dopsd_app.method.objectives.sft import Sft
from dopsd_app.method.objectives.sft_on_samples import SftOnSamples
from dopsd_app.models.protocol import BaseModel

OBJECTIVE_CLASSES: dict[str, type[Objective]] = {
    "dopsd": Dopsd,
    "sft": Sft,
    "dreambooth": DreamBooth,
    "pso": Pso,
    "off_policy": OffPolicy,
    "sft_on_samples": SftOnSamples,
}


def make_objective(base_model: BaseModel, config: TrainConfig, material: Material) -> Objective:
    """The run's objective; some draw pictures first, with the base's weights, the same after a resume."""
    return OBJECTIVE_CLASSES[config.objective](base_model, config, material)
