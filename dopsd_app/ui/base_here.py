"""What is here of the chosen base model: its download, and the check that proves it on this computer."""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr
from gradio.blocks import Block

from dopsd_app.config import TrainConfig
from dopsd_app.data.drafts import Draft, draft_config
from dopsd_app.errors import KnownFailure
from dopsd_app.jobs.base_jobs import ask_for_check, ask_for_download, latest, stop
from dopsd_app.jobs.job import Job
from dopsd_app.jobs.kinds import CHECK_BASE, DOWNLOAD
from dopsd_app.jobs.runs import default_runs_dir
from dopsd_app.jobs.status import Status
from dopsd_app.models.base_download import needs_fetching
from dopsd_app.models.base_report import PICTURES, REPORT, BaseReport, find_report
from dopsd_app.models.catalog import find_repository
from dopsd_app.planning.plan import check_device, check_fetch
from dopsd_app.ui import words
from dopsd_app.ui.events import held
from dopsd_app.ui.updates import only_changed

BUSY, IDLE = 1.0, 30.0  # seconds between two polls
UNWELL = ("failed", "interrupted", "stopped")
NAMES = ("What the teacher was shown", "Drawn from the caption", "Drawn by the teacher")


@dataclass(frozen=True)
class _Here:
    """How the base model of a draft stands."""

    config: TrainConfig
    fetching: bool  # whether something has to come from the Hub
    job: Job | None = None  # the download or the check that is at work or waits; else the one that ended last
    status: Status | None = None  # of that job
    report: BaseReport | None = None
    folder: Path | None = None  # of the report
    can_check: bool = False  # whether it can be computed here at all

    @property
    def busy(self) -> bool:
        return bool(self.status and self.status.busy)


@dataclass(frozen=True)
class BaseHere:
    """The components, and what they show of a draft's base model."""

    status: gr.HTML
    fetch: gr.Button
    check: gr.Button
    cancel: gr.Button
    timer: gr.Timer
    digests: gr.JSON = field(repr=False)

    @property
    def outputs(self) -> list[Block]:
        """What `show` fills."""
        return [self.digests, self.status, self.fetch, self.check, self.cancel, self.timer]

    def show(self, draft: Draft, sent: object = None) -> dict:
        """How it stands now; what this tab has already is left as it is."""
        here = _look(draft)
        busy = here is not None and here.busy
        offered = here is not None and here.fetching and not busy
        checkable = here is not None and here.can_check and not busy
        again = bool(here and here.report)
        status = _status(here)
        values = {
            self.status: (status, lambda: status),
            self.fetch: {"visible": offered},
            self.check: {"visible": checkable, "value": "Check it again" if again else "Check it here"},
            self.cancel: {"visible": busy},
            self.timer: (busy, lambda: gr.Timer(BUSY if busy else IDLE, active=True)),
        }
        return only_changed(values, self.digests, sent)


def base_here() -> BaseHere:
    """Lays it out."""
    status = gr.HTML(elem_id="base-status")
    with gr.Row(elem_classes="buttons"):
        fetch = gr.Button("Download it now", size="sm", visible=False, elem_id="base-fetch")
        check = gr.Button("Check it here", size="sm", visible=False, elem_id="base-check")
        cancel = gr.Button("Cancel", size="sm", visible=False, elem_id="base-cancel")
    return BaseHere(status, fetch, check, cancel, gr.Timer(IDLE, active=False), held())


# --- actions


def begin_fetching(draft: Draft) -> None:
    """Starts fetching the draft's base model; raises `KnownFailure` where that cannot be."""
    config = draft_config(draft)
    check_fetch(config, config.teacher_context)
    ask_for_download(default_runs_dir(), config)


def begin_checking(draft: Draft) -> None:
    """Puts a check of the draft's base model into the queue; raises `KnownFailure` where that cannot be."""
    config = draft_config(draft)
    check_device(config)
    ask_for_check(default_runs_dir(), config)


def cancel(draft: Draft) -> None:
    """Stops the download and the check of the draft's base model; what was fetched is kept."""
    config = draft_config(draft)
    for kind in (DOWNLOAD, CHECK_BASE):
        if job := latest(default_runs_dir(), kind, config):
            stop(job)


# --- how it stands


def _look(draft: Draft) -> _Here | None:
    """None for the built-in one, which every test of the program proves, and where nothing can be told."""
    try:
        config = draft_config(draft)
        fetching = needs_fetching(config.base_model, config.revision, config.teacher_context)
    except KnownFailure:  # reported where the settings and the base model are
        return None
    if not find_repository(config.base_model) and not Path(config.base_model).exists():
        return None
    jobs = [latest(default_runs_dir(), kind, config) for kind in (DOWNLOAD, CHECK_BASE)]
    job = max((job for job in jobs if job), key=lambda job: (job.status.busy, job.id), default=None)
    found = find_report(config.base_model, config.revision, config.teacher_context)
    report, folder = found if found else (None, None)
    can_check = False
    with suppress(KnownFailure):
        if not fetching:
            check_device(config)
            can_check = True
    return _Here(config, fetching, job, job.status if job else None, report, folder, can_check)


def _status(here: _Here | None) -> str:
    if here is None:
        return ""
    if here.busy:
        assert here.status is not None  # it is what is busy
        return _progress(here.status)
    ended = _ending(here)
    report = _report(here.report, here.folder) if here.report and not here.fetching else ""
    if ended and not (here.report and ended.reason == here.report.problem):
        kind, sentence = ("problem", ended.reason) if ended.reason else ("note", _stopped(here))
        return f"<p class='{kind}' role='status'>{words.message(sentence)}</p>{report}"
    if report or here.fetching:
        return report
    if here.can_check:
        return (
            "<p class='hint'>Not checked on this computer yet. The check reads its files, holds its steps"
            " against the official pipeline's, draws a picture and measures one training step.</p>"
        )
    return ""


def _ending(here: _Here) -> Status | None:
    """How the last job ended, where that went wrong and is news: of a download, while something lacks."""
    if here.job is None or here.status is None or here.status.state not in UNWELL:
        return None
    if here.job.kind == DOWNLOAD:
        return here.status if here.fetching else None
    checked = (here.folder / REPORT).stat().st_mtime if here.report and here.folder else 0.0
    return here.status if here.status.updated > checked else None


def _stopped(here: _Here) -> str:
    return "Cancelled. What was fetched is kept." if here.fetching else "Cancelled."


def _progress(status: Status) -> str:
    if status.download:
        sentence = f"{words.STATES['downloading']}. {words.download(status.download)}."
    elif status.state == "hashing":
        sentence = f"Reading its files: {words.disk(status.done)} of {words.disk(status.total)}."
    elif status.state == "queued":
        sentence = "The check waits until the computer is free."
    else:
        sentence = f"{words.STATES.get(status.state, 'Checking the base model')}."
    share = status.done / status.total if status.total else 0
    label = "Base model fetched" if status.download else "Base model checked"
    return (
        f"<p class='hint'>{sentence} It goes on when this page is closed.</p>"
        f"<progress max='1' value='{share:.3f}' aria-label='{label}'></progress>"
    )


def _report(report: BaseReport, folder: Path | None) -> str:
    if report.passed:
        measured = report.findings[-1].sentence
        verdict = (
            f"<p class='checked' role='status'><b>Checked here: it works.</b> {words.text(measured)}</p>"
        )
    else:
        verdict = (
            "<p class='problem' role='status'><b>It did not pass its check here, and is not trained on.</b>"
            f" {words.message(report.problem)}</p>"
        )
    pictures = "".join(
        f"<figure>{drawn}<figcaption>{name}</figcaption></figure>"
        for file, name in zip(PICTURES, NAMES, strict=True)
        if folder and (drawn := words.image(folder / file, name, 256))
    )
    strip = f"<div class='strip' role='group' aria-label='Drawn in the check'>{pictures}</div>"
    return (
        f"{verdict}<details class='report'><summary>What was looked at</summary>{strip if pictures else ''}"
        f"<pre>{words.text(report.text)}</pre></details>"
    )
