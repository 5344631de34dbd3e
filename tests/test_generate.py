"""Pictures outside a run, on the tiny model."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dopsd_app import generate as generating
from dopsd_app.config import save_config
from dopsd_app.errors import KnownFailure
from dopsd_app.jobs.drawing import BASE, Column, Drawing, PictureRequest
from dopsd_app.jobs.job import create_job
from dopsd_app.jobs.kinds import DRAW
from dopsd_app.models import loaded_model
from dopsd_app.models.loaded_model import LoadedModel
from dopsd_app.models.z_image import ZImage
from dopsd_app.train import train


def generate(*arguments, **keywords):
    return list(generating.generate(*arguments, **keywords))


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


def told_by(path):
    with Image.open(path) as picture:
        return json.loads(picture.text["dopsd"])


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
    assert np.array_equal(pixels(base), pixels(none))
    last = generate(finished, ["a dog"], [1], out=tmp_path, checkpoint=4)[0]
    earlier = generate(finished, ["a dog"], [1], out=tmp_path, checkpoint=2)[0]
    assert len({full, base, none, last, earlier}) == 5  # none is written over another
    assert np.abs(pixels(full) - pixels(last)).max() <= 1
    assert np.abs(pixels(last) - pixels(earlier)).max() > 2


def test_a_picture_tells_what_it_was_drawn_with_and_no_folder_of_this_computer(finished, tmp_path):
    lora, base = generate(finished, ["a dog"], [1], out=tmp_path, checkpoint=2, strength=0.5, base_too=True)
    expected = {
        "run": finished.id,
        "base_model": Path(finished.config.base_model).name,
        "prompt": "a dog",
        "seed": 1,
        "step": 2,
        "strength": 0.5,
        "num_inference_steps": 4,
    }
    assert told_by(lora) == expected
    assert told_by(base) == expected | {"step": None, "strength": 0.0}


# --- grids


@pytest.fixture
def drawn(finished):
    """Draws a grid in this process; the drawing, and what it told."""

    def draw(**asked):
        asked = {"run_id": finished.id, "prompts": ("a dog",), "seeds": (1,)} | asked
        job = create_job(finished.runs_dir, DRAW, asdict(PictureRequest(**asked)))
        return Drawing(job.path), list(generating.draw(job))

    yield draw
    generating.drawing_cache.clear()


def test_each_picture_of_a_grid_is_the_one_that_is_drawn_alone(drawn, finished, tmp_path, monkeypatch):
    loaded, encoded = [], []
    load, encode = LoadedModel.unload_lora, ZImage.encode
    monkeypatch.setattr(LoadedModel, "unload_lora", lambda model: (loaded.append(1), load(model)))
    monkeypatch.setattr(ZImage, "encode", lambda *of: (encoded.append(of[2]), encode(*of))[1])
    columns = (BASE, Column(2), Column(None, 0.5), Column(2, 0.5), Column())
    grid, told = drawn(prompts=("a dog", "a cat"), seeds=(1, 2), columns=columns)
    assert [(e.done, e.total) for e in told if e.phase == "drawing"] == [(n, 20) for n in range(21)]
    assert len(grid.pictures) == 20
    assert encoded == ["a dog", "a cat"]  # each once
    assert len(loaded) == 2  # one LoRA after the other, whatever their strengths and places
    monkeypatch.undo()

    generating.drawing_cache.clear()
    pair, _ = drawn(prompts=("a cat",), seeds=(2,))
    assert np.array_equal(pixels(grid.cell(3, 0)), pixels(pair.cell(0, 0)))
    assert np.array_equal(pixels(grid.cell(3, 4)), pixels(pair.cell(0, 1)))
    places = [(0, 1), (1, 2), (2, 3), (3, 1)]
    for row, column in places:
        prompt, seed = grid.asked.rows[row].prompt, grid.asked.rows[row].seed
        step, strength = columns[column].checkpoint, columns[column].strength
        file = generate(
            finished, [prompt], [seed], out=tmp_path / f"{row}", checkpoint=step, strength=strength
        )[0]
        assert np.array_equal(pixels(grid.cell(row, column)), pixels(file)), (row, column)
        assert told_by(grid.cell(row, column)) == told_by(file)
    assert len({grid.cell(0, column).read_bytes() for column in range(5)}) == 5


def test_a_loras_strength_zero_is_the_base_bit_for_bit(finished, tiny_config):
    model = LoadedModel(tiny_config, teaches=False)
    conditioning = model.encode(["a dog"])[0]
    model.load_transformer()
    base = model.draw(conditioning, tiny_config, seed=1)
    model.load_lora(finished.lora_file, 0.0)
    assert model.draw(conditioning, tiny_config, seed=1) == base


def test_the_bases_pictures_are_drawn_once_for_grids_that_follow(drawn, monkeypatch):
    counted, draw = [], LoadedModel.draw
    monkeypatch.setattr(
        LoadedModel, "draw", lambda model, *of, **more: (counted.append(of), draw(model, *of, **more))[1]
    )
    first, _ = drawn(seeds=(1, 2))
    assert len(counted) == 4
    second, _ = drawn(seeds=(2, 3), columns=(BASE, Column(strength=0.5)))
    assert len(counted) == 4 + 3
    assert np.array_equal(pixels(first.cell(1, 0)), pixels(second.cell(0, 0)))


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
    job = create_job(finished.runs_dir, DRAW, asdict(PictureRequest(finished.id, ("a dog",), (1,))))
    *progress, _ = list(generating.draw(job))
    assert all(step.phase != "downloading" for step in progress)
    assert np.array_equal(pixels(Drawing(job.path).cell(0, 1)), pixels(drawn[0]))


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
