"""The fourth step: watching runs, and asking things of them."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component

from dopsd_app.errors import KnownFailure
from dopsd_app.jobs.runs import Run, default_runs_dir, list_runs
from dopsd_app.jobs.watch import RunView
from dopsd_app.ui import run_actions, run_report, words
from dopsd_app.ui.events import IN_BROWSER, held, listen, on_tick
from dopsd_app.ui.navigation import TRAIN, TRY
from dopsd_app.ui.run_actions import can_go_on, can_try, read_log, statuses, watcher
from dopsd_app.ui.run_charts import RunCharts, run_charts
from dopsd_app.ui.run_list import SHOW_LIST, RunList, comparison_box, run_list
from dopsd_app.ui.run_pictures import RunPictures, comparing_steps, how_it_learns, run_samples
from dopsd_app.ui.shown_draft import draft_of
from dopsd_app.ui.updates import only_changed
from dopsd_app.ui.when_finished import WhenFinished, describe_scheduled, when_finished

if TYPE_CHECKING:
    from dopsd_app.ui.page import Page

BUSY, IDLE = 1.0, 5.0  # seconds between two polls: while a run is at work or waits, and otherwise
MORE = 400  # steps that are offered to a run that is over


@dataclass(eq=False)
class TrainStep:
    """The components of this step, and what its events do."""

    page: "Page" = field(init=False)
    run_id: gr.Textbox  # of the run that is shown
    to_runs: gr.Button  # in every step: the header of the steps leads back only
    runs: RunList
    timer: gr.Timer
    digests: gr.JSON
    status: gr.HTML
    progress: gr.HTML
    pictures: RunPictures
    charts: RunCharts
    stop: gr.Button
    resume: gr.Button
    further: gr.Row  # there while a run can make more steps
    more: gr.Number
    go_on: gr.Button
    preview: gr.Button
    save: gr.Button
    foot: gr.HTML  # what the run does, in one line
    to_try: gr.Button
    when_finished: WhenFinished
    log: gr.Accordion
    log_text: gr.Textbox

    @property
    def watched(self) -> list[Block]:
        """What `show_new` fills."""
        shown = [self.status, self.progress, self.foot, *self.pictures.outputs, *self.charts.outputs]
        of_run = [self.stop, self.resume, self.preview, self.save, self.to_try, self.further]
        return [
            self.digests, *self.runs.watched, *shown, *of_run, self.when_finished.message, self.timer
        ]  # fmt: skip

    @property
    def outputs(self) -> list[Block]:
        """What `show` fills."""
        beside = [self.log_text, *self.when_finished.choices, *self.runs.outputs]
        chosen = [part for part in self.choices if part not in self.watched]
        return [self.run_id, *self.watched, *chosen, *beside]

    @property
    def choices(self) -> dict[gr.Radio | gr.Dropdown, Any]:
        """What a person chooses to see of a run, and what is chosen at first."""
        return {**self.pictures.choices, **self.charts.choices}

    def connect(self, page: "Page") -> None:
        """Connects the step's events."""
        self.page = page
        at: set[Component] = {self.run_id, self.digests, *self.choices}
        on_tick(self.timer, self.show_new, {*at}, self.watched)
        chosen = [part.input for part in self.choices]
        listen(chosen, self.show_new, at, self.watched)
        self.charts.connect(self.run_id)
        listen(self.stop.click, self.stop_run, at, self.watched)
        listen(self.resume.click, self.resume_run, at, self.watched)
        listen(self.go_on.click, self.train_further, {*at, self.more}, self.watched)
        listen(self.preview.click, self.preview_now, at, self.watched)
        listen(self.save.click, self.save_now, at, self.watched)
        self.runs.connect(self, page)
        listen(self.log.expand, self.read_log, self.run_id, self.log_text)
        self.when_finished.connect(self.run_id)
        steps = [*page.navigation.outputs, *page.plan.outputs]
        opening = [page.pictures.draft, self.run_id]
        opened = listen(self.to_runs.click, self.open, opening, [*steps, *self.outputs])
        opened.then(None, js=SHOW_LIST, **IN_BROWSER)
        listen(
            self.to_try.click,
            self.try_lora,
            self.run_id,
            [*page.navigation.outputs, *page.trying.outputs, *page.publishing.outputs],
            progress_on=page.trying.title,
        )

    # --- what the step shows

    def show(self, run_id: str) -> dict:
        """Another run than before, all of it: nothing that was open for the last one is left beside it."""
        # Whatever the tab has been sent: a late look at the run before may tell of parts as sent that show
        # another one by now.
        shown = self.show_new({self.run_id: run_id, self.digests: None})
        runs = list_runs(default_runs_dir())
        run = next((run for run in runs if run.id == run_id), None)
        for begun in (
            {part: {"value": first} for part, first in self.choices.items()},
            self.charts.begin(run, runs),
        ):
            shown |= {
                part: {**shown.get(part, gr.update()), **properties} for part, properties in begun.items()
            }
        return {
            **shown,
            self.run_id: run_id,
            self.log_text: read_log(run_id) if run else "",
            **self.when_finished.show(run),
            **self.runs.show(run),
        }

    def show_new(self, tab: dict) -> dict:
        """All that shows runs; what this tab has already is left as it is.

        `tab` holds which run it shows, what it has been sent, and what the person chose to see.
        """
        known = statuses()
        runs = [run for run, _ in known]
        run, view = _view(tab[self.run_id], runs)
        busy = any(status.busy for _, status in known)
        scheduled = describe_scheduled(run) if run and view else ""
        values = {
            **self.runs.values(known, run, view.status if view else None),
            **self._report(run, view, run_report.NONE_CHOSEN if known else run_report.EMPTY),
            **self.pictures.values(view, tab),
            **self.charts.values(view, tab, runs),
            **self._buttons(run, view),
            self.when_finished.message: (scheduled, lambda: scheduled),
            self.timer: (busy, lambda: gr.Timer(BUSY if busy else IDLE, active=True)),
        }
        return only_changed(values, self.digests, tab[self.digests])

    def _report(self, run: Run | None, view: RunView | None, otherwise: str) -> dict:
        """What tells of a change, and a maker, for each part that says how the chosen run stands."""
        if run is None or view is None:
            nothing = (None, lambda: "")
            return {
                self.status: (otherwise, lambda: otherwise),
                self.progress: nothing,
                self.foot: nothing,
            }
        status = view.status
        foot = run_report.foot(view)
        return {
            self.status: (
                (status.state, status.reason, view.check, view.warnings, view.seconds, view.health),
                lambda: run_report.status(run, view),
            ),
            self.progress: (
                (status.step, status.steps, status.state, status.done, view.download),
                lambda: run_report.progress(view),
            ),
            self.foot: (foot, lambda: foot),
        }

    def _buttons(self, run: Run | None, view: RunView | None) -> dict:
        state = view.status.state if view else ""
        live = state in ("downloading", "loading", "encoding", "drawing", "training", "beside")
        active = {
            self.stop: live or state == "queued",
            self.resume: state in ("draft", "stopped", "failed", "interrupted"),
            self.preview: state in ("training", "beside"),
            self.save: state in ("training", "beside"),
            self.to_try: bool(run) and can_try(run),
        }
        further = bool(run) and can_go_on(run, state)
        # What cannot be done now is not there.
        buttons = {button: (on, lambda on=on: gr.Button(visible=on)) for button, on in active.items()}
        return {**buttons, self.further: (further, lambda: gr.Row(visible=further))}

    # --- what its events do

    def _after(self, answer: str, tab: dict) -> dict:
        """Shows in passing what came of an action, and how the run stands now."""
        words.passing(answer)
        return self.show_new(tab)

    def stop_run(self, tab: dict) -> dict:
        """Asks the run to stop."""
        return self._after(run_actions.stop_run(tab[self.run_id]), tab)

    def resume_run(self, tab: dict) -> dict:
        """Puts the run back into the queue."""
        return self._after(run_actions.resume_run(tab[self.run_id]), tab)

    def train_further(self, tab: dict) -> dict:
        """Puts a run that is over back into the queue, to make more steps."""
        if not tab[self.more]:
            raise KnownFailure("Say how many more steps it is to make.")
        return self._after(run_actions.resume_run(tab[self.run_id], tab[self.more]), tab)

    def preview_now(self, tab: dict) -> dict:
        """Asks the run for previews."""
        return self._after(run_actions.preview_now(tab[self.run_id]), tab)

    def save_now(self, tab: dict) -> dict:
        """Asks the run for a checkpoint."""
        return self._after(run_actions.save_now(tab[self.run_id]), tab)

    def read_log(self, run_id: str) -> dict:
        """The end of the run's log."""
        return {self.log_text: read_log(run_id)}

    def open(self, shown: object, run_id: str) -> dict:
        """Goes to this step from any other; the steps before are filled, for one can go back to them."""
        plan = self.page.plan.show(draft_of(shown))
        return {**self.page.navigation.go_to(TRAIN), **plan, **self.show(run_id or _newest_run())}

    def try_lora(self, run_id: str) -> dict:
        """Goes on to the fifth step."""
        page = self.page
        return {**page.navigation.go_to(TRY), **page.trying.show(run_id), **page.publishing.show(run_id)}


def train_step(to_runs: gr.Button) -> TrainStep:
    """Lays the step out; the button that leads to it stands outside."""
    comparison = comparison_box()
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320, elem_classes="watched"):
            with gr.Row(equal_height=False, elem_classes="now"):
                with gr.Column(min_width=320):
                    status = gr.HTML(run_report.EMPTY, elem_id="run-status")
                    progress = gr.HTML(elem_id="run-progress")
                    with gr.Row(elem_classes="buttons can"):
                        stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop")
                        resume_button = gr.Button("Resume", visible=False, elem_id="resume")
                        preview = gr.Button("Preview now", visible=False, elem_id="preview-now")
                        save = gr.Button("Save now", visible=False, elem_id="save-now")
                        with gr.Row(visible=False, elem_classes="buttons further") as further:
                            more = gr.Number(
                                MORE, label="More steps", precision=0, minimum=1, elem_id="more-steps"
                            )
                            go_on = gr.Button("Train further", elem_id="go-on")
                with gr.Column(min_width=320, elem_classes="charts"):
                    charts = run_charts()
            samples = run_samples()
            compare = comparing_steps()
            learning = how_it_learns()
            with gr.Accordion("Log", open=False, elem_id="log") as log:
                log_text = words.code_box("Log", "log-text")
        with gr.Column(scale=1, min_width=320):
            runs = run_list(comparison)
            with gr.Accordion("When finished", open=False, elem_id="when-finished"):
                scheduled = when_finished()
    with gr.Row(elem_classes="foot"):
        foot = gr.HTML(elem_id="train-foot")
        to_try = gr.Button("Try it", variant="primary", visible=False, elem_id="to-try")
    return TrainStep(
        run_id=gr.Textbox("", visible=False),  # it opens nothing to others
        to_runs=to_runs,
        runs=runs,
        timer=gr.Timer(IDLE, active=False),  # until the page is filled
        digests=held(),
        status=status,
        progress=progress,
        pictures=RunPictures(samples, *compare, *learning),
        charts=charts,
        foot=foot,
        stop=stop,
        resume=resume_button,
        further=further,
        more=more,
        go_on=go_on,
        preview=preview,
        save=save,
        to_try=to_try,
        when_finished=scheduled,
        log=log,
        log_text=log_text,
    )


def _newest_run() -> str:
    return next((run.id for run in list_runs(default_runs_dir())), "")


def _view(run_id: str, runs: list[Run]) -> tuple[Run | None, RunView | None]:
    run = next((run for run in runs if run.id == run_id), None)
    try:
        return (run, watcher.read(run)) if run else (None, None)
    except FileNotFoundError:  # deleted between two lines
        return None, None
