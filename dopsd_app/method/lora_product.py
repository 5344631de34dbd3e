"""What a LoRA adds to the result of a frozen layer, computed in the layer's own precision.

PEFT casts a layer's input to float32 for weights that are float32, and keeps that copy for the backward pass:
of a bfloat16 base twice the input itself, for each of its layers.
"""

import torch
from torch import Tensor
from torch.nn import Parameter


def add_product(result: Tensor, x: Tensor, a: Parameter, b: Parameter, scale: float) -> tuple[Tensor, Tensor]:
    """The sum, and x A^T (tokens, rank); alone where no gradient is wanted: a Function costs more time."""
    down = x.flatten(0, -2) @ a.to(x.dtype).T
    # The same memory: a second tensor of this size would be the largest that the layer makes. Not
    # `mark_dirty`: a result can be a view that was made in a Function (as bitsandbytes' with a bias is),
    # and those may not be changed. Nothing that makes it, a product, keeps it for its backward pass.
    added = result.detach()
    added.view(-1, added.shape[-1]).addmm_(down, b.to(x.dtype).T, alpha=scale)
    return added, down


class LoraProduct(torch.autograd.Function):
    """result + scale * x A^T B^T, with gradients of x, A and B in their own types.

    Kept for the backward pass are x, which is the layer's input, and x A^T of `rank` numbers per token.
    """

    @staticmethod
    def forward(ctx, result: Tensor, x: Tensor, a: Parameter, b: Parameter, scale: float) -> Tensor:
        """Result (..., out), which nobody else may use any more; x (..., in); A (rank, in); B (out, rank)."""
        added, down = add_product(result, x, a, b, scale)
        ctx.save_for_backward(x, down, a, b)
        ctx.scale = scale
        return added

    @staticmethod
    def backward(ctx, gradient: Tensor):  # ty: ignore[incompatible-method-override]
        """Of the result it is the gradient itself."""
        x, down, a, b = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        of_down = (rows @ b.to(rows.dtype)).mul_(ctx.scale)
        of_a = (of_down.T @ x.flatten(0, -2)).to(a.dtype)
        of_b = (rows.T @ down).to(b.dtype).mul_(ctx.scale)
        of_x = (of_down @ a.to(rows.dtype)).view_as(x) if ctx.needs_input_grad[1] else None
        return gradient, of_x, of_a, of_b, None
