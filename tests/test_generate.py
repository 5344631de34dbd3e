"""Pictures outside a run, on the tiny model."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dopsd_app import generate as drawing
from dopsd_app.base_models import load_base_model
from dopsd_app.encode import crop_example
from dopsd_app.events import KnownFailure, PhaseProgress
from dopsd_app.train import train


def generate(*arguments, **keywords):
    return list(drawing.generate(*arguments, **keywords))


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


def test_the_teacher_check_shows_picture_student_and_teacher_in_rows(dataset, tiny_config, tmp_path):
    out = tmp_path / "check.png"
    events = list(drawing.teacher_check(tiny_config, dataset.examples, out))
    assert events[-1] == PhaseProgress("drawing", 4, 4)
    with Image.open(out) as grid:
        # The widest row holds three pictures of the 2:1 shape, with gaps of 4 pixels.
        wide = crop_example(dataset.examples[2], tiny_config, load_base_model(tiny_config)).width
        assert grid.width == 3 * wide + 2 * 4
        first = np.asarray(grid)[:32].astype(int)
    picture, student, teacher = first[:, :32], first[:, 36:68], first[:, 72:104]
    expected = crop_example(dataset.examples[0], tiny_config, load_base_model(tiny_config))
    assert np.array_equal(picture, np.asarray(expected))
    assert np.abs(student - teacher).max() > 0
    assert np.abs(student - picture).max() > 0
