"""Base models of the single files that ComfyUI's users have, used where they lie."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from dopsd_app.hub.model_card import make_snippet
from dopsd_app.models.architecture import BaseModelError
from dopsd_app.models.catalog import find_base_model, find_facts, find_licence, is_fetched, model_family
from dopsd_app.models.frozen import load_frozen
from dopsd_app.models.load import load_base_model
from dopsd_app.models.pipeline_folder import ELSEWHERE
from dopsd_app.models.single_file import read_single_file
from dopsd_app.planning.machine import read_machine
from dopsd_app.planning.plan import make_plan
from dopsd_app.ui.base_facts import base_facts
from tests.support.downloader import Downloader
from tests.support.imitation_hub import ImitationHub
from tests.support.original_names import (
    autoencoder_as_released,
    klein_as_released,
    read_part,
    z_image_as_released,
)
from tests.support.real_layout import (
    VAE,
    save_klein_repository,
    save_qwen_vl_repository,
    save_z_image_repository,
)

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repositories")
    save_z_image_repository(folder / "z-image")
    save_klein_repository(folder / "klein")
    save_qwen_vl_repository(folder / "qwen")
    return folder


@pytest.fixture(scope="module")
def comfyui(repositories, tmp_path_factory):
    """The folder `models` of somebody who draws with both in ComfyUI."""
    models = tmp_path_factory.mktemp("ComfyUI") / "models"
    for name in ("diffusion_models", "text_encoders", "vae"):
        (models / name).mkdir(parents=True)
    z_image, klein = repositories / "z-image", repositories / "klein"
    weights = {name: weight.bfloat16() for name, weight in read_part(z_image / "transformer").items()}
    released = {f"model.diffusion_model.{name}": x for name, x in z_image_as_released(weights).items()}
    save_file(released, models / "diffusion_models" / "z_image_turbo_bf16.safetensors")
    save_file(
        klein_as_released(read_part(klein / "transformer")),
        models / "diffusion_models" / "flux-2-klein-4b.safetensors",
    )
    save_file(read_part(z_image / "text_encoder"), models / "text_encoders" / "qwen_3_4b.safetensors")
    return models


@pytest.fixture(scope="module")
def hub_and_call(repositories, tmp_path_factory):
    with ImitationHub() as hub, Downloader(hub, tmp_path_factory.mktemp("process")) as call:
        hub.add_model("Tongyi-MAI/Z-Image-Turbo", repositories / "z-image")
        hub.add_model("black-forest-labs/FLUX.2-klein-4B", repositories / "klein")
        hub.add_model("Qwen/Qwen3-VL-4B-Instruct", repositories / "qwen")
        yield hub, call


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path


def test_the_file_of_z_image_and_the_encoder_beside_it_are_used_where_they_lie(
    hub_and_call, comfyui, repositories, home, tiny_config
):
    hub, call = hub_and_call
    file = str(comfyui / "diffusion_models" / "z_image_turbo_bf16.safetensors")
    single = read_single_file(file)
    assert single.original.model == model_family(file) == "z-image-turbo"
    assert set(single.parts) == {"transformer", "text_encoder"}  # the autoencoder is not there
    assert not is_fetched(file)
    config = replace(tiny_config, base_model=file, resolution=256)
    plan = make_plan(config, pictures=4, runs_dir=home / "runs", machine=read_machine())
    assert plan.lacks and plan.lacks.size is None  # of what lies here nothing has to come
    assert "used where they lie" in base_facts("z-image-turbo", file, "", ask=False)
    facts = find_facts(file)
    assert facts.licence == find_licence(file) and facts.licence.id == "apache-2.0"
    before = len(hub.requests)
    told = call(home, "fetch", file)
    fetched = {request.path for request in hub.requests[before:] if request.path.endswith(".safetensors")}
    assert not [path for path in fetched if "/transformer/" in path or "/text_encoder/" in path]
    assert [path for path in fetched if "/vae/" in path]
    assert Path(told["folder"]) == single.folder and is_fetched(file)
    # Others load its LoRAs on the model that it is.
    assert "Tongyi-MAI/Z-Image-Turbo" in make_snippet(config, "Ann/lora", "a dog")
    # The very weights of the repository, under diffusers' names.
    base_model = load_base_model(replace(tiny_config, base_model=file, num_inference_steps=8))
    base_model.load_transformer()
    base_model.load_encoders()
    for part, loaded in (("transformer", base_model.transformer), ("vae", base_model.vae)):
        expected = read_part(repositories / "z-image" / part)
        got = loaded.state_dict()
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], expected[name].bfloat16().float()) for name in expected)
    weights = read_part(repositories / "z-image" / "text_encoder")
    assert torch.equal(
        base_model.text_encoder.embed_tokens.weight, weights["model.embed_tokens.weight"].float()
    )
    assert find_facts(file).sizes.parameters == sum(
        x.numel() for x in read_part(repositories / "z-image" / "transformer").values()
    )


def test_the_file_of_klein_is_read_under_diffusers_names(
    hub_and_call, comfyui, repositories, home, tiny_config
):
    _, call = hub_and_call
    file = str(comfyui / "diffusion_models" / "flux-2-klein-4b.safetensors")
    call(home, "fetch", file)
    settings = {"teacher_picture_minimum": 0, "teacher_picture_maximum": 0}
    base_model = load_base_model(replace(tiny_config, base_model=file, **settings))
    base_model.load_transformer()
    expected = read_part(repositories / "klein" / "transformer")
    got = base_model.transformer.state_dict()
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name].float()) for name in expected)
    assert base_model.vae is not None


def test_a_file_that_goes_away_is_told_and_another_one_is_another_model(
    hub_and_call, comfyui, home, tmp_path
):
    _, call = hub_and_call
    models = tmp_path / "models"
    shutil.copytree(comfyui, models)
    file = models / "diffusion_models" / "z_image_turbo_bf16.safetensors"
    call(home, "fetch", str(file))
    assert is_fetched(str(file))
    (models / "text_encoders" / "qwen_3_4b.safetensors").unlink()
    assert not is_fetched(str(file))  # its text encoder is to come from the Hub now
    file.unlink()
    with pytest.raises(BaseModelError, match="There is no base model"):
        find_base_model(str(file))


def test_what_is_no_transformer_and_what_has_too_few_bits_is_told(comfyui, tmp_path):
    with pytest.raises(BaseModelError, match="no transformer of a model that is known here"):
        read_single_file(str(comfyui / "text_encoders" / "qwen_3_4b.safetensors"))
    weights = load_file(comfyui / "diffusion_models" / "flux-2-klein-4b.safetensors")
    name = "double_blocks.0.img_attn.qkv.weight"
    save_file(weights | {name: weights[name].to(torch.float8_e4m3fn)}, tmp_path / "klein_fp8.safetensors")
    with pytest.raises(BaseModelError, match="F8_E4M3: numbers of so few bits cannot be trained on"):
        read_single_file(str(tmp_path / "klein_fp8.safetensors"))
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes((comfyui / "text_encoders" / "qwen_3_4b.safetensors").read_bytes()[:-10])
    with pytest.raises(BaseModelError, match="damaged, or not all of it is here"):
        read_single_file(str(torn))


def test_comfyuis_autoencoder_is_taken_and_read_under_diffusers_names(comfyui, repositories, tmp_path):
    models = Path(shutil.copytree(comfyui, tmp_path / "models"))
    expected = read_part(repositories / "z-image" / "vae")
    released = {name: x.contiguous() for name, x in autoencoder_as_released(expected).items()}
    save_file(released, models / "vae" / "ae.safetensors")
    single = read_single_file(str(models / "diffusion_models" / "z_image_turbo_bf16.safetensors"))
    assert single.parts["vae"] == models / "vae" / "ae.safetensors"
    part = tmp_path / "vae"
    part.mkdir()
    (part / "config.json").write_text(json.dumps(VAE))
    (part / ELSEWHERE).write_text(json.dumps([str(single.parts["vae"])]))
    loaded = load_frozen(
        lambda: AutoencoderKL(**VAE), part, torch.float32, torch.device("cpu"), original="AutoencoderKL"
    ).state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name].float()) for name in expected)


@pytest.mark.parametrize(
    "name", ["flux-2-klein-base-4b", "z_image_bf16", "z_image_base", "Z-Image-Omni-Base_fp16"]
)
def test_the_files_of_models_of_many_steps_are_refused_by_their_names(comfyui, tmp_path, name):
    """Their transformers have the same shapes."""
    known = "flux-2-klein-4b" if "klein" in name else "z_image_turbo_bf16"
    file = shutil.copy(
        comfyui / "diffusion_models" / f"{known}.safetensors", tmp_path / f"{name}.safetensors"
    )
    with pytest.raises(BaseModelError, match="was not made to draw in a few steps"):
        read_single_file(str(file))


def test_klein_9b_is_told_from_4b_by_its_width(tmp_path):
    def header(width):
        shape = [3 * width, width]
        facts = {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]}
        text = json.dumps({"double_stream_modulation_img.lin.weight": facts}).encode()
        file = tmp_path / f"{width}.safetensors"
        file.write_bytes(len(text).to_bytes(8, "little") + text)
        return read_single_file(str(file)).original.model

    assert (header(4096), header(3072)) == ("flux2-klein-9b", "flux2-klein-4b")
    with pytest.raises(BaseModelError, match="no transformer"):
        header(6144)  # FLUX.2 dev's
