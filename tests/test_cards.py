"""The cards of the first step without a browser: which part of a picture they show, and when anew."""

from dataclasses import asdict
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest

from dopsd_app.checks.verdict import CheckRow, judge_rows, save_check
from dopsd_app.data.draft_file import DraftError
from dopsd_app.data.drafts import new_draft, read_draft, set_captions, set_focus, set_settings
from dopsd_app.data.uploads import add_pictures, add_sources
from dopsd_app.errors import KnownFailure
from dopsd_app.jobs.drawing import Drawing
from dopsd_app.jobs.job import create_job, write_status
from dopsd_app.jobs.kinds import CHECK_TEACHER
from dopsd_app.ui import teacher
from dopsd_app.ui.crops import CropShape, crop_shape, framed, framed_source
from dopsd_app.ui.navigation import PICTURES, PLAN
from dopsd_app.ui.page import add_page
from dopsd_app.ui.shown_draft import show_page
from tests.support.layout import lay_out
from tests.support.pictures import make_picture


@pytest.fixture(scope="module")
def step():
    return lay_out(add_page).pictures


@pytest.fixture
def draft(tmp_path, monkeypatch):
    """Pictures of 256 x 64, 64 x 256, 64 x 64 and 65 x 64 pixels."""
    monkeypatch.setenv("DOPSD_DRAFTS", str(tmp_path / "drafts"))
    files = []
    for number, size in enumerate(((256, 64), (64, 256), (64, 64), (65, 64))):
        files.append(tmp_path / f"{number}.png")
        make_picture(number, *size).save(files[-1])
    return add_pictures(new_draft(tmp_path / "drafts"), files).draft


def test_a_card_shows_which_part_of_a_picture_training_sees(draft):
    draft = set_focus(draft, draft.items[0].key, (0.5, 0.5))
    draft = set_focus(draft, draft.items[1].key, (0.0, 1.0))
    shape = CropShape(512, 1)
    wide, tall, square, nearly = (framed(draft, item, shape) for item in draft.items)
    # Buckets end at 2:1: of a picture of 4:1, half falls away.
    assert "left:25.00%;top:0.00%;width:50.00%;height:100.00%" in wide and "'horizontal'" in wide
    assert "left:0.00%;top:50.00%;width:100.00%;height:50.00%" in tall and "aria-valuenow='100'" in tall
    assert "slider" not in square
    assert "slider" in nearly  # 65:64 loses 1.5 %


def test_what_an_edit_starts_from_is_cropped_as_its_result_is(draft, tmp_path):
    make_picture(9, 256, 64).save(tmp_path / "before.png")
    key = draft.items[2].key  # 64 x 64
    draft = set_focus(add_sources(draft, key, [tmp_path / "before.png"]).draft, key, (1.0, 0.5))
    item = draft.items[2]
    before = framed_source(draft, item.sources[0], item, CropShape(512, 1))
    assert "left:75.00%;top:0.00%;width:25.00%;height:100.00%" in before
    assert "enlarge" in before and "slider" not in before


def test_crops_are_shown_anew_only_where_the_plan_has_given_them_another_shape(step, draft):
    draft = set_settings(draft, preset="z-image-subject", resolution=512)
    shown = asdict(show_page(draft, 0))
    assert step.come_back(shown, PICTURES) == {}
    draft = set_settings(draft, resolution=1024)
    assert step.come_back(shown, PLAN) == {} == step.come_back(None, PICTURES)
    answer = step.come_back(shown, PICTURES)
    assert answer[step.draft]["shape"] == asdict(crop_shape(draft)) and crop_shape(draft).resolution == 1024
    assert "kept" in answer[step.cards.slots[0].picture]


def test_a_crop_goes_only_where_one_can_be(step, draft):
    shown = asdict(show_page(draft, 0))
    moved = {"key": draft.items[0].key, "across": 0.25, "down": 0.5}
    step.cards.move_crop(shown, moved)
    assert read_draft(draft.path).items[0].focus == (0.25, 0.5)
    for wrong in ({"across": 1.5}, {"key": "../x"}, {"across": float("nan")}):
        with pytest.raises(DraftError):
            step.cards.move_crop(shown, moved | wrong)
    for nonsense in (None, [], {"key": moved["key"]}):
        with pytest.raises(KnownFailure):
            step.cards.move_crop(shown, nonsense)


def captions(draft):
    return [item.caption for item in read_draft(draft.path).items]


def values_of(step, draft, page=0, **typed):
    """What a tab sends that shows the draft; `typed` is in the boxes of some cards, and still on its way."""
    shown = show_page(draft, page)
    values = {part: "" for part in step.cards.typed} | {step.draft: asdict(shown)}
    values |= {step.cards.slots[int(card[1:])].caption.box: text for card, text in typed.items()}
    return values


def filled(step, answer):
    """The captions that an answer puts into boxes, by card."""
    kept = {slot.number: answer.get(slot.caption.exchanged) for slot in step.cards.slots}
    return {number: text for number, text in kept.items() if text}


def clicked(name):
    return SimpleNamespace(target=SimpleNamespace(elem_id=name))


def test_undo_puts_back_what_is_as_the_tool_made_it_and_in_that_draft_alone(step, draft):
    keys = [item.key for item in draft.items]
    draft = set_captions(draft, dict.fromkeys(keys, "now"))
    made = {key: "now" for key in (keys[0], keys[1], keys[2], "gone")}
    before = {"draft": draft.id, "captions": dict.fromkeys(made, "before"), "made": made}
    undo = step.tools.take_back
    undo(values_of(step, draft) | {step.tools.before: before | {"draft": "another"}})
    assert captions(draft) == ["now"] * 4
    draft = set_captions(draft, {keys[1]: "now, and more"})
    answer = undo(values_of(step, draft, c2="typed just now") | {step.tools.before: before})
    assert captions(draft) == ["before", "now, and more", "typed just now", "now"]
    assert filled(step, answer) == {0: "before"}
    assert "1 caption is as before. 2 captions changed since are left." in answer[step.tools.answer]


def test_a_removed_card_takes_no_words_of_the_others_with_it(step, draft):
    draft = set_captions(draft, {item.key: f"stored {item.name}" for item in draft.items})
    answer = step.cards.remove(values_of(step, draft, c0="typed 0", c3="typed 3"), clicked("remove-2"))
    assert captions(draft) == ["typed 0", "stored 2.png", "typed 3"]
    # The first card stays where it is, and with it what is typed on it meanwhile.
    assert filled(step, answer) == {1: "stored 2.png", 2: "typed 3"}
    assert step.trigger.box not in answer and step.writer.length not in answer


def test_sources_come_and_go_without_a_word_of_captions(step, draft, tmp_path):
    file = tmp_path / "before.png"
    make_picture(9, 64, 64).save(file)
    add = step.cards.slots[1].add
    values = values_of(step, draft, c0="typed 0") | dict.fromkeys(slot.add for slot in step.cards.slots)
    answer = step.adding.add_sources(values | {add: [str(file)]}, clicked("add-source-2"))
    assert filled(step, answer) == {} and captions(draft)[0] == "typed 0"
    answer = step.remove_sources(values_of(step, draft, c2="typed 2"), clicked("remove-sources-2"))
    assert filled(step, answer) == {} and captions(draft)[2] == "typed 2"
    assert not read_draft(draft.path).sources


def test_an_upload_leaves_the_page_and_the_boxes_of_others_alone(step, draft, tmp_path):
    files = [tmp_path / f"n{number:02}.png" for number in range(30)]
    for number, file in enumerate(files):
        make_picture(20 + number, 64, 64).save(file)
    own = tmp_path / "1.txt"
    own.write_text("from a file")
    add = step.adding.add_files
    answer = add(asdict(show_page(draft, 0)), [*map(str, files[:17]), str(own)], None, [])
    assert answer[step.draft]["page"] == 0 and filled(step, answer) == {1: "from a file"}
    draft = read_draft(draft.path)
    answer = add(asdict(show_page(draft, 0)), None, [*map(str, files[17:])], [])
    assert answer[step.draft]["page"] == 0
    assert "13 pictures added. The first is on page 2 of cards." in answer[step.adding.report]


def test_a_folder_is_added_as_it_is_laid_out(step, draft, tmp_path):
    """Sources are no results, and the pictures of `validation` are not trained on."""
    names, files = [], []
    for number, name in enumerate(("train/source/a.png", "train/target/a.png", "validation/target/b.png")):
        names.append(f"set/{name}")
        files.append(tmp_path / str(number) / Path(name).name)  # as the server names uploads
        files[-1].parent.mkdir()
        make_picture(50 + number, 64, 64).save(files[-1])
    add, shown = step.adding.add_files, asdict(show_page(draft, 0))
    with pytest.raises(KnownFailure, match=r"Send the folder as a \.zip"):
        add(shown, None, ["/none/a.png", "/none/a.png"], [])
    for name in ("set/../../a.png", "C:/a.png", "../pictures/a.png"):
        make_picture(60, 64, 64).save(file := tmp_path / "a.png")
        answer = add(shown, None, [str(file)], [name])
        assert "leads out of the folder" in answer[step.adding.report]
    assert read_draft(draft.path).items == draft.items
    add(shown, None, [*map(str, files)], names)
    *_, new = read_draft(draft.path).items
    assert len(read_draft(draft.path).items) == 5
    assert [source.name for source in new.sources] == ["a.png"] and not any(map(Path.exists, files))


@pytest.mark.parametrize("score", [0.1, 0.9])
def test_a_red_verdict_stands_above_what_helps_and_not_above_next(draft, tmp_path, monkeypatch, score):
    def asked(runs_dir, request):  # and no worker is started
        job = create_job(runs_dir, CHECK_TEACHER, {"config": asdict(request.config), "folder": ""})
        write_status(job, state="finished")
        return Drawing(job.path)

    monkeypatch.setenv("DOPSD_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(teacher, "ask", asked)
    draft = set_captions(draft, {item.key: f"grumbo {item.name}" for item in draft.items})
    check = judge_rows((CheckRow(student=0.0, teacher=score, control=0.0),), "pocket-turbo")
    save_check(check, teacher.start_check(draft).path)
    step = lay_out(add_page).teacher
    shown = step.show(draft)
    if check.verdict == "sees":
        assert (shown[step.go].variant, shown[step.mend].visible) == ("primary", False)
    else:
        assert (shown[step.go].variant, shown[step.go].value) == ("secondary", "Go on anyway")
        assert (shown[step.mend].visible, shown[step.mend].value) == (True, "Choose another base model")
        assert "The cause is the base model" in shown[step.verdict]
        assert "captions that leave out" not in shown[step.verdict]


def test_a_check_that_is_just_being_begun_is_cancelled_too(draft, tmp_path, monkeypatch):
    cancelling = []

    def asked(runs_dir, request):  # and no worker is started
        job = create_job(runs_dir, CHECK_TEACHER, {"config": asdict(request.config), "folder": ""})
        write_status(job, state="queued")
        # Somebody cancels before the draft knows which check is its own.
        cancelling.append(Thread(target=teacher.cancel_check, args=(draft,)))
        cancelling[0].start()
        cancelling[0].join(timeout=0.3)
        return Drawing(job.path)

    monkeypatch.setenv("DOPSD_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(teacher, "ask", asked)
    draft = set_captions(draft, {item.key: f"grumbo {item.name}" for item in draft.items})
    drawing = teacher.start_check(draft)
    cancelling[0].join()
    assert drawing.status.state == "stopped"
