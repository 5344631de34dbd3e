"""A question before something is deleted for good."""

from collections.abc import Sequence
from dataclasses import dataclass

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component

from dopsd_app.ui.events import listen
from dopsd_app.ui.server.guard import Handler


@dataclass(frozen=True)
class Confirmation:
    """A row with two buttons, hidden until something is to be deleted."""

    row: gr.Row
    confirm: gr.Button
    keep: gr.Button
    # Id of what was asked about: something else may be shown by the time the answer comes.
    subject: gr.Textbox

    @property
    def outputs(self) -> list[Block]:
        return [self.row, self.confirm, self.subject]

    def ask(self, subject: str, label: str) -> dict:
        """Opens the question about what has this id; the label names it."""
        return {self.row: gr.Row(visible=True), self.confirm: gr.Button(label), self.subject: subject}

    def close(self) -> dict:
        """Closes the question."""
        return {self.row: gr.Row(visible=False), self.subject: ""}

    def connect(
        self, delete: Handler, inputs: Sequence[Component], outputs: Sequence[Block], **options
    ) -> None:
        """Calls `delete` with the subject and these inputs where the answer is yes."""
        listen(self.keep.click, self.close, None, self.outputs)
        listen(self.confirm.click, delete, [self.subject, *inputs], [*outputs, *self.outputs], **options)


def confirmation(name: str, confirm: str, keep: str) -> Confirmation:
    """Lays the question out; `name` ends the ids of its buttons."""
    with gr.Row(visible=False, elem_classes="buttons") as row:
        confirm_button = gr.Button(confirm, variant="stop", size="sm", elem_id=f"really-{name}")
        keep_button = gr.Button(keep, size="sm", elem_id=f"keep-{name}")
    return Confirmation(row, confirm_button, keep_button, gr.Textbox(visible=False))
