"""Where pictures can be taken from without having any, and the drafts from before."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import gradio as gr
from gradio.blocks import Block

from dopsd_app.data.drafts import (
    Draft,
    current_draft,
    default_drafts_dir,
    delete_draft,
    find_draft,
    is_new,
    list_others,
    make_current,
    new_draft,
)
from dopsd_app.data.uploads import list_examples, load_example
from dopsd_app.ui import words
from dopsd_app.ui.confirmation import Confirmation, confirmation
from dopsd_app.ui.events import listen, source_of
from dopsd_app.ui.shown_draft import ShownDraft, draft_of, read_shown, the_draft

if TYPE_CHECKING:
    from dopsd_app.ui.pictures import PicturesStep


@dataclass(eq=False)
class DraftList:
    """The examples, a new draft, and earlier ones."""

    step: "PicturesStep" = field(init=False)
    examples: dict[str, gr.Button]
    fresh: gr.Button
    delete: gr.Button
    deletion: Confirmation
    earlier: gr.Dropdown

    @property
    def outputs(self) -> list[Block]:
        """What `show` fills."""
        return [self.delete, self.earlier]

    def show(self, draft: Draft) -> dict:
        """Other drafts that hold pictures, to go back to; an empty one need not be deleted."""
        choices = [
            (f"{other.trigger_word or 'No name'} · {words.count(len(other.items), 'picture')}", other.id)
            for other in list_others(draft)
            if other.items
        ]
        return {
            self.delete: gr.Button(visible=bool(draft.items)),
            self.earlier: gr.Dropdown(choices=choices, value=None, visible=bool(choices)),
        }

    def connect(self, step: "PicturesStep") -> None:
        """Connects the events."""
        self.step = step
        draft, progress = step.draft, {"progress_on": step.message}
        examples = [button.click for button in self.examples.values()]
        listen(examples, self.load_example, None, step.outputs, **progress)
        listen(self.fresh.click, self.start_afresh, None, step.outputs, **progress)
        # The list closes once for each choice; of a click it tells twice, and the answer to the second would
        # take back what is typed after the first.
        listen(self.earlier.blur, self.go_back_to, [self.earlier, draft], step.outputs, **progress)
        listen(self.delete.click, self.ask_to_delete, draft, self.deletion.outputs)
        self.deletion.connect(self.delete_draft, [draft], step.outputs, **progress)

    def load_example(self, event: gr.EventData) -> dict:
        """A new draft with an example's pictures; what was there before stays among the earlier drafts."""
        name = source_of(event).removeprefix("example-")
        return self.step.show(load_example(default_drafts_dir(), name))

    def start_afresh(self) -> dict:
        """A new, empty draft."""
        draft = current_draft(default_drafts_dir())
        return self.step.show(draft if is_new(draft) else new_draft(default_drafts_dir()))

    def go_back_to(self, chosen: str | None, shown: object) -> dict:
        """An earlier draft, which becomes the current one."""
        # The list is also left without a choice, or with the last one: what is typed must stay.
        if not chosen or chosen == read_shown(ShownDraft, shown).id:
            return {}
        draft = find_draft(default_drafts_dir(), chosen)
        make_current(draft)
        return self.step.show(draft)

    def ask_to_delete(self, shown: object) -> dict:
        """Asks whether the draft is to be deleted."""
        draft = draft_of(shown)
        whose = f" of {draft.trigger_word}" if draft.trigger_word else ""
        return self.deletion.ask(draft.id, f"Delete {words.count(len(draft.items), 'picture')}{whose}")

    def delete_draft(self, subject: str, shown: object) -> dict:
        """Deletes the draft that was asked about, with its pictures, for good."""
        delete_draft(find_draft(default_drafts_dir(), subject))
        left = read_shown(ShownDraft, shown).id
        return {**self.step.show(the_draft("" if left == subject else left)), **self.deletion.close()}


def draft_list(folder: gr.UploadButton) -> DraftList:
    """Lays it out, and the button that adds a folder."""
    gr.HTML("<p class='hint'>No pictures at hand? Load an example and look how it is done.</p>")
    with gr.Row(elem_classes="buttons"):
        folder.render()
        examples = {
            example.name: gr.Button(example.label, size="sm", elem_id=f"example-{example.name}")
            for example in list_examples()
        }
        fresh = gr.Button("Start afresh", size="sm", elem_id="fresh")
        delete = gr.Button("Delete draft", size="sm", elem_id="delete-draft")
    deletion = confirmation("draft", "Delete its pictures", "Keep them")
    # It may send its last choice once more when its list is another one already: no error then.
    earlier = gr.Dropdown(
        [], label="Earlier drafts", visible=False, allow_custom_value=True, elem_id="earlier"
    )
    return DraftList(examples, fresh, delete, deletion, earlier)
