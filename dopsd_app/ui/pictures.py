"""The first step: the base model, the pictures and what is said of them."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gradio as gr

from dopsd_app.config import TrainConfig, load_preset, presets_for
from dopsd_app.data.captions import advise
from dopsd_app.data.drafts import (
    KINDS,
    Draft,
    check_draft,
    current_draft,
    default_drafts_dir,
    delete_draft,
    find_draft,
    is_new,
    list_drafts,
    make_current,
    new_draft,
    remove_picture,
    set_caption,
    set_settings,
)
from dopsd_app.data.pictures import MAX_PICTURES
from dopsd_app.data.uploads import add_pictures, clone_run, list_examples, load_example
from dopsd_app.errors import KnownFailure
from dopsd_app.models.catalog import CATALOG, find_repository, read_name
from dopsd_app.ui import words
from dopsd_app.ui.base_facts import base_facts
from dopsd_app.ui.run_actions import the_run
from dopsd_app.ui.typing_order import typing_order

REAL_BASE = "z-image-turbo"  # for photographs
SAID = 10  # where in `PicturesStep.shown` the set's messages are


@dataclass(frozen=True)
class Slot:
    """The place of one picture; there are MAX_PICTURES of them, which never come or go."""

    box: gr.Column
    picture: gr.HTML
    caption: gr.Textbox
    said: gr.HTML
    remove: gr.Button

    @property
    def parts(self) -> list:
        return [self.box, self.picture, self.caption, self.said]


@dataclass(frozen=True)
class PicturesStep:
    """The components of this step that others set or listen to."""

    draft_id: gr.State
    keys: gr.State  # of the pictures in the slots, in their order
    base: gr.Radio
    folder: gr.Textbox
    facts: gr.HTML
    upload: gr.File
    examples: dict[str, gr.Button]
    fresh: gr.Button
    throw_away: gr.Button
    sure: gr.Row
    really: gr.Button
    keep: gr.Button
    earlier: gr.Dropdown
    empty: gr.HTML  # what there is to say above the pictures
    real: gr.Button  # another base model, for pictures that this one cannot learn
    said: gr.HTML
    trigger: gr.Textbox
    kind: gr.Radio
    slots: list[Slot]
    go: gr.Button

    @property
    def shown(self) -> list:
        """What `show` fills, in its order."""
        fixed = [self.draft_id, self.keys, self.base, self.folder, self.facts, self.earlier, self.trigger]
        return [*fixed, self.kind, *self.messages, *(part for slot in self.slots for part in slot.parts)]

    @property
    def messages(self) -> list:
        """What `show_messages` fills, in its order, before the slots' own messages."""
        return [self.empty, self.real, self.said, self.go]


def pictures_step() -> PicturesStep:
    """Lays the step out."""
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
        info="A repository on the Hub (owner/name), such as a fine-tune, or a folder that diffusers saved",
    )
    facts = gr.HTML(elem_id="base-facts")
    gr.HTML("<h2>Your pictures</h2>")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            upload = gr.File(
                label="4 to 20 pictures, and their .txt captions",
                file_count="multiple",
                file_types=["image", ".txt", ".jsonl"],
                height=150,
                elem_id="upload",
            )
        with gr.Column(scale=1, min_width=260):
            gr.HTML("<p class='hint'>No pictures at hand? Load an example and look how it is done.</p>")
            with gr.Row(elem_classes="buttons"):
                examples = {
                    example.name: gr.Button(example.label, size="sm", elem_id=f"example-{example.name}")
                    for example in list_examples()
                }
                fresh = gr.Button("Start afresh", size="sm", elem_id="fresh")
                throw_away = gr.Button("Delete draft", size="sm", elem_id="delete-draft")
            with gr.Row(visible=False, elem_classes="buttons") as sure:
                really = gr.Button("Delete its pictures", variant="stop", size="sm", elem_id="really-draft")
                keep = gr.Button("Keep them", size="sm", elem_id="keep-draft")
            # It may send its last choice once more when its list is another one already: no error then.
            earlier = gr.Dropdown(
                [],
                label="Earlier drafts",
                visible=False,
                allow_custom_value=True,
                elem_id="earlier",
            )
    with gr.Row(equal_height=False):
        trigger = gr.Textbox(
            "",
            label="Trigger word",
            max_length=100,
            elem_id="trigger",
            info="A made-up word that stands for what is new. Write it into every caption.",
        )
        kind = gr.Radio(
            [("A subject: a dog, a face, a product", KINDS[0]), ("A style", KINDS[1])],
            label="What is new",
            elem_id="kind",
        )
    empty = gr.HTML(elem_id="no-pictures")
    real = gr.Button("Use Z-Image-Turbo", variant="primary", visible=False, elem_id="use-real-base")
    with gr.Row(elem_classes="slots", elem_id="slots"):
        slots = [_slot(number) for number in range(1, MAX_PICTURES + 1)]
    said = gr.HTML(elem_id="set-problems")
    go = gr.Button("Next: what the teacher sees", variant="primary", interactive=False, elem_id="to-teacher")
    return PicturesStep(
        gr.State(""), gr.State([]), base, folder, facts, upload, examples, fresh, throw_away, sure, really,
        keep, earlier, empty, real, said,
        trigger, kind, slots, go,
    )  # fmt: skip


def _slot(number: int) -> Slot:
    with gr.Column(visible=False, min_width=150, elem_classes="slot", elem_id=f"slot-{number}") as box:
        picture = gr.HTML(elem_classes="pic", elem_id=f"picture-{number}")
        caption = gr.Textbox(
            "",
            label=f"Caption of picture {number}",
            lines=2,
            max_lines=5,
            placeholder="What is to be seen. One caption per line.",
            elem_id=f"caption-{number}",
        )
        said = gr.HTML(elem_id=f"said-{number}", elem_classes="said")
        remove = gr.Button(f"Remove picture {number}", size="sm", elem_id=f"remove-{number}")
    return Slot(box, picture, caption, said, remove)


# --- what the step shows


def show(draft: Draft, *, as_built: bool = False) -> list:
    """New values for the whole step; `as_built`: the page is new, and its slots are empty and hidden."""
    items, base = draft.items, base_of(draft)
    built_in = not CATALOG[base].repository
    folder = draft.settings.get("base_model", "")
    slots = []
    for item in items:
        slots += [
            gr.Column(visible=True),
            words.image(item.thumbnail, item.name),
            gr.Textbox(value=item.caption),
        ]
        slots.append("")
    hidden = [gr.skip()] * 4 if as_built else [gr.Column(visible=False), "", gr.Textbox(value=""), ""]
    slots += hidden * (MAX_PICTURES - len(items))
    messages = show_messages(draft)
    slots[3 : 4 * len(items) : 4] = messages[4 : 4 + len(items)]
    return [
        draft.id,
        [item.key for item in items],
        base,
        gr.Textbox(value=folder, visible=not built_in),
        base_facts(base, folder, draft.settings.get("revision", ""), ask=False),
        _earlier(draft),
        draft.trigger_word,
        draft.kind,
        *messages[:4],
        *slots,
    ]


def show_messages(draft: Draft) -> list:
    """What is said of the set and of each picture, and whether one can go on; captions are left alone."""
    items, problems = draft.items, check_draft(draft)
    advice = advise(draft) if items else {}
    whole = problems.get("", ()) if items else ()
    strange = strange_pictures(draft)
    above = words.lines([strange] if strange else [], "problem")
    if not items:
        above = (
            "<div class='empty'><p>No pictures yet. Add 4 to 20 of your own, or load an example.</p></div>"
        )
    waiting = [
        f"{name} belongs to no picture here. It is kept until its picture comes." for name in draft.waiting
    ]
    said = (
        words.lines(whole, "problem")
        + words.lines(waiting, "note")
        + words.lines(advice.get("", ()), "advice")
    )
    slots = [
        words.lines(item.problems, "problem")
        + words.lines(advice.get(item.key, ()), "advice")
        + words.lines(item.notes, "note")
        for item in items
    ]
    slots += [""] * (MAX_PICTURES - len(items))
    variant = "secondary" if strange else "primary"
    go = gr.Button(interactive=bool(items) and not problems, variant=variant)
    return [above, gr.Button(visible=bool(strange)), said, go, *slots]


def strange_pictures(draft: Draft) -> str:
    """Why the built-in base cannot learn these pictures, where it cannot; else an empty text."""
    number = sum(not item.creature for item in draft.items)
    if not number or find_repository(base_of(draft)) or draft.settings.get("base_model"):
        return ""
    which = "These pictures are" if number == len(draft.items) else f"{number} of these pictures are"
    if number == 1:
        which = "This picture is" if len(draft.items) == 1 else "One of these pictures is"
    return (
        f"{which} not of the built-in model's world: it draws cartoon creatures of its own, and cannot learn"
        " anything else. Z-Image-Turbo can."
    )


def _earlier(draft: Draft):
    """Other drafts that hold pictures, to go back to."""
    others = [other for other in list_drafts(default_drafts_dir()) if other != draft and other.items]
    choices = [
        (f"{other.trigger_word or 'No name'} · {words.count(len(other.items), 'picture')}", other.id)
        for other in others
    ]
    return gr.Dropdown(choices=choices, value=None, visible=bool(choices))


# --- actions: plain functions of plain values, which change the draft


def the_draft(draft_id: str) -> Draft:
    """The draft of this id, or for an empty one the draft that was changed last."""
    drafts_dir = default_drafts_dir()
    return find_draft(drafts_dir, draft_id) if draft_id else current_draft(drafts_dir)


def shown_draft(draft_id: str) -> Draft:
    """The draft that a page shows, by its id.

    The server forgets it an hour after it lost sight of the page, as when a laptop slept. Nothing may be
    done then to whatever draft was changed last.
    """
    if not draft_id:
        raise KnownFailure("The connection to this page was lost for long. Reload it, and go on.")
    return the_draft(draft_id)


def add_files(draft_id: str, files: list[str] | None) -> list:
    """Adds uploaded pictures and captions; the server's copies of the uploads are removed."""
    draft = shown_draft(draft_id)
    try:
        added = add_pictures(draft, files or [])
    finally:
        for file in files or []:
            Path(file).unlink(missing_ok=True)  # theirs would stay where browsers can fetch it
    values = show(draft)
    values[SAID] = words.lines(added.problems, "problem") + words.lines(added.notes, "note") + values[SAID]
    return [None, *values]


def write_caption(tab: str, moment: float, draft_id: str, keys: list[str], number: int, text: str) -> None:
    """Keeps the caption in a slot as it was typed in this tab until this moment."""
    draft = shown_draft(draft_id)
    if number < len(keys):  # else the picture was just removed
        key = keys[number]
        typing_order.keep(tab, key, moment, lambda: set_caption(draft, key, text), text)


def remove(draft_id: str, keys: list[str], number: int) -> list:
    """Removes the picture in a slot."""
    draft = shown_draft(draft_id)
    if number < len(keys):
        remove_picture(draft, keys[number])
    return show(draft)


def go_back_to(draft_id: str) -> list:
    """An earlier draft, which becomes the current one."""
    draft = shown_draft(draft_id)
    make_current(draft)
    return show(draft)


def say(draft_id: str) -> list:
    """What there is to say of the draft now."""
    return show_messages(shown_draft(draft_id))


def start_from_example(name: str) -> list:
    """A new draft with an example's pictures; what was there before stays among the earlier drafts."""
    return show(load_example(default_drafts_dir(), name))


def start_from_run(run_id: str) -> list:
    """A new draft with a run's pictures and settings."""
    run = the_run(run_id)
    return show(clone_run(default_drafts_dir(), run.config, run.dataset))


def start_afresh() -> list:
    """A new, empty draft."""
    draft = the_draft("")
    return show(draft if is_new(draft) else new_draft(default_drafts_dir()))


def throw_away(draft_id: str) -> None:
    """Deletes a draft with its pictures for good."""
    delete_draft(find_draft(default_drafts_dir(), draft_id))


def choose_base(draft_id: str, base: str) -> list:
    """Takes another base model, with the preset that was made for it."""
    draft = shown_draft(draft_id)
    if base != base_of(draft):
        set_settings(draft, preset=_preset_for(base, draft.kind), base_model=None, revision=None)
    return _show_base(draft)


def use_real_base(draft_id: str) -> list:
    """Takes the base model that draws photographs, for pictures that the built-in one cannot learn."""
    return [REAL_BASE, *choose_base(draft_id, REAL_BASE)]


def choose_folder(draft_id: str, folder: str) -> list:
    """Takes another base model, by its repository or folder; empty goes back to the catalog's."""
    draft = shown_draft(draft_id)
    folder = read_name(folder)
    if folder in CATALOG:
        folder = ""  # it has a button of its own
    if folder != draft.settings.get("base_model", ""):  # a pinned commit is of the last one
        set_settings(draft, base_model=folder or None, revision=None)
    # What is in the box stays: by the time the Hub has answered, something else may be typed there.
    return [gr.skip(), *_show_base(draft)[1:]]


def _show_base(draft: Draft) -> list:
    """New values for what tells of the base model; what is being typed elsewhere is left alone."""
    base, folder = base_of(draft), draft.settings.get("base_model", "")
    visible = bool(CATALOG[base].repository)
    facts = base_facts(base, folder, draft.settings.get("revision", ""), ask=True)
    if (base, folder) != (base_of(draft), draft.settings.get("base_model", "")):
        facts = gr.skip()  # another one was chosen while the Hub was asked, and is answered by itself
    return [gr.Textbox(value=folder, visible=visible), facts, *show_messages(draft)]


def choose_kind(draft_id: str, kind: str) -> list:
    """Says whether a subject or a style is taught."""
    draft = shown_draft(draft_id)
    set_settings(draft, kind=kind)
    suited = _preset_for(base_of(draft), kind)
    if draft.preset.endswith(KINDS) and suited.endswith(kind):  # the other kind's preset gives way
        set_settings(draft, preset=suited)
    return show_messages(draft)


def write_trigger(tab: str, moment: float, draft_id: str, word: str) -> None:
    """Keeps the trigger word as it was typed in this tab until this moment."""
    draft = shown_draft(draft_id)
    keep = partial(set_settings, draft, trigger_word=word.strip() or None)
    typing_order.keep(tab, f"{draft.id} trigger", moment, keep, word)


def base_of(draft: Draft) -> str:
    """The catalog's name of the base model that the draft's preset is for."""
    return load_preset(draft.preset).settings.get("base_model", TrainConfig().base_model)


def _preset_for(base: str, kind: str) -> str:
    """The preset of a base model for this kind: the one that names it, else the base's first."""
    own = [preset.name for preset in presets_for(base)]
    return next((name for name in own if name.endswith(kind)), own[0])
