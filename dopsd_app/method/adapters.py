"""Student and teacher LoRA on one frozen base.

The student is the resting state: whoever switches to the teacher, or to the bare base, does it in a context.
"""

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.nn import Parameter

from dopsd_app.config import TrainConfig
from dopsd_app.models.protocol import Transformer


def add_adapters(transformer: Transformer, targets: str, config: TrainConfig) -> None:
    """Adds the student and, for an EMA teacher, the teacher as its equal copy; both in float32.

    A bfloat16 EMA of decay 0.9999 would stand still. A is drawn on the CPU from the seed (normal, deviation
    1 / rank: "gaussian" in PEFT) and B is zero, so that both start as the base.
    """
    lora = LoraConfig(
        r=config.rank,
        # PEFT asks for a whole number, and only divides by the rank.
        lora_alpha=config.strength * config.rank,  # ty: ignore[invalid-argument-type]
        init_lora_weights="gaussian",
        target_modules=targets,
    )
    with warnings.catch_warnings():
        # PEFT warns of a second adapter; two are what the method needs.
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute", UserWarning)
        if config.has_ema_teacher:
            transformer.add_adapter(lora, adapter_name="teacher")
        transformer.add_adapter(lora, adapter_name="student")
    generator = torch.Generator().manual_seed(config.seed)
    for adapter in transformer.peft_config:
        for name, weight in adapter_weights(transformer, adapter).items():
            weight.data = weight.data.float()
            if adapter == "student" and name.endswith("lora_A.weight"):
                weight.data.copy_(torch.randn(weight.shape, generator=generator) / config.rank)
    if config.has_ema_teacher:
        update_teacher(transformer, ema_decay=0.0)
    transformer.set_adapter("student")


def adapter_weights(transformer: Transformer, adapter: str) -> dict[str, Parameter]:
    """The adapter's weights: `<module>.lora_A.weight` (rank, in), `<module>.lora_B.weight` (out, rank)."""
    weights = {}
    for name, module in transformer.named_modules():
        if isinstance(module, LoraLayer):
            a, b = lora_matrices(module, adapter)
            weights |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    return weights


def lora_matrices(layer: LoraLayer, adapter: str) -> tuple[Parameter, Parameter]:
    """The adapter's A (rank, in) and B (out, rank) in one layer."""
    # PEFT says of both only that they are modules.
    return cast(Parameter, layer.lora_A[adapter].weight), cast(Parameter, layer.lora_B[adapter].weight)


def adapter_arrays(transformer: Transformer, adapter: str) -> dict[str, np.ndarray]:
    """The same as float32 arrays, for files that are written without torch."""
    weights = adapter_weights(transformer, adapter)
    return {name: weight.detach().cpu().numpy() for name, weight in weights.items()}


def load_adapter_weights(transformer: Transformer, adapter: str, weights: dict[str, Tensor]) -> None:
    """Copies saved weights into an adapter; the names must be exactly the adapter's own."""
    own = adapter_weights(transformer, adapter)
    if own.keys() != weights.keys():
        raise ValueError(
            f"The saved {adapter} does not fit this base model: {sorted(own.keys() ^ weights.keys())}."
        )
    for name, weight in own.items():
        weight.data.copy_(weights[name])


@contextmanager
def as_teacher(transformer: Transformer) -> Generator[None]:
    """The teacher's weights, without gradient: its adapter, or the bare base where it has none."""
    if "teacher" not in transformer.peft_config:
        with as_base(transformer):
            yield
        return
    # set_adapter also moves requires_grad from the student to the teacher, and back again.
    transformer.set_adapter("teacher")
    try:
        with torch.no_grad():
            yield
    finally:
        transformer.set_adapter("student")


@contextmanager
def as_base(transformer: Transformer) -> Generator[None]:
    """The base model as it was before training, without gradient."""
    transformer.disable_adapters()
    try:
        with torch.no_grad():
            yield
    finally:
        transformer.enable_adapters()


@contextmanager
def student_must_be_active(transformer: Transformer) -> Generator[None]:
    """Raises `RuntimeError` unless the student's adapter is the active one."""
    layer = next(module for module in transformer.modules() if isinstance(module, LoraLayer))
    if layer.disable_adapters or layer.active_adapters != ["student"]:
        raise RuntimeError(
            "The backward pass recomputes activations while the student is not active: it would get no"
            " gradient. Leave `as_teacher` before `backward`."
        )
    yield


@torch.no_grad()
def update_teacher(transformer: Transformer, ema_decay: float) -> None:
    """teacher = ema_decay * teacher + (1 - ema_decay) * student; nothing where the base is the teacher."""
    if "teacher" not in transformer.peft_config:
        return
    student = adapter_weights(transformer, "student")
    for name, weight in adapter_weights(transformer, "teacher").items():
        weight.lerp_(student[name], 1 - ema_decay)
