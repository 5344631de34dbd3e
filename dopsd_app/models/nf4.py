"""A linear layer of frozen NF4 weights; apart from the rest, since bitsandbytes is slow to import."""

from typing import cast

import bitsandbytes
import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from torch import Tensor
from torch.autograd.function import once_differentiable

from dopsd_app.models.frozen import is_placeholder


class Nf4Linear(bitsandbytes.nn.Linear4bit):
    """bitsandbytes' own, which computes the same, but keeps its weight where torch sees it.

    So it can be offloaded and recomputed as any other; and in evaluation, on a processor with bfloat16
    instructions, no pass packs the weight anew for good.
    """

    def forward(self, x: Tensor) -> Tensor:
        weight = cast(bitsandbytes.nn.Params4bit, self.weight)
        return _Nf4Product.apply(x, weight, weight.quant_state, self.bias)


class _Nf4Product(torch.autograd.Function):
    """bitsandbytes' product and its gradient; theirs hides the weight from hooks on what is saved."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, state: QuantState, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.state = state
        return bitsandbytes.matmul_4bit(x, weight, state, bias=bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        if is_placeholder(weight):
            raise RuntimeError("An offloaded block was not computed anew before its backward pass.")
        return grad_output @ dequantize_4bit(weight, ctx.state).to(grad_output.dtype), None, None, None
