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


def test_of_a_components_properties_only_new_ones_are_sent():
    runs = {"choices": [("A, step 1", "a"), ("B", "b")], "value": "a"}
    seen, first = only_new({"runs": runs}, {})
    assert first == gr.update(**runs)
    counted = {"choices": [("A, step 2", "a"), ("B", "b")]}
    seen, second = only_new({"runs": runs | counted}, seen)
    assert second == gr.update(**counted)  # B, if that was just clicked, stays chosen
    _, third = only_new({"runs": runs | counted | {"value": "b"}}, seen)
    assert third == gr.update(value="b")
    marks, nothing = only_new({"runs": runs | counted}, seen)
    assert (marks, nothing) == (gr.skip(), gr.skip())
