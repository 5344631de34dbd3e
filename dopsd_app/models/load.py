"""The only place that knows one base model from another."""

import json

import diffusers
import torch
import transformers

from dopsd_app.config import TrainConfig
from dopsd_app.models.catalog import BaseModelError, find_base_model, find_facts
from dopsd_app.models.protocol import BaseModel
from dopsd_app.models.z_image import ZImage

BASE_MODELS = {"ZImagePipeline": ZImage}  # one for each of catalog.SUPPORTED_PIPELINES

# What a person wants to see of loading is in the run's events; these bars and warnings would go to the log.
transformers.utils.logging.disable_progress_bar()
diffusers.utils.logging.disable_progress_bar()


def load_base_model(config: TrainConfig) -> BaseModel:
    """The base model of a configuration; the protocol's methods load its parts, phase by phase.

    Raises `BaseModelError` for a folder that is not there or holds another kind of model, and for no card.
    """
    place = find_base_model(config.base_model, config.revision)
    pipeline = json.loads((place.folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise BaseModelError("`device` is cuda, but PyTorch finds no CUDA card here. Set it to auto or cpu.")
    precision = config.precision
    if precision == "auto":
        precision = "bfloat16" if device == "cuda" else "float32"
    return BASE_MODELS[pipeline](
        place,
        torch.device(device),
        getattr(torch, precision),
        quantization=config.quantization,
        context_area=find_facts(config.base_model, config.revision).sizes.context_area,
    )
