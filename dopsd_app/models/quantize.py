"""Frozen weights in 8 or 4 bits."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Parameter

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Quantization:
    """How the weight of a linear layer is rounded, and what computes with it."""

    parts: tuple[str, ...]  # the names of what takes its place in the layer's `state_dict`
    quantize: Callable[[Tensor], Tensors]  # those, of a weight (out, in)
    make: Callable[[torch.nn.Linear, Tensors, Parameter | None], torch.nn.Linear]  # as large as another


def quantize_layer(linear: torch.nn.Linear, quantization: str) -> torch.nn.Linear:
    """The layer that computes with the rounded weight of a linear one, where that is."""
    how = QUANTIZATIONS[quantization]
    return how.make(linear, how.quantize(linear.weight.detach()), linear.bias)


# --- int8


def quantize_int8(weight: Tensor) -> Tensors:
    """Each row in units of a 127th of its largest number."""
    # In float32: a scale in bfloat16 would be another rounding of the whole row.
    scale = weight.abs().amax(dim=1, keepdim=True).float() / 127
    # A row of zeros stays one.
    rounded = (weight / torch.where(scale > 0, scale, 1)).round_().to(torch.int8)
    return {"weight": rounded, "scale": scale}


def make_int8(linear: torch.nn.Linear, tensors: Tensors, bias: Parameter | None) -> "Int8Linear":
    layer = Int8Linear(linear.in_features, linear.out_features, bias=bias is not None, device="meta")
    layer.weight = Parameter(tensors["weight"], requires_grad=False)
    layer.scale = Parameter(tensors["scale"], requires_grad=False)
    layer.register_parameter("bias", bias)
    return layer.eval()


class Int8Linear(torch.nn.Linear):
    """A linear layer of frozen int8 weights (out, in), each row with a scale of its own (out, 1) in float32.

    bitsandbytes' Linear8bitLt would round what goes in as well, which a teacher and a student that differ by
    little do not bear; torchao's would be one more dependency for what stands here.
    """

    scale: Parameter

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


# --- NF4, arXiv 2305.14314. diffusers' own quantized loading refuses without a GPU; bitsandbytes does not.


def quantize_nf4(weight: Tensor) -> Tensors:
    """Two numbers to a byte, with the scales of 64 each, which are rounded as well."""
    from bitsandbytes.functional import quantize_4bit  # slow to import, and not every run needs it

    packed, state = quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
    beside = {f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    return {"weight": packed, **beside}


def make_nf4(linear: torch.nn.Linear, tensors: Tensors, bias: Parameter | None) -> torch.nn.Linear:
    from bitsandbytes.nn import Params4bit

    from dopsd_app.models.nf4 import Nf4Linear

    layer = Nf4Linear(
        linear.in_features, linear.out_features, bias=bias is not None, quant_type="nf4", device="meta"
    )
    weight = tensors["weight"]
    beside = {name.removeprefix("weight."): tensor for name, tensor in tensors.items() if name != "weight"}
    layer.weight = Params4bit.from_prequantized(weight, beside, device=weight.device)
    layer.register_parameter("bias", bias)
    return layer.eval()


_NF4_BESIDE = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", "quant_state.bitsandbytes__nf4")
QUANTIZATIONS = {
    "int8": Quantization(("weight", "scale"), quantize_int8, make_int8),
    "nf4": Quantization(("weight", *(f"weight.{name}" for name in _NF4_BESIDE)), quantize_nf4, make_nf4),
}
