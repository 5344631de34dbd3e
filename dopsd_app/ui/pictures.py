"""The first step: the base model, the pictures and the advice on them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

import gradio as gr
from gradio.blocks import Block

from dopsd_app.config import EDIT, STYLE, SUBJECT
from dopsd_app.data.drafts import (
    Draft,
    default_drafts_dir,
    read_draft,
    remove_picture,
    remove_sources,
    set_settings,
    take_kind,
)
from dopsd_app.data.uploads import load_example
from dopsd_app.ui import words
from dopsd_app.ui.adding import Adding, adding
from dopsd_app.ui.base_advice import BaseAdvice, base_advice
from dopsd_app.ui.base_choice import (
    BaseChoice,
    base_choice,
    base_of,
    can_edit,
    own_base,
    take_base,
    take_own_base,
    unsuited_pictures,
    unsuited_sources,
)
from dopsd_app.ui.base_here import begin_checking, begin_fetching, cancel
from dopsd_app.ui.caption_tools import CaptionTools, caption_tools
from dopsd_app.ui.captions import CaptionWriter, caption_writer
from dopsd_app.ui.cards import Cards, cards
from dopsd_app.ui.crops import crop_shape
from dopsd_app.ui.draft_list import DraftList, draft_list
from dopsd_app.ui.events import WRITES_DRAFT, held, listen, on_tick, source_of
from dopsd_app.ui.findings import find, what_is_missing
from dopsd_app.ui.kept_text import KeptText, kept_text
from dopsd_app.ui.navigation import PICTURES, TEACHER
from dopsd_app.ui.shown_draft import ShownDraft, draft_of, key_at, page_of, read_shown, show_page
from dopsd_app.ui.teacher import start_check

if TYPE_CHECKING:
    from dopsd_app.ui.page import Page

KINDS = [
    ("A subject: a dog, a face, a product", SUBJECT),
    ("A style", STYLE),
    ("An edit: from one picture to another", EDIT),
]
ABOUT_EDITS = (
    "Each picture needs what it is made from: drop cat_source.png in with cat.png, or add it on the card."
)
EXAMPLE = "zorp"  # that a newcomer watches
EMPTY = (
    "<div class='empty'><p class='word'>No pictures yet</p>"
    "<p>Add 4 or more of your own above. Or watch first how it works, with a creature that the built-in model"
    " has never seen.</p></div>"
)


@dataclass(eq=False)
class PicturesStep:
    """The components of this step, and what its events do."""

    page: "Page" = field(init=False)

    draft: gr.JSON  # the `ShownDraft`
    choice: BaseChoice
    adding: Adding
    drafts: DraftList
    advice: BaseAdvice
    trigger: KeptText
    kind: gr.Radio
    empty: gr.Column  # there while there are no pictures
    watch: gr.Button
    message: gr.HTML  # what there is to say of the whole set
    writer: CaptionWriter
    tools: CaptionTools
    cards: Cards
    missing: gr.HTML
    go: gr.Button

    # --- what the step shows

    @property
    def outputs(self) -> list[Block]:
        """What `show` fills; the draft first, for the boxes tell of their changes at once."""
        around = [*self.choice.outputs, *self.adding.outputs, *self.drafts.outputs, *self.trigger.outputs]
        return [
            *self.cards.outputs,
            *around,
            self.kind,
            *self.messages,
            *self.tools.of_answer,
            *self.writer.outputs,
        ]

    @property
    def of_kind(self) -> list[Block]:
        """What shows the kind, and what `show_cards` fills besides the messages."""
        return [self.kind, *self.cards.of_kind]

    @property
    def messages(self) -> list[Block]:
        """What `show_messages` fills."""
        around = [
            *self.advice.outputs,
            self.empty,
            self.message,
            *self.tools.outputs,
            self.writer.what,
            self.missing,
            self.go,
        ]
        return [*around, *self.cards.messages]

    def show(self, draft: Draft, *, as_built: bool = False) -> dict:
        """The whole draft; `as_built`: the page is new, and its slots are empty."""
        return {
            **self.choice.show(draft),
            **self.adding.clear(),
            **self.tools.clear(),
            **self.trigger.fill(draft.trigger_word),
            **self.show_page(draft, 0, as_built=as_built),
            **self.writer.show(draft),
            **self.tools.open(draft),
        }

    def show_page(
        self, draft: Draft, page: int, before: Sequence[str] = (), *, as_built: bool = False
    ) -> dict:
        """A page of the draft's cards, and what there is to say; what became of the last files stays.

        `before` are the keys of the cards that the tab has, whose boxes somebody may be typing into.
        """
        shown = show_page(draft, page)
        return {
            self.draft: asdict(shown),
            **self.drafts.show(draft),
            self.kind: gr.Radio(**_kinds(draft), value=draft.kind),
            **self.cards.show(draft, shown, before, as_built=as_built),
            **self.show_messages(draft, shown),
            **self.writer.show_state(draft, shown),
        }

    def show_cards(self, draft: Draft, shown: ShownDraft) -> dict:
        """What the cards have for another kind or base model, and the messages; captions are left alone."""
        return {**self.cards.show_kind(draft, shown), **self.show_messages(draft, shown)}

    def show_messages(self, draft: Draft, shown: ShownDraft) -> dict:
        """Problems, advice and notes, and whether one can go on; captions are left alone."""
        findings = find(draft)
        impossible = unsuited_sources(draft)
        stands_still = not draft.items or bool(findings.problems) or bool(findings.uncaptioned)
        missing = impossible or what_is_missing(draft, findings)
        return {
            **self.advice.show(draft),
            self.empty: gr.Column(visible=not draft.items),
            self.message: findings.whole_set,
            **self.tools.show(draft),
            **self.writer.show_kind(draft),
            self.missing: f"<p class='missing'>{words.message(missing)}</p>" if missing else "",
            self.go: gr.Button(
                interactive=not stands_still and not impossible,
                variant="secondary" if impossible or unsuited_pictures(draft) else "primary",
            ),
            **self.cards.show_messages(findings, shown),
        }

    # --- what its events do

    def connect(self, page: "Page") -> None:
        """Connects the step's events."""
        self.page = page
        self._connect_base()
        self.adding.connect(self)
        self.drafts.connect(self)
        self.cards.connect(self)
        self.tools.connect(self)
        self.writer.connect(self)
        about = [*self.of_kind, *self.messages]
        listen(self.kind.input, self.choose_kind, [self.draft, self.kind], about)
        self.trigger.connect(self.draft, self.write_trigger, self.messages)
        without = [slot.without.click for slot in self.cards.slots]
        progress = {"progress_on": self.message}
        listen(without, self.remove_sources, self.cards.typed, self.outputs, **progress, **WRITES_DRAFT)
        to_teacher = [*page.navigation.outputs, *page.teacher.outputs]
        listen(self.go.click, self.go_on, self.draft, to_teacher)
        outputs = [*self.outputs, *to_teacher]
        listen(self.watch.click, self.watch_example, self.draft, outputs, **progress)
        # Crops have another shape where the plan's resolution is another one.
        come_back = [self.draft, page.navigation.place]
        listen(page.navigation.place.change, self.come_back, come_back, [self.draft, *about])

    def _connect_base(self) -> None:
        choice = self.choice
        chosen = [*choice.outputs, *self.of_kind, *self.messages]
        facts = {"progress_on": choice.facts}
        listen(choice.base.input, self.choose_base, [self.draft, choice.base], chosen, **facts)
        # The last name counts: an earlier one may still be asked for.
        typed = [choice.folder.submit, choice.folder.blur]
        folder = [self.draft, choice.folder]
        listen(typed, self.choose_own_base, folder, chosen, trigger_mode="always_last", **facts)
        suited = [button.click for button in self.advice.use.values()]
        listen(suited, self.choose_suited_base, self.draft, chosen, **facts)
        here = choice.here
        at, shown = [self.draft, here.digests], [choice.facts, *here.outputs]
        listen(here.fetch.click, self.fetch_base, at, shown)
        listen(here.check.click, self.check_base, at, shown)
        listen(here.cancel.click, self.cancel_base, at, shown)
        on_tick(here.timer, self.poll_base, at, shown)

    def choose_base(self, shown: object, base: str) -> dict:
        """Takes another base model of the catalog."""
        before = draft_of(shown)
        draft = take_base(before, base)
        return self._show_choice(shown, before, draft, self.choice.show(draft, ask=True))

    def choose_own_base(self, shown: object, name: str) -> dict:
        """Takes another base model, by its repository or folder."""
        before = draft_of(shown)
        draft = take_own_base(before, name)
        return self._show_choice(shown, before, draft, self.choice.show_facts(draft))

    def choose_suited_base(self, shown: object, event: gr.EventData) -> dict:
        """Takes one of the base models that can learn pictures which the chosen one cannot."""
        return self.choose_base(shown, source_of(event).removeprefix("use-"))

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

    def _show_choice(self, shown: object, before: Draft, draft: Draft, choice: dict) -> dict:
        """The choice, unless another one was made while the Hub was asked, which is answered by itself."""
        now = read_draft(draft.path)
        same = (base_of(draft), own_base(draft)) == (base_of(now), own_base(now))
        # A kind that is chosen meanwhile must stay: what this choice does not change is not sent.
        kind: dict = {}
        if can_edit(before) != can_edit(now):
            kind = {self.kind: gr.Radio(**_kinds(now))}
        if before.kind != draft.kind:
            kind = {self.kind: gr.Radio(**_kinds(now), value=now.kind)}
        return {**(choice if same else {}), **kind, **self.show_cards(now, read_shown(ShownDraft, shown))}

    def choose_kind(self, shown: object, kind: str) -> dict:
        """Says whether a subject or a style is taught."""
        draft = take_kind(draft_of(shown), kind)
        info = {self.kind: gr.Radio(info=_kinds(draft)["info"])}
        return {**info, **self.show_cards(draft, read_shown(ShownDraft, shown))}

    def write_trigger(self, shown: object, word: str) -> dict:
        """Keeps the trigger word."""
        draft = set_settings(draft_of(shown), trigger_word=word.strip() or None)
        return self.show_messages(draft, read_shown(ShownDraft, shown))

    def remove(self, values: dict, number: int) -> dict:
        """Removes the picture on a card, after what was typed on the others is kept."""
        shown = read_shown(ShownDraft, values[self.draft])
        draft = remove_picture(self.cards.keep_typed(values), key_at(values[self.draft], number))
        return self.show_page(draft, shown.page, shown.keys)

    def remove_sources(self, values: dict, event: gr.EventData) -> dict:
        """Removes all that the picture on a card is made from, after what was typed is kept."""
        number = int(source_of(event).removeprefix("remove-sources-")) - 1
        shown = read_shown(ShownDraft, values[self.draft])
        draft = remove_sources(self.cards.keep_typed(values), key_at(values[self.draft], number))
        if draft.kind == EDIT and not draft.sources and not can_edit(draft):
            draft = take_kind(draft, SUBJECT)  # they were dropped in for a base model that does not edit
        return self.show_page(draft, shown.page, shown.keys)

    def turn(self, values: dict, event: gr.EventData) -> dict:
        """Turns to another page of cards, after what was typed on this one is kept."""
        shown = read_shown(ShownDraft, values[self.draft])
        draft = self.cards.keep_typed(values)
        where = source_of(event).rpartition("-")[2]
        page = {"back": shown.page - 1, "on": shown.page + 1}.get(where)
        if page is None:
            page = _next_unready(draft, shown)
        return self.show_page(draft, page)

    def come_back(self, shown: object, place: object) -> dict:
        """Shows the crops anew where the settings give them another shape than the tab shows."""
        if not shown or place != PICTURES:
            return {}
        known, draft = read_shown(ShownDraft, shown), draft_of(shown)
        now = replace(known, shape=crop_shape(draft))
        return {self.draft: asdict(now), **self.show_cards(draft, now)} if now != known else {}

    def watch_example(self, shown: object) -> dict:
        """Loads an example and has the teacher look at it, so that a newcomer sees at once what this is."""
        if (draft := draft_of(shown)).items:  # another tab has put them there: they are what is wanted
            return self.show(draft)
        draft = load_example(default_drafts_dir(), EXAMPLE)
        start_check(draft)
        return {**self.show(draft), **self.page.navigation.go_to(TEACHER), **self.page.teacher.show(draft)}

    def go_on(self, shown: object) -> dict:
        """Goes on to the second step."""
        return {**self.page.navigation.go_to(TEACHER), **self.page.teacher.show(draft_of(shown))}


def pictures_step() -> PicturesStep:
    """Lays the step out."""
    draft = held()
    choice = base_choice()
    gr.HTML("<h2>Your pictures</h2>")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            added = adding()
        with gr.Column(scale=1, min_width=260):
            drafts = draft_list(added.folder)
    advice = base_advice()
    with gr.Column(visible=False, elem_id="no-pictures") as empty:
        gr.HTML(EMPTY)
        watch = gr.Button("Watch it work on this computer", variant="primary", elem_id="watch")
    with gr.Row(equal_height=False):
        trigger = kept_text(
            "Trigger word",
            max_length=100,
            min_width=300,
            elem_id="trigger",
            info="A made-up word that stands for what is new. Write it into every caption.",
        )
        kind = gr.Radio(KINDS, label="What is new", min_width=300, elem_id="kind")
    message = gr.HTML(elem_id="set-problems")
    # One block for all that writes captions.
    panel = gr.Accordion("Captions", open=False, visible=False, elem_id="caption-tools")
    writer, tools = caption_writer(panel), caption_tools(panel)
    shown_cards = cards(draft)
    writer.one = [slot.write for slot in shown_cards.slots]
    with gr.Row(elem_classes="foot"):
        missing = gr.HTML(elem_id="missing")
        go = gr.Button("Next: the teacher", variant="primary", interactive=False, elem_id="to-teacher")
    return PicturesStep(
        draft=draft,
        choice=choice,
        adding=added,
        drafts=drafts,
        advice=advice,
        trigger=trigger,
        kind=kind,
        empty=empty,
        watch=watch,
        message=message,
        writer=writer,
        tools=tools,
        cards=shown_cards,
        missing=missing,
        go=go,
    )


def _next_unready(draft: Draft, shown: ShownDraft) -> int:
    """The next page, after the last the first again, with a picture that something is missing of."""
    pages = sorted({page_of(draft, key) for key in find(draft).unready})
    return next((page for page in pages if page > shown.page), next(iter(pages), shown.page))


def _kinds(draft: Draft) -> dict:
    """What can be taught, and what there is to say of that which is."""
    edits = can_edit(draft) or draft.kind == EDIT
    choices = [(label, kind) for label, kind in KINDS if kind != EDIT or edits]
    return {"choices": choices, "info": ABOUT_EDITS if draft.kind == EDIT else ""}
