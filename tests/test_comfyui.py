"""LoRA files as ComfyUI reads them, by its key maps: every tensor has a place, and adds what was trained."""

import re
from dataclasses import replace

import pytest
import torch
from diffusers import Flux2Transformer2DModel, ZImageTransformer2DModel
from safetensors.torch import load_file

from dopsd_app.method.adapters import adapter_arrays, add_adapters
from dopsd_app.method.lora_file import save_lora
from dopsd_app.models.klein import Klein
from dopsd_app.models.klein_facts import KLEIN_4B, KLEIN_9B
from dopsd_app.models.load import load_base_model
from dopsd_app.models.z_image import ZImage
from tests.support.comfyui import FLUX2, Z_IMAGE, changes_of, place_of
from tests.support.encoded import trained
from tests.support.tiny_models import save_klein


def flux2(sizes):
    return Flux2Transformer2DModel(
        num_layers=sizes.double_blocks,
        num_single_layers=sizes.single_blocks,
        num_attention_heads=sizes.dim // 128,
        joint_attention_dim=sizes.caption_features,
        guidance_embeds=False,
    )


@pytest.mark.parametrize(
    ("make", "targets", "names", "modules", "places"),
    [
        # Of 7 modules of each of 34 blocks, three have one place together.
        (ZImageTransformer2DModel, ZImage.lora_targets, Z_IMAGE, 34 * 7, 34 * 5),
        # Of 12 of each double block, twice three; a single block has 2.
        (lambda: flux2(KLEIN_4B.sizes), Klein.lora_targets, FLUX2, 5 * 12 + 20 * 2, 5 * 8 + 20 * 2),
        (lambda: flux2(KLEIN_9B.sizes), Klein.lora_targets, FLUX2, 8 * 12 + 24 * 2, 8 * 8 + 24 * 2),
    ],
)
def test_every_module_of_a_real_model_has_a_place(make, targets, names, modules, places):
    with torch.device("meta"):
        transformer = make()
    adapted = [name for name, _ in transformer.named_modules() if re.fullmatch(targets, name)]
    found = [place_of(name, names) for name in adapted]
    assert len(adapted) == modules and None not in found and len(set(found)) == modules
    assert len({place.module for place in found}) == places


@pytest.fixture
def folders(z_image_folder, tmp_path):
    klein = tmp_path / "klein"
    save_klein(klein)
    return {"z-image": z_image_folder, "klein": klein}


@pytest.mark.parametrize(("base", "names"), [("z-image", Z_IMAGE), ("klein", FLUX2)])
def test_it_adds_to_each_weight_what_diffusers_fuses(tiny_config, folders, tmp_path, base, names):
    config = replace(
        tiny_config, base_model=str(folders[base]), lora_alpha=6.0, teacher_picture_maximum=64
    )  # strength 1.5
    base_model = load_base_model(config)
    base_model.load_transformer()
    before = {name: weight.clone() for name, weight in base_model.transformer.state_dict().items()}
    add_adapters(base_model.transformer, base_model.lora_targets, config)
    trained(base_model)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    save_lora(path, adapter_arrays(base_model.transformer, "student"), config.strength, {})

    fresh = load_base_model(config)
    fresh.load_transformer()
    pipeline = fresh.make_pipeline()
    pipeline.load_lora_weights(path)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    fused = fresh.transformer.state_dict()

    changes, unused = changes_of(load_file(path), names)
    assert not unused
    modules = [name for name, _ in fresh.transformer.named_modules() if place_of(name, names)]
    assert len(modules) == len(changes)
    for module in modules:
        expected = fused[f"{module}.weight"] - before[f"{module}.weight"]
        assert expected.abs().max() > 1e-4
        torch.testing.assert_close(changes[place_of(module, names)], expected, atol=1e-5, rtol=1e-4)


def test_what_is_not_in_the_map_is_told():
    tensors = {"transformer.time_guidance_embed.linear.lora_A.weight": torch.zeros(1, 1)}
    assert changes_of(tensors, FLUX2) == ({}, list(tensors))
