"""A quantized transformer that is kept: read again it is the same, and what is not right is made anew."""

import os
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from dopsd_app.config import TrainConfig
from dopsd_app.models import frozen
from dopsd_app.models.load import load_base_model
from dopsd_app.models.memory_plan import ALL, MemoryPlan
from dopsd_app.models.protocol import Conditioning
from dopsd_app.models.repository import assets_folder
from tests.support.tiny_models import save_klein, save_z_image


@pytest.fixture(scope="module", params=[save_z_image, save_klein], ids=["z-image", "klein"])
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    request.param(folder)
    return folder


@pytest.fixture
def config(saved, tmp_path, monkeypatch):
    """A base model of the test's own, which nothing was kept of."""
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    shutil.copytree(saved, tmp_path / "base")
    return TrainConfig(base_model=str(tmp_path / "base"), device="cpu", precision="bfloat16")


def load(config, quantization="nf4", **plan):
    base_model = load_base_model(config, MemoryPlan(quantization=quantization, **plan))
    base_model.load_transformer()
    return base_model


def kept_files():
    return sorted(path for path in assets_folder("prepared", "").glob("*/*") if path.is_file())


def velocity(base_model):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, *base_model.latent_shape(64, 32), generator=generator)
    width = 32 if base_model.architecture.family.startswith("Z") else 48
    text = torch.randn(5, width, generator=generator).to(base_model.dtype)
    with torch.no_grad():
        return base_model.predict_velocity(noise, torch.tensor(0.9), [Conditioning(text)])


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_what_is_read_again_is_exactly_what_was_quantized_and_no_original_is_read(
    config, quantization, monkeypatch
):
    made = load(config, quantization)
    (file,) = kept_files()
    seen, read = [], frozen.read_tensor

    def noting(stored, *rest):
        seen.append(stored.file)
        return read(stored, *rest)

    monkeypatch.setattr(frozen, "read_tensor", noting)
    again = load(config, quantization)
    assert {path for path in seen if "vae" not in path.parts} == {file}
    ours, theirs = again.transformer.state_dict(), made.transformer.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and ours[name].equal(tensor), name
    assert velocity(again).equal(velocity(made))
    assert not again.transformer.training
    assert not any(weight.requires_grad for weight in again.transformer.parameters())
    # Other programs can read the file.
    with safe_open(file, framework="pt") as opened:
        assert set(opened.keys()) == set(theirs)


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_offloaded_blocks_are_kept_and_read_as_any_others(config, quantization):
    plan = {"offloaded_blocks": 2, "recomputed_blocks": ALL}
    made = load(config, quantization, **plan)
    expected = velocity(made)
    assert velocity(load(config, quantization, **plan)).equal(expected)
    assert velocity(load(config, quantization)).equal(expected)
    assert len(kept_files()) == 1


def test_nothing_is_kept_of_a_base_as_it_is(config):
    load(config, "none")
    assert kept_files() == []


def test_changed_files_of_the_base_are_prepared_anew_and_what_was_kept_goes(config):
    base_model = load(config)
    load(config, "int8")
    before = kept_files()
    assert [path.name.split("-")[0] for path in before] == ["int8", "nf4"]
    source = next((base_model.folder / "transformer").glob("*.safetensors"))
    os.utime(source, ns=(1, 1))
    load(config)
    (after,) = kept_files()
    assert after.name.startswith("nf4-") and after not in before


def test_another_precision_is_prepared_anew(config):
    load(config)
    load(replace(config, precision="float32"))
    (file,) = kept_files()
    with safe_open(file, framework="pt") as opened:
        kinds = {opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
    assert "BF16" not in kinds


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content.replace(b'"U8"', b'"I8"', 1),
        lambda content: content.replace(b'"made_of": "', b'"made_of": "0', 1).replace(b" {", b"{", 1),
    ],
    ids=["empty", "cut off", "another type", "another's"],
)
def test_a_file_that_is_damaged_or_anothers_is_written_anew(config, damage):
    expected = velocity(load(config))
    (file,) = kept_files()
    content = file.read_bytes()
    assert damage(content) != content
    file.write_bytes(damage(content))
    assert velocity(load(config)).equal(expected)
    assert file.read_bytes() == content


def test_a_disk_without_room_keeps_nothing_and_the_model_is_loaded(config, monkeypatch):
    monkeypatch.setattr("dopsd_app.models.prepared.free_disk", lambda folder: 2**30)
    assert velocity(load(config)).isfinite().all()
    assert kept_files() == []


def test_what_was_never_finished_goes(config):
    load(config)
    (file,) = kept_files()
    torn = file.with_name(f".{file.name}.0123abcd")
    torn.write_bytes(b"half")
    file.unlink()
    load(config)
    assert kept_files() == [torn, file]  # another process may be writing it now
    os.utime(torn, (0, 0))
    file.unlink()
    load(config)
    assert kept_files() == [file]
