"""Student and teacher LoRA on one frozen base.

The layers are PEFT's, with a forward of our own: which adapter is active is one attribute that all of them
read. The student is the resting state: whoever switches to the teacher, or to the bare base, does it in a
context.
"""

import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import diffusers.utils.logging
import numpy as np
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.nn import Parameter

from dopsd_app.config import TrainConfig
from dopsd_app.method.lora_product import LoraProduct, add_product
from dopsd_app.models.protocol import Transformer


@dataclass
class Adapters:
    """The adapters of a transformer, whose modules are walked through once: its `adapters`."""

    # By adapter: `<module>.lora_A.weight` (rank, in), `<module>.lora_B.weight` (out, rank).
    weights: dict[str, dict[str, Parameter]]
    # The same in the same order, for updates of all at once; no teacher's where the base is the teacher.
    student: list[Parameter]
    teacher: list[Parameter]
    active: str | None = "student"  # whose product the layers add; None for the bare base


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
    with more_than_one():
        if config.has_ema_teacher:
            transformer.add_adapter(lora, adapter_name="teacher")
        transformer.add_adapter(lora, adapter_name="student")
    adapters = transformer.adapters = _find_adapters(transformer)
    for layer in _lora_layers(transformer).values():
        layer.forward = _forward(layer, adapters)
    generator = torch.Generator().manual_seed(config.seed)
    for adapter, weights in adapters.weights.items():
        for name, weight in weights.items():
            weight.data = weight.data.float()
            weight.requires_grad_(adapter == "student")
            if adapter == "student" and name.endswith("lora_A.weight"):
                weight.data.copy_(torch.randn(weight.shape, generator=generator) / config.rank)
    update_teacher(transformer, ema_decay=0.0)


@contextmanager
def more_than_one() -> Generator[None]:
    """PEFT warns of a second adapter; two are what the method needs, and a third is for drawing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute", UserWarning)
        yield


@contextmanager
def room_for_a_spare_one() -> Generator[None]:
    """The same for a LoRA that is loaded beside others: diffusers misses their weights in its file."""
    before = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity_error()
    try:
        with more_than_one():
            yield
    finally:
        diffusers.utils.logging.set_verbosity(before)


def remove_spare(transformer: Transformer, name: str) -> None:
    """Takes a LoRA that was loaded under this name off again, if it is there."""
    transformer.set_adapter("student")  # PEFT would warn of one that is active
    if name in transformer.peft_config:
        transformer.delete_adapters([name])


def remove_adapters(transformer: Transformer) -> None:
    """Leaves PEFT's layers empty and with a forward of their own: the next LoRA is as of anybody."""
    for layer in _lora_layers(transformer).values():
        del layer.forward
    transformer.delete_adapters(list(transformer.peft_config))
    del transformer.adapters


@contextmanager
def spare_adapter(transformer: Transformer, name: str) -> Generator[None]:
    """The bare base, on which a LoRA can be loaded under this name and drawn with, by PEFT's own layers.

    Afterwards that LoRA is gone, and all is as training left it.
    """
    ours = {layer: layer.forward for layer in _lora_layers(transformer).values()}
    learns = {weight: weight.requires_grad for layer in ours for weight in layer.parameters()}
    for layer in ours:
        del layer.forward
    transformer.disable_adapters()
    try:
        yield
    finally:
        remove_spare(transformer, name)
        transformer.enable_adapters()
        for layer, forward in ours.items():
            layer.forward = forward
        for weight, needed in learns.items():
            weight.requires_grad_(needed)


def _lora_layers(transformer: Transformer) -> dict[str, Any]:
    """PEFT's layers by name: each is a `LoraLayer` and a module."""
    return {name: module for name, module in transformer.named_modules() if isinstance(module, LoraLayer)}


def _find_adapters(transformer: Transformer) -> Adapters:
    weights: dict[str, dict[str, Parameter]] = {adapter: {} for adapter in transformer.peft_config}
    for name, layer in _lora_layers(transformer).items():
        for adapter, found in weights.items():
            a, b = lora_matrices(layer, adapter)
            found |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    student, teacher = (list(weights.get(adapter, {}).values()) for adapter in ("student", "teacher"))
    return Adapters(weights, student, teacher)


def _forward(layer: LoraLayer, adapters: Adapters) -> Callable[[Tensor], Tensor]:
    """The layer's forward with the product of whichever adapter is active."""
    matrices = {adapter: lora_matrices(layer, adapter) for adapter in adapters.weights}
    scales = {adapter: layer.scaling[adapter] for adapter in matrices}
    base_layer = layer.get_base_layer()

    def forward(x: Tensor) -> Tensor:
        result, adapter = base_layer(x), adapters.active
        if adapter is None:
            return result
        if not torch.is_grad_enabled():
            return add_product(result, x, *matrices[adapter], scales[adapter])[0]
        return LoraProduct.apply(result, x, *matrices[adapter], scales[adapter])

    return forward


def adapter_weights(transformer: Transformer, adapter: str) -> dict[str, Parameter]:
    """The adapter's weights: `<module>.lora_A.weight` (rank, in), `<module>.lora_B.weight` (out, rank)."""
    return transformer.adapters.weights[adapter]


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
    with _activated(transformer.adapters, "teacher" if transformer.adapters.teacher else None):
        yield


@contextmanager
def as_base(transformer: Transformer) -> Generator[None]:
    """The base model as it was before training, without gradient."""
    with _activated(transformer.adapters, None):
        yield


@contextmanager
def _activated(adapters: Adapters, adapter: str | None) -> Generator[None]:
    before, adapters.active = adapters.active, adapter
    try:
        with torch.no_grad():
            yield
    finally:
        adapters.active = before


@contextmanager
def student_must_be_active(transformer: Transformer) -> Generator[None]:
    """Raises `RuntimeError` unless the student's adapter is the active one."""
    if transformer.adapters.active != "student":
        raise RuntimeError(
            "The backward pass recomputes activations while the student is not active: it would get no"
            " gradient. Leave `as_teacher` before `backward`."
        )
    yield


@torch.no_grad()
def update_teacher(transformer: Transformer, ema_decay: float) -> None:
    """teacher = ema_decay * teacher + (1 - ema_decay) * student; nothing where the base is the teacher."""
    adapters = transformer.adapters
    if adapters.teacher:
        torch._foreach_lerp_(adapters.teacher, adapters.student, 1 - ema_decay)
