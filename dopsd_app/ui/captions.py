"""Captions that are written for the person: asked for, watched, stopped, and taken in another length."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING

import gradio as gr
from gradio.blocks import Block

from dopsd_app.config import SUBJECT
from dopsd_app.data.draft_file import Item
from dopsd_app.data.drafts import Draft, check_keys, default_drafts_dir, find_draft
from dopsd_app.jobs.captioning import (
    ask_for_draft,
    cancel_captions,
    latest_captions,
    read_written,
    use_length,
)
from dopsd_app.jobs.events import CaptionWritten, read_events
from dopsd_app.jobs.job import Job
from dopsd_app.jobs.queue import computing
from dopsd_app.jobs.runs import default_runs_dir
from dopsd_app.jobs.status import Status
from dopsd_app.models.captioner_download import lacking_bytes
from dopsd_app.models.captioner_facts import LENGTHS
from dopsd_app.planning.captioning import Choice, captioners_that_fit, why_none
from dopsd_app.planning.machine import read_machine
from dopsd_app.ui import words
from dopsd_app.ui.cards import offer_to_write
from dopsd_app.ui.confirmation import Confirmation, confirmation
from dopsd_app.ui.events import WRITES_DRAFT, held, listen, on_tick, source_of
from dopsd_app.ui.shown_draft import ON_A_PAGE, ShownDraft, draft_of, items_of, key_at, read_shown, show_page
from dopsd_app.ui.updates import only_changed

if TYPE_CHECKING:
    from dopsd_app.ui.pictures import PicturesStep

BUSY, IDLE = 1.0, 30.0  # seconds between two polls
CHOICES = [(length.capitalize(), length) for length in LENGTHS]


@dataclass(frozen=True)
class Told:
    """How many captions of a job the tab has been given: it lives in the tab."""

    job: str = ""  # id
    captions: int = 0


@dataclass(eq=False)
class CaptionWriter:
    """The components, and what their events do."""

    step: "PicturesStep" = field(init=False)
    box: gr.Column  # there where there are pictures
    choices: gr.Row  # there where a model fits
    length: gr.Radio
    what: gr.Textbox
    write: gr.Button
    again: gr.Button
    cancel: gr.Button
    asking: Confirmation
    over: Confirmation  # of one caption
    status: gr.HTML
    timer: gr.Timer
    digests: gr.JSON
    told: gr.JSON  # the `Told`
    one: list[gr.Button] = field(init=False)  # on the cards: each has one caption written

    @property
    def outputs(self) -> list[Block]:
        """What `show` fills, but for what `show_kind` fills too."""
        shown = [self.box, self.choices, self.length, self.write, self.again, self.cancel]
        return [self.digests, self.told, *shown, self.status, self.timer, *self.one]

    def show_state(self, draft: Draft, shown: ShownDraft) -> dict:
        """How far the draft's writing is; what is chosen and typed for it is left alone."""
        return self._show_state(draft, shown, _job(draft), None)

    def show(self, draft: Draft) -> dict:
        """The draft's writing as it stands; its captions are shown by others."""
        job, written = _job(draft), read_written(draft.path)
        told = Told(job.id, len(_put(job))) if job else Told()
        visible = draft.kind == SUBJECT
        chosen = {
            self.length: gr.Radio(value=written.length),
            self.what: gr.Textbox(written.what, visible=visible),
        }
        return {**self.show_state(draft, show_page(draft, 0)), **chosen, self.told: asdict(told)}

    def show_kind(self, draft: Draft) -> dict:
        """What is asked about what is new: of a subject, an ordinary word for it."""
        return {self.what: gr.Textbox(visible=draft.kind == SUBJECT)}

    def _show_state(self, draft: Draft, shown: ShownDraft, job: Job | None, sent: object) -> dict:
        """How far it is, and what can be done now; what this tab has already is left as it is."""
        status = job.status if job else None
        busy = bool(status and status.busy)
        choice, why = (None, "") if busy else _find_choice()
        captioned = [bool(item.caption.strip()) for item in draft.items]
        said = _progress(status) if busy else f"{_ending(job, status)}{_offer(choice, why)}"
        values = {
            self.box: {"visible": bool(draft.items)},
            self.choices: {"visible": busy or choice is not None},
            self.write: {"visible": not busy and not all(captioned)},
            self.again: {"visible": not busy and any(captioned)},
            self.cancel: {"visible": busy},
            self.status: (said, lambda: said),
            **{
                button: {
                    "visible": not busy and choice is not None,
                    "value": offer_to_write(item.caption if item else ""),
                }
                for button, item in zip_longest(self.one, items_of(draft, shown))
            },
            self.timer: (busy, lambda: gr.Timer(BUSY if busy else IDLE, active=True)),
        }
        return only_changed(values, self.digests, sent)

    # --- what its events do

    def connect(self, step: "PicturesStep") -> None:
        """Connects the events."""
        self.step = step
        captions = [*step.cards.of_captions, *step.messages]
        at = [step.draft, self.digests, self.told]
        asked = {*step.cards.typed, self.length, self.what, self.digests, self.told}
        outputs = [*self.outputs, *captions]
        listen(self.write.click, self.write_empty, asked, outputs, **WRITES_DRAFT)
        listen(
            self.again.click, self.ask_to_write_all, asked, [*outputs, *self.asking.outputs], **WRITES_DRAFT
        )
        self.asking.connect(
            self.write_all, [step.draft, self.length, self.what, self.digests, self.told], outputs
        )
        one = [button.click for button in self.one]
        listen(one, self.write_one, asked, [*outputs, *self.over.outputs], **WRITES_DRAFT)
        self.over.connect(
            self.write_over, [step.draft, self.length, self.what, self.digests, self.told], outputs
        )
        chosen = {*step.cards.typed, self.length}
        listen(self.length.input, self.choose_length, chosen, captions, **WRITES_DRAFT)
        listen(self.cancel.click, self.stop, at, outputs)
        on_tick(self.timer, self.tick, {*step.cards.typed, self.digests, self.told}, outputs)

    def write_empty(self, values: dict) -> dict:
        """Has captions written for the pictures without one."""
        return self._begin(values, None)

    def write_one(self, values: dict, event: gr.EventData) -> dict:
        """Has the caption on one card written, or written again; asks first, where it is the person's own."""
        shown, number = values[self.step.draft], int(source_of(event).removeprefix("write-")) - 1
        key, draft = key_at(shown, number), self.step.cards.keep_typed(values)
        if any(item.key == key for item in _own(draft)):
            place = read_shown(ShownDraft, shown).page * ON_A_PAGE + number + 1
            return self.over.ask(key, f"Write over your own caption of picture {place}")
        return self._begin(values, [key])

    def ask_to_write_all(self, values: dict) -> dict:
        """Has all captions written again; asks first, where some are the person's own."""
        draft = self.step.cards.keep_typed(values)
        if own := _own(draft):
            are = "is your own" if len(own) == 1 else "are your own"
            count = words.count(len(draft.items), "caption")
            return self.asking.ask(draft.id, f"Write {count} again, of which {len(own)} {are}")
        return self._begin(values, [item.key for item in draft.items])

    def write_all(
        self, subject: str, shown: object, length: str, what: str, sent: object, told: object
    ) -> dict:
        """Has all captions written again, the person's own too."""
        draft = find_draft(default_drafts_dir(), subject)
        ask_for_draft(default_runs_dir(), draft, length, what or "", [item.key for item in draft.items])
        return {**self.poll(shown, sent, told), **self.asking.close()}

    def write_over(
        self, subject: str, shown: object, length: str, what: str, sent: object, told: object
    ) -> dict:
        """Has the caption that was asked about written again, which is the person's own."""
        draft = draft_of(shown)
        check_keys(draft.content, [subject])
        ask_for_draft(default_runs_dir(), draft, length, what or "", [subject])
        return {**self.poll(shown, sent, told), **self.over.close()}

    def _begin(self, values: dict, keys: list[str] | None) -> dict:
        # That is then no empty caption.
        draft = self.step.cards.keep_typed(values)
        ask_for_draft(default_runs_dir(), draft, values[self.length], values[self.what] or "", keys)
        return self.poll(values[self.step.draft], values[self.digests], values[self.told])

    def choose_length(self, values: dict) -> dict:
        """Takes the captions of another length at once, where they were written and nobody changed them."""
        before = self.step.cards.keep_typed(values)
        draft = use_length(before, values[self.length])
        if draft.items == before.items:
            return {}
        at, old = read_shown(ShownDraft, values[self.step.draft]), set(before.items)
        new = {item.key: item.caption for item in draft.items if item not in old}
        return {**self.step.cards.show_captions(draft, at, only=new), **self.step.show_messages(draft, at)}

    def stop(self, shown: object, sent: object, told: object) -> dict:
        """Ends the writing after the picture at hand."""
        cancel_captions(default_runs_dir(), draft_of(shown).path)
        return self.poll(shown, sent, told)

    def tick(self, values: dict) -> dict:
        """As `poll`; a box with words that are still on their way is left alone."""
        shown = values[self.step.draft]
        typed = self.step.cards.read_typed(values) if shown else {}
        return self.poll(shown, values[self.digests], values[self.told], typed)

    def poll(self, shown: object, sent: object, told: object, typed: Collection[str] = ()) -> dict:
        """What has changed since this tab was told: the captions that came, where they stand as they came.

        The boxes of the pictures with the keys `typed` are not filled.
        """
        if not shown:  # nothing, before the page knows its draft
            return {}
        draft, at = draft_of(shown), read_shown(ShownDraft, shown)
        job = _job(draft)
        state = self._show_state(draft, at, job, sent)
        known = read_shown(Told, told or {})
        came = _put(job) if job else []
        new = came[known.captions if job and job.id == known.job else 0 :]
        if not job or not new:
            return state
        texts = {event.key: event.text for event in new if event.key not in typed}
        return {
            **state,
            self.told: asdict(Told(job.id, len(came))),
            **self.step.cards.show_captions(draft, at, only=texts),
            **self.step.show_messages(draft, at),
        }


def caption_writer(panel: gr.Accordion) -> CaptionWriter:
    """Lays it out in the panel; what must work while that is closed lies outside."""
    with panel, gr.Column(visible=False, elem_id="caption-writer", elem_classes="writer") as box:
        with gr.Row(elem_classes="tool") as choices:
            length = gr.Radio(CHOICES, value="medium", label="Length", elem_id="caption-length")
            what = gr.Textbox(
                "",
                label="What is it? (optional)",
                placeholder="dog, cup, person",
                max_length=60,
                elem_id="caption-what",
            )
            write = gr.Button("Write captions for me", elem_id="write-captions")
            again = gr.Button("Write all again", size="sm", visible=False, elem_id="write-all")
            cancel = gr.Button("Cancel", size="sm", visible=False, elem_id="cancel-captions")
        asking = confirmation("captions", "Write over them", "Keep them")
        status = gr.HTML(elem_id="caption-status")
    # It is asked from a card, which may be far below: it lies above the page's foot.
    over = confirmation("caption", "Write over it", "Keep mine")
    timer = gr.Timer(IDLE, active=False)
    return CaptionWriter(
        box, choices, length, what, write, again, cancel, asking, over, status, timer, held(), held()
    )


# --- how it stands


def _job(draft: Draft) -> Job | None:
    return latest_captions(default_runs_dir(), draft.path)


def _own(draft: Draft) -> list[Item]:
    """The pictures with a caption of the person's own, and not as it was written for them."""
    written = read_written(draft.path)
    return [
        item for item in draft.items if item.caption.strip() and not written.is_ours(item.key, item.caption)
    ]


def _put(job: Job) -> list[CaptionWritten]:
    """The captions that a job has put where they belong."""
    return [
        event for event in read_events(job.events_file) if isinstance(event, CaptionWritten) and event.put
    ]


def _find_choice() -> tuple[Choice | None, str]:
    """What would write, and else why nothing can."""
    machine = read_machine()
    # What a job of ours has will be free when this one begins.
    if found := captioners_that_fit(machine, own=not computing(default_runs_dir())):
        return found[0], ""
    return None, why_none(machine) or (
        "Writing captions needs more memory than is free now: close other programs that use it."
    )


def _offer(choice: Choice | None, why: str) -> str:
    if choice is None:
        return words.lines([f"{why} Fill captions from a pattern below, or write them yourself."], "note")
    lacks = lacking_bytes(choice.captioner)
    here = f"It is fetched once, {words.disk(lacks)}." if lacks else "It is on this computer."
    where = "" if choice.on_gpu else " on this processor"
    takes = f"{words.in_time(choice.seconds)} each{where}"
    return (
        f"<p class='hint'>{words.text(choice.in_words)} looks at the pictures, {takes}, and describes all but"
        f" what never changes. {here} What you write stays.</p>"
    )


def _progress(status: Status | None) -> str:
    assert status is not None  # it is what is busy
    sentence = {
        "queued": "The captions wait until the computer is free",
        "loading": "Loading the model that writes",
        "captioning": f"Looking at picture {min(status.done + 1, status.total)} of {status.total}",
        "stopping": "Stopping after this picture",
    }.get(status.state, "Writing captions")
    if status.download:
        sentence = f"Fetching the model that writes. {words.download(status.download)}"
    share = status.done / status.total if status.total else 0
    label = "Model fetched" if status.download else "Captions written"
    return (
        f"<p class='hint'>{sentence}. It goes on when this page is closed.</p>"
        f"<progress max='1' value='{share:.3f}' aria-label='{label}'></progress>"
    )


def _ending(job: Job | None, status: Status | None) -> str:
    """What came of the last writing."""
    if job is None or status is None:
        return ""
    if status.state == "stopped":
        return words.lines(["Cancelled. What is written stays."], "note")
    if status.state != "finished":
        return f"<p class='problem' role='status'>{words.message(status.reason)}</p>"
    result = job.result
    said = [f"{words.count(result.get('put', 0), 'caption')} written: read them once."]
    if kept := result.get("kept"):
        said.append(f"{words.count(kept, 'caption')} left as you wrote it meanwhile.")
    if unusable := result.get("unusable"):
        said.append(f"For {words.count(unusable, 'picture')} the model wrote nothing that can be used.")
    if unreadable := result.get("unreadable"):
        were = "was" if unreadable == 1 else "were"
        said.append(f"{words.count(unreadable, 'picture')} could not be read or {were} removed.")
    return f"<p class='done' role='status'>{words.text(' '.join(said))}</p>"
