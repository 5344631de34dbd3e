"""Polling sends a value once."""

import gradio as gr
import pytest

from dopsd_app.ui.updates import only_changed
from tests.support.layout import lay_out


@pytest.fixture
def parts():
    """Four components: what holds the digests, and three to fill."""
    return lay_out(lambda _: (gr.JSON(), gr.HTML(), gr.HTML(), gr.Radio()))


def test_what_a_tab_has_already_is_left_out(parts):
    digests, state, step, _ = parts
    values = {state: ("training", lambda: "A"), step: (3, lambda: "B")}
    first = only_changed(values, digests, None)
    assert (first[state], first[step]) == ("A", "B")
    sent = first[digests]
    assert only_changed(values, digests, sent) == {}
    second = only_changed({**values, step: (4, lambda: "C")}, digests, sent)
    assert second.keys() == {digests, step} and second[step] == "C"
    assert second[digests].keys() == sent.keys()
    assert len(str(sent)) < 80  # it travels with every poll


def test_what_is_not_new_is_not_even_made(parts):
    digests, picture, *_ = parts
    made = []
    values = {picture: ("file", lambda: made.append(1))}
    sent = only_changed(values, digests, None)[digests]
    only_changed(values, digests, sent)
    assert made == [1]


def test_of_a_components_properties_only_new_ones_are_sent(parts):
    digests, *_, radio = parts
    runs = {"choices": [("A, step 1", "a"), ("B", "b")], "value": "a"}
    first = only_changed({radio: runs}, digests, {})
    assert first[radio] == gr.update(**runs)
    counted = {"choices": [("A, step 2", "a"), ("B", "b")]}
    second = only_changed({radio: runs | counted}, digests, first[digests])
    assert second[radio] == gr.update(**counted)  # B, if that was just clicked, stays chosen
    third = only_changed({radio: runs | counted | {"value": "b"}}, digests, second[digests])
    assert third[radio] == gr.update(value="b")
    assert only_changed({radio: runs | counted}, digests, second[digests]) == {}


def test_nonsense_for_digests_is_no_digest(parts):
    digests, state, *_ = parts
    for sent in (None, [], "x", 7, {"a": []}):
        assert only_changed({state: (1, lambda: "A")}, digests, sent)[state] == "A"
