"""Polling sends a value once."""

import gradio as gr

from dopsd_app.ui.news import only_new


def test_what_a_tab_has_already_is_skipped():
    values = {"state": ("training", lambda: "A"), "step": (3, lambda: "B")}
    seen, *first = only_new(values, {})
    assert first == ["A", "B"]
    again = only_new(values, seen)
    assert again == [gr.skip()] * 3
    seen, *updates = only_new({**values, "step": (4, lambda: "C")}, seen)
    assert updates == [gr.skip(), "C"]
    assert seen.keys() == {"state", "step"}
    assert len(str(seen)) < 80  # it travels with every look


def test_what_is_not_new_is_not_even_made():
    made = []
    values = {"picture": ("file", lambda: made.append(1))}
    seen, _ = only_new(values, None)
    only_new(values, seen)
    assert made == [1]
