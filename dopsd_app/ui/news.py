"""Polling that sends only what is new: what a person is just looking at or using is left alone."""

from collections.abc import Callable

import gradio as gr


def only_new(values: dict[str, tuple[object, Callable]], seen: dict | None) -> list:
    """The marks of all values, and then an update for each one whose mark this tab has not had yet.

    A value is a mark, which tells whether it is another one than before, and what makes the update.
    """
    marks = {name: repr(mark) for name, (mark, _) in values.items()}
    known = seen or {}
    updates = [make() if marks[name] != known.get(name) else gr.skip() for name, (_, make) in values.items()]
    return [marks if marks != known else gr.skip(), *updates]
