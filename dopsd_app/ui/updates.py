"""Polling that sends only what has changed: what a person is just reading or using is left alone."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import gradio as gr
from gradio.blocks import Block

Part = TypeVar("Part", bound=Block)


def only_changed(
    values: Mapping[Part, tuple[object, Callable] | dict[str, Any]], digests: gr.JSON, sent: object
) -> dict[Block, object]:
    """An update for each component whose value this tab has not been sent yet, and the new digests.

    `sent` is what `digests` held. A value is a tuple of something that tells whether it is another one than
    before, and what makes the update. Or it is a component's properties by name, of which each is sent only
    if it is new: a label that counts steps does not bring a choice back that the person has just changed.
    """
    known = sent if isinstance(sent, dict) else {}
    new, updates = {}, {}

    def is_new(name: str, value: object) -> bool:
        new[name] = hashlib.blake2b(repr(value).encode(), digest_size=8).hexdigest()
        return new[name] != known.get(name)

    for component, value in values.items():
        name = str(component._id)
        if isinstance(value, dict):
            properties = {key: held for key, held in value.items() if is_new(f"{name}.{key}", held)}
            if properties:
                updates[component] = gr.update(**properties)
        else:
            compared, make = value
            if is_new(name, compared):
                updates[component] = make()
    return {digests: new, **updates} if new != known else {}
