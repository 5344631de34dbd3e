"""Frozen weights in 8 bits: near to those they are of, exact in their gradients, adapted as any others."""

from dataclasses import replace

import pytest
import torch

from dopsd_app.method.adapters import adapter_weights, add_adapters
from dopsd_app.models.load import load_base_model
from dopsd_app.models.memory_plan import MemoryPlan
from dopsd_app.models.protocol import NO_PICTURES
from dopsd_app.models.quantize import dequantize, quantize_layer


def linear(bias=False, dtype=torch.float32):
    torch.manual_seed(0)
    return torch.nn.Linear(256, 128, bias=bias, dtype=dtype).requires_grad_(False)


def error(layer, x):
    exact = linear()(x)
    return ((layer(x) - exact).norm() / exact.norm()).item()


def test_a_product_is_nearer_to_the_exact_one_than_nf4s_by_far():
    x = torch.randn(64, 256)
    assert error(quantize_layer(linear(), "int8"), x) < 0.005
    assert error(quantize_layer(linear(), "nf4"), x) > 0.05


def test_each_row_has_the_scale_of_its_largest_number():
    layer = linear()
    layer.weight[0], layer.weight[1] = torch.linspace(-127, 127, 256), 0
    quantized = quantize_layer(layer, "int8")
    assert quantized.weight.dtype == torch.int8 and quantized.scale.shape == (128, 1)
    assert quantized.scale[0] == 1 and quantized.weight[0].tolist() == layer.weight[0].round().tolist()
    assert not quantized.weight[1].any()
    wrong = (dequantize(quantized.weight, quantized.scale, torch.float32) - layer.weight).abs()
    assert (wrong <= quantized.scale / 2 * (1 + 1e-4)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_output_and_gradient_are_those_of_the_dequantized_weight(bias, dtype):
    quantized = quantize_layer(linear(bias, dtype), "int8")
    plain = linear(bias, dtype)
    plain.weight.copy_(dequantize(quantized.weight, quantized.scale, dtype))
    inputs = [torch.randn(3, 5, 256, generator=torch.Generator().manual_seed(1)).to(dtype) for _ in range(2)]
    for layer, x in zip((quantized, plain), inputs, strict=True):
        layer(x.requires_grad_()).square().sum().backward()
    assert quantized(inputs[0]).equal(plain(inputs[1]))
    assert inputs[0].grad.equal(inputs[1].grad)


def test_only_the_int8_weight_waits_for_the_backward_pass():
    kept = []
    quantized = quantize_layer(linear(), "int8")
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        quantized(torch.randn(2, 256, requires_grad=True))
    assert sorted(tensor.nbytes for tensor in kept) == [128 * 4, 128 * 256]


def test_a_base_in_int8_is_near_to_itself_and_its_lora_gets_gradients(tiny_config):
    exact, quantized = (
        load_base_model(replace(tiny_config), MemoryPlan(quantization=name)) for name in ("none", "int8")
    )
    exact.load_encoders()
    conditioning = [exact.encode(NO_PICTURES, "a dog", "student")]
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    velocities = []
    for base_model in (exact, quantized):
        base_model.load_transformer()
        add_adapters(base_model.transformer, base_model.lora_targets, tiny_config)
        velocities.append(base_model.predict_velocity(noise, torch.tensor(0.9), conditioning))
        velocities[-1].square().sum().backward()
    first, second = velocities
    assert 0 < ((first - second).norm() / first.norm()).item() < 0.02
    theirs = adapter_weights(exact.transformer, "student")
    for name, weight in adapter_weights(quantized.transformer, "student").items():
        assert weight.dtype == torch.float32
        if "lora_B" in name:
            assert torch.cosine_similarity(weight.grad, theirs[name].grad, 0).mean() > 0.99
