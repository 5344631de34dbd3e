"""Writes or changes the captions of all pictures at once, each time with a way back."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import gradio as gr
from gradio.blocks import Block

from dopsd_app.data.caption_tools import (
    Captions,
    CaptionToolError,
    fill_pattern,
    join_lines,
    put_trigger_first,
    read_table,
    replace_words,
    wrapped,
)
from dopsd_app.data.drafts import Draft, set_captions
from dopsd_app.ui import words
from dopsd_app.ui.events import WRITES_DRAFT, held, listen, source_of
from dopsd_app.ui.shown_draft import ShownDraft, read_shown

if TYPE_CHECKING:
    from dopsd_app.ui.pictures import PicturesStep

PATTERN = "a photo of [trigger]"


@dataclass(frozen=True)
class Before:
    """The captions that the last tool has changed, by picture key: they live in the tab."""

    draft: str  # id
    captions: dict[str, str]  # as they were
    made: dict[str, str]  # what the tool made of them


@dataclass(eq=False)
class CaptionTools:
    """The tools, and what the last one did."""

    step: "PicturesStep" = field(init=False)
    panel: gr.Accordion
    pattern: gr.Textbox
    find: gr.Textbox
    put: gr.Textbox
    table: gr.Textbox
    tools: dict[str, gr.Button]  # by name
    join_box: gr.Row  # there where a caption may be wrapped
    join_why: gr.HTML
    answer: gr.HTML
    undo: gr.Button
    before: gr.JSON

    @property
    def outputs(self) -> list[Block]:
        """What `show` fills."""
        return [self.panel, self.join_box, self.join_why]

    @property
    def of_answer(self) -> list[Block]:
        """What `clear` fills."""
        return [self.answer, self.undo, self.before]

    def show(self, draft: Draft) -> dict:
        """The panel where there are pictures, and the offer to join where captions have several lines."""
        number = len(wrapped(_captions(draft)))
        have = (
            "caption has several lines, and each line"
            if number == 1
            else "captions have several lines, and each"
        )
        return {
            self.panel: gr.Accordion(visible=bool(draft.items)),
            self.join_box: gr.Row(visible=number > 0),
            self.join_why: words.lines([f"{number} {have} counts as a caption of its own."], "note")
            if number
            else "",
        }

    def open(self, draft: Draft) -> dict:
        """The panel, open while captions are missing; a person's typing neither opens nor closes it."""
        missing = any(not item.caption.strip() for item in draft.items)
        return {self.panel: gr.Accordion(visible=bool(draft.items), open=missing)}

    def clear(self) -> dict:
        """Forgets the last tool: another draft is shown."""
        return {self.answer: "", self.undo: gr.Button(visible=False), self.before: None}

    def connect(self, step: "PicturesStep") -> None:
        """Connects the events."""
        self.step = step
        outputs = [*step.cards.of_captions, *step.messages, *self.of_answer, *step.writer.one]
        clicks = [button.click for button in self.tools.values()]
        given = {*step.cards.typed, self.pattern, self.find, self.put, self.table}
        listen(clicks, self.use, given, outputs, progress_on=self.answer, **WRITES_DRAFT)
        listen(self.undo.click, self.take_back, {*step.cards.typed, self.before}, outputs, **WRITES_DRAFT)

    def use(self, values: dict, event: gr.EventData) -> dict:
        """Has a tool change the captions, after what was typed on the cards is kept."""
        shown = values[self.step.draft]
        draft = self.step.cards.keep_typed(values)
        tool = self._tool(source_of(event).removeprefix("captions-"))
        try:
            changed, said = tool(draft, values)
        except CaptionToolError as error:
            return {**self._show(draft, shown, {}), self.answer: words.lines([str(error)], "problem")}
        captions = _captions(draft)
        before = Before(draft.id, {key: captions[key] for key in changed}, changed)
        draft = set_captions(draft, changed) if changed else draft
        return {
            **self._show(draft, shown, changed),
            self.answer: f"<p class='done' role='status'>{words.text(said)}</p>",
            self.undo: gr.Button(visible=bool(changed)),
            self.before: asdict(before),
        }

    def take_back(self, values: dict) -> dict:
        """Puts back the captions that still are as the last tool has made them; others were changed since."""
        shown, last = values[self.step.draft], read_shown(Before, values[self.before])
        draft = self.step.cards.keep_typed(values)
        now = _captions(draft) if last.draft == draft.id else {}
        untouched = [key for key, text in last.made.items() if now.get(key) == text]
        captions = {key: last.captions[key] for key in untouched if key in last.captions}
        draft = set_captions(draft, captions)
        said = f"{len(captions)} {'caption is' if len(captions) == 1 else 'captions are'} as before."
        if left := len(now.keys() & last.made) - len(captions):
            said += f" {words.count(left, 'caption')} changed since {'is' if left == 1 else 'are'} left."
        answer = {self.answer: f"<p class='done' role='status'>{said}</p>"}
        return {**self._show(draft, shown, captions), **self.clear(), **answer}

    def _show(self, draft: Draft, shown: object, changed: Captions) -> dict:
        at = read_shown(ShownDraft, shown)
        captions = self.step.cards.show_captions(draft, at, only=changed)
        return {**captions, **self.step.cards.show_offers(draft, at), **self.step.show_messages(draft, at)}

    def _tool(self, name: str) -> Callable[[Draft, dict], tuple[Captions, str]]:
        return {
            "empty": self._fill_empty,
            "all": self._fill_all,
            "first": _put_first,
            "replace": self._replace,
            "table": self._paste,
            "join": _join,
        }[name]

    def _fill_empty(self, draft: Draft, values: dict) -> tuple[Captions, str]:
        empty = {key: text for key, text in _captions(draft).items() if not text.strip()}
        return self._fill(draft, values, empty)

    def _fill_all(self, draft: Draft, values: dict) -> tuple[Captions, str]:
        return self._fill(draft, values, _captions(draft))

    def _fill(self, draft: Draft, values: dict, captions: Captions) -> tuple[Captions, str]:
        changed = fill_pattern(captions, values[self.pattern] or "", draft.trigger_word)
        return changed, f"{words.count(len(changed), 'caption')} filled."

    def _replace(self, draft: Draft, values: dict) -> tuple[Captions, str]:
        changed = replace_words(_captions(draft), values[self.find] or "", values[self.put] or "")
        return changed, f"{words.count(len(changed), 'caption')} changed."

    def _paste(self, draft: Draft, values: dict) -> tuple[Captions, str]:
        names = {item.name: item.key for item in draft.items}
        changed, unknown = read_table(values[self.table] or "", names)
        said = f"{words.count(len(changed), 'caption')} taken from the table."
        if unknown:
            said += f" {words.count(len(unknown), 'line')} named no picture here, the first {unknown[0]}."
        return changed, said


def caption_tools(panel: gr.Accordion) -> CaptionTools:
    """Lays them out in the panel, and what a tool did below it."""
    with panel:
        with gr.Row(equal_height=False):
            with gr.Row(scale=3, elem_classes="tool"):
                pattern = gr.Textbox(
                    PATTERN,
                    label="One pattern for all",
                    info="[trigger] becomes the trigger word.",
                    max_length=2000,
                    elem_id="captions-pattern",
                )
                empty = gr.Button("Fill the empty ones", size="sm", elem_id="captions-empty")
                every = gr.Button("Replace all", size="sm", elem_id="captions-all")
            with gr.Row(scale=2, elem_classes="tool"):
                table = gr.Textbox(
                    "",
                    label="Paste a table",
                    info="File name and caption, a line for each picture.",
                    max_lines=8,
                    lines=1,
                    elem_id="captions-table-text",
                )
                take = gr.Button("Take these captions", size="sm", elem_id="captions-table")
        with gr.Row(elem_classes="tool"):
            find = gr.Textbox("", label="Find", max_length=2000, elem_id="captions-find")
            put = gr.Textbox("", label="Put in its place", max_length=2000, elem_id="captions-put")
            replace = gr.Button("Replace in all", size="sm", elem_id="captions-replace")
            first = gr.Button("Put the trigger word first in all", size="sm", elem_id="captions-first")
    with gr.Row(visible=False, elem_classes="buttons", elem_id="wrapped") as join_box:
        join_why = gr.HTML(elem_id="wrapped-why")
        join = gr.Button("Join the lines of each", size="sm", elem_id="captions-join")
    with gr.Row(elem_classes="buttons answer"):
        answer = gr.HTML(elem_id="captions-answer")
        undo = gr.Button("Undo", visible=False, size="sm", elem_id="captions-undo")
    tools = {
        "empty": empty,
        "all": every,
        "first": first,
        "replace": replace,
        "table": take,
        "join": join,
    }
    return CaptionTools(
        panel=panel,
        pattern=pattern,
        find=find,
        put=put,
        table=table,
        tools=tools,
        join_box=join_box,
        join_why=join_why,
        answer=answer,
        undo=undo,
        before=held(),
    )


def _captions(draft: Draft) -> Captions:
    return {item.key: item.caption for item in draft.items}


def _put_first(draft: Draft, values: dict) -> tuple[Captions, str]:
    changed = put_trigger_first(_captions(draft), draft.trigger_word)
    return changed, f"{words.count(len(changed), 'caption')} changed."


def _join(draft: Draft, values: dict) -> tuple[Captions, str]:
    changed = join_lines(_captions(draft))
    return changed, f"{words.count(len(changed), 'caption')} joined to one line."
