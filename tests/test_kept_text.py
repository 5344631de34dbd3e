"""What is typed into a tab while others, and other boxes, change too."""

import pytest

from dopsd_app.data.drafts import new_draft, read_draft, remove_picture, set_caption, set_settings
from dopsd_app.data.uploads import load_example
from dopsd_app.errors import KnownFailure
from dopsd_app.jobs.queue import send_command
from dopsd_app.jobs.runs import default_runs_dir, known_run
from dopsd_app.ui.page import add_page
from dopsd_app.ui.plan import start
from dopsd_app.ui.teacher import draft_check, show_check
from tests.support.layout import lay_out
from tests.support.waiting import holding_the_card


@pytest.fixture
def draft(tmp_path, monkeypatch):
    monkeypatch.setenv("DOPSD_DRAFTS", str(tmp_path / "drafts"))
    monkeypatch.setenv("DOPSD_RUNS", str(tmp_path / "runs"))
    return load_example(tmp_path / "drafts", "zorp")


@pytest.fixture(scope="module")
def page():
    return lay_out(add_page)


def test_typed_words_are_kept_and_shown_as_exchanged(page, draft):
    step, slot = page.pictures, page.pictures.cards.slots[1]
    shown = step.show(draft)
    answer = slot.caption.keep(shown[step.draft], draft.items[1].caption, "zorp asleep")
    assert answer[slot.caption.exchanged] == "zorp asleep"
    assert slot.caption.box not in answer  # more may have been typed meanwhile
    assert read_draft(draft.path).items[1].caption == "zorp asleep"


def test_a_box_that_was_only_filled_takes_nothing_back(page, draft):
    step, slot = page.pictures, page.pictures.cards.slots[0]
    shown, caption = step.show(draft)[step.draft], draft.items[0].caption
    set_caption(draft, draft.items[0].key, "better words from another tab")
    assert slot.caption.keep(shown, caption, caption) == {}
    assert read_draft(draft.path).items[0].caption == "better words from another tab"
    slot.caption.keep(shown, caption, "typed now")
    slot.caption.keep(shown, "typed now", caption)  # and back
    assert read_draft(draft.path).items[0].caption == caption


def test_a_picture_that_another_tab_removed_is_told(page, draft):
    step, slot = page.pictures, page.pictures.cards.slots[0]
    shown = step.show(draft)[step.draft]
    remove_picture(draft, draft.items[0].key)
    with pytest.raises(KnownFailure, match="This picture is no longer in the draft"):
        slot.caption.keep(shown, "before", "after")
    first = read_draft(draft.path).items[0]
    assert first.caption == draft.items[1].caption  # it has moved up, and is left alone


def test_a_page_without_a_draft_changes_none(page, draft):
    step = page.pictures
    for shown in (None, {}, {"id": ""}, {"id": draft.id}, {"id": 7, "keys": []}, [], "x"):
        for act in (
            lambda shown=shown: step.cards.slots[0].caption.keep(shown, "", "words"),
            lambda shown=shown: step.trigger.keep(shown, "", "word"),
            lambda shown=shown: step.choose_kind(shown, "style"),
            lambda shown=shown: step.adding.add_files(shown, None, None, []),
        ):
            with pytest.raises(KnownFailure, match="Reload the page"):
                act()
    assert read_draft(draft.path) == draft


def test_a_setting_that_another_preset_dropped_can_be_set_again(page, draft):
    (steps,) = [control for control in page.plan.controls if control.name == "steps"]
    shown = page.plan.show(draft)[page.plan.shown]
    steps.write(shown, 30)
    assert read_draft(draft.path).settings["steps"] == 30
    draft = set_settings(set_settings(draft, preset="z-image-subject"), preset="pocket")
    assert "steps" not in draft.settings
    steps.write(shown, 30)
    assert read_draft(draft.path).settings["steps"] == 30


def test_a_setting_typed_for_another_preset_is_dropped(page, draft):
    (steps,) = [control for control in page.plan.controls if control.name == "steps"]
    shown = page.plan.show(draft)[page.plan.shown]
    draft = set_settings(draft, preset="z-image-subject")
    assert steps.write(shown, 30) == {}
    assert read_draft(draft.path) == draft


def test_the_draft_is_read_once_for_a_screen(page, draft, monkeypatch):
    from dopsd_app.data import drafts

    other = new_draft(draft.path.parent)
    read, content = [], drafts.read_content
    monkeypatch.setattr(drafts, "read_content", lambda folder: read.append(folder) or content(folder))
    shown = page.pictures.show(draft)[page.pictures.draft]
    assert read == [other.path]  # for the list of earlier ones
    for screen in (page.pictures.go_on, page.teacher.go_on):
        read.clear()
        screen(shown)
        assert read == [draft.path]


@pytest.mark.parametrize("content", [b"", b"{half", b"[]", b"{}", b'{"drawing": 7, "run": 7}'])
def test_what_a_draft_remembers_counts_for_nothing_when_it_cannot_be_read(page, draft, content):
    for name in ("check", "started.json"):
        (draft.path / name).write_bytes(content)
    assert draft_check(draft) is None and show_check(draft) == {}
    page.teacher.show(draft)
    with holding_the_card(default_runs_dir()):  # what is started waits
        run_id = start(draft)
        assert start(draft) == run_id  # and is remembered again
        send_command(known_run(default_runs_dir(), run_id), "stop")
