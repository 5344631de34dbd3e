"""What the first two steps say of a draft, in how many words and where."""

import pytest

from dopsd_app.data import drafts
from dopsd_app.data.drafts import (
    check_draft,
    judge_draft,
    new_draft,
    note_repairs,
    set_caption,
    set_settings,
)
from dopsd_app.data.uploads import add_pictures, load_example
from dopsd_app.ui.adding import report
from dopsd_app.ui.base_advice import suited_bases
from dopsd_app.ui.findings import find, what_is_missing
from dopsd_app.ui.shown_draft import count_pages, page_of, show_page
from dopsd_app.ui.teacher import _digest
from dopsd_app.ui.teacher_causes import find_cause
from tests.support.pictures import make_picture


@pytest.fixture
def draft(tmp_path):
    return new_draft(tmp_path / "drafts")


@pytest.fixture
def add(tmp_path):
    """Adds so many pictures to a draft, without captions."""

    def add(draft, count, size=(320, 320)):
        files = [tmp_path / f"{number}.png" for number in range(count)]
        for number, file in enumerate(files):
            make_picture(number, *size).save(file)
        return add_pictures(draft, files)

    return add


def test_empty_captions_are_one_message_and_no_problem_of_each(draft, add):
    findings = find(draft := add(draft, 12).draft)
    assert what_is_missing(draft, findings) == "12 pictures have no caption."
    assert not findings.problems and len(findings.uncaptioned) == 12
    assert all("problem" not in findings.on_card(item.key) for item in draft.items)
    draft = set_caption(draft, draft.items[0].key, "x" * 2001)
    findings = find(draft)
    assert what_is_missing(draft, findings) == "11 pictures have no caption and 1 picture has a problem."
    assert "2001 characters" in findings.on_card(draft.items[0].key)


def test_a_draft_is_judged_once_for_all_that_is_said(draft, add, monkeypatch):
    draft, judged = add(draft, 4).draft, []
    once = drafts._findings
    monkeypatch.setattr(drafts, "_findings", lambda draft: judged.append(draft) or once(draft))
    assert find(draft).uncaptioned == tuple(item.key for item in draft.items) and len(judged) == 1
    assert judge_draft(draft) == (check_draft(draft), note_repairs(draft))


def test_what_the_whole_set_lacks_is_said_first(draft, add):
    assert what_is_missing(draft, find(draft)) == "Add 4 pictures or more."
    draft = add(draft, 2).draft
    missing = what_is_missing(draft, find(draft))
    assert missing == "2 pictures must be added and 2 pictures have no caption."
    for item in draft.items:
        draft = set_caption(draft, item.key, f"zorp {item.name}")
    assert what_is_missing(draft, find(draft)) == "2 pictures must be added."


def test_cards_come_in_pages_of_twenty(draft, add):
    assert (count_pages(draft), show_page(draft, 3).keys) == (1, ())
    draft = add(draft, 41).draft
    assert count_pages(draft) == 3
    assert [len(show_page(draft, page).keys) for page in (0, 1, 2, 9, -1)] == [20, 20, 1, 1, 20]
    assert [page_of(draft, draft.items[number].key) for number in (0, 19, 20, 40)] == [0, 0, 1, 2]


def test_what_became_of_files_is_one_block_with_counts(draft, add, tmp_path):
    strange = [tmp_path / f"{number}.xyz" for number in range(5)]
    for file in strange:
        file.write_bytes(b"?")
    said = report(add_pictures(draft, strange))
    assert "5 files were not taken" in said and said.count("<details>") == 1
    said = report(add(draft, 4))
    assert "4 pictures added." in said and "<details>" not in said


def test_another_trigger_word_outdates_what_the_teacher_saw(draft, add):
    draft = set_settings(add(draft, 4).draft, trigger_word="zorp")
    for caption, same in (("a dog", True), ("[trigger] at home", False)):
        seen = set_caption(set_settings(draft, trigger_word="zorp"), draft.items[0].key, caption)
        assert (_digest(seen) == _digest(set_settings(seen, trigger_word="grib"))) == same


def test_a_caption_that_is_empty_hides_no_other_problem(draft, tmp_path):
    make_picture(1, 20, 20).save(tmp_path / "caption of a dog.png")
    draft = add_pictures(draft, [tmp_path / "caption of a dog.png"]).draft
    assert "pixels" in find(draft).problems[draft.items[0].key][0]


def test_a_blind_teacher_has_the_cause_that_the_draft_tells_of(tmp_path, draft, add):
    photos = add(draft, 4).draft
    cause = find_cause(photos)
    assert cause.alone and "base model" in cause.sentence and cause.action == "Choose another base model"
    assert suited_bases(photos) == ["z-image-turbo", "flux2-klein-4b", "flux2-klein-9b"]
    real = set_settings(photos, preset="z-image-subject", resolution=1024)
    cause = find_cause(real)
    assert not cause.alone and "4 pictures are enlarged" in cause.sentence
    example = load_example(tmp_path / "drafts", "zorp")
    assert find_cause(example).sentence == ""
    for item in example.items:
        example = set_caption(example, item.key, f"zorp the furry one, {item.name}")
    assert "furry" in find_cause(example).sentence
