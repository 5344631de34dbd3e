"""The fifth step, its second half: the card and the push to the Hub."""

from dataclasses import dataclass

import gradio as gr

from dopsd_app.errors import KnownFailure
from dopsd_app.hub import push as hub
from dopsd_app.hub.access import find_token, this_space
from dopsd_app.hub.card_pictures import card_pictures, clear_pictures, keep_picture
from dopsd_app.hub.publication import Publication, suggest_name
from dopsd_app.hub.push_job import STOPPED, ask_for_push, cancel_push, latest_push
from dopsd_app.jobs.job import Job
from dopsd_app.jobs.lora_file import find_lora
from dopsd_app.jobs.runs import Run
from dopsd_app.jobs.status import Status
from dopsd_app.models.catalog import find_licence
from dopsd_app.ui import words
from dopsd_app.ui.run_actions import the_run
from dopsd_app.ui.try_it import chosen_step

LOOKING = 1.0  # seconds between two looks at a push


@dataclass(frozen=True)
class PublishStep:
    """The components of this half that others set or listen to."""

    name: gr.Textbox
    private: gr.Checkbox
    captions: gr.Checkbox
    token: gr.Textbox
    pictures: gr.HTML
    clear: gr.Button
    preview: gr.Button
    card: gr.Textbox
    publish: gr.Button
    result: gr.HTML
    cancel: gr.Button
    timer: gr.Timer

    @property
    def of_run(self) -> list:
        """What `show` fills, in its order."""
        about = [self.name, self.private, self.captions, self.pictures, self.clear, self.card]
        return [*about, *self.watched]

    @property
    def watched(self) -> list:
        """What `look` fills, in its order."""
        return [self.result, self.cancel, self.timer]

    @property
    def settings(self) -> list:
        """What `push` and `preview_card` take after the run's id, in their order; then comes the step."""
        return [self.name, self.private, self.captions]


def publish_step() -> PublishStep:
    """Lays the half out."""
    gr.HTML("<h2>Publish it</h2>")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            name = gr.Textbox(
                label="Name on the Hub", elem_id="repo-name", max_length=200, info="Or organisation/name"
            )
            private = gr.Checkbox(True, label="Private: only you can see it", elem_id="private")
            captions = gr.Checkbox(False, label="Show my captions on the card", elem_id="with-captions")
            token = gr.Textbox(
                label="Access token",
                type="password",
                visible=this_space() is None,
                elem_id="token",
                placeholder="Empty: the one of hf auth login",
                info="From huggingface.co/settings/tokens, with the right to write. It is not stored.",
            )
            with gr.Row(elem_classes="buttons"):
                publish = gr.Button("Publish", variant="primary", elem_id="publish")
                cancel_button = gr.Button("Cancel", interactive=False, elem_id="cancel-push")
                preview = gr.Button("Show the card", elem_id="preview-card")
            result = gr.HTML(elem_id="published")
        with gr.Column(scale=3, min_width=300):
            pictures = gr.HTML(elem_id="card-pictures")
            clear = gr.Button("Take the pictures off", size="sm", visible=False, elem_id="clear-card")
            card = words.code_box("README.md of the repository", "card", visible=False)
    return PublishStep(
        name, private, captions, token, pictures, clear, preview, card, publish, result, cancel_button,
        gr.Timer(LOOKING, active=False),
    )  # fmt: skip


def show(run_id: str) -> list:
    """Fills the half for a run."""
    run = the_run(run_id)
    return [
        gr.Textbox(value=suggest_name(run.config), info=f"Or organisation/name. {_licence(run)}"),
        True,  # what was chosen for another run holds for that one
        False,
        *_shown_pictures(run),
        gr.Textbox(visible=False),
        *look(run_id),
    ]


def look(run_id: str) -> list:
    """How the run's push stands, where one is at work; else what came of it, or of an earlier one."""
    run = the_run(run_id)
    job = latest_push(run)
    status = job.status if job else None
    live = bool(status and status.busy)
    if live:
        said = _progress(status)
    elif status and status.state != "finished":
        said = _problem(STOPPED if status.state == "stopped" else status.reason)
    else:
        said = _link(hub.published(run))
    return [said, gr.Button(interactive=live), gr.Timer(LOOKING, active=live)]


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


def _shown_pictures(run: Run) -> list:
    kept = card_pictures(run)
    if not kept:
        note = 'Draw a picture above and press "Use on the card".'
        return [f"<div class='empty'><p>{words.text(note)}</p></div>", gr.Button(visible=False)]
    figures = "".join(
        f"<figure>{words.image(file, prompt, 320)}<figcaption>{words.text(prompt)}</figcaption></figure>"
        for file, prompt in kept
    )
    strip = f"<div class='strip' tabindex='0' role='group' aria-label='Pictures of the card'>{figures}</div>"
    return [f"<div class='over-time'><h3>Pictures of the card</h3>{strip}</div>", gr.Button(visible=True)]


def keep(run_id: str, drawing_id: str) -> list:
    """Puts a drawn picture on the run's card."""
    run = the_run(run_id)
    keep_picture(run, drawing_id)
    return _shown_pictures(run)


def clear(run_id: str) -> list:
    """Takes all pictures off the run's card."""
    run = the_run(run_id)
    clear_pictures(run)
    return _shown_pictures(run)


# --- the card and the push


def push(
    run_id: str,
    name: str,
    private: bool,
    with_captions: bool,
    checkpoint: str,
    token: str,
    oauth_token: str | None,
) -> list:
    """Asks for a push, and shows how it stands; the token's box is empty afterwards, whatever happened."""
    try:
        ask(run_id, name, private, with_captions, chosen_step(checkpoint), token, oauth_token)
    except KnownFailure as error:
        return [_problem(str(error)), gr.skip(), gr.skip(), ""]
    return [*look(run_id), ""]


def cancel(run_id: str) -> str:
    """Stops the run's push."""
    cancel_push(the_run(run_id))
    return "Cancelled."


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
