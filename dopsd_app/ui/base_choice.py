"""The choice of a base model, at the top of the first step."""

from dataclasses import dataclass

import gradio as gr
from gradio.blocks import Block

from dopsd_app.config import EDIT, SUBJECT, TrainConfig, load_preset, preset_for
from dopsd_app.data.drafts import Draft, set_settings
from dopsd_app.models.catalog import CATALOG, find_facts, find_repository, is_known, read_name
from dopsd_app.ui.base_facts import base_facts
from dopsd_app.ui.base_here import BaseHere, base_here

REAL_BASE = "z-image-turbo"  # for photographs
EDIT_BASE = "flux2-klein-4b"  # for photographs to start from


@dataclass(frozen=True)
class BaseChoice:
    """The base models of the catalog, a person's own in place of one, and what is known of the chosen one."""

    base: gr.Radio
    folder: gr.Textbox
    facts: gr.HTML
    here: BaseHere

    @property
    def outputs(self) -> list[Block]:
        """What `show` fills."""
        return [self.base, self.folder, self.facts, *self.here.outputs]

    def show(self, draft: Draft, *, ask: bool = False) -> dict:
        """The draft's base model; `ask` has the Hub asked for what is known of it, which can take seconds."""
        base, own = base_of(draft), own_base(draft)
        return {
            self.base: base,
            self.folder: gr.Textbox(value=own, visible=bool(CATALOG[base].repository)),
            self.facts: base_facts(base, own, draft.settings.get("revision", ""), ask=ask),
            **self.here.show(draft),
        }

    def show_here(self, draft: Draft, sent: object) -> dict:
        """What has changed of its download and its check, and then the facts: by now it may be here."""
        changed = self.here.show(draft, sent)
        return {self.facts: self.show(draft)[self.facts], **changed} if changed else {}

    def show_facts(self, draft: Draft) -> dict:
        """What the Hub tells of a name that was just typed: by now, something else may stand in its box."""
        shown = self.show(draft, ask=True)
        return {part: shown[part] for part in (self.facts, *self.here.outputs)}


def base_choice() -> BaseChoice:
    """Lays it out."""
    gr.HTML("<h2>Base model</h2>")
    base = gr.Radio(
        [(facts.label, name) for name, facts in CATALOG.items()],
        label="Base model",
        show_label=False,
        elem_id="base",
    )
    folder = gr.Textbox(
        label="Another one of its kind",
        visible=False,
        elem_id="base-folder",
        info="A repository on the Hub (owner/name), such as a fine-tune; a folder that diffusers saved; or"
        " ComfyUI's .safetensors file, which is used where it lies",
    )
    return BaseChoice(base, folder, gr.HTML(elem_id="base-facts"), base_here())


def base_of(draft: Draft) -> str:
    """The catalog's name of the base model that the draft's preset is for."""
    return load_preset(draft.preset).settings.get("base_model", TrainConfig().base_model)


def own_base(draft: Draft) -> str:
    """The repository or folder that the person has put in its place; empty for none."""
    return draft.settings.get("base_model", "")


def take_base(draft: Draft, base: str) -> Draft:
    """Takes another base model of the catalog, with the preset that was made for it."""
    if base == base_of(draft):
        return draft
    kind = draft.kind
    if kind == EDIT and not draft.sources and not CATALOG[base].architecture.edits:
        kind = SUBJECT
    return set_settings(draft, kind=kind, preset=preset_for(base, kind), base_model=None, revision=None)


def take_own_base(draft: Draft, name: str) -> Draft:
    """Takes another base model, by its repository or folder; empty goes back to the catalog's."""
    name = read_name(name)
    if name in CATALOG:
        name = ""  # it has a button of its own
    if name == own_base(draft):
        return draft
    return set_settings(draft, base_model=name or None, revision=None)  # a pinned commit is of the last one


def can_edit(draft: Draft) -> bool:
    """Whether the draft's base model starts from pictures; of an unknown one, what it is a kind of."""
    own, revision = own_base(draft), draft.settings.get("revision", "")
    if own and is_known(own, revision):
        return find_facts(own, revision).architecture.edits
    return CATALOG[base_of(draft)].architecture.edits


def unsuited_sources(draft: Draft) -> str:
    """Why the base model cannot start from the draft's source pictures, where it cannot; else empty."""
    if not draft.sources or can_edit(draft):
        return ""
    return "This base model cannot start from source pictures. Take one that can, or remove them:"


def suited_base(draft: Draft) -> str:
    """The catalog's base model that can learn photographs such as the draft's."""
    return EDIT_BASE if draft.sources else REAL_BASE


def unsuited_pictures(draft: Draft) -> str:
    """Why the built-in base cannot learn these pictures, where it cannot; else an empty text."""
    number = sum(not item.creature for item in draft.items)
    if not number or find_repository(base_of(draft)) or own_base(draft):
        return ""
    which = "These pictures are" if number == len(draft.items) else f"{number} of these pictures are"
    if number == 1:
        which = "This picture is" if len(draft.items) == 1 else "One of these pictures is"
    return (
        f"{which} not of the built-in model's world: it draws cartoon creatures of its own, and cannot learn"
        " anything else. A real base model can:"
    )
