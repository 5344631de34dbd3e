"""A text box whose words are kept as they are typed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component

from dopsd_app.ui.events import WRITES_DRAFT, listen


@dataclass(eq=False)
class KeptText:
    """The box, and what of it was exchanged last: what the server knows this tab to show.

    Gradio tells of each change, also of one that comes from the server, and sets the parts of an answer one
    after the other: so every box is compared with its own past, and writes nothing but its own words.
    """

    box: gr.Textbox
    exchanged: gr.Textbox
    write: Callable[[object, str], dict] = field(init=False)

    @property
    def outputs(self) -> list[Block]:
        """What `fill` fills; first what the box is compared with, for the box tells of its change at once."""
        return [self.exchanged, self.box]

    def fill(self, text: str) -> dict:
        """Puts these words into the box."""
        return {self.exchanged: text, self.box: text}

    def connect(
        self, draft: Component, write: Callable[[object, str], dict], outputs: Sequence[Block]
    ) -> None:
        """Has `write(draft, words)` keep what a person changes; it returns what is shown then."""
        self.write = write
        # While one request is on its way the next waits, and then takes the words as they are at last.
        listen(
            self.box.change,
            self.keep,
            [draft, self.exchanged, self.box],
            [self.exchanged, *outputs],
            trigger_mode="always_last",
            **WRITES_DRAFT,
        )

    def keep(self, draft: object, exchanged: str, text: str) -> dict:
        """Keeps the words, unless the box was just filled with them: others may have changed them since."""
        return {} if text == exchanged else {self.exchanged: text, **self.write(draft, text)}


def kept_text(label: str, **options) -> KeptText:
    """Lays it out, with options of `gr.Textbox`."""
    return KeptText(gr.Textbox("", label=label, **options), gr.Textbox("", visible=False))
