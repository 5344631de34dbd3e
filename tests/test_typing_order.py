"""Requests of one tab that overtake each other."""

import pytest

from dopsd_app.data.drafts import set_settings
from dopsd_app.data.uploads import load_example
from dopsd_app.errors import KnownFailure
from dopsd_app.ui import pictures
from dopsd_app.ui.plan import keep_settings


@pytest.fixture
def draft(tmp_path, monkeypatch):
    monkeypatch.setenv("DOPSD_DRAFTS", str(tmp_path))
    return load_example(tmp_path, "zorp")


def test_older_words_of_a_tab_replace_no_newer_ones(draft):
    keys = [item.key for item in draft.items]

    def write(tab, moment, text, number=0):
        pictures.write_caption(tab, moment, draft.id, keys, number, text)

    write("tab", 2.0, "zorp asleep")
    write("tab", 1.0, "zorp asl")
    assert draft.items[0].caption == "zorp asleep"
    write("tab", 1.5, "zorp awake", number=1)  # another box
    assert draft.items[1].caption == "zorp awake"
    write("tab", 2.5, "")
    assert draft.items[0].caption == ""
    write("other", 0.5, "by a computer whose clock is late")
    assert draft.items[0].caption == "by a computer whose clock is late"


def test_a_box_that_is_only_left_takes_nothing_back(draft):
    keys = [item.key for item in draft.items]
    shown = draft.items[0].caption
    pictures.write_caption("tab", 1.0, draft.id, keys, 0, shown)  # as a page does when it is filled
    pictures.write_caption("other", 2.0, draft.id, keys, 0, "better words from another tab")
    pictures.write_caption("tab", 3.0, draft.id, keys, 0, shown)  # only left
    assert draft.items[0].caption == "better words from another tab"
    pictures.write_caption("tab", 4.0, draft.id, keys, 0, "typed now")
    assert draft.items[0].caption == "typed now"


def test_a_page_that_the_server_forgot_changes_no_draft(draft):
    before = draft.items
    keys = [item.key for item in before]
    for act in (
        lambda: pictures.write_caption("tab", 1.0, "", keys, 0, "words"),
        lambda: pictures.write_caption("tab", 1.0, "", [], 0, "words"),
        lambda: pictures.write_trigger("tab", 1.0, "", "word"),
        lambda: pictures.remove("", keys, 0),
        lambda: pictures.choose_kind("", "style"),
    ):
        with pytest.raises(KnownFailure, match="Reload it"):
            act()
    assert draft.items == before and draft.kind == "subject"


def test_a_setting_that_another_preset_dropped_can_be_set_again(draft):
    keep_settings("tab", 1.0, draft, {"steps": 30})
    set_settings(draft, preset="z-image-subject")
    set_settings(draft, preset="pocket")
    assert "steps" not in draft.settings
    keep_settings("tab", 2.0, draft, {"steps": 30})
    assert draft.settings["steps"] == 30


def test_older_settings_and_trigger_words_neither(draft):
    keep_settings("tab", 2.0, draft, {"steps": 30})
    keep_settings("tab", 1.0, draft, {"steps": 3})
    assert draft.settings["steps"] == 30
    pictures.write_trigger("tab", 2.0, draft.id, "zorp")
    pictures.write_trigger("tab", 1.0, draft.id, "zor")
    assert draft.trigger_word == "zorp"
