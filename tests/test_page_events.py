"""Every event of the page: what fails in it is shown to the person who waits for it."""

import inspect
from types import SimpleNamespace

import gradio as gr
import pytest

from dopsd_app.data.uploads import load_example
from dopsd_app.ui.page import add_page
from dopsd_app.ui.server.guard import guarded
from tests.support.layout import lay_out

OF_KIND = {
    gr.Textbox: "x",
    gr.Number: 1,
    gr.Slider: 1.0,
    gr.Checkbox: True,
    gr.Radio: "x",
    gr.Dropdown: "x",
}


@pytest.fixture(scope="module")
def functions():
    """The functions that events of the page call, with the number of values that each is sent."""

    def build(app):
        add_page(app)
        return [(function.fn, function) for function in app.fns.values() if function.fn]

    return lay_out(build)


def call(handler, function, value):
    """What the handler does when it is sent this value in every place that takes any JSON.

    Elsewhere it gets what Gradio makes of a request before any handler is called.
    """
    values = {
        part: value if isinstance(part, gr.JSON) else OF_KIND.get(type(part)) for part in function.inputs
    }
    inputs = [values] if function.inputs_as_dict else list(values.values())
    places = list(inspect.signature(handler).parameters)[len(inputs) : -1]  # the last is who asks
    added = {
        "event": gr.EventData(None, None),
        "request": SimpleNamespace(query_params={}),
        "progress": lambda *_, **__: None,
    }
    return handler(*inputs, *(added[place] for place in places), None)


def test_only_what_nobody_waits_for_passes_the_queue_by(functions):
    assert len(functions) > 70
    # Gradio answers what fails outside of the queue with a status that no part of the page shows.
    passing_by = [function for _, function in functions if not function.queue]
    assert len(passing_by) == 6
    assert all(function.targets[0][1] == "tick" for function in passing_by)


@pytest.mark.parametrize("value", [None, "", [], {}, "x", 7, {"id": "../x", "keys": []}], ids=str)
def test_values_that_no_page_sends_end_in_words(functions, tmp_path, monkeypatch, value):
    monkeypatch.setenv("DOPSD_DRAFTS", str(tmp_path / "drafts"))
    monkeypatch.setenv("DOPSD_RUNS", str(tmp_path / "runs"))
    for handler, function in functions:
        try:
            call(handler, function, value)
        except gr.Error as error:
            assert error.message and "`" not in error.message, function.name
            assert "log tells" not in error.message, function.name


def test_the_unexpected_arrives_as_general_words_and_stays_in_the_log(caplog):
    def broken(value):
        return {}[value]

    with pytest.raises(gr.Error, match="Something went wrong here that should not"):
        guarded(broken)("secret words", None)
    assert "KeyError: 'secret words'" in caplog.text


def test_a_disk_that_does_not_work_is_told_in_words(functions, tmp_path, monkeypatch):
    draft = load_example(tmp_path / "drafts", "zorp")
    shown = {"id": draft.id, "keys": [item.key for item in draft.items]}
    broken = tmp_path / "broken"
    broken.write_text("a file where folders should be")
    monkeypatch.setenv("DOPSD_DRAFTS", str(broken / "drafts"))
    monkeypatch.setenv("DOPSD_RUNS", str(broken / "runs"))
    told = 0
    for handler, function in functions:
        try:
            call(handler, function, shown)
        except gr.Error as error:
            assert error.message and "`" not in error.message, function.name
            told += 1
    assert told > 40
