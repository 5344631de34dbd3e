import json
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3Model

from dopsd_app.config import TrainConfig
from dopsd_app.models import catalog
from dopsd_app.models.base_download import needs_fetching
from dopsd_app.models.catalog import (
    CATALOG,
    BaseModelError,
    Lacking,
    catalog_name,
    check_base_model,
    check_resolution,
    find_base_model,
    find_facts,
    find_licence,
    find_repository,
    full_name,
    is_fetched,
    model_family,
    read_name,
    what_lacks,
)
from dopsd_app.models.eyes import VISION_TOWERS_FOLDER
from dopsd_app.models.hub_record import HubRecord, remember
from dopsd_app.models.repository import assets_folder, cache_folder
from dopsd_app.models.sizes import read_sizes
from dopsd_app.models.z_image_facts import QWEN3_VL_4B, Z_IMAGE, ZImageSizes
from dopsd_app.planning.machine import Machine
from dopsd_app.planning.memory import least_gpu_memory
from dopsd_app.planning.plan import make_plan
from dopsd_app.torch_build import TorchBuild
from dopsd_app.ui.base_facts import base_facts
from dopsd_app.ui.plan import _needs

GIB = 1024**3
Z_IMAGE_TURBO = CATALOG["z-image-turbo"].sizes


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_built_in_base_is_ready_and_needs_no_card():
    facts = CATALOG["pocket-turbo"]
    assert (facts.repository, least_gpu_memory(facts.sizes)) == ("", 0)
    place = find_base_model("pocket-turbo")
    assert place.folder.name == "pocket-turbo" and place.vision_tower.parent == place.folder
    assert facts.sizes.context_area == (64 * 64, 64 * 64)


def test_where_nobody_knows_what_a_base_model_can_draw_every_resolution_may_be_tried(monkeypatch):
    with pytest.raises(BaseModelError, match="`resolution` must be 64 for pocket-turbo, got 65"):
        check_resolution("pocket-turbo", 65)
    monkeypatch.setitem(CATALOG, "pocket-turbo", replace(CATALOG["pocket-turbo"], resolutions=None))
    check_resolution("pocket-turbo", 65)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("Tongyi-MAI/Z-Image", "z-image-turbo"),
        ("tongyi-mai/z-image-edit", "z-image-turbo"),
        ("black-forest-labs/FLUX.2-klein-base-4B", "flux2-klein-4b"),
        ("black-forest-labs/FLUX.2-klein-base-9B", "flux2-klein-9b"),
        ("black-forest-labs/FLUX.2-dev", "flux2-klein-4b"),
    ],
)
def test_a_known_model_of_many_steps_is_refused_by_its_name_alone(name, instead):
    """Nobody accepts the terms of a gated one, or asks the Hub, for what cannot be trained."""
    with pytest.raises(BaseModelError, match=f"{name} was not made to draw .* Take {instead}"):
        check_base_model(name)
    with pytest.raises(BaseModelError, match="was not made to draw"):
        needs_fetching(name)


@pytest.mark.parametrize(
    "name", ["Tongyi-MAI/Z-Image-Turbo", "Ann/Z-Image", "black-forest-labs/FLUX.2-klein-4B"]
)
def test_other_names_are_not_taken_for_them(name):
    check_base_model(name)


def test_every_base_model_says_its_licence():
    for facts in CATALOG.values():
        assert facts.licence.id
        assert facts.licence.name
        assert facts.licence.link.startswith("https://")


def test_a_licence_that_lies_in_a_repository_is_linked_to_there(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "find_snapshot", lambda *_: tmp_path)
    for link, expected in (
        ("LICENSE.md", "https://huggingface.co/ann/tune/blob/main/LICENSE.md"),
        ("https://example.org/licence", "https://example.org/licence"),
        ("../../secret", ""),
    ):
        (tmp_path / "README.md").write_text(
            f"---\nlicense: other\nlicense_name: x\nlicense_link: {link}\n---\n"
        )
        assert find_licence("ann/tune").address == expected


def test_the_terms_of_a_gated_base_are_linked_to_before_it_is_fetched(monkeypatch):
    page = "https://huggingface.co/black-forest-labs/FLUX.2-klein-9B"
    told = base_facts("flux2-klein-9b", "", "", ask=False)
    assert "Not for commercial use, nor are its LoRAs" in told
    assert f"href='{page}'" in told and f"href='{page}/blob/main/LICENSE.md'" in told
    assert "hf auth login" in told
    assert "Gated" not in base_facts("flux2-klein-4b", "", "", ask=False)
    monkeypatch.setenv("SYSTEM", "spaces")
    monkeypatch.setenv("SPACE_ID", "ann/trainer")
    told = base_facts("flux2-klein-9b", "", "", ask=False)
    assert "a Space cannot fetch it" in told and "hf auth login" not in told


def test_z_image_turbo_is_told_of_before_it_is_there():
    facts = CATALOG["z-image-turbo"]
    assert facts.repository == "Tongyi-MAI/Z-Image-Turbo"
    assert 2 * GIB < least_gpu_memory(facts.sizes) < 6 * GIB
    assert not is_fetched("z-image-turbo")
    with pytest.raises(BaseModelError, match="Tongyi-MAI/Z-Image-Turbo is not on this computer yet"):
        find_base_model("z-image-turbo")
    assert find_facts("Tongyi-MAI/Z-Image-Turbo").sizes == Z_IMAGE_TURBO


def test_a_base_model_has_one_name_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Ann" / "mine").mkdir(parents=True)
    assert full_name("pocket-turbo") == "pocket-turbo"
    assert full_name("Ann/z-image") == find_repository("Ann/z-image") == "Ann/z-image"
    assert full_name("Ann/mine") == str(tmp_path / "Ann" / "mine")  # a folder goes first
    assert find_repository("Ann/mine") == find_repository("pocket-turbo") == ""
    assert find_repository("z-image-turbo") == "Tongyi-MAI/Z-Image-Turbo"
    assert catalog_name("Tongyi-MAI/Z-Image-Turbo") == "z-image-turbo"
    for no_repository in ("mine", "a/b/c", "../x", "/etc", "a b/c", "C:\\models"):
        assert find_repository(no_repository) == ""
    with pytest.raises(BaseModelError, match="Nothing is known of Ann/z-image here yet"):
        find_facts("Ann/z-image")


def test_the_sizes_of_z_image_turbo_are_those_of_its_classes():
    with torch.device("meta"):
        transformer = ZImageTransformer2DModel()
    assert parameters(transformer) == Z_IMAGE_TURBO.parameters
    linear = [
        module.weight.numel()
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and ("attention.to" in name or "feed_forward" in name)
    ]
    assert len(linear) == 238
    assert sum(linear) == Z_IMAGE_TURBO.linear_parameters
    assert Z_IMAGE_TURBO.lora_parameters(64) == 158_760_960  # 238 modules: 34 x 64 x 19 x 3840


def test_a_folder_of_a_known_size_is_of_that_kind(real_size_folder, z_image_folder, tmp_path):
    assert model_family(str(real_size_folder)) == "z-image-turbo"
    assert model_family("pocket-turbo") == "pocket-turbo"
    for other in (str(z_image_folder), str(tmp_path / "nothing")):
        assert model_family(other) == other


def test_sizes_of_a_folder_are_read_from_its_files():
    folder = find_base_model("pocket-turbo").folder
    sizes = read_sizes(Z_IMAGE, folder, folder / "vision_tower")
    transformer = ZImageTransformer2DModel.from_pretrained(folder / "transformer")
    assert sizes.parameters == parameters(transformer)
    assert sizes.decoder_parameters == parameters(AutoencoderKL.from_pretrained(folder / "vae"))
    assert (sizes.dim, sizes.layers, sizes.refiners, sizes.token_side) == (192, 6, 1, 8)
    assert sizes.context_side == 16
    assert sizes.context_area == (512**2, 768**2)  # whatever the folder's own preprocessor_config.json says
    assert ZImageSizes.from_fields(json.loads(json.dumps(sizes.to_fields()))) == sizes


@pytest.mark.parametrize(
    ("name", "width", "wide", "eyes"), [("flux2-klein-4b", 2560, 9728, 0), ("flux2-klein-9b", 4096, 12288, 0),
                                        ("z-image-turbo", 2560, 9728, 415_347_712)]
)  # fmt: skip
def test_the_encoder_that_is_planned_with_is_the_one_that_is_loaded(name, width, wide, eyes):
    """Without the head that would write text, which Qwen3-8B holds apart: 151,936 x 4,096 numbers."""
    config = Qwen3Config(
        vocab_size=151_936,
        hidden_size=width,
        intermediate_size=wide,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
    )
    with torch.device("meta"):
        encoder = Qwen3Model(config)
    assert CATALOG[name].sizes.encoder_parameters == parameters(encoder) + eyes


def test_a_head_that_is_never_loaded_is_not_counted(z_image_folder, tmp_path):
    sizes = find_facts(str(z_image_folder)).sizes
    folder = tmp_path / "untied"
    shutil.copytree(z_image_folder, folder)
    file = folder / "text_encoder" / "model.safetensors"
    weights = {f"model.{name}": tensor for name, tensor in load_file(file).items()}
    save_file({**weights, "lm_head.weight": torch.zeros(7, 5)}, file)
    assert find_facts(str(folder)).sizes.encoder_parameters == sizes.encoder_parameters


def test_a_folder_of_ones_own_is_known_by_its_files(z_image_folder):
    facts = find_facts(str(z_image_folder))
    assert (facts.label, facts.licence.id, facts.resolutions) == (z_image_folder.name, "", None)
    assert facts.sizes.dim == 32


def test_a_damaged_folder_is_refused_in_a_sentence(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(find_base_model("pocket-turbo").folder, folder)
    assert find_facts(str(folder)).licence.id == "apache-2.0"  # its README.md says so
    assert find_facts(str(folder)).sizes == CATALOG["pocket-turbo"].sizes
    (folder / "transformer" / "config.json").write_text("{}")
    with pytest.raises(BaseModelError, match="is damaged"):
        find_facts(str(folder))
    shutil.rmtree(folder / "vae")
    with pytest.raises(BaseModelError, match="incomplete: it lacks vae"):
        find_facts(str(folder))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content + b"x",
        lambda content: b"x" + content,
        lambda content: (10**18).to_bytes(8, "little") + content[8:],
    ],
)
def test_weights_that_are_not_as_long_as_they_say_are_damaged(tmp_path, damage):
    folder = tmp_path / "model"
    shutil.copytree(find_base_model("pocket-turbo").folder, folder)
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(
        BaseModelError, match=r"vae/diffusion_pytorch_model\.safetensors \(which is damaged\)"
    ):
        find_facts(str(folder))


def test_a_folder_that_is_no_base_model_is_told_what_it_lacks(tmp_path):
    with pytest.raises(
        BaseModelError, match=r"it has no model_index\.json, nor transformer, text_encoder, vae"
    ):
        find_base_model(str(tmp_path))
    folder = tmp_path / "model"
    shutil.copytree(find_base_model("pocket-turbo").folder, folder)
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").rename(
        folder / "transformer" / "diffusion_pytorch_model.fp16.safetensors"
    )
    (folder / "vae" / "config.json").unlink()
    told = r"lacks (vae/config.json, )?transformer/\*.safetensors(, vae/config.json)?"
    with pytest.raises(BaseModelError, match=told):
        find_base_model(str(folder))
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model.safetensors"}}
    (folder / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BaseModelError, match=r"text_encoder/model-1-of-2\.safetensors"):
        find_base_model(str(folder))


def test_a_folder_without_eyes_of_its_own_waits_for_those_of_the_hub(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(find_base_model("pocket-turbo").folder, folder)
    shutil.rmtree(folder / "vision_tower")
    assert not is_fetched(str(folder))
    with pytest.raises(BaseModelError, match=r"The teacher's eyes for .* are not on this computer yet"):
        find_base_model(str(folder))


EYES_BYTES = 2 * 415_347_712  # of Qwen3-VL-4B's, as they are cut out


def lacks(name, context="auto"):
    facts = find_facts(name)
    return what_lacks(
        name, "", context, facts, facts.sizes_for(TrainConfig(base_model=name, teacher_context=context))
    )


def test_where_only_the_eyes_lack_no_more_than_they_is_named(z_image_folder, tmp_path):
    folder = tmp_path / "blind"
    shutil.copytree(z_image_folder, folder, ignore=shutil.ignore_patterns("vision_tower"))
    assert lacks(str(folder)) == Lacking("the teacher's eyes", EYES_BYTES)
    assert lacks(str(z_image_folder)) is None
    config = TrainConfig(base_model=str(folder), num_inference_steps=8, resolution=64)
    machine = Machine((), TorchBuild(), 16 * GIB, 12 * GIB, 2)
    plan = make_plan(config, pictures=6, runs_dir=tmp_path, machine=machine)
    assert "831 MB<small>at most, the teacher&#x27;s eyes from the Hub" in _needs(plan)


def test_what_the_hub_told_of_is_lacked_but_for_what_is_here(monkeypatch, tmp_path, z_image_folder):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    assert lacks("z-image-turbo") == Lacking("Z-Image-Turbo", None)  # nobody has asked the Hub yet
    commit = "1" * 40
    snapshot = cache_folder("Ann/mine") / "snapshots" / commit
    for file in ("model_index.json", "text_encoder/config.json"):
        (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(z_image_folder / file, snapshot / file)
    sizes = replace(Z_IMAGE_TURBO, stored_bytes=10**9 + EYES_BYTES)
    remember("Ann/mine", commit, HubRecord({}, {}, Z_IMAGE, sizes))
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    assert lacks("Ann/mine") == Lacking("Ann/mine", 10**9 + EYES_BYTES)
    eyes = assets_folder(VISION_TOWERS_FOLDER, QWEN3_VL_4B.repository) / commit
    shutil.copytree(z_image_folder / "vision_tower", eyes)
    assert lacks("Ann/mine") == Lacking("Ann/mine", 10**9)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("https://huggingface.co/Tongyi-MAI/Z-Image-Turbo", "Tongyi-MAI/Z-Image-Turbo"),
        ("https://huggingface.co/Ann/mine/tree/main/", "Ann/mine"),
        (" Z-Image-Turbo ", "z-image-turbo"),
        ("Ann/mine", "Ann/mine"),
        ("C:\\models\\mine", "C:\\models\\mine"),
        ("https://huggingface.co/", "https://huggingface.co/"),
    ],
)
def test_what_a_person_writes_or_pastes_is_a_name(written, name):
    assert read_name(written) == name


def test_a_name_longer_than_any_path_is_no_base_model():
    for name in ("a" * 5000, "a/" * 3000):
        with pytest.raises(BaseModelError, match="There is no base model"):
            find_base_model(name)
