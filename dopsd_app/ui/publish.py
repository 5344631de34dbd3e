"""The fifth step, its last part: the card and the push to the Hub."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import gradio as gr
from gradio.blocks import Block

from dopsd_app.errors import KnownFailure
from dopsd_app.hub import push as hub
from dopsd_app.hub.access import find_token, this_space
from dopsd_app.hub.card_pictures import card_pictures, clear_pictures
from dopsd_app.hub.publication import Publication, suggest_name
from dopsd_app.hub.push_job import STOPPED, ask_for_push, cancel_push, latest_push
from dopsd_app.jobs.job import Job
from dopsd_app.jobs.lora_file import find_lora
from dopsd_app.jobs.runs import Run
from dopsd_app.jobs.status import Status
from dopsd_app.models.catalog import find_licence
from dopsd_app.ui import words
from dopsd_app.ui.events import listen, on_tick
from dopsd_app.ui.run_actions import the_run
from dopsd_app.ui.use_file import chosen_step

if TYPE_CHECKING:
    from dopsd_app.ui.page import Page

SHOWN = "The LoRA file shows the last preview as a small picture."  # of an edit it shows none
BUSY = 1.0  # seconds between two polls of a push


@dataclass(eq=False)
class PublishStep:
    """The components of this part, and what its events do."""

    page: "Page" = field(init=False)
    name: gr.Textbox
    private: gr.Checkbox
    captions: gr.Checkbox
    token: gr.Textbox
    pictures: gr.HTML
    clear: gr.Button
    preview: gr.Button
    card: gr.Textbox
    missing: gr.HTML
    publish: gr.Button
    result: gr.HTML
    cancel: gr.Button
    timer: gr.Timer

    @property
    def outputs(self) -> list[Block]:
        """What `show` fills."""
        about = [self.name, self.private, self.captions, self.card]
        return [*about, *self.of_pictures, *self.watched]

    @property
    def of_pictures(self) -> list[Block]:
        """What `show_pictures` fills."""
        return [self.pictures, self.clear, self.missing]

    @property
    def watched(self) -> list[Block]:
        """What `show_push` fills."""
        return [self.result, self.cancel, self.publish, self.timer]

    def connect(self, page: "Page") -> None:
        """Connects the part's events."""
        self.page = page
        run_id = page.train.run_id
        choices = [run_id, self.name, self.private, self.captions, page.trying.using.checkpoint]
        listen(self.clear.click, self.clear_pictures, run_id, self.of_pictures)
        listen(self.preview.click, self.preview_card, choices, self.card, progress_on=self.card)
        on_tick(self.timer, self.show_push, [run_id], self.watched)
        listen(self.cancel.click, self.cancel_push, run_id)
        pushed = listen(
            self.publish.click,
            self.push,
            [*choices, self.token],
            [*self.watched, self.token],
            progress_on=self.result,
            trigger_mode="once",
        )
        listen(pushed.failure, self.forget_token, None, self.token)

    # --- what the part shows

    def show(self, run_id: str) -> dict:
        """Fills the part for a run."""
        run = the_run(run_id)
        return {
            self.name: gr.Textbox(
                value=suggest_name(run.config), info=f"Or organisation/name. {_licence(run)}"
            ),
            # What was chosen for another run holds for that one.
            self.private: gr.Checkbox(value=True, info="" if run.sources else SHOWN),
            self.captions: False,
            **self.show_pictures(run),
            self.card: gr.Textbox(visible=False),
            **self.show_push(run_id),
        }

    def show_pictures(self, run: Run) -> dict:
        """The pictures of the run's card."""
        kept = card_pictures(run)
        if not kept:
            missing = words.foot("No picture is on the card yet: draw some, and choose the best.")
            empty = "<div class='empty'><p>Pictures that you choose above stand here.</p></div>"
            return {self.pictures: empty, self.clear: gr.Button(visible=False), self.missing: missing}
        figures = "".join(
            f"<figure>{words.picture(file, prompt, group='card')}"
            f"<figcaption>{words.text(prompt)}</figcaption></figure>"
            for file, prompt in kept
        )
        group = "class='strip' tabindex='0' role='group' aria-label='Pictures of the card'"
        strip = f"<div class='over-time'><h3>Pictures of the card</h3><div {group}>{figures}</div></div>"
        ready = words.foot(f"{words.count(len(kept), 'picture')} on the card.")
        return {self.pictures: strip, self.clear: gr.Button(visible=True), self.missing: ready}

    def show_push(self, run_id: str) -> dict:
        """How the run's push stands, where one is at work; else what came of it, or of an earlier one."""
        run = the_run(run_id)
        job = latest_push(run)
        status = job.status if job else None
        live = bool(status and status.busy)
        if live:
            result = _progress(status)
        elif status and status.state != "finished":
            result = _problem(STOPPED if status.state == "stopped" else status.reason)
        else:
            result = _link(hub.published(run))
        timer = gr.Timer(BUSY, active=live)
        return {
            self.result: result,
            self.cancel: gr.Button(visible=live),
            self.publish: gr.Button(visible=not live),
            self.timer: timer,
        }

    # --- what its events do

    def clear_pictures(self, run_id: str) -> dict:
        """Takes all pictures off the run's card."""
        run = the_run(run_id)
        clear_pictures(run)
        return self.show_pictures(run)

    def preview_card(
        self, run_id: str, name: str, private: bool, with_captions: bool, checkpoint: str
    ) -> dict:
        """The text of the model card as it would be published."""
        text = preview_card(run_id, name, private, with_captions, chosen_step(checkpoint))
        return {self.card: gr.Textbox(text, visible=True)}

    def push(
        self,
        run_id: str,
        name: str,
        private: bool,
        with_captions: bool,
        checkpoint: str,
        token: str,
        oauth_token: str | None,
    ) -> dict:
        """Asks for a push, and shows how it stands; the token's box is empty afterwards."""
        try:
            ask(run_id, name, private, with_captions, chosen_step(checkpoint), token, oauth_token)
        except KnownFailure as error:
            return {self.result: _problem(str(error)), self.token: ""}
        return {**self.show_push(run_id), self.token: ""}

    def forget_token(self) -> dict:
        """Empties the token's box: a push that failed leaves none in it either."""
        return {self.token: ""}

    def cancel_push(self, run_id: str) -> None:
        """Stops the run's push."""
        cancel_push(the_run(run_id))
        words.passing("Cancelled.")


def publish_step() -> PublishStep:
    """Lays the half out."""
    gr.HTML("<h2>Publish it</h2>")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            name = gr.Textbox(
                label="Name on the Hub", elem_id="repo-name", max_length=200, info="Or organisation/name"
            )
            private = gr.Checkbox(
                True,
                label="Private: only you can see it",
                elem_id="private",
                info=SHOWN,
            )
            captions = gr.Checkbox(False, label="Show my captions on the card", elem_id="with-captions")
            token = gr.Textbox(
                label="Access token",
                type="password",
                visible=this_space() is None,
                elem_id="token",
                placeholder="Empty: the one of hf auth login",
                info="From huggingface.co/settings/tokens, with the right to write. It is not stored.",
            )
            result = gr.HTML(elem_id="published")
        with gr.Column(scale=3, min_width=300):
            pictures = gr.HTML(elem_id="card-pictures")
            with gr.Row(elem_classes="buttons"):
                clear = gr.Button("Take the pictures off", size="sm", visible=False, elem_id="clear-card")
                preview = gr.Button("Show the card", size="sm", elem_id="preview-card")
            card = words.code_box("README.md of the repository", "card", visible=False)
    with gr.Row(elem_classes="foot"):
        missing = gr.HTML(elem_id="publish-missing")
        cancel_button = gr.Button("Cancel", visible=False, elem_id="cancel-push")
        publish = gr.Button("Publish", variant="primary", elem_id="publish")
    return PublishStep(
        name=name,
        private=private,
        captions=captions,
        token=token,
        pictures=pictures,
        clear=clear,
        preview=preview,
        card=card,
        missing=missing,
        publish=publish,
        result=result,
        cancel=cancel_button,
        timer=gr.Timer(BUSY, active=False),
    )


def _progress(status: Status) -> str:
    share = status.done / status.total if status.total else 0
    return (
        "<p class='hint' role='status'>Publishing. It goes on when this page is closed.</p>"
        f"<progress max='1' value='{share:.3f}' aria-label='Steps of publishing done'></progress>"
    )


def _problem(sentence: str) -> str:
    return f"<p class='problem' role='alert'>{words.message(sentence)}</p>"


def _licence(run: Run) -> str:
    licence = find_licence(run.config.base_model, run.config.revision)
    if licence.name:
        return f"Licence: {licence.name}, as the base model's."
    return "Licence: that of the base model, which you should know."


# --- the card and the push


def preview_card(run_id: str, name: str, private: bool, with_captions: bool, step: int | None) -> str:
    """The text of the model card as it would be published with the finished LoRA, or with that of a step."""
    run = the_run(run_id)
    card = hub.make_card(
        run,
        repo_id=name.strip(),
        pictures=card_pictures(run),
        with_captions=with_captions,
        lora_file=find_lora(run, step),
    )
    return str(card)


def ask(
    run_id: str,
    name: str,
    private: bool,
    with_captions: bool,
    step: int | None,
    token: str,
    oauth_token: str | None,
) -> Job:
    """Asks for a push of the run's LoRA, finished or of a step, with its card; private by default.

    The token is the given one, the sign-in of the Space, or the one that `hf auth login` stored.
    """
    run = the_run(run_id)
    publication = Publication(name.strip(), private, with_captions, step)
    return ask_for_push(run, publication, find_token(token, oauth_token))


def _link(published: hub.Place | None) -> str:
    return link(published.link) if published else ""


def link(address: str) -> str:
    """A published repository's address, to click on."""
    return f"<p class='card-link' role='status'>Published: {words.link(address, address)}</p>"
