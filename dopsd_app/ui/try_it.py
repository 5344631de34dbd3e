"""The fifth step, its first half: pictures of a LoRA beside the base model's, and the file itself."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr
from gradio.blocks import Block
from PIL import Image

from dopsd_app.errors import KnownFailure
from dopsd_app.hub.card_pictures import keep_picture
from dopsd_app.hub.model_card import make_snippet
from dopsd_app.hub.publication import healthier_checkpoint
from dopsd_app.jobs.drawing import Drawing, PictureRequest, ask, cancel, last_drawing, unfinished_drawings
from dopsd_app.jobs.lora_file import find_lora
from dopsd_app.jobs.run_notes import name_of
from dopsd_app.jobs.runs import LORA_FILE, Run, complete_checkpoints, default_runs_dir
from dopsd_app.models.architecture import UNTAUGHT
from dopsd_app.models.catalog import find_facts, is_known
from dopsd_app.planning.plan import check_fetch
from dopsd_app.ui import words
from dopsd_app.ui.events import held, listen
from dopsd_app.ui.run_actions import the_run, watcher
from dopsd_app.ui.server.lora_copies import lora_copy
from dopsd_app.ui.server.uploads import removed_afterwards
from dopsd_app.ui.try_sources import NOTHING, can_start, find_sources, keep_sources, list_sources

if TYPE_CHECKING:
    from dopsd_app.ui.page import Page

FINISHED = "Final"
PROGRESS = gr.Progress()
MAX_STRENGTH = 1.5  # twice what was trained ruins any picture
POLL = 0.1  # seconds between two readings of a drawing's status
SMALL = 512  # pixels: smaller pictures are shown enlarged, so that something is to be seen


@dataclass(eq=False)
class TryStep:
    """The components of this half, and what its events do."""

    page: "Page" = field(init=False)
    title: gr.HTML
    prompt: gr.Textbox
    start: gr.Row  # there where the base model edits
    source: gr.Dropdown
    upload: gr.UploadButton
    sources: gr.HTML  # the chosen ones
    seed: gr.Number
    strength: gr.Slider
    checkpoint: gr.Dropdown
    draw: gr.Button
    cancel: gr.Button
    slider: gr.ImageSlider
    keep: gr.Button
    download: gr.DownloadButton
    diffusers: gr.Textbox
    comfyui: gr.HTML
    drawn: gr.JSON  # ids of the run and of the drawing in the slider

    @property
    def outputs(self) -> list[Block]:
        """What `show` fills."""
        start = [self.start, self.source, self.sources]
        asked = [self.prompt, *start, self.seed, self.strength, self.checkpoint]
        return [self.title, *asked, self.download, self.diffusers, self.comfyui, *self._drawing]

    @property
    def _drawing(self) -> list[Block]:
        return [self.slider, self.drawn, self.keep]

    def connect(self, page: "Page") -> None:
        """Connects the half's events."""
        self.page = page
        run_id, card = page.train.run_id, page.publishing
        # Gradio shows the bar of `gr.Progress` on the outputs.
        listen(
            self.draw.click,
            self.draw_pair,
            [run_id, self.prompt, self.seed, self.strength, self.checkpoint, self.source],
            self._drawing,
            progress_on=self.slider,
            trigger_mode="once",
        )
        listen(self.cancel.click, self.cancel_drawing, run_id)
        listen(
            self.checkpoint.input,
            self.offer_lora,
            [run_id, self.checkpoint],
            self.download,
            trigger_mode="always_last",
        )
        chosen = [run_id, self.source]
        listen(self.source.input, self.show_sources, chosen, self.sources, trigger_mode="always_last")
        listen(
            self.upload.upload,
            self.add_sources,
            [run_id, self.upload],
            [self.upload, self.source, self.sources],
            progress_on=self.sources,
        )
        listen(self.keep.click, self.use_on_card, self.drawn, [card.pictures, card.clear])

    def show(self, run_id: str) -> dict:
        """Fills the half for a run, with what was last drawn for it."""
        run = the_run(run_id)
        choices, chosen = what_to_try(run)
        word = run.config.trigger_word
        first = run.config.preview_prompts[0] if run.config.preview_prompts else _first_words(run)
        asked = PictureRequest(run.id, first, 0)
        if drawing := last_drawing(run):
            asked = drawing.asked_for(PictureRequest)
            chosen = f"Step {asked.checkpoint}" if asked.checkpoint else FINISHED
        sources = list_sources(run, drawing)
        source = sources[0][1] if sources else NOTHING
        return {
            self.title: f"<h2>Try {words.text(name_of(run))}</h2>{_reminder(word)}",
            self.prompt: asked.prompt,
            self.start: gr.Row(visible=can_start(run)),
            self.source: gr.Dropdown(choices=sources, value=source),
            self.sources: _shown_sources(run, source),
            self.seed: asked.seed,
            self.strength: asked.strength,
            self.checkpoint: gr.Dropdown(choices=choices, value=chosen, info=_how_chosen(run)),
            self.download: _download_button(run, chosen),
            self.diffusers: make_snippet(run.config, ".", first, run.sources),
            self.comfyui: _comfyui(run),
            **self._show_drawing(drawing),
        }

    def _show_drawing(self, drawing: Drawing | None) -> dict:
        """A pair of pictures; without one, no picture of another run stays beside this one's name."""
        pair = (_enlarged(drawing.base), _enlarged(drawing.lora)) if drawing else None
        return {
            self.slider: pair,
            self.drawn: [_run_of(drawing), drawing.id] if drawing else None,
            self.keep: gr.Button(interactive=drawing is not None),
        }

    def draw_pair(
        self,
        run_id: str,
        prompt: str,
        seed: int,
        strength: float,
        checkpoint: str,
        source: str | None,
        progress=PROGRESS,
    ) -> dict:
        """Draws a prompt twice from the same noise, at the model's own few steps: base, and with the LoRA."""
        run, step = the_run(run_id), chosen_step(checkpoint)
        sources = find_sources(run, source or NOTHING)
        drawing = draw_pair(run, prompt, int(seed or 0), float(strength), step, progress, sources)
        return self._show_drawing(drawing)

    def show_sources(self, run_id: str, source: str | None) -> dict:
        """The pictures of another choice."""
        return {self.sources: _shown_sources(the_run(run_id), source or NOTHING)}

    def add_sources(self, run_id: str, files: list[str] | None) -> dict:
        """Takes uploaded pictures to start from; the server's copies of the uploads are removed."""
        run = the_run(run_id)
        with removed_afterwards(files or []):
            source = keep_sources(run, files or [])
        return {
            self.upload: gr.UploadButton(value=None),
            self.source: gr.Dropdown(choices=list_sources(run, last_drawing(run)), value=source),
            self.sources: _shown_sources(run, source),
        }

    def cancel_drawing(self, run_id: str) -> None:
        """Stops all drawing for the run."""
        gr.Info(cancel_drawing(run_id), duration=4)

    def offer_lora(self, run_id: str, checkpoint: str) -> dict:
        """The button with the file of the chosen step."""
        return {self.download: _download_button(the_run(run_id), checkpoint)}

    def use_on_card(self, drawn: object) -> dict:
        """Puts the picture in the slider on the model card."""
        if not isinstance(drawn, list) or len(drawn) != 2:
            raise KnownFailure("Draw a picture first.")
        run_id, drawing_id = drawn
        run = the_run(run_id)
        keep_picture(run, drawing_id)
        return self.page.publishing.show_pictures(run)


def try_step() -> TryStep:
    """Lays the half out."""
    title = gr.HTML("<h2>Try it</h2>", elem_id="try-title")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            prompt = gr.Textbox(label="Prompt", lines=2, elem_id="prompt", max_length=2000)
            with gr.Row(visible=False, equal_height=False) as start:
                # It may be shown with the choices of the run before: no error then.
                source = gr.Dropdown(
                    [("None", NOTHING)],
                    value=NOTHING,
                    label="Source",
                    info="The picture to start from",
                    allow_custom_value=True,
                    elem_id="source",
                    min_width=220,
                )
                upload = gr.UploadButton(
                    "Use a picture of your own",
                    file_count="multiple",
                    file_types=["image"],
                    size="sm",
                    elem_id="add-source",
                )
            with gr.Row():
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1, elem_id="seed")
                checkpoint = gr.Dropdown(
                    [FINISHED],
                    value=FINISHED,
                    label="Step",
                    elem_id="checkpoint",
                )
            strength = gr.Slider(
                0,
                MAX_STRENGTH,
                value=1,
                step=0.05,
                label="Strength",
                elem_id="strength",
                info="1 is what was trained",
            )
            with gr.Row(elem_classes="buttons"):
                draw = gr.Button("Draw", variant="primary", elem_id="draw")
                cancel_button = gr.Button("Cancel", elem_id="cancel-draw")
                keep = gr.Button("Use on the card", interactive=False, elem_id="keep")
        with gr.Column(scale=3, min_width=300):
            sources = gr.HTML(elem_id="sources")
            slider = gr.ImageSlider(
                type="pil",
                label="Base | with your LoRA",
                interactive=False,
                elem_id="slider",
                buttons=["fullscreen"],
                max_height=560,
            )
    with gr.Accordion("Use the file", open=False, elem_id="use"):
        download = gr.DownloadButton("Download the LoRA", interactive=False, elem_id="download")
        diffusers = words.code_box("diffusers", "diffusers")
        comfyui = gr.HTML(elem_id="comfyui")
    return TryStep(
        title=title,
        prompt=prompt,
        start=start,
        source=source,
        upload=upload,
        sources=sources,
        seed=seed,
        strength=strength,
        checkpoint=checkpoint,
        draw=draw,
        cancel=cancel_button,
        slider=slider,
        keep=keep,
        download=download,
        diffusers=diffusers,
        comfyui=comfyui,
        drawn=held(),
    )


def what_to_try(run: Run) -> tuple[list[tuple[str, str]], str | None]:
    """What is there to try, the newest first, as (label, value); and the last one in good health."""
    steps = [int(folder.name) for folder in reversed(complete_checkpoints(run))]
    best = healthier_checkpoint(run, watcher.read(run).health)
    values = [f"Step {step}" for step in steps]
    labels = {}
    if run.lora_file.exists():
        # A run that goes on keeps the LoRA of its shorter training until the longer one ends.
        ended = run.status.state == "finished"
        values.insert(0 if ended else len(values), FINISHED)
        labels[FINISHED] = FINISHED if ended else f"{FINISHED}, of the shorter training"
    chosen = f"Step {best}" if best else next(iter(values), None)
    if best:
        labels[chosen] = f"{chosen} (in better health)"
    return [(labels.get(value, value), value) for value in values], chosen


def _how_chosen(run: Run) -> str:
    return "The last one in good health is chosen" if watcher.read(run).health else "The last one is chosen"


def _first_words(run: Run) -> str:
    """What a prompt begins as: of an edit, the first instruction; else the trigger word."""
    captions = (run.dataset / "01.txt").read_text(encoding="utf-8").splitlines() if run.sources else ()
    return next(iter(captions), run.config.trigger_word)


def _shown_sources(run: Run, choice: str) -> str:
    try:
        files = find_sources(run, choice)
    except KnownFailure as error:
        return words.lines([str(error)], "problem")
    pictures = "".join(words.image(file, f"Source {number}") for number, file in enumerate(files, start=1))
    if not pictures:
        return ""
    hint = "What is drawn from it shows much of it: look before you put that on the card."
    return (
        f"<figure class='starts'><figcaption>Source</figcaption>{pictures}</figure><p class='hint'>{hint}</p>"
    )


def _reminder(word: str) -> str:
    return f"<p class='hint'>The trigger word is <b>{words.text(word)}</b>.</p>" if word else ""


def draw_pair(
    run: Run,
    prompt: str,
    seed: int,
    strength: float,
    step: int | None,
    progress: Callable,
    sources: Sequence[Path] = (),
) -> Drawing:
    """Asks the warm worker for a pair of pictures, and comes back when they are there.

    `sources` are the pictures to start from.
    """
    if not prompt.strip():
        raise KnownFailure("Write a prompt first.")
    if not (0 <= seed < 2**32 and 0 <= strength <= MAX_STRENGTH):
        raise KnownFailure(f"The seed is from 0 to 2**32 - 1, and the strength from 0 to {MAX_STRENGTH}.")
    check_fetch(run.config, UNTAUGHT)
    request = PictureRequest(run.id, prompt.strip(), seed, strength, step)
    drawing = ask(run.runs_dir, request, sources)
    wait(drawing, progress)
    return drawing


def wait(drawing: Drawing, progress) -> None:
    """Comes back when the drawing is done; `KnownFailure` says why it was not."""
    while (status := drawing.status).busy:
        doing = {"queued": "Waiting", "loading": "Loading the model"}.get(status.state, "Drawing")
        if status.download:
            share = status.done / status.total if status.total else 0.0
            progress(share, desc=f"{words.STATES['downloading']}. {words.download(status.download)}")
        else:
            progress((status.done, status.total or 1), desc=doing, unit="pictures")
        time.sleep(POLL)
    if status.state != "finished":
        raise KnownFailure(status.reason or "Cancelled.")


def cancel_drawing(run_id: str) -> str:
    """Stops all drawing for a run, after the picture at hand."""
    run = the_run(run_id)
    for drawing in unfinished_drawings(run.runs_dir):
        if _run_of(drawing) == run.id:
            cancel(drawing)
    return "Cancelled."


def cancel_others(run_id: str) -> None:
    """Stops all drawing for other runs: their pictures would arrive beside this one's name."""
    for drawing in unfinished_drawings(default_runs_dir()):
        if _run_of(drawing) not in ("", run_id):
            cancel(drawing)


def _run_of(drawing: Drawing) -> str:
    """The run whose LoRA is drawn with; empty for a check of the teacher."""
    asked = drawing.asked
    return asked.run_id if isinstance(asked, PictureRequest) else ""


def chosen_step(checkpoint: str | None) -> int | None:
    """The checkpoint's step that a choice means; None for the finished LoRA."""
    if checkpoint == FINISHED:
        return None
    number = (checkpoint or "").removeprefix("Step ")
    if not number.isdecimal():
        raise KnownFailure(f'Choose "{FINISHED}" or a step, such as "Step 50".')
    return int(number)


def _enlarged(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    factor = SMALL // max(picture.size)
    if factor > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.LANCZOS)
    return picture


def _download_button(run: Run, checkpoint: str | None) -> gr.DownloadButton:
    """The button with the file of the run's LoRA at the chosen step, which its words name."""
    step = chosen_step(checkpoint)
    label = "Download the LoRA" if step is None else f"Download the LoRA of step {step}"
    return gr.DownloadButton(label, value=lora_copy(run, find_lora(run, step)), interactive=True)


def _comfyui(run: Run) -> str:
    """How to use the file in ComfyUI; nothing for a base model that it does not know."""
    config = run.config
    if not is_known(config.base_model, config.revision):
        return ""  # it is not here any more
    if not find_facts(config.base_model, config.revision).comfyui:
        return ""
    steps = words.count(config.num_inference_steps, "step")
    return (
        f"<p class='hint'>ComfyUI: put <code>{LORA_FILE}</code> into <code>models/loras</code>, load it with"
        f" <b>LoraLoaderModelOnly</b> at strength 1 on the same base model, and sample {steps}"
        " at CFG 1.</p>"
    )
