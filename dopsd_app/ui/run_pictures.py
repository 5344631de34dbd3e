"""What a run draws, as the fourth step shows it: prompt by step, two steps side by side, and the roll-out."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component

from dopsd_app.jobs.watch import Rollout, RunView, Samples
from dopsd_app.ui import words
from dopsd_app.ui.server.picture_files import address, read_size
from dopsd_app.ui.words import ENLARGED

NEWEST = -1  # in place of a step
CELL, LARGE = 256, 1024  # pixels that pictures are fetched at
SOON = "<div class='empty'><p>What the base model makes of your prompts appears here before the first step.</p></div>"  # fmt: skip  # noqa: E501
NONE_ASKED = "<div class='empty'><p>This run draws nothing by itself: press <b>Preview now</b>.</p></div>"


@dataclass(eq=False)
class RunPictures:
    """The components that show what a run draws."""

    samples: gr.HTML
    comparing: gr.Accordion
    left: gr.Dropdown
    right: gr.Dropdown
    pair: gr.HTML
    learning: gr.Accordion
    rollout_step: gr.Dropdown
    rollout: gr.HTML

    @property
    def choices(self) -> dict[gr.Dropdown, Any]:
        """What a person chooses here, and what is chosen at first."""
        return {self.left: 0, self.right: NEWEST, self.rollout_step: NEWEST}

    @property
    def outputs(self) -> list[Block]:
        """What `values` fills."""
        return [
            self.samples,
            self.comparing,
            self.left,
            self.right,
            self.pair,
            self.learning,
            self.rollout_step,
            self.rollout,
        ]

    def values(self, view: RunView | None, chosen: Mapping[Component, Any]) -> dict:
        """What tells of a change, and a maker or properties, for each part."""
        samples, sheets = (view.samples, view.sheets) if view else (Samples(), ())
        rollouts = view.rollouts if view else ()
        steps = [step for step, _ in samples.steps]
        left, right = (_known_step(chosen.get(side), steps) for side in (self.left, self.right))
        at = _known_step(chosen.get(self.rollout_step), [rollout.step for rollout in rollouts])
        drawn, pictured = dict(samples.steps), (samples.few, sheets, view.status.live) if view else None
        several, learned = len(steps) > 1, bool(rollouts)
        return {
            self.samples: (pictured, lambda: _samples(view) if view else ""),
            self.comparing: (several, lambda: gr.Accordion(visible=several)),
            self.left: {"choices": _step_choices(steps)},
            self.right: {"choices": _step_choices(steps)},
            self.pair: (
                (samples.prompts, left, right, drawn.get(left), drawn.get(right)),
                lambda: pair(samples, left, right),
            ),
            self.learning: (learned, lambda: gr.Accordion(visible=learned)),
            self.rollout_step: {"choices": _step_choices([rollout.step for rollout in rollouts])},
            self.rollout: (
                next((shown for shown in rollouts if shown.step == at), None),
                lambda: rollout(next((shown for shown in rollouts if shown.step == at), None)),
            ),
        }


def run_samples() -> gr.HTML:
    """Lays the samples out: prompt by step."""
    return gr.HTML(elem_id="samples")


def comparing_steps() -> tuple[gr.Accordion, gr.Dropdown, gr.Dropdown, gr.HTML]:
    """Lays out what shows two steps side by side."""
    with gr.Accordion("Compare two steps", open=False, visible=False, elem_id="compare-steps") as comparing:
        with gr.Row(elem_classes="choose"):
            left = _step_dropdown("Left", 0, "compare-left")
            right = _step_dropdown("Right", NEWEST, "compare-right")
        pair_html = gr.HTML(elem_id="pair")
    return comparing, left, right, pair_html


def how_it_learns() -> tuple[gr.Accordion, gr.Dropdown, gr.HTML]:
    """Lays the roll-out out."""
    with gr.Accordion("How it learns", open=False, visible=False, elem_id="learning") as learning:
        gr.HTML(
            "<p class='hint'>In each training step the student draws a picture of its own in its few steps."
            " After each, this is the picture that it has in mind, and the teacher's, which also sees your"
            " training picture. The student learns to come closer to the teacher.</p>"
        )
        with gr.Row(elem_classes="choose"):
            step = _step_dropdown("Of step", NEWEST, "rollout-step")
        rollout_html = gr.HTML(elem_id="rollout")
    return learning, step, rollout_html


def _step_dropdown(label: str, value: int, elem_id: str) -> gr.Dropdown:
    # Whatever the choices are by now: a server that was started anew knows none.
    return gr.Dropdown(
        _step_choices([]), value=value, label=label, allow_custom_value=True, min_width=140, elem_id=elem_id
    )


def _step_choices(steps: Sequence[int]) -> list[tuple[str, int]]:
    return [("Newest", NEWEST), *((step_name(step), step) for step in reversed(steps))]


def step_name(step: int) -> str:
    """What a column is called."""
    return f"Step {step}" if step else "Base"


def _known_step(chosen: object, steps: Sequence[int]) -> int | None:
    """The step that is meant: the newest where none, or none of these, was chosen."""
    return chosen if isinstance(chosen, int) and chosen in steps else max(steps, default=None)


# --- as HTML


def _samples(view: RunView) -> str:
    sheets = _sheets(view.sheets) if view.sheets else ""
    if view.samples.steps:
        return matrix(view.samples.few) + sheets
    if sheets or not view.status.live:
        return sheets
    return NONE_ASKED if view.status.step else SOON


def matrix(samples: Samples) -> str:
    """A row for each prompt: what it starts from, if from anything, the base's picture, the LoRA's."""
    names = [step_name(step) for step, _ in samples.steps]
    names = ["Source", *names] if samples.sources else names
    heads = "".join(f"<th scope='col'>{name}</th>" for name in names)
    rows = "".join(_row(samples, number, prompt, len(names)) for number, prompt in enumerate(samples.prompts))
    return (
        "<div class='over-time'><h2>What it draws</h2>"
        "<p class='hint'>Each row is one prompt, always from the same noise of the run's seed"
        f" {samples.seed}: what changes from left to right, the LoRA has learned.</p>"
        "<div class='matrix' tabindex='0' role='group' aria-label='Samples by prompt and step'>"
        f"<table style='--columns:{len(names)}'><thead><tr>{heads}</tr></thead>{rows}</table></div></div>"
    )


def _row(samples: Samples, number: int, prompt: str, columns: int) -> str:
    about = words.text(f"the run's seed {samples.seed} · {prompt}")
    cells = [_cell(_of(samples.sources, number), "Source")] if samples.sources else []
    cells += [_cell(_of(files, number), step_name(step)) for step, files in samples.steps]
    title = words.text(prompt)
    shape = _shape(file for _, files in samples.steps[:1] if (file := _of(files, number)))
    return (
        f"<tbody data-group='prompt-{number}' data-about='{about}'{shape}>"
        f"<tr><th colspan='{columns}' scope='rowgroup'><span title='{title}'>{title}</span></th></tr>"
        f"<tr>{''.join(cells)}</tr></tbody>"
    )


def _shape(files: Iterable[Path]) -> str:
    """The pictures' shape as a style: their places are laid out before they are fetched."""
    for file in files:
        with suppress(OSError):
            width, height = read_size(str(file), file.stat().st_mtime_ns)
            return f" style='--shape:{width}/{height}'"
    return ""


def _of(files: Sequence[Path | None], number: int) -> Path | None:
    return files[number] if number < len(files) else None


def _cell(file: Path | None, name: str) -> str:
    """A picture as `words.picture` has it, in few bytes: there are hundreds, and their shape is the row's."""
    try:
        small, large = (address(file, side) for side in (CELL, ENLARGED)) if file else ("", "")
    except OSError:  # deleted
        small = large = ""
    if not small:
        return "<td></td>"
    shown = f'<img src="{words.text(small)}" alt="{name}" loading=lazy>'
    return f'<td><a class=enlarge href="{words.text(large)}">{shown}</a></td>'


def _sheets(sheets: Sequence[tuple[int, Path]]) -> str:
    """Samples of an earlier version: all prompts of a step in one picture, base beside LoRA."""
    figures = "".join(
        f"<figure><figcaption>Step {step}</figcaption>"
        + words.picture(file, f"Base and LoRA at step {step}", group="sheets")
        + "</figure>"
        for step, file in reversed(sheets)
    )
    return (
        "<div class='over-time'><h2>What it draws</h2>"
        "<p class='hint'>Left: the base model. Right: with your LoRA. Of an edit, before them the source.</p>"
        f"<div class='strip' tabindex='0' role='group' aria-label='Samples by step'>{figures}</div></div>"
    )


def pair(samples: Samples, left: int | None, right: int | None) -> str:
    """The pictures of two steps side by side, a row for each prompt."""
    drawn = dict(samples.steps)
    if left is None or right is None:
        return ""
    rows = "".join(
        f"<section data-group='pair-{number}' data-about='{words.text(prompt)}'>"
        f"<h3 title='{words.text(prompt)}'>{words.text(prompt)}</h3>"
        + "".join(
            f"<figure><figcaption>{step_name(step)}</figcaption>"
            + (words.picture(file, step_name(step), longest=LARGE) if file else "")
            + "</figure>"
            for step in (left, right)
            for file in [_of(drawn[step], number)]
        )
        + "</section>"
        for number, prompt in enumerate(samples.prompts)
    )
    return f"<div class='pairs'>{rows}</div>"


def rollout(shown: Rollout | None) -> str:
    """The states of one roll-out, the student's above the teacher's."""
    if shown is None:
        return ""
    if not shown.teacher:  # one picture of both, as an earlier version saved them
        sheet = words.picture(shown.student[0], "The student's states above the teacher's", longest=LARGE)
        return f"<figure class='sheet'>{sheet}</figure>"
    rows = "".join(
        f"<span>{who}</span>"
        + "".join(
            words.picture(file, f"{who}, after {number} of {len(files)}", longest=CELL)
            for number, file in enumerate(files, start=1)
        )
        for who, files in (("Student", shown.student), ("Teacher", shown.teacher))
    )
    return (
        f"<div class='rollout' style='--states:{len(shown.student)}' data-group='rollout'"
        f" data-about='Step {shown.step}'>{rows}</div>"
    )
