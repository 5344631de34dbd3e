"""What a LoRA file says of itself, key by key, and that the same training writes the same bytes."""

import base64
import json
import os
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

from dopsd_app import __version__
from dopsd_app.checks.previews import read_thumbnail, save_samples
from dopsd_app.jobs.lora_file import LORA_SCHEMA, read_facts
from dopsd_app.jobs.manifest import find_damage, hash_file, read_manifest
from dopsd_app.jobs.runs import LORA_FILE
from dopsd_app.method.encode import EncodedPrompt
from dopsd_app.method.lora_file import save_lora
from dopsd_app.method.lora_metadata import describe_lora
from dopsd_app.models.catalog import CATALOG, find_facts
from dopsd_app.models.protocol import Conditioning
from dopsd_app.train import train
from tests.support.finished_run import pocket_config
from tests.support.pictures import make_picture

ROOT = Path(__file__).parents[1]
POCKET = CATALOG["pocket-turbo"]
CAPTIONS = [["a zorp on a hill", "Zorp!"], ["the zorp"], ["zorps at sea"]]  # the last has another word
JPEG = "data:image/jpeg;base64,"


def metadata_of(file):
    with safe_open(file, framework="np") as opened:
        return opened.metadata()


def thumbnail_of(metadata):
    """The picture in a file's metadata, and its bytes."""
    address = metadata["modelspec.thumbnail"]
    assert address.startswith(JPEG)
    content = base64.b64decode(address.removeprefix(JPEG), validate=True)
    return Image.open(BytesIO(content), formats=["JPEG"]), content


def test_every_key_and_its_value():
    config = pocket_config(lora_alpha=6.0, seed=3)
    made = describe_lora(config, POCKET, CAPTIONS, 7, b"jpeg")
    documented = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    assert [key for key in made if f"`{key}`" not in documented] == []
    own = json.loads(made.pop("dopsd"))
    assert made == {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "pocket-turbo/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "My Zorp",
        "modelspec.description": (
            "A LoRA for pocket-turbo, trained with D-OPSD (arXiv 2605.05204) in 7 steps."
        ),
        "modelspec.usage_hint": "Trigger word: zorp. 4 steps at CFG 1, strength 1.",
        "modelspec.resolution": "64x64",
        "modelspec.license": "Apache 2.0 (https://www.apache.org/licenses/LICENSE-2.0)",
        "modelspec.trigger_phrase": "zorp",
        "modelspec.thumbnail": "data:image/jpeg;base64,anBlZw==",
        "ss_base_model_version": "pocket-turbo",
        "ss_sd_model_name": "pocket-turbo",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "4",  # not 6: the strength of 1.5 is in the weights
        "ss_output_name": "My Zorp",
        "ss_num_train_images": "3",
        "ss_resolution": "(64, 64)",
        "ss_steps": "7",
        "ss_learning_rate": "0.0001",
        "ss_batch_size_per_device": "4",
        "ss_optimizer": "adamw8bit",
        "ss_seed": "3",
        "ss_tag_frequency": '{"1_zorp": {"zorp": 2}}',
        "trained_words": '["zorp"]',
    }
    assert own.pop("versions").keys() == {"torch", "diffusers", "transformers", "peft"}
    assert own == {
        "schema": LORA_SCHEMA,
        "version": __version__,
        "base_model": "pocket-turbo",
        "revision": "",
        "trigger_word": "zorp",
        "rank": 4,
        "alpha": 6.0,
        "steps": 7,
        "seed": 3,
        "method": "D-OPSD (arXiv 2605.05204)",
    }


@pytest.mark.parametrize(
    ("base", "architecture", "version"),
    [
        ("z-image-turbo", "Z-Image/lora", "zimage"),
        ("flux2-klein-4b", "Flux.2-klein-4b/lora", "flux2_klein_4b"),
        ("flux2-klein-9b", "Flux.2-klein-9b/lora", "flux2_klein_9b"),
    ],
)
def test_each_base_model_has_the_name_that_other_programs_have_for_it(base, architecture, version):
    made = describe_lora(pocket_config(base_model=base, resolution=512), CATALOG[base], CAPTIONS, 7)
    assert (made["modelspec.architecture"], made["ss_base_model_version"]) == (architecture, version)
    assert made["modelspec.usage_hint"].endswith("4 steps at CFG 1, strength 1.")
    assert made["ss_sd_model_name"] == CATALOG[base].repository
    assert ("flux-non-commercial-license (https://" in made["modelspec.license"]) == base.endswith("9b")


def test_of_a_size_that_nobody_has_a_name_for_only_the_kind_is_told(tiny_config, real_size_folder):
    tiny, real = (find_facts(str(folder)) for folder in (tiny_config.base_model, real_size_folder))
    made = describe_lora(tiny_config, tiny, CAPTIONS, 7)
    assert made["modelspec.architecture"] == "ZImagePipeline/lora" and "ss_base_model_version" not in made
    assert "modelspec.license" not in made
    made = describe_lora(tiny_config, real, CAPTIONS, 7)  # a fine-tune of Z-Image-Turbo's size
    assert (made["modelspec.architecture"], made["ss_base_model_version"]) == ("Z-Image/lora", "zimage")


@pytest.mark.parametrize("trigger", ["", "  ", "grumbo", "zo"])
def test_a_trigger_word_that_no_caption_has_was_not_trained(trigger):
    made = describe_lora(pocket_config(trigger_word=trigger, name=""), POCKET, CAPTIONS, 7)
    assert made["modelspec.title"] == made["ss_output_name"] == "LoRA"
    assert made.keys().isdisjoint({"ss_tag_frequency", "trained_words", "modelspec.trigger_phrase"})
    assert made["modelspec.usage_hint"] == "4 steps at CFG 1, strength 1."


@pytest.mark.parametrize(
    "text", ["a\nb", 'z"\\', "\ud800z", "👩‍🚀", "\x00z\x1b[31m", "a, b", "</script>", "z" * 2000]
)
def test_odd_words_are_read_back_as_the_captions_have_them(tmp_path, text):
    expected = " ".join(text.replace("\ud800", " ").replace("\x00", " ").replace("\x1b", " ").split())
    config = pocket_config(trigger_word=text, name=text)
    file = tmp_path / LORA_FILE
    save_lora(
        file,
        {"w.lora_B.weight": np.ones((2, 2), np.float32)},
        2.0,
        describe_lora(config, POCKET, [[expected]], 7),
    )
    made = metadata_of(file)
    assert json.loads(made["trained_words"]) == [expected]
    assert json.loads(made["ss_tag_frequency"]) == {f"1_{expected}": {expected: 1}}
    assert made["modelspec.trigger_phrase"] == made["modelspec.title"] == made["ss_output_name"] == expected
    assert read_facts(file)["trigger_word"] == text


def test_no_value_names_a_folder_even_of_a_base_model_that_is_gone(tmp_path):
    for folder in (tmp_path / "models" / "mine", "C:\\models\\mine"):
        made = describe_lora(pocket_config(base_model=str(folder)), POCKET, CAPTIONS, 7)
        assert made["ss_sd_model_name"] == json.loads(made["dopsd"])["base_model"] == "mine"
        assert not any("models" in value or str(tmp_path) in value for value in made.values())


def test_the_same_lora_is_the_same_bytes_and_its_numbers_are_aligned(tmp_path):
    weights = {
        f"layers.{n}.w.lora_{side}.weight": np.full((2, 3), n, np.float32) for n in range(9) for side in "AB"
    }
    contents = set()
    for length in (0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7):
        save_lora(tmp_path / LORA_FILE, weights, 2.0, {f"key {n}": "x" * length for n in range(9)})
        content = (tmp_path / LORA_FILE).read_bytes()
        contents.add(content)
        assert int.from_bytes(content[:8], "little") % 8 == 0
        read = load_file(tmp_path / LORA_FILE)
        assert (read["transformer.layers.8.w.lora_B.weight"] == 16).all()
        assert (read["transformer.layers.8.w.lora_A.weight"] == 8).all()
        assert list(metadata_of(tmp_path / LORA_FILE)) != []
    assert len(contents) == 8  # one for each length, and the four of nothing are one


# --- the picture


def test_the_picture_is_the_first_that_the_lora_drew_small_and_nothing_else(new_run):
    run = new_run(pocket_config())
    assert read_thumbnail(run, 4) == b""
    blue = make_picture(0, 1024, 512)
    blue.paste("blue", (0, 0, *blue.size))
    blue.info["exif"] = b"Exif\x00\x00made at home"
    red = Image.new("RGB", blue.size, "red")
    size = (blue.height, blue.width)
    alone = EncodedPrompt(Conditioning(torch.zeros(1, 1)), size)
    edit = replace(alone, source=red)
    # What starts from a person's own picture shows much of that: it stays at home.
    save_samples(run, 4, [edit], [blue])
    assert read_thumbnail(run, 4) == b""
    save_samples(run, 4, [edit, alone, alone], [red, blue, red])
    picture, content = thumbnail_of(describe_lora(run.config, POCKET, [], 4, read_thumbnail(run, 4)))
    assert picture.size == (256, 128)
    assert np.abs(np.asarray(picture, int) - (0, 0, 255)).max() < 8
    assert not picture.getexif() and b"at home" not in content


@pytest.mark.process
def test_a_trainings_files_say_what_they_are_and_are_the_same_after_a_kill(new_run, tiny_config, tmp_path):
    config = replace(tiny_config, preview_every=4, trigger_word="dog", preview_prompts=("a dog in secret",))
    run = new_run(config)
    list(train(run))
    made = metadata_of(run.lora_file)
    assert all(type(value) is str for value in made.values())
    picture, _ = thumbnail_of(made)
    assert picture.size == (32, 32)
    assert made["ss_num_train_images"] == "4" and json.loads(made["ss_tag_frequency"]) == {
        "1_dog": {"dog": 4}
    }
    text = json.dumps(made)
    # Neither where it was made nor what was written of the pictures.
    assert str(tmp_path) not in text and os.path.expanduser("~") not in text
    assert not any(private in text for private in ("my dog", "another caption", "secret"))
    assert json.loads(run.check_file.read_text())["sha256"] == hash_file(run.lora_file)
    # There is no preview of the second step: its file has no picture. That of the last has the same one.
    first, last = (run.checkpoints / f"00000{step}" for step in (2, 4))
    assert "modelspec.thumbnail" not in metadata_of(first / "lora.safetensors")
    assert metadata_of(first / "lora.safetensors")["ss_steps"] == "2"
    assert (last / "lora.safetensors").read_bytes() == run.lora_file.read_bytes()
    assert not find_damage(last, read_manifest(last))
    # Killed before its end was written.
    before = run.lora_file.read_bytes()
    run.lora_file.unlink()
    list(train(run))
    assert run.lora_file.read_bytes() == before
