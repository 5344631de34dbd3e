"""A grid of drawn pictures: what is asked for, how it is shown, and what its files are called."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from PIL import Image, ImageFont

from dopsd_app.errors import KnownFailure
from dopsd_app.jobs.drawing import BASE, Column, Drawing, PictureRequest, Row, file_stem
from dopsd_app.jobs.job import create_job
from dopsd_app.jobs.kinds import DRAW
from dopsd_app.jobs.run_notes import MAX_NAME, set_name
from dopsd_app.jobs.runs import Run
from dopsd_app.jobs.status import Status
from dopsd_app.ui.compare import column_name, grid, history, picture_name, progress, sheet_name
from dopsd_app.ui.picture_requests import make_request
from dopsd_app.ui.sheet import _writable, save_sheet
from dopsd_app.ui.use_file import lora_name
from tests.support.checkpoint_files import leave_checkpoint
from tests.support.pictures import make_picture

HOSTILE = "<img src=x onerror=alert(1)> 'zorp'"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("DOPSD_RUNS", str(tmp_path / "runs"))
    return Run(tmp_path / "runs" / "20990101-000000-My zorp-0123456789ab")


@pytest.fixture
def asked(run):
    columns = (BASE, Column(), Column(75), Column(75, 0.6))
    return PictureRequest(run.id, (HOSTILE, "a zorp at sea"), (3, 4), columns)


@pytest.fixture
def drawing(run, asked):
    """Of its rows the first is drawn, and of the second the base."""
    drawing = Drawing(create_job(run.runs_dir, DRAW, asdict(asked)).path)
    for row, column in ((0, 0), (0, 1), (0, 2), (0, 3), (1, 0)):
        make_picture(column, 64, 48).save(drawing.cell(row, column))
    return drawing


def test_what_is_chosen_is_every_step_at_every_strength_beside_the_base(run):
    lines = "  a zorp \n\n a zorp at sea\n"
    request = make_request(run, lines, ["Final", "Step 75"], ["1", "0,6", "0.60"], 2**32 - 1, 2)
    assert request.prompts == ("a zorp", "a zorp at sea") and request.seeds == (2**32 - 1, 0)
    assert request.columns == (BASE, Column(), Column(None, 0.6), Column(75), Column(75, 0.6))
    assert request.cells == 2 * 2 * 5
    with pytest.raises(KnownFailure, match=r'A strength is a number such as 0\.8, not "strong"'):
        make_request(run, "x", ["Final"], ["strong"], 0, 1)
    with pytest.raises(KnownFailure, match='Choose "Final" or a step'):
        make_request(run, "x", ["soon"], ["1"], 0, 1)


def test_files_are_named_after_run_step_and_seed(run, asked):
    assert [column_name(column) for column in asked.columns] == ["Base", "Final", "Step 75", "Step 75 at 0.6"]
    assert picture_name(run, asked, 0, 0) == "My-zorp_prompt-1_base_seed-3.png"
    assert picture_name(run, asked, 3, 3) == "My-zorp_prompt-2_step-75_strength-0.6_seed-4.png"
    assert sheet_name(run, asked) == "My-zorp_step-75-final_strength-0.6-1_seeds-3-4.png"
    smallest = replace(asked, prompts=("a zorp",), seeds=(0,), columns=(BASE, Column(75)))
    assert picture_name(run, smallest, 0, 1) == sheet_name(run, smallest) == "My-zorp_step-75_seed-0.png"


@pytest.mark.parametrize("letter", ["猫", "\U00020000", "z"])
def test_files_of_a_run_with_a_long_name_in_any_script_can_be_written(run, asked, letter):
    run.path.mkdir(parents=True)
    set_name(run, MAX_NAME * letter)
    columns = (
        BASE,
        *(Column(step, strength) for step in range(10_000, 18_000, 1000) for strength in (1, 0.65)),
    )
    many = replace(asked, columns=columns, seeds=(2**32 - 2, 2**32 - 1))
    stem = file_stem(8, Row(60 * letter, 2**32 - 1), [Path(60 * letter)]) + "_step100000_strength0.65.png"
    names = (lora_name(run, leave_checkpoint(run, 99_999) / "lora.safetensors"), sheet_name(run, many))
    for name in (*names, picture_name(run, many, 3, 16), stem):
        (run.path / name).write_bytes(b"")
    assert "step-10000-to-17000_strength-0.65-1" in names[1]


def test_a_grid_shows_what_is_drawn_and_the_places_of_the_rest(run, drawing):
    shown = grid(run, drawing, busy=True)
    assert shown.count("<figure>") == 16 and shown.count('class="enlarge"') == 5
    assert shown.count("class='coming'") == 11
    assert shown.count("<button") == 3  # the base's pictures are for no card
    assert "<img src=x" not in shown
    assert grid(run, drawing, busy=False).count("Not drawn") == 11


def test_what_was_drawn_before_can_be_shown_again(drawing):
    assert history([drawing], drawing.id) == ""
    shown = history([drawing], "another")
    assert f"data-value='{drawing.id}'" in shown and "5 pictures" in shown and "<img src=x" not in shown


def test_how_a_drawing_stands_is_told_in_words():
    assert "<p class='hint' role='status'>Waits for me</p>" in progress(Status("queued"), "Waits for me")
    assert progress(None, "") == progress(Status("finished"), "") == ""
    assert "3 of 12 pictures drawn" in progress(Status("drawing", done=3, total=12), "")
    assert "value='0.250'" in progress(Status("drawing", done=3, total=12), "")
    assert "What was drawn is kept" in progress(Status("stopped"), "")
    assert "A training began" in progress(Status("failed", reason="A training began."), "")


def test_all_pictures_are_saved_as_one_with_gaps_for_those_that_are_missing(tmp_path):
    there, missing = tmp_path / "there.png", tmp_path / "missing.png"
    Image.new("RGB", (64, 32), "red").save(there)
    save_sheet(
        tmp_path / "sheet.png", ["Base", "Final"], [("a zorp", [there, missing]), ("猫", [missing, there])]
    )
    with Image.open(tmp_path / "sheet.png") as sheet:
        # A small picture is enlarged to 256 x 128; the prompts' column is 220 wide, and all gaps are 8.
        assert sheet.width == 8 + 220 + 2 * (8 + 256) + 8
        last = sheet.height - 8 - 128 // 2  # the middle of the last row
        colours = [[sheet.getpixel((x, last - y)) for x in (236 + 128, 236 + 264 + 128)] for y in (0, 136)]
    assert colours == [[(255, 255, 255), (255, 0, 0)], [(255, 0, 0), (255, 255, 255)]]


def test_what_the_letters_of_a_sheet_cannot_write_is_not_written_as_boxes():
    font = ImageFont.load_default(20)
    assert _writable("ein grüner Zorp, 2!", font) == "ein gruner Zorp, 2!"
    assert _writable("一只 zorp", font) == ""
