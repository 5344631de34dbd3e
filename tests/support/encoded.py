"""Examples as a model gets them, adapters with an effect, and what they learn."""

import torch

from dopsd_app.method.adapters import adapter_weights
from dopsd_app.method.encode import EncodedExample
from dopsd_app.models.protocol import NO_PICTURES, Pictures
from tests.support.pictures import make_picture


def make_example(base_model, seed, *captions, height=32, width=32):
    picture = make_picture(seed, width, height)
    return EncodedExample(
        student=tuple(base_model.encode(NO_PICTURES, caption, "student") for caption in captions),
        teacher=tuple(base_model.encode(Pictures(picture), caption, "teacher") for caption in captions),
        height=height,
        width=width,
    )


def trained(base_model, size=0.05):
    """Gives both adapters an effect of their own: B starts at zero."""
    for seed, adapter in enumerate(base_model.transformer.peft_config):
        generator = torch.Generator().manual_seed(seed)
        for name, weight in adapter_weights(base_model.transformer, adapter).items():
            if "lora_B" in name:
                weight.data = size * torch.randn(weight.shape, generator=generator).to(weight.device)


def gradients_of(optimizer):
    return [weight.grad.clone() for weight in optimizer.param_groups[0]["params"]]
