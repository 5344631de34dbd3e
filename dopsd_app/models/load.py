"""A base model as a configuration wants it, whichever it is."""

import pkgutil

import diffusers.utils.logging
import torch
import transformers.utils.logging

from dopsd_app.config import TrainConfig
from dopsd_app.models.architecture import BaseModelError
from dopsd_app.models.catalog import find_base_model, find_facts
from dopsd_app.models.protocol import BaseModel

# What a person wants to see of loading is in the run's events; these bars and warnings would go to the log.
transformers.utils.logging.disable_progress_bar()
diffusers.utils.logging.disable_progress_bar()


def load_base_model(config: TrainConfig) -> BaseModel:
    """The base model of a configuration; the protocol's methods load its parts, phase by phase.

    Raises `BaseModelError` for a folder that is not there or holds another kind of model, for no card, and
    for a teacher context that the model does not have.
    """
    place = find_base_model(config.base_model, config.revision, config.teacher_context)
    facts = find_facts(config.base_model, config.revision)
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise BaseModelError("`device` is cuda, but PyTorch finds no CUDA card here. Set it to auto or cpu.")
    precision = config.precision
    if precision == "auto":
        precision = "bfloat16" if device == "cuda" else "float32"
    base_model_class = pkgutil.resolve_name(facts.architecture.base_model)
    return base_model_class(
        place,
        torch.device(device),
        getattr(torch, precision),
        sizes=facts.sizes_for(config),
        quantization=config.quantization,
        teacher_context=facts.architecture.choose_context(config.teacher_context),
    )
