"""Layers that keep less for the backward pass, and compute the very same.

Of an RMSNorm autograd keeps its bfloat16 input in float32 as well; of a SwiGLU three tensors, one of which
the other two make at once. The gradients are those of the same formulas.
"""

from functools import partial

import torch
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_flux2 import Flux2SwiGLU
from diffusers.models.transformers.transformer_z_image import FeedForward
from torch import Tensor


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
        """Of x (..., D): rounded to `inner` before it is weighted, and to `outer` after it."""
        normed = x.to(torch.float32, copy=True)
        scale = torch.rsqrt(normed.pow(2).mean(-1, keepdim=True).add_(eps))
        ctx.save_for_backward(x, scale, weight)
        return normed.mul_(scale).to(inner).mul_(weight).to(outer)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # ty: ignore[incompatible-method-override]
        """With n = x * scale and g = gradient * weight: scale * (g - n * mean(g * n))."""
        x, scale, weight = ctx.saved_tensors
        normed = x.to(torch.float32, copy=True).mul_(scale)
        weighted = gradient.to(torch.float32, copy=True).mul_(weight)
        along = (weighted * normed).mean(-1, keepdim=True)
        of_x = weighted.sub_(normed.mul_(along)).mul_(scale).to(x.dtype)
        return of_x, None, None, None, None


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
        return torch.ops.aten.silu_backward(gradient * up, gate), of_up


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
        torch.ops.aten.silu_backward(gradient * up, gate, grad_input=of_gate)
        torch.mul(torch.nn.functional.silu(gate), gradient, out=of_up)
        return of_joined
