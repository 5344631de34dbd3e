"""What the teacher sees before any training: on the tiny model, and on the built-in base."""

import numpy as np
import pytest
import torch
from PIL import Image

from dopsd_app.checks.teacher_check import colours_of, compare, save_sheet, teacher_check
from dopsd_app.checks.verdict import (
    CHECK_FILE,
    CheckRow,
    judge_rows,
    read_check,
    rows_drawn,
    save_check,
    score_rows,
)
from dopsd_app.cli import main
from dopsd_app.method.encode import crop_example
from dopsd_app.models.catalog import ASSETS
from dopsd_app.models.load import load_base_model
from dopsd_app.models.loaded_model import LoadedModel
from dopsd_app.models.protocol import Pictures
from dopsd_app.progress import PhaseProgress


def test_the_check_shows_picture_student_and_teacher_in_rows(dataset, tiny_config, tmp_path):
    out = tmp_path / "check.png"
    model = LoadedModel(tiny_config)
    whole_rows = []
    for event in teacher_check(model, tiny_config, dataset.examples, tmp_path):
        assert read_check(tmp_path) is None or event == PhaseProgress("drawing", 12, 12)
        whole_rows.append(len(rows_drawn(tmp_path)))
    assert set(whole_rows) == {0, 1, 2, 3, 4}
    save_sheet(tmp_path, out)
    with Image.open(out) as grid:
        # The widest row holds three pictures of the 2:1 shape, with gaps of 4 pixels.
        wide = crop_example(dataset.examples[2], tiny_config, model.base_model).width
        assert grid.width == 3 * wide + 2 * 4
        first = np.asarray(grid)[:32].astype(int)
    picture, student, teacher = first[:, :32], first[:, 36:68], first[:, 72:104]
    expected = crop_example(dataset.examples[0], tiny_config, model.base_model)
    assert np.abs(picture - np.asarray(expected)).mean() < 20  # WebP smears colours; others are 80 away
    assert np.abs(student - teacher).max() > 0
    check = read_check(tmp_path)
    assert len(check.rows) == 4
    assert check == judge_rows(check.rows, tiny_config.base_model)


def test_a_teacher_that_draws_the_same_whatever_it_is_shown_scores_nothing(dataset, tiny_config, tmp_path):
    model = LoadedModel(tiny_config)
    encode = model.base_model.encode
    grey = Pictures(Image.new("RGB", (32, 32), "grey"))
    model.base_model.encode = lambda pictures, caption, role: encode(grey, caption, role)
    list(teacher_check(model, tiny_config, dataset.examples, tmp_path))
    check = read_check(tmp_path)
    assert check.gain == pytest.approx(check.control_gain)
    assert check.score == pytest.approx(0, abs=1e-6)
    assert check.verdict == "does not"


def test_the_score_is_the_teachers_own_part_of_the_way_to_the_pictures():
    pictures, student, strange = torch.randn(3, 6, 16, generator=torch.Generator().manual_seed(1))

    def score(teacher, control):
        return score_rows(compare(*([kind] for kind in (pictures, strange, student, teacher, control))))

    assert score(teacher=student, control=student) == pytest.approx(0, abs=1e-6)
    assert score(teacher=pictures, control=student) == pytest.approx(1, abs=1e-6)
    assert score(teacher=pictures, control=pictures) == pytest.approx(0)  # any picture would do: no credit
    halfway = (pictures + student) / 2
    assert 0 < score(teacher=halfway, control=student) < 1
    assert score(teacher=halfway, control=-pictures) == score(teacher=halfway, control=student)  # led astray


def test_what_the_eyes_do_not_see_is_missed_by_the_colours():
    eyes, colours = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(2))
    far = -eyes, -colours
    rows = compare((eyes, colours), far, far, teacher=(eyes, -colours), control=far)
    assert score_rows(rows) == pytest.approx(0, abs=0.01)
    red, pink, blue = (colours_of(Image.new("RGB", (8, 8), name)) for name in ("red", "#ff1010", "blue"))
    assert red @ red == pytest.approx(1)
    assert red @ pink == pytest.approx(1)  # of 64 colours the same
    assert red @ blue == 0


def test_the_verdict_says_what_to_do_and_how_far_to_trust_it():
    def check(teacher, base_model="pocket-turbo"):
        return judge_rows((CheckRow(student=0.2, teacher=teacher, control=0.1),) * 4, base_model)

    assert [check(teacher).verdict for teacher in (0.1, 0.2, 0.4, 0.9)] == [
        "does not",
        "does not",
        "partly",
        "sees",
    ]
    assert "Do not train yet" in check(0.1).sentence
    assert check(0.1).score == 0
    assert check(0.9).calibrated
    assert check(0.9).control_gain == pytest.approx(-0.1)
    assert "guide only" not in check(0.9).sentence
    assert "guide only" in check(0.9, "/models/another").sentence


def test_features_need_no_encoders(tiny_config, dataset):
    base_model = load_base_model(tiny_config)
    crops = [crop_example(example, tiny_config, base_model) for example in dataset.examples]
    alone = base_model.picture_features(crops[0])
    base_model.load_encoders()
    assert torch.equal(base_model.picture_features(crops[0]), alone)
    base_model.free_encoders()
    assert base_model.vision_tower is None
    assert alone.shape[1] == 32


def test_the_built_in_teacher_sees_the_bundled_creatures(tmp_path, capsys):
    for name in ("zorp", "mibbit"):
        out = tmp_path / name / "sheet.png"
        folder = ["--images", str(ASSETS / "examples" / name), "--runs", str(tmp_path / "runs")]
        assert main(["preview", *folder, "--out", str(out)]) == 0
        assert out.exists()
        assert "The teacher sees it" in capsys.readouterr().out


def test_a_check_of_an_earlier_version_is_read_under_its_old_name(tmp_path):
    earlier, later = (judge_rows((CheckRow(0.0, gain, 0.0),), "pocket-turbo") for gain in (0.2, 0.9))
    assert read_check(tmp_path) is None
    save_check(earlier, tmp_path)
    (tmp_path / CHECK_FILE).rename(tmp_path / "check.json")
    assert read_check(tmp_path) == earlier
    save_check(later, tmp_path)
    assert read_check(tmp_path) == later
