"""Layers that keep less for the backward pass, and compute the very same.

Of an RMSNorm autograd keeps its bfloat16 input in float32 as well; of a SwiGLU three tensors, one of which
the other two make at once. The gradients are those of the same formulas.
"""

from collections.abc import Iterator
from functools import partial

import torch
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_flux2 import Flux2SwiGLU
from diffusers.models.transformers.transformer_z_image import FeedForward
from torch import Tensor

PIECE = 2**21  # numbers that a norm computes at once in float32


def keep_less(transformer: torch.nn.Module, device: torch.device) -> None:
    """Gives the frozen layers of a transformer that will run on `device` a forward that keeps less."""
    for module in transformer.modules():
        if isinstance(module, RMSNorm):
            module.forward = partial(_rms_norm, module)
        elif isinstance(module, torch.nn.RMSNorm) and device.type != "cuda":
            # On a card torch's own kernel keeps no more than this, and is one kernel.
            module.forward = partial(_torch_rms_norm, module)
        elif isinstance(module, FeedForward):
            module._forward_silu_gating = SwiGlu.apply
        elif isinstance(module, Flux2SwiGLU):
            module.forward = JoinedSwiGlu.apply


def _rms_norm(module: RMSNorm, hidden_states: Tensor) -> Tensor:
    """Rounded to the weight's precision before it is weighted, as diffusers' class does."""
    assert module.weight is not None  # as in all that are loaded
    dtype = module.weight.dtype
    return RmsNorm.apply(hidden_states, module.weight, module.eps, dtype, dtype)


def _torch_rms_norm(module: torch.nn.RMSNorm, x: Tensor) -> Tensor:
    """Rounded once, at the end, as torch's class does."""
    return RmsNorm.apply(x, module.weight, module.eps, torch.float32, x.dtype)


class RmsNorm(torch.autograd.Function):
    """weight * x / sqrt(mean(x^2) + eps) (arXiv 1910.07467); the weight is frozen.

    Kept are x and one number per row.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float, inner: torch.dtype, outer: torch.dtype) -> Tensor:
        """Of x (B, T, ..., D) or (T, D): rounded to `inner` before it is weighted, to `outer` after it."""
        result = torch.empty_like(x, dtype=outer, memory_format=torch.contiguous_format)
        scale = torch.empty_like(x[..., :1], dtype=torch.float32, memory_format=torch.contiguous_format)
        for rows, of_rows, made in _some_at_a_time(x, scale, result):
            normed = rows.to(torch.float32, copy=True)
            of_rows.copy_(torch.rsqrt(normed.pow(2).mean(-1, keepdim=True).add_(eps)))
            made.copy_(normed.mul_(of_rows).to(inner).mul_(weight))
        ctx.save_for_backward(x, scale, weight)
        return result

    @staticmethod
    def backward(ctx, gradient: Tensor):  # ty: ignore[incompatible-method-override]
        """With n = x * scale and g = gradient * weight: scale * (g - n * mean(g * n))."""
        x, scale, weight = ctx.saved_tensors
        of_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        for rows, of_rows, given, made in _some_at_a_time(x, scale, gradient, of_x):
            normed = rows.to(torch.float32, copy=True).mul_(of_rows)
            weighted = given.to(torch.float32, copy=True).mul_(weight)
            along = (weighted * normed).mean(-1, keepdim=True)
            made.copy_(weighted.sub_(normed.mul_(along)).mul_(of_rows))
        return of_x, None, None, None, None


def _some_at_a_time(x: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Pieces of x and others as long, along its tokens: what is made of them in float32 is small."""
    if x.numel() <= PIECE:
        return iter([(x, *others)])
    tokens = min(1, x.ndim - 2)
    length = max(1, PIECE * x.shape[tokens] // x.numel())
    return zip(*(each.split(length, dim=tokens) for each in (x, *others)), strict=True)


class SwiGlu(torch.autograd.Function):
    """silu(gate) * up (arXiv 2002.05202); kept are these two."""

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:
        """Of two tensors of one shape."""
        ctx.save_for_backward(gate, up)
        return torch.nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # ty: ignore[incompatible-method-override]
        """Of gate and up."""
        gate, up = ctx.saved_tensors
        of_up = torch.nn.functional.silu(gate).mul_(gradient)
        of_gate = gradient * up
        # In place: these tensors are the largest of a block.
        return torch.ops.aten.silu_backward(of_gate, gate, grad_input=of_gate), of_up


class JoinedSwiGlu(torch.autograd.Function):
    """The same of gate and up side by side in one tensor (..., 2 D), which is what is kept."""

    @staticmethod
    def forward(ctx, joined: Tensor) -> Tensor:
        """The first half is the gate."""
        ctx.save_for_backward(joined)
        gate, up = joined.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # ty: ignore[incompatible-method-override]
        """Both gradients are written where they belong: joined after it, they would be there twice."""
        (joined,) = ctx.saved_tensors
        gate, up = joined.chunk(2, dim=-1)
        of_joined = torch.empty_like(joined, memory_format=torch.contiguous_format)
        of_gate, of_up = of_joined.chunk(2, dim=-1)
        torch.mul(gradient, up, out=of_gate)
        torch.ops.aten.silu_backward(of_gate, gate, grad_input=of_gate)
        torch.mul(torch.nn.functional.silu(gate), gradient, out=of_up)
        return of_joined
