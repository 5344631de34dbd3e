"""The second step: what the teacher sees in the pictures, before an hour is spent on training."""

import hashlib
import json
import secrets
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

import gradio as gr
from filelock import FileLock
from gradio.blocks import Block

from dopsd_app.checks.verdict import CHECKED, TeacherCheck, read_check, rows_drawn
from dopsd_app.config import load_preset
from dopsd_app.data.caption_file import clean_captions, put_trigger_word
from dopsd_app.data.crops import MIDDLE
from dopsd_app.data.drafts import Draft, draft_config, draft_dataset
from dopsd_app.data.pictures import copy_examples
from dopsd_app.errors import KnownFailure
from dopsd_app.files import read_value, replace_file
from dopsd_app.jobs.drawing import CheckRequest, Drawing, ask, cancel, follow, read_drawing
from dopsd_app.jobs.job import RunError
from dopsd_app.jobs.runs import default_runs_dir
from dopsd_app.jobs.status import Status
from dopsd_app.models.catalog import check_sources, find_facts, what_lacks
from dopsd_app.ui import words
from dopsd_app.ui.events import held, listen, on_tick
from dopsd_app.ui.navigation import PICTURES, PLAN
from dopsd_app.ui.plan import check_ready
from dopsd_app.ui.run_rows import waiting_words
from dopsd_app.ui.shown_draft import draft_of
from dopsd_app.ui.teacher_causes import Cause, find_cause, words_for
from dopsd_app.ui.updates import only_changed

if TYPE_CHECKING:
    from dopsd_app.ui.page import Page

BUSY, IDLE = 0.5, 30.0  # seconds between two polls
WORDS = {
    "sees": "The teacher sees it",
    "partly": "The teacher sees it partly",
    "does not": "The teacher does not see it",
}
MARKS = {"sees": "sees", "partly": "partly", "does not": "not"}
# What stands above a column, and what its pictures are called.
COLUMNS = (
    ("Your picture", "Your picture"),
    ("From the caption", "Drawn from the caption"),
    ("Caption and picture: the teacher", "Drawn by the teacher"),
)
EDIT_COLUMNS = (
    ("Before", "The source"),
    ("After: your picture", "Your picture"),
    ("From source and instruction", "Drawn from source and instruction"),
    ("With your picture too: the teacher", "Drawn by the teacher"),
)
INTRODUCTION = (
    "<div class='empty'><p>Training can teach what the teacher draws, and no more.<br>Look at it before you"
    " spend an hour: up to four pictures are drawn, from your caption alone and with your picture in"
    " view.</p></div>"
)


@dataclass(frozen=True)
class AskedCheck:
    """What a draft remembers of the check that was last asked for with it."""

    drawing: str  # id
    of: str  # digest of what it was to see


@dataclass(eq=False)
class TeacherStep:
    """The components of this step, and what its events do."""

    page: "Page" = field(init=False)
    check: gr.Button
    cancel: gr.Button
    mend: gr.Button  # leads to what helps, where the teacher does not see the pictures
    go: gr.Button
    outlook: gr.HTML  # what is still missing
    status: gr.HTML
    verdict: gr.HTML
    rows: gr.HTML
    timer: gr.Timer
    digests: gr.JSON

    @property
    def outputs(self) -> list[Block]:
        """What `show` fills."""
        foot = [self.outlook, self.mend, self.go]
        shown = [self.status, self.verdict, self.rows, self.check, self.cancel, *foot]
        return [self.digests, *shown, self.timer]

    def connect(self, page: "Page") -> None:
        """Connects the step's events."""
        self.page = page
        draft = page.pictures.draft
        at = [draft, self.digests]
        listen(self.check.click, self.begin, at, self.outputs)
        listen(self.cancel.click, self.end, at, self.outputs)
        on_tick(self.timer, self.poll, at, self.outputs)
        listen(self.mend.click, self.go_back, None, page.navigation.outputs)
        outputs = [*page.navigation.outputs, *page.plan.outputs]
        listen(self.go.click, self.go_on, draft, outputs, progress_on=page.plan.needs)

    def begin(self, shown: object, sent: object) -> dict:
        """Begins a check of the draft."""
        draft = draft_of(shown)
        start_check(draft)
        return self.show(draft, sent)

    def end(self, shown: object, sent: object) -> dict:
        """Stops the draft's check."""
        draft = draft_of(shown)
        cancel_check(draft)
        return self.show(draft, sent)

    def go_back(self) -> dict:
        """Goes back to the first step, where pictures, captions and the base model can be changed."""
        return self.page.navigation.go_to(PICTURES)

    def go_on(self, shown: object) -> dict:
        """Goes on to the third step."""
        return {**self.page.navigation.go_to(PLAN), **self.page.plan.show(draft_of(shown))}

    def poll(self, shown: object, sent: object) -> dict:
        """All that has changed since this tab was sent it; nothing before the page knows its draft."""
        if not shown:
            return {}
        draft = draft_of(shown)
        if drawing := draft_check(draft):
            follow(drawing)
        return self.show(draft, sent)

    def show(self, draft: Draft, sent: object = None) -> dict:
        """All that shows the check; what this tab has already is left as it is."""
        drawing = draft_check(draft)
        status = drawing.status if drawing else None
        live = bool(status and status.busy)
        waits = waiting_words(drawing) if drawing and status and status.state == "queued" else ""
        rows = rows_drawn(drawing.path) if drawing else []
        check = read_check(drawing.path) if drawing else None
        outdated = bool(check) and is_outdated(draft)
        blind = bool(check) and check.verdict == "does not"
        cause = find_cause(draft) if blind else None
        first = _fetched_first(draft) if not live and not rows else ""
        values = {
            self.status: (
                (status and (status.state, status.done, status.total, status.reason, status.speed, waits))
                or first,
                lambda: _status(status, waits) or first,
            ),
            self.verdict: (
                (drawing and drawing.id, bool(check), outdated, cause),
                lambda: _verdict(check, outdated, cause),
            ),
            self.rows: ((drawing and drawing.id, len(rows)), lambda: _rows(drawing, rows)),
            self.check: ((live, bool(rows)), lambda: _check_button(live, bool(rows))),
            self.cancel: (live, lambda: gr.Button(interactive=live)),
            self.outlook: ((live, bool(check), blind), lambda: _outlook(live, check)),
            self.mend: (cause, lambda: gr.Button(cause.action if cause else "", visible=bool(cause))),
            self.go: ((bool(check), blind), lambda: _go_button(bool(check), blind)),
            self.timer: (live, lambda: gr.Timer(BUSY if live else IDLE, active=True)),
        }
        return only_changed(values, self.digests, sent)


def teacher_step() -> TeacherStep:
    """Lays the step out."""
    gr.HTML("<h2>What the teacher sees</h2>")
    with gr.Row(elem_classes="buttons"):
        check = gr.Button("Show me", variant="primary", elem_id="check")
        cancel_button = gr.Button("Cancel", interactive=False, elem_id="cancel-check")
    status = gr.HTML(elem_id="check-status")
    verdict = gr.HTML(elem_id="verdict")
    rows = gr.HTML(INTRODUCTION, elem_id="check-rows")
    with gr.Row(elem_classes="foot"):
        outlook = gr.HTML(elem_id="outlook")
        mend = gr.Button("", variant="primary", visible=False, elem_id="mend")
        go = gr.Button("Skip", elem_id="to-plan")
    return TeacherStep(
        check=check,
        cancel=cancel_button,
        mend=mend,
        go=go,
        outlook=outlook,
        status=status,
        verdict=verdict,
        rows=rows,
        timer=gr.Timer(IDLE, active=False),
        digests=held(),
    )


# --- actions


def start_check(draft: Draft) -> Drawing:
    """Begins a teacher check of the draft as it is now; the draft remembers which check is its own."""
    config = draft_config(draft)
    check_ready(config)  # it may ask the Hub: not while another tab waits for the lock
    check_sources(config.base_model, config.revision, draft.sources)
    with _check_lock(draft):
        if (earlier := draft_check(draft)) and earlier.status.busy:
            raise RunError("A check is under way. Wait for it, or cancel it first.")
        config, dataset = draft_config(draft), draft_dataset(draft)
        digest = _digest(draft)
        checked = draft.path / f"checked-{secrets.token_hex(6)}"
        copy_examples(replace(dataset, examples=dataset.examples[:CHECKED]), checked)
        try:
            drawing = ask(default_runs_dir(), CheckRequest(config, checked))
        except RunError:
            shutil.rmtree(checked)
            raise
        replace_file(_file(draft), json.dumps(asdict(AskedCheck(drawing.id, digest))))
        # Only now: had this check been refused, the last one would still be shown.
        for old in set(draft.path.glob("checked-*")) - {checked}:
            shutil.rmtree(old, ignore_errors=True)
    return drawing


def cancel_check(draft: Draft) -> None:
    """Stops the draft's check after the picture at hand, also one that is just being begun."""
    with _check_lock(draft):
        drawing = draft_check(draft)
    if drawing:
        cancel(drawing)


def _check_lock(draft: Draft) -> FileLock:
    """Held while a check is begun, until the draft knows which is its own."""
    return FileLock(draft.path / ".check.lock", timeout=60)


def draft_check(draft: Draft) -> Drawing | None:
    """The check that was last asked for with this draft, while it is kept and can be read."""
    with suppress(RunError):
        if asked := _asked(draft):
            return read_drawing(default_runs_dir(), asked.drawing)
    return None


def is_outdated(draft: Draft) -> bool:
    """Whether the draft's last check saw other pictures or captions, or another base model."""
    asked = _asked(draft)
    return asked is None or asked.of != _digest(draft)


def _asked(draft: Draft) -> AskedCheck | None:
    with suppress(OSError, ValueError):
        return read_value(AskedCheck, _file(draft).read_bytes())
    return None


def _digest(draft: Draft) -> str:
    settings = load_preset(draft.preset).settings | draft.settings  # which may not be whole just now
    pictures = [
        (
            item.key,
            put_trigger_word(item.caption, draft.trigger_word.strip() or "[trigger]"),
            *(source.key for source in item.sources),
            *(item.focus if item.focus != MIDDLE else ()),
        )
        for item in draft.items[:CHECKED]
    ]
    seen = ("teacher_context", "teacher_picture_minimum", "teacher_picture_maximum")
    checked = [pictures, *(settings.get(name) for name in ("base_model", "resolution", *seen))]
    return hashlib.sha256(json.dumps(checked).encode()).hexdigest()


def _file(draft: Draft):
    return draft.path / "check"


def show_check(draft: Draft) -> dict:
    """The score and the sentence of the draft's finished check; empty without one."""
    drawing = draft_check(draft)
    check = read_check(drawing.path) if drawing else None
    return asdict(check) | {"outdated": is_outdated(draft)} if check else {}


# --- the page


def _fetched_first(draft: Draft) -> str:
    """That a check begins with a download, where it does."""
    try:
        config = draft_config(draft)
        facts = find_facts(config.base_model, config.revision)
        sizes, context = facts.sizes_for(config), config.teacher_context
        lacks = what_lacks(config.base_model, config.revision, context, facts, sizes)
    except KnownFailure:  # reported where the settings and the base model are
        return ""
    if lacks is None:
        return ""
    size = f": at most {words.disk(lacks.size)}" if lacks.size else ""
    return f"<p class='hint'>Fetched from the Hub first, once: {words.text(lacks.what)}{size}.</p>"


def _check_button(live: bool, again: bool):
    variant = "secondary" if again else "primary"
    return gr.Button("Show me again" if again else "Show me", variant=variant, interactive=not live)


def _go_button(checked: bool, blind: bool):
    words_on_it = "Go on anyway" if blind else "Next: the plan" if checked else "Skip"
    return gr.Button(words_on_it, variant="primary" if checked and not blind else "secondary")


def _outlook(live: bool, check: TeacherCheck | None) -> str:
    """What is still missing before the next step makes sense, in one line."""
    if live:
        return "<p class='missing'>The teacher is looking.</p>"
    if check is None:
        return "<p class='missing'>Look first: it takes less than training in vain.</p>"
    return f"<p class='missing'>{WORDS[check.verdict]}.</p>"


def _status(status: Status | None, waits: str) -> str:
    if status is None or status.state == "finished":
        return ""
    if not status.busy:
        return f"<p class='problem' role='status'>{words.message(status.reason or 'Cancelled.')}</p>"
    sentence = {
        "queued": words.text(waits),
        "loading": "Loading the model",
    }.get(status.state, f"Drawing, {status.done} of {status.total}")
    if status.download:
        sentence = f"{words.STATES['downloading']}. {words.download(status.download)}."
    share = status.done / status.total if status.total else 0
    label = "Base model fetched" if status.download else "Pictures drawn"
    # What changes twice a second is not to be read out twice a second.
    live = "" if status.download else " role='status' aria-live='polite'"
    return (
        f"<p class='hint'{live}>{sentence}</p>"
        f"<progress max='1' value='{share:.3f}' aria-label='{label}'></progress>"
    )


def _verdict(check: TeacherCheck | None, outdated: bool, cause: Cause | None) -> str:
    if check is None:
        return ""
    said = words_for(check.sentence, cause) if cause else f"<p>{words.message(check.sentence)}</p>"
    old = "This was seen in other pictures or captions, or by another base model. Look again."
    return words.lines([old] if outdated else [], "advice") + (
        f"<div class='verdict {MARKS[check.verdict]}' role='status'>"
        f"<p class='word'>{WORDS[check.verdict]}</p>"
        f"{said}"
        f"<p class='hint'>Score {check.score:.2f}, from 0 to 1: what the teacher"
        " takes from your pictures, beyond what an even grey picture gives it.</p></div>"
    )


def _rows(drawing: Drawing | None, rows: list) -> str:
    if drawing is None or not rows:
        return INTRODUCTION
    captions = _captions(drawing)
    edits = len(rows[0]) == len(EDIT_COLUMNS)
    heads, names = zip(*(EDIT_COLUMNS if edits else COLUMNS), strict=True)
    head = "".join(f"<span>{text}</span>" for text in heads)
    parts = [f"<div class='check{' edit' if edits else ''}'><div class='row head'>{head}</div>"]
    for number, row in enumerate(rows):
        caption = captions[number] if number < len(captions) else ""
        pictures = "".join(
            words.picture(file, name, group="check", caption=f"{name}: {caption}")
            for file, name in zip(row, names, strict=True)
        )
        parts.append(f"<div class='row'>{pictures}<p class='cap'>{words.text(caption)}</p></div>")
    return "".join(parts) + "</div>"


def _captions(drawing: Drawing) -> list[str]:
    """The first caption of each picture, as it was when the check began."""
    found = []
    for file in sorted(drawing.asked_for(CheckRequest).folder.glob("*.txt")):
        found.append(clean_captions(file.read_text(encoding="utf-8").splitlines(), file.name)[0])
    return found
