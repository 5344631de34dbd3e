"""The fifth step, its second part: the LoRA file itself, and how it is used elsewhere."""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr
from gradio.blocks import Block

from dopsd_app.errors import KnownFailure
from dopsd_app.files import cut_name
from dopsd_app.hub.model_card import make_snippet
from dopsd_app.hub.publication import healthier_checkpoint
from dopsd_app.jobs.job import RunError
from dopsd_app.jobs.lora_file import find_lora, read_facts
from dopsd_app.jobs.run_notes import name_of
from dopsd_app.jobs.runs import Run, complete_checkpoints
from dopsd_app.models.catalog import find_facts, is_known
from dopsd_app.ui import words
from dopsd_app.ui.events import listen
from dopsd_app.ui.run_actions import the_run, watcher
from dopsd_app.ui.server.lora_copies import lora_copy

if TYPE_CHECKING:
    from dopsd_app.ui.page import Page

FINISHED = "Final"
LONGEST_NAME = 150  # bytes of a run's name in those of files


@dataclass(eq=False)
class UseFile:
    """The components of this part, and what its events do."""

    checkpoint: gr.Dropdown  # whose LoRA is downloaded, and published
    download: gr.DownloadButton
    diffusers: gr.Textbox
    comfyui: gr.HTML

    @property
    def outputs(self) -> list[Block]:
        """What `show` fills."""
        return [self.checkpoint, *self._of_file]

    @property
    def _of_file(self) -> list[Block]:
        return [self.download, self.diffusers, self.comfyui]

    def connect(self, page: "Page") -> None:
        """Connects the part's events."""
        chosen = [page.train.run_id, self.checkpoint]
        listen(self.checkpoint.input, self.offer, chosen, self._of_file, trigger_mode="always_last")

    def show(self, run: Run) -> dict:
        """Fills the part for a run."""
        choices, chosen = what_to_try(run)
        about = "The last one in good health is chosen" if watcher.read(run).health else "The last is chosen"
        return {
            self.checkpoint: gr.Dropdown(choices=choices, value=chosen, info=about),
            **self._offer(run, chosen),
        }

    def offer(self, run_id: str, checkpoint: str) -> dict:
        """The file of the chosen step, and how it is used."""
        return self._offer(the_run(run_id), checkpoint)

    def _offer(self, run: Run, checkpoint: str | None) -> dict:
        file = find_lora(run, chosen_step(checkpoint))
        name = lora_name(run, file)
        copy = lora_copy(run, file, name)
        return {
            self.download: gr.DownloadButton(f"Download {name}", value=copy, visible=True),
            self.diffusers: make_snippet(run.config, ".", first_prompt(run), run.sources, name),
            self.comfyui: _comfyui(run, name),
        }


def use_file() -> UseFile:
    """Lays the part out."""
    gr.HTML("<h2>Use the file</h2>")
    with gr.Row(equal_height=False, elem_classes="take"):
        checkpoint = gr.Dropdown(
            [FINISHED],
            value=FINISHED,
            allow_custom_value=True,  # the chosen step may be thinned out: that is said in words then
            label="The LoRA to download and publish",
            elem_id="checkpoint",
        )
        download = gr.DownloadButton("Download the LoRA", visible=False, elem_id="download")
    with gr.Accordion("In diffusers and ComfyUI", open=False, elem_id="use"):
        diffusers = words.code_box("diffusers", "diffusers")
        comfyui = gr.HTML(elem_id="comfyui")
    return UseFile(checkpoint, download, diffusers, comfyui)


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


def chosen_step(checkpoint: str | None) -> int | None:
    """The checkpoint's step that a choice means; None for the finished LoRA."""
    if checkpoint == FINISHED:
        return None
    number = (checkpoint or "").removeprefix("Step ")
    if not number.isdecimal():
        raise KnownFailure(f'Choose "{FINISHED}" or a step, such as "Step 50".')
    return int(number)


def first_prompt(run: Run) -> str:
    """What a prompt begins as: the preview's; else of an edit the first instruction, or the trigger word."""
    if run.config.preview_prompts:
        return run.config.preview_prompts[0]
    captions = (run.dataset / "01.txt").read_text(encoding="utf-8").splitlines() if run.sources else ()
    return next(iter(captions), run.config.trigger_word)


def lora_name(run: Run, file: Path) -> str:
    """What a LoRA file of the run is called where it lies among others: after the run and its step."""
    step = None
    if file != run.lora_file:
        step = int(file.parent.name)
    else:
        with suppress(RunError):  # damaged: it is as good as its name then
            step = read_facts(file).get("steps")
    # One that does not tell its step was made by an early version.
    return f"{file_name(run)}_step-{step:06d}.safetensors" if step else f"{file_name(run)}.safetensors"


def file_name(run: Run) -> str:
    """The run's name as every file system takes it: more follows it in a file's name."""
    return cut_name(re.sub(r"[^\w-]+", "-", name_of(run)).strip("-"), LONGEST_NAME).strip("-") or "lora"


def _comfyui(run: Run, file: str) -> str:
    """How to use the file in ComfyUI; nothing for a base model that it does not know."""
    config = run.config
    if not is_known(config.base_model, config.revision):
        return ""  # it is not here any more
    if not find_facts(config.base_model, config.revision).comfyui:
        return ""
    steps = words.count(config.num_inference_steps, "step")
    return (
        f"<p class='hint'>ComfyUI: put <code>{words.text(file)}</code> into <code>models/loras</code>, load"
        f" it with <b>LoraLoaderModelOnly</b> at strength 1 on the same base model, and sample {steps}"
        " at CFG 1.</p>"
    )
