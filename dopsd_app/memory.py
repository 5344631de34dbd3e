"""The levers that make a base model fit: 4-bit weights and gradient checkpointing."""

from contextlib import nullcontext
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from dopsd_app.adapters import student_must_be_active


def nf4_layer(linear: torch.nn.Linear, compute_dtype: torch.dtype, device: torch.device) -> torch.nn.Linear:
    """The NF4 layer of a linear one, on `device` (arXiv 2305.14314).

    diffusers' own quantized loading refuses without a GPU; bitsandbytes itself does not. Leave the layer in
    training mode, as it is made: in evaluation, on a processor with bfloat16 instructions, its first pass
    packs the weight anew for good, for inference alone.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit  # slow to import, and not every run needs it

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
    return quantized.to(device)


def enable_gradient_checkpointing(transformer: torch.nn.Module) -> None:
    """Recomputes activations in the backward pass, and raises if the teacher is active while it does.

    Checkpointing recomputes under whichever adapter is active at that moment: with the teacher left active,
    the student would silently get no gradient.
    """
    contexts = partial(_contexts, transformer)
    transformer.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False, context_fn=contexts))


def _contexts(transformer: torch.nn.Module):
    return nullcontext(), student_must_be_active(transformer)
