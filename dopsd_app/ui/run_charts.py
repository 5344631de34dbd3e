"""The curves of a run, as the fourth step shows them: loss and health, smoothed, beside earlier runs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import gradio as gr
import pandas as pd
from gradio.blocks import Block
from gradio.components import Component

from dopsd_app.errors import KnownFailure
from dopsd_app.jobs.events import HealthMeasured
from dopsd_app.jobs.run_notes import name_of
from dopsd_app.jobs.runs import Run
from dopsd_app.jobs.watch import RunView
from dopsd_app.ui import words
from dopsd_app.ui.events import listen
from dopsd_app.ui.run_actions import the_run, watcher

SCORES = {
    "Like your pictures": ("#4f46e5", "should rise", "How like them its pictures of the prompts are"),
    "Follows the prompt": ("#d97706", "should stay high", "1 is the most, 0 is chance"),
    "Clean pictures": ("#16a34a", "should stay high", "It falls when pictures get worse"),
    "Other prompts change": ("#dc2626", "should stay low", "How far pictures of something else have moved"),
}
LEGEND = "".join(
    f"<p class='hint' title='{meaning}'><span style='background:{colour}'></span><b>{name}</b> {wish}</p>"
    for name, (colour, wish, meaning) in SCORES.items()
)
UNMEASURED = "<p class='hint'>The health is measured with the first whole preview.</p>"
FIRST = next(iter(SCORES))
SMOOTHING = {"Off": 0.0, "Light": 0.8, "Strong": 0.96}  # how much of the mean so far each step keeps
LIGHT = "Light"
# From which share of the steps on they are shown: Gradio's own way, to draw over them, has no name that is
# read out, works by no key, and after one click no new values are shown.
ZOOM = {"All": 0.0, "Second half": 0.5, "Last quarter": 0.75}
ALL = "All"
OWN, RAW = "This run", "Each step"
COLOURS = {OWN: "#4f46e5", RAW: "rgba(129, 140, 248, 0.4)"}
OTHERS = {
    "Other run 1": "#0891b2",
    "Other run 2": "#c026d3",
    "Other run 3": "#65a30d",
    "Other run 4": "#b45309",
}
MOST = len(OTHERS)
LOSS_LINES = {RAW: COLOURS[RAW], OWN: COLOURS[OWN], **OTHERS}
HEALTH_LINES = {**{name: colour for name, (colour, *_) in SCORES.items()}, OWN: COLOURS[OWN], **OTHERS}
OTHERS_POINTS = 150  # of a curve beside others: all of them go over the wire


@dataclass(eq=False)
class RunCharts:
    """The components that show a run's curves."""

    curve: gr.LinePlot
    health: gr.LinePlot
    legend: gr.HTML  # of the health
    runs_legend: gr.HTML  # of the runs beside this one
    smoothing: gr.Radio
    compared: gr.Dropdown
    score: gr.Dropdown
    zoom: gr.Radio

    @property
    def choices(self) -> dict[gr.Radio | gr.Dropdown, Any]:
        """What a person chooses here, and what is chosen at first."""
        return {self.smoothing: LIGHT, self.compared: [], self.score: FIRST}

    @property
    def outputs(self) -> list[Block]:
        """What `values` and `begin` fill."""
        return [
            self.curve, self.health, self.legend, self.runs_legend, self.compared, self.score, self.zoom
        ]  # fmt: skip

    def connect(self, run_id: Component) -> None:
        """Connects what changes the view of the curves alone."""
        listen(self.zoom.input, self.show_steps, [run_id, self.zoom], [self.curve, self.health])

    def show_steps(self, run_id: str, choice: str) -> dict:
        """Shows only the later steps, or all of them."""
        steps, first = the_run(run_id).status.steps, ZOOM.get(choice, 0.0)
        shown = gr.update(x_lim=[round(steps * first), steps] if first else None)
        return {self.curve: shown, self.health: shown}

    def begin(self, run: Run | None, runs: Sequence[Run]) -> dict[Component, dict]:
        """For another run than before: nothing is enlarged, and which runs can be shown beside it."""
        choices = [(_named(other), other.id) for other in _comparable(run, runs)] if run else []
        return {
            self.compared: {"choices": choices, "visible": bool(choices)},
            self.zoom: {"value": ALL},
            self.curve: {"x_lim": None},
            self.health: {"x_lim": None},
        }

    def values(
        self, view: RunView | None, chosen: Mapping[Component, Any], runs: Sequence[Run]
    ) -> dict[Component, tuple]:
        """What tells of a change, and a maker, for each part."""
        if view is None:
            hidden = (None, lambda: gr.update(visible=False))
            nothing = (None, lambda: "")
            return {
                self.curve: hidden,
                self.health: hidden,
                self.legend: nothing,
                self.runs_legend: nothing,
                self.score: (None, lambda: gr.update(visible=False)),
            }
        others = _others(chosen.get(self.compared), runs)
        weight = SMOOTHING.get(str(chosen.get(self.smoothing)), SMOOTHING[LIGHT])
        score = str(chosen.get(self.score)) if chosen.get(self.score) in SCORES else FIRST
        curves, healths = [other.curve for _, other in others], [other.health for _, other in others]
        names = [name for name, _ in others]
        legend = UNMEASURED if len(view.health) < 2 else "" if others else LEGEND
        return {
            self.curve: ((view.curve, curves, weight), lambda: curve(view.curve, curves, weight)),
            self.health: ((view.health, healths, score), lambda: health(view.health, healths, score)),
            self.legend: (legend, lambda: legend),
            self.runs_legend: (names, lambda: _runs_legend(names)),
            self.score: (bool(others), lambda: gr.update(visible=bool(others))),
        }


def run_charts() -> RunCharts:
    """Lays the curves out."""
    common: dict[str, Any] = {
        "x": "step",
        "color": "of",
        "colors_in_legend": [],  # Gradio's own is cut off below the plot
        "height": 190,
        "show_label": False,
        "visible": False,
        "buttons": [],
    }
    with gr.Tabs(elem_id="charts"):
        with gr.Tab("Loss", id="loss-tab"):
            curve_plot = gr.LinePlot(
                y="loss", color_map=LOSS_LINES, label="Loss by step", elem_id="loss", **common
            )
            gr.HTML("<p class='hint'>It is noisy and does not go to zero: trust the pictures.</p>")
        with gr.Tab("Health", id="health-tab"):
            health_plot = gr.LinePlot(
                y="score", color_map=HEALTH_LINES, label="Health by step", elem_id="health", **common
            )
            legend = gr.HTML(elem_id="health-legend", elem_classes="legend")
    runs_legend = gr.HTML(elem_id="runs-legend", elem_classes="legend")
    with gr.Accordion("Smoothing and earlier runs", open=False, elem_id="curves"):
        zoom = gr.Radio(list(ZOOM), value=ALL, label="Steps shown", elem_id="zoom")
        smoothing = gr.Radio(list(SMOOTHING), value=LIGHT, label="Smoothing of the loss", elem_id="smoothing")
        compared = gr.Dropdown(
            [],
            value=[],
            multiselect=True,
            max_choices=MOST,
            allow_custom_value=True,  # a server that was started anew knows no choices
            visible=False,
            label="Beside earlier runs",
            elem_id="compared",
        )
        score = gr.Dropdown(
            list(SCORES), value=FIRST, label="Health shown", visible=False, elem_id="health-score"
        )
    return RunCharts(curve_plot, health_plot, legend, runs_legend, smoothing, compared, score, zoom)


def _comparable(run: Run, runs: Sequence[Run]) -> list[Run]:
    """Other runs of the same base model that have begun, newest first; none where its own cannot be read."""
    try:
        base = run.config.base_model
    except KnownFailure:
        return []
    found = []
    for other in runs:
        try:
            if other.id != run.id and other.status.step and other.config.base_model == base:
                found.append(other)
        except (KnownFailure, OSError):  # its settings cannot be read, or it is just being deleted
            continue
    return found


def _others(chosen: object, runs: Sequence[Run]) -> list[tuple[str, RunView]]:
    wanted = chosen if isinstance(chosen, list) else []
    found = []
    for run in runs:
        if run.id in wanted[:MOST]:
            try:
                found.append((_named(run), watcher.read(run)))
            except FileNotFoundError:  # deleted between two lines
                continue
    return found


def _named(run: Run) -> str:
    made = datetime.strptime(run.id[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC).astimezone()
    return f"{name_of(run)} · {made:%d %b %H:%M:%S}"


Points = Sequence[tuple[float, float]]


def smooth(points: Points, weight: float) -> list[tuple[float, float]]:
    """Means of the points so far, of which each counts `weight` times what the next one does."""
    mean, share, smoothed = 0.0, 0.0, []
    for x, y in points:
        mean, share = weight * mean + (1 - weight) * y, weight * share + (1 - weight)
        smoothed.append((x, mean / share))
    return smoothed


def curve(points: Points, others: Sequence[Points], weight: float) -> dict:
    """The loss by step: smoothed, with each step's faint behind it, and of other runs."""
    lines = {RAW: points} if weight else {}
    lines[OWN] = smooth(points, weight)
    lines |= {name: _few(smooth(other, weight)) for name, other in zip(OTHERS, others, strict=False)}
    return _plot(lines, LOSS_LINES, "loss")


def _few(points: Points) -> Points:
    every = -(-len(points) // OTHERS_POINTS) or 1
    return points[::every]


def health(
    measured: Sequence[HealthMeasured], others: Sequence[Sequence[HealthMeasured]], score: str
) -> dict:
    """The scores of the run's health by step; beside others, one score of each run."""
    if others:
        lines = {OWN: _line(measured, score)}
        lines |= {name: _line(other, score) for name, other in zip(OTHERS, others, strict=False)}
    else:
        lines = {name: _line(measured, name) for name in SCORES}
    return _plot(lines, HEALTH_LINES, "score")


def _line(measured: Sequence[HealthMeasured], score: str) -> Points:
    found = ((health.step, _scores(health)[score]) for health in measured)
    return [(step, value) for step, value in found if value is not None]


def _plot(lines: Mapping[str, Points], known: Iterable[str], y: str) -> dict:
    """Lines by their names; nothing is shown before there are two points of any.

    Every known line is there, if without a point: for a new one, Gradio would draw all anew, of old values.
    """
    if max((len(line) for line in lines.values()), default=0) < 2:
        return gr.update(visible=False)
    rows = [
        (step, float(f"{value:.4g}"), name)
        for name in known
        for step, value in lines.get(name) or [(1.0, float("nan"))]
    ]
    return gr.update(value=pd.DataFrame(rows, columns=["step", y, "of"]), visible=True)


def _runs_legend(others: Sequence[str]) -> str:
    shown = zip((OWN, *others), (COLOURS[OWN], *OTHERS.values()), strict=False) if others else ()
    return "".join(
        f"<p class='hint'><span style='background:{colour}'></span>{words.text(name)}</p>"
        for name, colour in shown
    )


def _scores(health: HealthMeasured) -> dict[str, float | None]:
    found = (health.concept, health.following, health.quality, health.drift)
    return dict(zip(SCORES, found, strict=True))
