"""The first step: the base model, the pictures and the advice on them."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, TypeVar

import gradio as gr
from gradio.blocks import Block

from dopsd_app.config import EDIT, STYLE, SUBJECT
from dopsd_app.data.captions import advise
from dopsd_app.data.draft_file import DraftError, Item
from dopsd_app.data.drafts import (
    Draft,
    check_draft,
    current_draft,
    default_drafts_dir,
    delete_draft,
    find_draft,
    is_new,
    list_others,
    make_current,
    new_draft,
    note_repairs,
    read_draft,
    remove_picture,
    remove_sources,
    set_caption,
    set_settings,
    take_kind,
)
from dopsd_app.data.uploads import Added, add_pictures, add_sources, list_examples, load_example
from dopsd_app.errors import KnownFailure
from dopsd_app.files import make_value
from dopsd_app.models.catalog import CATALOG
from dopsd_app.ui import words
from dopsd_app.ui.base_choice import (
    BaseChoice,
    base_choice,
    base_of,
    can_edit,
    own_base,
    suited_base,
    take_base,
    take_own_base,
    unsuited_pictures,
    unsuited_sources,
)
from dopsd_app.ui.base_here import begin_checking, begin_fetching, cancel
from dopsd_app.ui.confirmation import Confirmation, confirmation
from dopsd_app.ui.events import held, listen, on_tick, source_of
from dopsd_app.ui.kept_text import KeptText, kept_text
from dopsd_app.ui.navigation import TEACHER
from dopsd_app.ui.server.uploads import removed_afterwards

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from dopsd_app.ui.page import Page

CARDS_PER_PAGE = 20

Shown = TypeVar("Shown", bound="DataclassInstance")
KINDS = [
    ("A subject: a dog, a face, a product", SUBJECT),
    ("A style", STYLE),
    ("An edit: from one picture to another", EDIT),
]
ABOUT_EDITS = (
    "Each picture needs what it is made from: drop cat_source.png in with cat.png, or add it on the card."
)
EMPTY = "<div class='empty'><p>No pictures yet. Add 4 to 200 of your own, or load an example.</p></div>"


@dataclass(frozen=True)
class ShownDraft:
    """Which draft a tab shows: it lives in the tab."""

    id: str
    keys: tuple[str, ...]  # of the pictures in the slots


@dataclass(eq=False)
class Slot:
    """The place of one picture; there are CARDS_PER_PAGE of them, which never come or go."""

    step: "PicturesStep" = field(init=False)
    number: int  # from 0
    box: gr.Column
    picture: gr.HTML
    caption: KeptText
    message: gr.HTML
    remove: gr.Button
    add: gr.UploadButton  # there while the draft is of an edit, as is the next
    without: gr.Button

    @property
    def outputs(self) -> list[Block]:
        """What `show` and `hide` fill."""
        return [self.box, self.picture, *self.caption.outputs, self.add, self.without]

    @property
    def of_edit(self) -> list[Block]:
        """What `show_edit` and `show_label` fill."""
        return [self.add, self.without, self.caption.box]

    def connect(self, step: "PicturesStep") -> None:
        """Connects the slot's events."""
        self.step = step
        self.caption.connect(step.draft, self.write, step.messages)

    def show(self, draft: Draft, item: Item, edits: bool) -> dict:
        """A picture of the draft."""
        return {
            self.box: gr.Column(visible=True),
            self.picture: _pictures(draft, item),
            **self.caption.fill(item.caption),
            self.caption.box: gr.Textbox(item.caption, label=self._label(draft)),
            **self.show_edit(draft, item, edits),
        }

    def show_edit(self, draft: Draft, item: Item, edits: bool) -> dict:
        """What a picture of an edit has besides, where the base model `edits`.

        Sources can be taken away from any other, too.
        """
        return {
            self.add: gr.UploadButton(visible=draft.kind == EDIT and edits),
            self.without: gr.Button(visible=bool(item.sources)),
        }

    def show_label(self, draft: Draft) -> dict:
        """What is asked for beside the picture; the words in the box are left alone."""
        return {self.caption.box: gr.Textbox(label=self._label(draft))}

    def _label(self, draft: Draft) -> str:
        return f"{'Instruction for' if draft.kind == EDIT else 'Caption of'} picture {self.number + 1}"

    def hide(self) -> dict:
        """No picture."""
        return {self.box: gr.Column(visible=False), self.picture: "", **self.caption.fill("")}

    def write(self, shown: object, text: str) -> dict:
        """Keeps the caption."""
        return self.step.show_messages(set_caption(draft_of(shown), _key(shown, self.number), text))


@dataclass(eq=False)
class PicturesStep:
    """The components of this step, and what its events do."""

    page: "Page" = field(init=False)

    draft: gr.JSON  # the `ShownDraft`
    choice: BaseChoice
    upload: gr.File
    examples: dict[str, gr.Button]
    fresh: gr.Button
    delete: gr.Button
    deletion: Confirmation
    earlier: gr.Dropdown
    empty: gr.HTML  # what there is to say above the pictures
    real: gr.Button  # another base model, for pictures that this one cannot learn
    message: gr.HTML
    trigger: KeptText
    kind: gr.Radio
    slots: list[Slot]
    go: gr.Button

    # --- what the step shows

    @property
    def outputs(self) -> list[Block]:
        """What `show` fills; the draft first, for the boxes tell of their changes at once."""
        around = [self.draft, *self.choice.outputs, self.earlier, *self.trigger.outputs, self.kind]
        return [*around, *self.messages, *(part for slot in self.slots for part in slot.outputs)]

    @property
    def of_kind(self) -> list[Block]:
        """What shows the kind, and what `show_cards` fills besides the messages."""
        return [self.kind, *(part for slot in self.slots for part in slot.of_edit)]

    @property
    def messages(self) -> list[Block]:
        """What `show_messages` fills."""
        return [self.empty, self.real, self.message, self.go, *(slot.message for slot in self.slots)]

    def show(self, draft: Draft, *, as_built: bool = False) -> dict:
        """The whole draft; `as_built`: the page is new, and its slots are empty and hidden."""
        slots, edits = {}, can_edit(draft)
        for slot, item in zip(self.slots, draft.items, strict=False):
            slots |= slot.show(draft, item, edits)
        if not as_built:
            for slot in self.slots[len(draft.items) :]:
                slots |= slot.hide()
        return {
            self.draft: asdict(ShownDraft(draft.id, tuple(item.key for item in draft.items))),
            **self.choice.show(draft),
            self.earlier: _earlier(draft),
            **self.trigger.fill(draft.trigger_word),
            self.kind: gr.Radio(**_kinds(draft), value=draft.kind),
            **self.show_messages(draft),
            **slots,
        }

    def show_cards(self, draft: Draft) -> dict:
        """What the cards have for another kind or base model, and the messages; captions are left alone."""
        cards, edits = {}, can_edit(draft)
        for slot, item in zip(self.slots, draft.items, strict=False):
            cards |= slot.show_edit(draft, item, edits) | slot.show_label(draft)
        return {**cards, **self.show_messages(draft)}

    def show_messages(self, draft: Draft) -> dict:
        """Problems, advice and notes, and whether one can go on; captions are left alone."""
        problems = check_draft(draft)
        advice, notes = (advise(draft), note_repairs(draft)) if draft.items else ({}, {})
        whole = problems.get("", ()) if draft.items else ()
        impossible = unsuited_sources(draft)
        unsuited = impossible or unsuited_pictures(draft)
        above = words.lines([unsuited] if unsuited else [], "problem")
        waiting = [
            f"{name} belongs to no picture here. It is kept until its picture comes."
            for name in draft.waiting
        ]
        slots = dict.fromkeys((slot.message for slot in self.slots), "")
        for slot, item in zip(self.slots, draft.items, strict=False):
            slots[slot.message] = (
                words.lines(problems.get(item.key, ()), "problem")
                + words.lines(advice.get(item.key, ()), "advice")
                + words.lines(notes.get(item.key, ()), "note")
            )
        return {
            self.empty: above if draft.items else EMPTY,
            self.real: gr.Button(f"Use {CATALOG[suited_base(draft)].label}", visible=bool(unsuited)),
            self.message: words.lines(whole, "problem")
            + words.lines(waiting, "note")
            + words.lines(advice.get("", ()), "advice"),
            self.go: gr.Button(
                interactive=bool(draft.items) and not problems and not impossible,
                variant="secondary" if unsuited else "primary",
            ),
            **slots,
        }

    # --- what its events do

    def connect(self, page: "Page") -> None:
        """Connects the step's events."""
        self.page = page
        choice = self.choice
        chosen = [*choice.outputs, *self.of_kind, *self.messages]
        facts = {"progress_on": choice.facts}
        listen(choice.base.input, self.choose_base, [self.draft, choice.base], chosen, **facts)
        # The last name counts: an earlier one may still be asked for.
        typed = [choice.folder.submit, choice.folder.blur]
        folder = [self.draft, choice.folder]
        listen(typed, self.choose_own_base, folder, chosen, trigger_mode="always_last", **facts)
        listen(self.real.click, self.choose_real_base, self.draft, chosen, **facts)
        here = choice.here
        at, shown = [self.draft, here.digests], [choice.facts, *here.outputs]
        listen(here.fetch.click, self.fetch_base, at, shown)
        listen(here.check.click, self.check_base, at, shown)
        listen(here.cancel.click, self.cancel_base, at, shown)
        on_tick(here.timer, self.poll_base, at, shown)

        uploaded = [self.upload, *self.outputs]
        listen(
            self.upload.upload, self.add_files, [self.draft, self.upload], uploaded, progress_on=self.upload
        )
        progress = {"progress_on": self.message}
        examples = [button.click for button in self.examples.values()]
        listen(examples, self.load_example, None, self.outputs, **progress)
        listen(self.fresh.click, self.start_afresh, None, self.outputs, **progress)
        # The list closes once for each choice; of a click it tells twice, and the answer to the second would
        # take back what is typed after the first.
        listen(self.earlier.blur, self.go_back_to, [self.earlier, self.draft], self.outputs, **progress)
        listen(self.delete.click, self.ask_to_delete, self.draft, self.deletion.outputs)
        self.deletion.connect(self.delete_draft, [self.draft], self.outputs, **progress)

        about = [*self.of_kind, *self.messages]
        listen(self.kind.input, self.choose_kind, [self.draft, self.kind], about)
        self.trigger.connect(self.draft, self.write_trigger, self.messages)
        for slot in self.slots:
            slot.connect(self)
        # One event for all slots: a page that describes twenty more opens more slowly.
        removals = [slot.remove.click for slot in self.slots]
        listen(removals, self.remove, self.draft, self.outputs, **progress)
        uploads = [slot.add for slot in self.slots]
        added = [slot.add.upload for slot in self.slots]
        listen(added, self.add_sources, {self.draft, *uploads}, self.outputs, **progress)
        without = [slot.without.click for slot in self.slots]
        listen(without, self.remove_sources, self.draft, self.outputs, **progress)
        outputs = [*page.navigation.outputs, *page.teacher.outputs]
        listen(self.go.click, self.go_on, self.draft, outputs)

    def choose_base(self, shown: object, base: str) -> dict:
        """Takes another base model of the catalog."""
        before = draft_of(shown)
        draft = take_base(before, base)
        return self._show_choice(before, draft, self.choice.show(draft, ask=True))

    def choose_own_base(self, shown: object, name: str) -> dict:
        """Takes another base model, by its repository or folder."""
        before = draft_of(shown)
        draft = take_own_base(before, name)
        return self._show_choice(before, draft, self.choice.show_facts(draft))

    def choose_real_base(self, shown: object) -> dict:
        """Takes the base model that draws photographs, for pictures that the chosen one cannot learn."""
        return self.choose_base(shown, suited_base(draft_of(shown)))

    def fetch_base(self, shown: object, sent: object) -> dict:
        """Starts fetching the draft's base model."""
        draft = draft_of(shown)
        begin_fetching(draft)
        return self.choice.show_here(draft, sent)

    def check_base(self, shown: object, sent: object) -> dict:
        """Has the draft's base model checked on this computer."""
        draft = draft_of(shown)
        begin_checking(draft)
        return self.choice.show_here(draft, sent)

    def cancel_base(self, shown: object, sent: object) -> dict:
        """Stops the download and the check of the draft's base model."""
        draft = draft_of(shown)
        cancel(draft)
        return self.choice.show_here(draft, sent)

    def poll_base(self, shown: object, sent: object) -> dict:
        """What has changed of the base model since this tab was sent it; nothing before it has a draft."""
        return self.choice.show_here(draft_of(shown), sent) if shown else {}

    def _show_choice(self, before: Draft, draft: Draft, choice: dict) -> dict:
        """The choice, unless another one was made while the Hub was asked, which is answered by itself."""
        now = read_draft(draft.path)
        same = (base_of(draft), own_base(draft)) == (base_of(now), own_base(now))
        # A kind that is chosen meanwhile must stay: what this choice does not change is not sent.
        kind: dict = {}
        if can_edit(before) != can_edit(now):
            kind = {self.kind: gr.Radio(**_kinds(now))}
        if before.kind != draft.kind:
            kind = {self.kind: gr.Radio(**_kinds(now), value=now.kind)}
        return {**(choice if same else {}), **kind, **self.show_cards(now)}

    def add_files(self, shown: object, files: list[str] | None) -> dict:
        """Adds uploaded pictures and captions; the server's copies of the uploads are removed."""
        with removed_afterwards(files or []):
            added = add_pictures(draft_of(shown), files or [])
        return {**self._show_added(added), self.upload: None}

    def add_sources(self, values: dict, event: gr.EventData) -> dict:
        """Adds uploaded pictures to what the picture of a slot is made from."""
        number = int(source_of(event).removeprefix("add-source-")) - 1
        shown, files = values[self.draft], values[self.slots[number].add] or []
        with removed_afterwards(files):
            added = add_sources(draft_of(shown), _key(shown, number), files)
        return {**self._show_added(added), self.slots[number].add: gr.UploadButton(value=None)}

    def _show_added(self, added: Added) -> dict:
        step = self.show(added.draft)
        about_files = words.lines(added.problems, "problem") + words.lines(added.notes, "note")
        return {**step, self.message: about_files + step[self.message]}

    def load_example(self, event: gr.EventData) -> dict:
        """A new draft with an example's pictures; what was there before stays among the earlier drafts."""
        name = source_of(event).removeprefix("example-")
        return self.show(load_example(default_drafts_dir(), name))

    def start_afresh(self) -> dict:
        """A new, empty draft."""
        draft = current_draft(default_drafts_dir())
        return self.show(draft if is_new(draft) else new_draft(default_drafts_dir()))

    def go_back_to(self, chosen: str | None, shown: object) -> dict:
        """An earlier draft, which becomes the current one."""
        # The list is also left without a choice, or with the last one: what is typed must stay.
        if not chosen or chosen == read_shown(ShownDraft, shown).id:
            return {}
        draft = find_draft(default_drafts_dir(), chosen)
        make_current(draft)
        return self.show(draft)

    def ask_to_delete(self, shown: object) -> dict:
        """Asks whether the draft is to be deleted."""
        draft = draft_of(shown)
        whose = f" of {draft.trigger_word}" if draft.trigger_word else ""
        return self.deletion.ask(draft.id, f"Delete {words.count(len(draft.items), 'picture')}{whose}")

    def delete_draft(self, subject: str, shown: object) -> dict:
        """Deletes the draft that was asked about, with its pictures, for good."""
        delete_draft(find_draft(default_drafts_dir(), subject))
        left = read_shown(ShownDraft, shown).id
        return {**self.show(the_draft("" if left == subject else left)), **self.deletion.close()}

    def choose_kind(self, shown: object, kind: str) -> dict:
        """Says whether a subject or a style is taught."""
        draft = take_kind(draft_of(shown), kind)
        return {self.kind: gr.Radio(info=_kinds(draft)["info"]), **self.show_cards(draft)}

    def write_trigger(self, shown: object, word: str) -> dict:
        """Keeps the trigger word."""
        return self.show_messages(set_settings(draft_of(shown), trigger_word=word.strip() or None))

    def remove(self, shown: object, event: gr.EventData) -> dict:
        """Removes the picture in a slot."""
        number = int(source_of(event).removeprefix("remove-")) - 1
        return self.show(remove_picture(draft_of(shown), _key(shown, number)))

    def remove_sources(self, shown: object, event: gr.EventData) -> dict:
        """Removes all that the picture in a slot is made from."""
        number = int(source_of(event).removeprefix("remove-sources-")) - 1
        draft = remove_sources(draft_of(shown), _key(shown, number))
        if draft.kind == EDIT and not draft.sources and not can_edit(draft):
            draft = take_kind(draft, SUBJECT)  # they were dropped in for a base model that does not edit
        return self.show(draft)

    def go_on(self, shown: object) -> dict:
        """Goes on to the second step."""
        return {**self.page.navigation.go_to(TEACHER), **self.page.teacher.show(draft_of(shown))}


def pictures_step() -> PicturesStep:
    """Lays the step out."""
    choice = base_choice()
    gr.HTML("<h2>Your pictures</h2>")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            upload = gr.File(
                label="4 to 200 pictures, and their .txt captions",
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
                delete = gr.Button("Delete draft", size="sm", elem_id="delete-draft")
            deletion = confirmation("draft", "Delete its pictures", "Keep them")
            # It may send its last choice once more when its list is another one already: no error then.
            earlier = gr.Dropdown(
                [], label="Earlier drafts", visible=False, allow_custom_value=True, elem_id="earlier"
            )
    with gr.Row(equal_height=False):
        trigger = kept_text(
            "Trigger word",
            max_length=100,
            elem_id="trigger",
            info="A made-up word that stands for what is new. Write it into every caption.",
        )
        kind = gr.Radio(
            KINDS,
            label="What is new",
            elem_id="kind",
        )
    empty = gr.HTML(elem_id="no-pictures")
    real = gr.Button("Use Z-Image-Turbo", variant="primary", visible=False, elem_id="use-real-base")
    with gr.Row(elem_classes="slots", elem_id="slots"):
        slots = [_slot(number) for number in range(CARDS_PER_PAGE)]
    message = gr.HTML(elem_id="set-problems")
    go = gr.Button("Next: what the teacher sees", variant="primary", interactive=False, elem_id="to-teacher")
    return PicturesStep(
        draft=held(),
        choice=choice,
        upload=upload,
        examples=examples,
        fresh=fresh,
        delete=delete,
        deletion=deletion,
        earlier=earlier,
        empty=empty,
        real=real,
        message=message,
        trigger=trigger,
        kind=kind,
        slots=slots,
        go=go,
    )


def _slot(number: int) -> Slot:
    place = number + 1
    with gr.Column(visible=False, min_width=150, elem_classes="slot", elem_id=f"slot-{place}") as box:
        picture = gr.HTML(elem_classes="pic", elem_id=f"picture-{place}")
        caption = kept_text(
            f"Caption of picture {place}",
            lines=2,
            max_lines=5,
            placeholder="What is to be seen. One caption per line.",
            elem_id=f"caption-{place}",
        )
        add = gr.UploadButton(
            f"Add source to picture {place}",
            visible=False,
            file_count="multiple",
            file_types=["image"],
            size="sm",
            elem_id=f"add-source-{place}",
        )
        without = gr.Button(
            f"Remove sources of picture {place}",
            visible=False,
            size="sm",
            elem_id=f"remove-sources-{place}",
        )
        message = gr.HTML(elem_id=f"message-{place}", elem_classes="message")
        remove = gr.Button(f"Remove picture {place}", size="sm", elem_id=f"remove-{place}")
    return Slot(number, box, picture, caption, message, remove, add, without)


def _kinds(draft: Draft) -> dict:
    """What can be taught, and what there is to say of that which is."""
    edits = can_edit(draft) or draft.kind == EDIT
    choices = [(label, kind) for label, kind in KINDS if kind != EDIT or edits]
    return {"choices": choices, "info": ABOUT_EDITS if draft.kind == EDIT else ""}


def _pictures(draft: Draft, item: Item) -> str:
    """A picture; of an edit, with what it is made from before it."""
    picture = words.image(draft.thumbnail(item), item.name)
    if not item.sources:
        return picture
    before = "".join(words.image(draft.thumbnail(source), source.name, 256) for source in item.sources)
    kind = "before several" if len(item.sources) > 1 else "before"
    return (
        f"<div class='pair'><figure><figcaption>Before</figcaption><div class='{kind}'>{before}</div>"
        "</figure>"
        f"<figure><figcaption>After</figcaption>{picture}</figure></div>"
    )


def _earlier(draft: Draft) -> gr.Dropdown:
    """Other drafts that hold pictures, to go back to."""
    choices = [
        (f"{other.trigger_word or 'No name'} · {words.count(len(other.items), 'picture')}", other.id)
        for other in list_others(draft)
        if other.items
    ]
    return gr.Dropdown(choices=choices, value=None, visible=bool(choices))


# --- the draft of a page


def _key(shown: object, number: int) -> str:
    """The key of the picture that the tab shows in this slot."""
    keys = read_shown(ShownDraft, shown).keys
    if number >= len(keys):
        raise DraftError("This picture is no longer in the draft. Reload the page.")
    return keys[number]


def the_draft(draft_id: str) -> Draft:
    """The draft of this id, or for an empty one the draft that was changed last."""
    drafts_dir = default_drafts_dir()
    return find_draft(drafts_dir, draft_id) if draft_id else current_draft(drafts_dir)


def read_shown(kind: type[Shown], shown: object) -> Shown:
    """The value that a tab holds of what it shows, as it was sent."""
    try:
        return make_value(kind, shown)
    except ValueError as error:
        raise KnownFailure("The server cannot use what was sent. Reload the page and try again.") from error


def draft_of(shown: object) -> Draft:
    """The draft that a tab shows."""
    return find_draft(default_drafts_dir(), read_shown(ShownDraft, shown).id)
