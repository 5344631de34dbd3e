"""Polling that sends only what is new: what a person is just looking at or using is left alone."""

import hashlib
from collections.abc import Callable

import gradio as gr


def seen_marks() -> gr.JSON:
    """Holds what `only_new` returned last, in the tab itself.

    Not a `gr.State`: that lives in the server, and when two answers overtake each other it would say that the
    tab has what the tab has just lost. In one answer the marks and what they stand for arrive together.
    """
    return gr.JSON({}, visible=False)


def only_new(values: dict[str, tuple[object, Callable] | dict[str, object]], seen: dict | None) -> list:
    """The marks of all values, and then an update for each one whose mark this tab has not had yet.

    A value is a mark, which tells whether it is another one than before, and what makes the update. Or it is
    a component's properties by name, of which each is sent only if it is new: a label that counts steps does
    not bring a choice back that the person has just changed.
    """
    marks, updates, known = {}, [], seen or {}

    def is_new(name: str, mark: object) -> bool:
        marks[name] = _digest(mark)
        return marks[name] != known.get(name)

    for name, value in values.items():
        if isinstance(value, dict):
            new = {key: held for key, held in value.items() if is_new(f"{name}.{key}", held)}
            updates.append(gr.update(**new) if new else gr.skip())
        else:
            mark, make = value
            updates.append(make() if is_new(name, mark) else gr.skip())
    return [marks if marks != known else gr.skip(), *updates]


def _digest(mark: object) -> str:
    return hashlib.blake2b(repr(mark).encode(), digest_size=8).hexdigest()
