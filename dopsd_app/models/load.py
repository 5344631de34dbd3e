"""A base model as a configuration wants it, whichever it is."""

import pkgutil

import diffusers.utils.logging
import torch
import transformers.utils.logging

from dopsd_app.config import TrainConfig
from dopsd_app.gpus import Gpu, list_gpus
from dopsd_app.models.architecture import UNTAUGHT, BaseModelError
from dopsd_app.models.catalog import find_base_model, find_facts, is_known
from dopsd_app.models.memory_plan import NOTHING_SAVED, MemoryPlan
from dopsd_app.models.protocol import BaseModel
from dopsd_app.torch_build import TorchBuild, installed_torch, why_unusable

NO_CARD = "`device` is cuda, but PyTorch finds no CUDA card here. Set it to auto or cpu."
ON_PROCESSOR = "Or set `device` to cpu, if the base model is small enough for that."

# What a person wants to see of loading is in the run's events; these bars and warnings would go to the log.
transformers.utils.logging.disable_progress_bar()
diffusers.utils.logging.disable_progress_bar()


def load_base_model(
    config: TrainConfig, memory_plan: MemoryPlan = NOTHING_SAVED, *, teaches: bool = True
) -> BaseModel:
    """The base model of a configuration; the protocol's methods load its parts, phase by phase.

    One that does not teach only draws, and needs nothing of what its teacher sees with.

    Raises `BaseModelError` for a folder that is not there or holds another kind of model, where no card can
    be used, and for a teacher context that the model does not have.
    """
    device = choose_device(config)
    facts = find_facts(config.base_model, config.revision)
    context = facts.architecture.choose_context(config.teacher_context) if teaches else UNTAUGHT
    place = find_base_model(config.base_model, config.revision, context)
    precision = config.precision
    if precision == "auto":
        precision = "bfloat16" if device == "cuda" else "float32"
    base_model_class = pkgutil.resolve_name(facts.architecture.base_model)
    return base_model_class(
        place,
        torch.device(device),
        getattr(torch, precision),
        sizes=facts.sizes_for(config),
        memory_plan=memory_plan,
        teacher_context=context,
    )


def choose_device(config: TrainConfig) -> str:
    """ "cuda" or "cpu": the one that the plan is made for; before the first kernel, and before a download.

    Raises `BaseModelError` where torch itself finds that it cannot use the card: it knows more than the plan.
    """
    gpus, automatic = list_gpus(), config.device == "auto"
    why = why_unusable(gpus[0], installed_torch(), config.precision) if gpus else ""
    if automatic and why and _needs_card(config):
        raise BaseModelError(why)
    # A driver that does not answer at this moment says nothing: torch knows.
    if config.device == "cpu" or (automatic and (why or not (gpus or torch.cuda.is_available()))):
        return "cpu"
    if not torch.cuda.is_available():
        raise BaseModelError(_unreachable(gpus[0]) if gpus and not why else NO_CARD)
    if why := why_unusable(_card_of_torch(), _build_of_torch(), config.precision):
        raise BaseModelError(f"{why} {ON_PROCESSOR}")
    return "cuda"


def _needs_card(config: TrainConfig) -> bool:
    name, revision = config.base_model, config.revision
    return is_known(name, revision) and find_facts(name, revision).sizes.needs_card


def _unreachable(gpu: Gpu) -> str:
    return (
        f"The {gpu.name} is there, and torch cannot reach it: restart the computer, and update the card's"
        f" driver. {ON_PROCESSOR}"
    )


def _card_of_torch() -> Gpu:
    return Gpu(torch.cuda.get_device_name(), 0, 0, capability=torch.cuda.get_device_capability())


def _build_of_torch() -> TorchBuild:
    version = torch.__version__.partition("+")[0]
    return TorchBuild(version, torch.version.cuda or "", tuple(torch.cuda.get_arch_list()))
