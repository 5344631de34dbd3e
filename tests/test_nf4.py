"""NF4 layers compute what bitsandbytes' own do."""

import bitsandbytes
import pytest
import torch

from dopsd_app.models.quantize import quantize_layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_output_and_gradient_are_bitsandbytes_own(bias, dtype):
    torch.manual_seed(0)
    linear = torch.nn.Linear(256, 128, bias=bias, dtype=dtype).requires_grad_(False)
    ours = quantize_layer(linear, "nf4")
    theirs = bitsandbytes.nn.Linear4bit(256, 128, bias=bias, compute_dtype=dtype, quant_type="nf4")
    theirs.weight, theirs.bias = ours.weight, ours.bias  # in training mode: it would pack them anew
    inputs = [torch.randn(3, 256, generator=torch.Generator().manual_seed(1)).to(dtype) for _ in range(2)]
    outputs = [layer(x.requires_grad_()) for layer, x in zip((ours, theirs), inputs, strict=True)]
    for output in outputs:
        output.square().sum().backward()
    assert outputs[0].equal(outputs[1]) and inputs[0].grad.equal(inputs[1].grad)
