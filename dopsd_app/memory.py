"""The levers that make a base model fit: 4-bit weights and gradient checkpointing."""

import re
from contextlib import nullcontext
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from dopsd_app.adapters import student_must_be_active


def quantize_nf4(
    transformer: torch.nn.Module, targets: str, compute_dtype: torch.dtype, device: torch.device
) -> None:
    """Replaces the linear layers whose names match `targets` by NF4 ones on `device` (arXiv 2305.14314).

    diffusers' own quantized loading refuses without a GPU; bitsandbytes itself does not.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit  # slow to import, and not every run needs it

    for name in [name for name, _ in transformer.named_modules() if re.fullmatch(targets, name)]:
        linear = transformer.get_submodule(name)  # by name: a list of layers would keep them all alive
        quantized = Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=compute_dtype,
            quant_type="nf4",
            device="meta",
        )
        quantized.weight = Params4bit(linear.weight.detach(), requires_grad=False, quant_type="nf4")
        quantized.bias = linear.bias
        parent, _, child = name.rpartition(".")
        setattr(transformer.get_submodule(parent), child, quantized.to(device))


def enable_gradient_checkpointing(transformer: torch.nn.Module) -> None:
    """Recomputes activations in the backward pass, and raises if the teacher is active while it does.

    Checkpointing recomputes under whichever adapter is active at that moment: with the teacher left active,
    the student would silently get no gradient.
    """
    contexts = partial(_contexts, transformer)
    transformer.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False, context_fn=contexts))


def _contexts(transformer: torch.nn.Module):
    return nullcontext(), student_must_be_active(transformer)
