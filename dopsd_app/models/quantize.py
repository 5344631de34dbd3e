"""Frozen weights in 8 or 4 bits."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def int8_layer(linear: torch.nn.Linear, compute_dtype: torch.dtype, device: torch.device) -> "Int8Linear":
    """The int8 layer of a linear one, on `device`; it computes in the dtype of what it is given."""
    layer = Int8Linear(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
    weight = linear.weight.detach().to(device)
    # In float32: a scale in bfloat16 would be another rounding of the whole row.
    scale = weight.abs().amax(dim=1, keepdim=True).float() / 127
    # A row of zeros stays one.
    rounded = (weight / torch.where(scale > 0, scale, 1)).round_().to(torch.int8)
    layer.weight = torch.nn.Parameter(rounded, requires_grad=False)
    layer.scale = torch.nn.Parameter(scale, requires_grad=False)
    layer.bias = linear.bias
    return layer.eval().to(device)


class Int8Linear(torch.nn.Linear):
    """A linear layer of frozen int8 weights (out, in), each row with a scale of its own (out, 1) in float32.

    bitsandbytes' Linear8bitLt would round what goes in as well, which a teacher and a student that differ by
    little do not bear; torchao's would be one more dependency for what stands here.
    """

    scale: torch.nn.Parameter

    def forward(self, input: Tensor) -> Tensor:
        return _Int8Product.apply(input, self.weight, self.scale, self.bias)


def dequantize(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight (out, in) that int8 numbers and their scales stand for, rounded once to `dtype`."""
    # Written straight into `dtype`: a product in float32 would be four times as large as the int8 weight.
    return torch.mul(weight, scale, out=torch.empty_like(weight, dtype=dtype))


class _Int8Product(torch.autograd.Function):
    """Keeps the int8 weight for the backward pass; autograd by itself would keep the dequantized one."""

    @staticmethod
    def forward(ctx, input: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return torch.nn.functional.linear(input, dequantize(weight, scale, input.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        weight, scale = ctx.saved_tensors
        return grad_output @ dequantize(weight, scale, grad_output.dtype), None, None, None


def nf4_layer(linear: torch.nn.Linear, compute_dtype: torch.dtype, device: torch.device) -> torch.nn.Linear:
    """The NF4 layer of a linear one, on `device` (arXiv 2305.14314).

    diffusers' own quantized loading refuses without a GPU; bitsandbytes itself does not.
    """
    from bitsandbytes.nn import Params4bit  # slow to import, and not every run needs it

    from dopsd_app.models.nf4 import Nf4Linear

    quantized = Nf4Linear(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=compute_dtype,
        quant_type="nf4",
        device="meta",
    )
    # Its `__new__` takes these; ty looks at the `__init__` that it inherits.
    quantized.weight = Params4bit(linear.weight.detach(), requires_grad=False, quant_type="nf4")  # ty: ignore[unknown-argument]
    quantized.bias = linear.bias
    return quantized.eval().to(device)


# What makes a layer of each quantization, from a linear one, the dtype of the arithmetic and the device.
QUANTIZATIONS: dict[str, Callable[[torch.nn.Linear, torch.dtype, torch.device], torch.nn.Linear]] = {
    "int8": int8_layer,
    "nf4": nf4_layer,
}
