"""The cards of the first step: each picture as training will see it, with its caption; twenty to a page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component

from dopsd_app.config import EDIT
from dopsd_app.data.draft_file import Item
from dopsd_app.data.drafts import Draft, set_caption, set_captions, set_focus
from dopsd_app.ui import words
from dopsd_app.ui.base_choice import can_edit
from dopsd_app.ui.crops import DRAG, SEND, CropShape, MovedCrop, crop_shape, framed, framed_source
from dopsd_app.ui.events import WRITES_DRAFT, held, listen, source_of
from dopsd_app.ui.findings import Findings
from dopsd_app.ui.kept_text import KeptText, kept_text
from dopsd_app.ui.shown_draft import (
    ON_A_PAGE,
    ShownDraft,
    count_pages,
    draft_of,
    items_of,
    key_at,
    read_shown,
)

if TYPE_CHECKING:
    from dopsd_app.ui.pictures import PicturesStep

# A page of cards that is turned from below begins at its top.
TO_THE_TOP = """(...values) => {
    const cards = document.getElementById("cards-pager");
    if (cards && cards.getBoundingClientRect().top < 0) cards.scrollIntoView();
    return values;
}"""


@dataclass(eq=False)
class Slot:
    """The place of one card; there are ON_A_PAGE of them, which never come or go."""

    number: int  # from 0
    box: gr.Column
    picture: gr.HTML
    caption: KeptText
    message: gr.HTML
    remove: gr.Button
    add: gr.UploadButton  # there while the draft is of an edit, as is the next
    without: gr.Button
    write: gr.Button  # has its caption written, or written again

    @property
    def outputs(self) -> list[Block]:
        """What `show` and `hide` fill."""
        return [self.box, self.picture, *self.caption.outputs, self.add, self.without, self.remove]

    @property
    def of_kind(self) -> list[Block]:
        """What `show_kind` fills."""
        return [self.picture, self.add, self.without, self.caption.box]

    def show(self, draft: Draft, item: Item, place: int, edits: bool, shape: CropShape) -> dict:
        """A picture of the draft, which is the one at this place, from 1."""
        return {
            self.box: gr.Column(visible=True),
            **self.caption.fill(item.caption),
            **self.show_kind(draft, item, place, edits, shape),
            self.caption.box: gr.Textbox(item.caption, label=_label(draft, place)),
            self.remove: gr.Button(f"Remove picture {place}"),
        }

    def show_kind(self, draft: Draft, item: Item, place: int, edits: bool, shape: CropShape) -> dict:
        """The picture, and what it has besides where the draft is of an edit; its caption is left alone.

        Sources can be added where the base model `edits`, and taken away from any picture.
        """
        return {
            self.picture: _pictures(draft, item, shape),
            self.add: gr.UploadButton(f"Add source to picture {place}", visible=draft.kind == EDIT and edits),
            self.without: gr.Button(f"Remove sources of picture {place}", visible=bool(item.sources)),
            self.caption.box: gr.Textbox(label=_label(draft, place)),
        }

    def hide(self) -> dict:
        """No picture."""
        return {self.box: gr.Column(visible=False), self.picture: "", **self.caption.fill("")}


@dataclass(frozen=True)
class Pager:
    """Leads from one page of cards to the next; there where one does not hold them all."""

    row: gr.Row
    back: gr.Button
    where: gr.HTML
    on: gr.Button
    unready: gr.Button  # to the next page with a picture that something is missing of

    @property
    def outputs(self) -> list[Block]:
        """What `show` and `show_unready` fill."""
        return [self.row, self.back, self.where, self.on, self.unready]

    @property
    def clicks(self) -> list[Callable]:
        return [self.back.click, self.on.click, self.unready.click]

    def show(self, draft: Draft, shown: ShownDraft) -> dict:
        """Where in the draft's pictures the cards are."""
        first, pages = shown.page * ON_A_PAGE + 1, count_pages(draft)
        last = first + len(shown.keys) - 1
        return {
            self.row: gr.Row(visible=pages > 1),
            self.back: gr.Button(interactive=shown.page > 0),
            self.where: f"<p class='where'>Pictures {first}-{last} of {len(draft.items)}</p>",
            self.on: gr.Button(interactive=shown.page < pages - 1),
        }

    def show_unready(self, findings: Findings, shown: ShownDraft) -> dict:
        """How many pictures on other pages need something."""
        number = len(findings.unready - set(shown.keys))
        need = "needs" if number == 1 else "need"
        label = f"{words.count(number, 'picture')} elsewhere {need} something: show"
        return {self.unready: gr.Button(label, visible=number > 0)}


@dataclass(eq=False)
class Cards:
    """The cards that are shown, and what their events do."""

    step: "PicturesStep" = field(init=False)
    draft: gr.JSON  # the `ShownDraft`
    pagers: tuple[Pager, Pager]  # above and below
    slots: list[Slot]
    move: gr.Button  # hidden: the page's script presses it
    moved: gr.JSON  # the `MovedCrop`

    @property
    def outputs(self) -> list[Block]:
        """What `show` fills."""
        pagers = [part for pager in self.pagers for part in pager.outputs]
        return [self.draft, *pagers, *(part for slot in self.slots for part in slot.outputs)]

    @property
    def of_kind(self) -> list[Block]:
        """What `show_kind` fills."""
        return [part for slot in self.slots for part in slot.of_kind]

    @property
    def messages(self) -> list[Block]:
        """What `show_messages` fills."""
        return [*(pager.unready for pager in self.pagers), *(slot.message for slot in self.slots)]

    @property
    def of_captions(self) -> list[Block]:
        """What `show_captions` fills."""
        return [part for slot in self.slots for part in slot.caption.outputs]

    @property
    def typed(self) -> set[Component]:
        """What `read_typed` reads."""
        captions = [slot.caption for slot in self.slots]
        return {self.draft, *(part for caption in captions for part in (caption.box, caption.exchanged))}

    def show(
        self, draft: Draft, shown: ShownDraft, before: Sequence[str] = (), *, as_built: bool = False
    ) -> dict:
        """A page of cards; `as_built`: the slots are empty and hidden.

        `before` are the keys of the cards that the tab has: whose card stays, its caption is left alone.
        """
        slots, edits = {}, can_edit(draft)
        items = [item for item in items_of(draft, shown) if item]
        for slot, item in zip(self.slots, items, strict=False):
            show = slot.show_kind if item.key in before[slot.number :][:1] else slot.show
            slots |= show(draft, item, _place(shown, slot), edits, shown.shape)
        if not as_built:
            for slot in self.slots[len(items) :]:
                slots |= slot.hide()
        for pager in self.pagers:
            slots |= pager.show(draft, shown)
        return slots

    def show_kind(self, draft: Draft, shown: ShownDraft) -> dict:
        """What the cards have for another kind or base model; captions are left alone."""
        cards, edits, shape = {}, can_edit(draft), crop_shape(draft)
        for slot, item in zip(self.slots, items_of(draft, shown), strict=False):
            cards |= slot.show_kind(draft, item, _place(shown, slot), edits, shape) if item else {}
        return cards

    def show_captions(self, draft: Draft, shown: ShownDraft, only: Mapping[str, str] | None = None) -> dict:
        """The captions, which something else than a person's typing has changed.

        With `only`, those by their keys that are still what it says.
        """
        captions: dict = {}
        for slot, item in zip(self.slots, items_of(draft, shown), strict=False):
            if item and (only is None or only.get(item.key) == item.caption):
                captions |= slot.caption.fill(item.caption)
        return captions

    def show_offers(self, draft: Draft, shown: ShownDraft) -> dict:
        """What the writing buttons say beside the captions."""
        slots = zip(self.slots, items_of(draft, shown), strict=False)
        return {slot.write: gr.Button(offer_to_write(item.caption)) for slot, item in slots if item}

    def show_messages(self, findings: Findings, shown: ShownDraft) -> dict:
        """What is said on the cards, and how many on other pages need something."""
        messages = dict.fromkeys((slot.message for slot in self.slots), "")
        for slot, key in zip(self.slots, shown.keys, strict=False):
            messages[slot.message] = findings.on_card(key)
        for pager in self.pagers:
            messages |= pager.show_unready(findings, shown)
        return messages

    def read_typed(self, values: dict) -> dict[str, str]:
        """The captions, by picture key, that stand in the boxes and are still on their way."""
        keys = read_shown(ShownDraft, values[self.draft]).keys
        captions = [slot.caption for slot in self.slots[: len(keys)]]
        return {
            key: values[caption.box]
            for key, caption in zip(keys, captions, strict=True)
            if values[caption.box] != values[caption.exchanged]
        }

    def keep_typed(self, values: dict) -> Draft:
        """The draft, after what was typed on its cards is kept."""
        return set_captions(draft_of(values[self.draft]), self.read_typed(values))

    # --- what its events do

    def connect(self, step: "PicturesStep") -> None:
        """Connects the events of all cards: one for each kind of them."""
        self.step = step
        for slot in self.slots:
            slot.caption.connect(self.draft, self._writer(slot.number), [*step.messages, slot.write])
        whole = step.outputs
        progress = {"progress_on": step.message}
        removals = [slot.remove.click for slot in self.slots]
        listen(removals, self.remove, self.typed, whole, **progress, **WRITES_DRAFT)
        turns = [click for pager in self.pagers for click in pager.clicks]
        listen(turns, step.turn, self.typed, whole, js=TO_THE_TOP, **progress, **WRITES_DRAFT)
        listen(
            self.move.click,
            self.move_crop,
            [self.draft, self.moved],
            step.messages,
            js=SEND,
            trigger_mode="multiple",
            **WRITES_DRAFT,
        )

    def _writer(self, number: int) -> Callable[[object, str], dict]:
        """Keeps the caption that is typed on a card."""

        def write(shown: object, text: str) -> dict:
            draft = set_caption(draft_of(shown), key_at(shown, number), text)
            messages = self.step.show_messages(draft, read_shown(ShownDraft, shown))
            write = self.slots[number].write
            return {**messages, write: gr.Button(offer_to_write(text))}

        return write

    def remove(self, values: dict, event: gr.EventData) -> dict:
        """Removes the picture on a card."""
        return self.step.remove(values, int(source_of(event).removeprefix("remove-")) - 1)

    def move_crop(self, shown: object, moved: object) -> dict:
        """Keeps where a crop was moved to; its card shows it already, but for what is said of it."""
        crop = read_shown(MovedCrop, moved)
        draft = set_focus(draft_of(shown), crop.key, (crop.across, crop.down))
        return self.step.show_messages(draft, read_shown(ShownDraft, shown))


def cards(draft: gr.JSON) -> Cards:
    """Lays them out."""
    above = _pager("cards-pager")
    with gr.Row(elem_classes="slots", elem_id="slots"):
        slots = [_slot(number) for number in range(ON_A_PAGE)]
    below = _pager("cards-below")
    gr.HTML("", js_on_load=DRAG)
    move = gr.Button("Move a crop", elem_id="move-crop", elem_classes="reopen")
    return Cards(draft, (above, below), slots, move, held())


def _pager(name: str) -> Pager:
    with gr.Row(visible=False, elem_id=name, elem_classes="buttons pager") as row:
        back = gr.Button("Previous", size="sm", elem_id=f"{name}-back")
        where = gr.HTML(elem_id=f"{name}-where")
        on = gr.Button("Next", size="sm", elem_id=f"{name}-on")
        unready = gr.Button("", visible=False, size="sm", elem_id=f"{name}-unready")
    return Pager(row, back, where, on, unready)


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
        with gr.Row(elem_classes="of-card"):
            write = gr.Button("Write it for me", visible=False, size="sm", elem_id=f"write-{place}")
            remove = gr.Button(f"Remove picture {place}", size="sm", elem_id=f"remove-{place}")
    return Slot(number, box, picture, caption, message, remove, add, without, write)


def offer_to_write(caption: str) -> str:
    """What the writing button says beside this caption."""
    return "Write again" if caption.strip() else "Write it for me"


def _place(shown: ShownDraft, slot: Slot) -> int:
    """The place among all pictures, from 1, of the one on this card."""
    return shown.page * ON_A_PAGE + slot.number + 1


def _label(draft: Draft, place: int) -> str:
    return f"{'Instruction for' if draft.kind == EDIT else 'Caption of'} picture {place}"


def _pictures(draft: Draft, item: Item, shape: CropShape) -> str:
    """A picture with its crop; of an edit, with what it is made from before it."""
    picture = framed(draft, item, shape)
    if not item.sources:
        return picture
    before = "".join(framed_source(draft, source, item, shape) for source in item.sources)
    kind = "before several" if len(item.sources) > 1 else "before"
    return (
        f"<div class='pair'><figure><figcaption>Before</figcaption><div class='{kind}'>{before}</div>"
        "</figure>"
        f"<figure><figcaption>After</figcaption>{picture}</figure></div>"
    )
