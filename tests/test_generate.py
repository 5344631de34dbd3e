"""Pictures outside a run, on the tiny model."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dopsd_app.events import KnownFailure
from dopsd_app.generate import generate, teacher_check
from dopsd_app.train import train


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
    assert [file.name for file in files][:3] == ["a-dog_1.png", "a-dog_1_base.png", "a-dog_2.png"]
    assert files[4].name == "my-dog-2_1.png"
    assert pixels(files[0]).shape == (32, 32, 3)
    assert np.abs(pixels(files[0]) - pixels(files[1])).max() > 2
    again = generate(finished, ["a dog"], [1], out=tmp_path / "again")
    assert np.array_equal(pixels(files[0]), pixels(again[0]))


def test_strength_zero_is_the_base_and_a_checkpoint_is_another_lora(finished, tmp_path):
    base = generate(finished, ["a dog"], [1], out=tmp_path / "full", base_too=True)[1]
    none = generate(finished, ["a dog"], [1], out=tmp_path / "none", strength=0.0)[0]
    assert np.abs(pixels(base) - pixels(none)).max() <= 1
    last = generate(finished, ["a dog"], [1], out=tmp_path / "last", checkpoint=4)[0]
    earlier = generate(finished, ["a dog"], [1], out=tmp_path / "earlier", checkpoint=2)[0]
    assert np.abs(pixels(tmp_path / "full" / "a-dog_1.png") - pixels(last)).max() <= 1
    assert np.abs(pixels(last) - pixels(earlier)).max() > 2


def test_a_lora_that_is_not_there_is_named(finished, new_run, tiny_config, tmp_path):
    with pytest.raises(KnownFailure, match=r"no checkpoint of step 3\. Checkpoints there are: 2, 4"):
        generate(finished, ["a dog"], [1], out=tmp_path, checkpoint=3)
    with pytest.raises(KnownFailure, match=r"no LoRA or checkpoint\. Checkpoints there are: none"):
        generate(new_run(tiny_config), ["a dog"], [1], out=tmp_path)


def test_the_teacher_check_shows_picture_student_and_teacher_in_rows(dataset, tiny_config, tmp_path):
    out = teacher_check(tiny_config, dataset.examples, tmp_path / "check.png")
    with Image.open(out) as grid:
        # 4 rows with gaps of 4; one of the pictures is twice as wide as high: 3 of 32 or 48 pixels.
        assert grid.width in (3 * 48 + 2 * 4, 3 * 64 + 2 * 4)
        first = np.asarray(grid)[:32]
    student, teacher = first[:, 36:68].astype(int), first[:, 72:104].astype(int)
    assert np.abs(student - teacher).max() > 0
