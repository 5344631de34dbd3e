"""Pictures outside a run, on the tiny model."""

import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image

from dopsd_app import generate as generating
from dopsd_app.config import save_config
from dopsd_app.errors import KnownFailure
from dopsd_app.jobs.drawing import Drawing, PictureRequest
from dopsd_app.jobs.job import create_job
from dopsd_app.jobs.kinds import DRAW
from dopsd_app.models import loaded_model
from dopsd_app.models.loaded_model import LoadedModel
from dopsd_app.train import train


def generate(*arguments, **keywords):
    return list(generating.generate(*arguments, **keywords))


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


@pytest.fixture
def finished(new_run, tiny_config):
    run = new_run(replace(tiny_config, learning_rate=0.05))
    list(train(run))
    return run


def test_generate_draws_every_prompt_and_seed_with_and_without_the_lora(finished, tmp_path):
    prompts = ["a dog", "My dog, 2!"]
    files = generate(finished, prompts, [1, 2], out=tmp_path / "out", base_too=True)
    assert prompts == ["a dog", "My dog, 2!"]  # the pipeline would write its template into them
    assert [file.name for file in files][:3] == ["1-a-dog_1.png", "1-a-dog_1_base.png", "1-a-dog_2.png"]
    assert files[4].name == "2-my-dog-2_1.png"
    assert pixels(files[0]).shape == (32, 32, 3)
    assert np.abs(pixels(files[0]) - pixels(files[1])).max() > 2
    again = generate(finished, ["a dog"], [1], out=tmp_path / "again")
    assert np.array_equal(pixels(files[0]), pixels(again[0]))


def test_strength_zero_is_the_base_and_a_checkpoint_is_another_lora(finished, tmp_path):
    full, base = generate(finished, ["a dog"], [1], out=tmp_path, base_too=True)
    none = generate(finished, ["a dog"], [1], out=tmp_path, strength=0.0)[0]
    assert np.abs(pixels(base) - pixels(none)).max() <= 1
    last = generate(finished, ["a dog"], [1], out=tmp_path, checkpoint=4)[0]
    earlier = generate(finished, ["a dog"], [1], out=tmp_path, checkpoint=2)[0]
    assert len({full, base, none, last, earlier}) == 5  # none is written over another
    assert np.abs(pixels(full) - pixels(last)).max() <= 1
    assert np.abs(pixels(last) - pixels(earlier)).max() > 2


def test_a_lora_that_is_not_there_is_named(finished, new_run, tiny_config, tmp_path):
    with pytest.raises(KnownFailure, match=r"no checkpoint of step 3\. Checkpoints there are: 2, 4"):
        generate(finished, ["a dog"], [1], out=tmp_path, checkpoint=3)
    with pytest.raises(KnownFailure, match=r"no LoRA or checkpoint\. Checkpoints there are: none"):
        generate(new_run(tiny_config), ["a dog"], [1], out=tmp_path)


def test_a_resolution_between_the_models_sizes_is_drawn_at_the_nearest(new_run, tiny_config, tmp_path):
    run = new_run(replace(tiny_config, resolution=40))
    list(train(run))
    assert pixels(generate(run, ["a dog"], [1], out=tmp_path)[0]).shape in ((32, 32, 3), (48, 48, 3))


def test_a_loaded_model_draws_the_same_after_it_made_room(finished, tiny_config):
    small = LoadedModel(tiny_config)
    first = small.encode(["a dog"])[0]
    small.load_transformer()
    small.load_lora(finished.lora_file, 1.0)
    before = small.draw(first, tiny_config, seed=1)
    small.drop_transformer()
    small.free_encoders()
    small.encode(["a cat"])
    assert small.encode(["a dog"])[0] is first
    small.load_transformer()
    bare = small.draw(first, tiny_config, seed=1)
    small.load_lora(finished.lora_file, 1.0)
    assert small.draw(first, tiny_config, seed=1) == before
    assert small.draw(first, tiny_config, seed=1, with_lora=False) == bare != before


def test_drawing_needs_no_eyes_of_the_teacher(finished, tmp_path):
    """They may be gone, or never have been on this computer: the pictures are the same."""
    drawn = generate(finished, ["a dog"], [1], out=tmp_path / "with")
    folder = tmp_path / "blind"
    shutil.copytree(finished.config.base_model, folder, ignore=shutil.ignore_patterns("vision_tower"))
    save_config(replace(finished.config, base_model=str(folder)), finished.path / "config.json")
    with pytest.raises(KnownFailure, match=r"The teacher's eyes for .* are not on this computer"):
        LoadedModel(finished.config)
    blind = generate(finished, ["a dog"], [1], out=tmp_path / "without")
    assert np.array_equal(pixels(drawn[0]), pixels(blind[0]))
    job = create_job(finished.runs_dir, DRAW, asdict(PictureRequest(finished.id, "a dog", 1)))
    *progress, _ = list(generating.draw(job))
    assert all(step.phase != "downloading" for step in progress)
    assert np.array_equal(pixels(Drawing(job.path).lora), pixels(drawn[0]))


def test_a_model_that_teaches_serves_for_drawing_and_not_the_other_way(tiny_config):
    blind, seeing = LoadedModel(tiny_config, teaches=False), LoadedModel(tiny_config)
    other = replace(tiny_config, teacher_picture_minimum=32)
    assert seeing.matches(tiny_config, teaches=False) and seeing.matches(tiny_config, teaches=True)
    assert seeing.matches(other, teaches=False) and not seeing.matches(other, teaches=True)
    assert blind.matches(other, teaches=False) and not blind.matches(tiny_config, teaches=True)
    assert not blind.matches(replace(tiny_config, quantization="nf4"), teaches=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_on_a_card_the_encoders_stay_where_there_is_room(tiny_config, monkeypatch):
    on_card = LoadedModel(replace(tiny_config, device="cuda"))
    on_card.encode(["a dog"])
    on_card.load_transformer()
    assert not on_card.encoders
    pipeline = on_card.pipeline
    on_card.encode(["a cat"])
    assert on_card.encoders
    assert on_card.pipeline is pipeline
    on_card.free_encoders()
    monkeypatch.setattr(loaded_model, "DRAWING_ROOM", 2**60)
    on_card.encode(["a bird"])
    assert on_card.encoders
    assert on_card.pipeline is None
