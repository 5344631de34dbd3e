"""Beside the fourth step: what is to happen when a run has finished."""

from dataclasses import dataclass

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component

from dopsd_app.errors import KnownFailure
from dopsd_app.hub.access import this_space
from dopsd_app.hub.publication import BEST, suggest_name, why_no_health
from dopsd_app.hub.scheduled_push import read_scheduled_push, waits_for_sign_in
from dopsd_app.jobs.runs import Run
from dopsd_app.ui import words
from dopsd_app.ui.events import listen
from dopsd_app.ui.run_actions import schedule_push, the_run


@dataclass(frozen=True)
class WhenFinished:
    """The components that ask for a push at the end, and what their event does."""

    push: gr.Checkbox
    name: gr.Textbox
    private: gr.Checkbox
    pause: gr.Checkbox
    healthiest: gr.Checkbox
    save: gr.Button
    message: gr.HTML  # what was scheduled for, and what became of it

    @property
    def choices(self) -> list[Component]:
        """What `schedule` takes after the run's id, in this order."""
        return [self.push, self.name, self.private, self.pause, self.healthiest]

    @property
    def outputs(self) -> list[Block]:
        """What `show` fills."""
        return [*self.choices, self.message]

    def connect(self, run_id: Component) -> None:
        """Connects its event."""
        listen(
            self.save.click,
            self.schedule,
            [run_id, *self.choices],
            self.message,
            progress_on=self.message,
        )

    def show(self, run: Run | None) -> dict:
        """What is to happen when the run has finished."""
        scheduled = read_scheduled_push(run).publication if run else None
        suggested, measured = _asked_of_settings(run) if run else ("", False)
        return {
            self.push: scheduled is not None,
            self.name: scheduled.name if scheduled else suggested,
            self.private: scheduled.private if scheduled else True,
            self.pause: bool(scheduled and scheduled.pause),
            self.healthiest: gr.Checkbox(
                value=bool(measured and scheduled and scheduled.checkpoint == BEST), visible=measured
            ),
        }

    def schedule(
        self,
        run_id: str,
        push: bool,
        name: str,
        private: bool,
        pause: bool,
        healthiest: bool,
        oauth_token: str | None = None,
    ) -> dict:
        """Keeps what is to happen, and confirms it."""
        schedule_push(run_id, push, name, private, pause, healthiest, oauth_token)
        return {self.message: describe_scheduled(the_run(run_id))}


def when_finished() -> WhenFinished:
    """Lays it out."""
    push = gr.Checkbox(label="Push to the Hub", elem_id="scheduled-push")
    name = gr.Textbox(label="Name on the Hub", max_length=200, elem_id="scheduled-name")
    private = gr.Checkbox(True, label="Private", elem_id="scheduled-private")
    pause = gr.Checkbox(
        label="Then pause this Space: its disk is lost",
        info="Needs the secret PAUSE_TOKEN: a token with the right to write to this Space",
        visible=this_space() is not None,
        elem_id="scheduled-pause",
    )
    healthiest = gr.Checkbox(
        label="The step in best health",
        info="Where an earlier one is better than the last",
        elem_id="scheduled-healthiest",
    )
    save = gr.Button("Save", size="sm", elem_id="scheduled-save")
    message = gr.HTML(elem_id="scheduled-message")
    return WhenFinished(push, name, private, pause, healthiest, save, message)


def _asked_of_settings(run: Run) -> tuple[str, bool]:
    """A name for its LoRA, and whether its health is measured: as far as its settings can be read."""
    try:
        return suggest_name(run.config), not why_no_health(run)
    except KnownFailure:  # damaged, or of another version: all else of the run is shown
        return "", False


def describe_scheduled(run: Run) -> str:
    """What is to happen when the run has finished and what became of it, as HTML; empty for nothing."""
    scheduled = read_scheduled_push(run)
    if scheduled.reason:
        return words.lines([scheduled.reason], "problem")
    if scheduled.publication is None:
        return ""
    name, best = words.text(scheduled.publication.name), scheduled.publication.checkpoint == BEST
    lora = "The LoRA, of its step in best health," if best else "The LoRA"
    if waits_for_sign_in(run, scheduled):
        where = "at the top of the page" if this_space() else "with <code>hf auth login</code>"
        sentence = f"{lora} waits to be published as {name}: sign in {where}, then press Save."
    elif scheduled.done:
        sentence = f"{lora} was published as {name}."
    else:
        sentence = f"{lora} will be published as {name} when the run has finished."
    return f"<p class='note' role='status'>{sentence}</p>"
