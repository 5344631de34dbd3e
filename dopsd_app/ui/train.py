"""The fourth step: watching runs, and asking things of them."""

from dataclasses import dataclass
from datetime import UTC, datetime

import gradio as gr
import pandas as pd

from dopsd_app.hub.access import this_space
from dopsd_app.hub.publication import BEST, suggest_name
from dopsd_app.hub.when_finished import read_wish, waits_for_sign_in
from dopsd_app.jobs.events import HealthMeasured
from dopsd_app.jobs.runs import Run
from dopsd_app.jobs.status import Status
from dopsd_app.jobs.watch import Preview, RunView
from dopsd_app.progress import DownloadProgress
from dopsd_app.ui import words
from dopsd_app.ui.news import only_new, seen_marks
from dopsd_app.ui.plan import plainly
from dopsd_app.ui.run_actions import can_go_on, can_try, read_log, run_name, statuses, the_run, watcher, wish
from dopsd_app.ui.server.guard import guarded

WATCHING, RESTING = 1.0, 5.0  # seconds between two looks: while a run is at work or waits, and otherwise
EMPTY = (
    "<div class='empty'><p>No run yet. Choose pictures, look at the plan and press <b>Start</b>.</p></div>"
)
NONE_CHOSEN = "<div class='empty'><p>Choose one of the runs to see how it stands.</p></div>"

SCORES = {
    "Like your pictures": ("#4f46e5", "should rise: how like them its pictures of the prompts are"),
    "Follows the prompt": ("#d97706", "should stay high: 1 is the most, 0 is chance"),
    "Clean pictures": ("#16a34a", "should stay high: it falls when pictures get worse"),
    "Other prompts change": ("#dc2626", "should stay low: how far pictures of something else have moved"),
}
LEGEND = "".join(
    f"<p class='hint'><span style='background:{colour}'></span><b>{name}</b> {meaning}</p>"
    for name, (colour, meaning) in SCORES.items()
)

MORE = 400  # steps that are offered to a run that is over
GOOD = "The LoRA file was loaded back into the base model and draws what was trained."


@dataclass(frozen=True)
class TrainStep:
    """The components of this step that others set or listen to."""

    run_id: gr.State
    runs: gr.Radio
    timer: gr.Timer
    seen: gr.JSON
    status: gr.HTML
    progress: gr.HTML
    rollout: gr.HTML
    samples: gr.HTML
    curve: gr.LinePlot
    health: gr.LinePlot
    stop: gr.Button
    resume: gr.Button
    further: gr.Row  # there while a run can make more steps
    more: gr.Number
    go_on: gr.Button
    preview: gr.Button
    save: gr.Button
    clone: gr.Button
    delete: gr.Button
    sure: gr.Row
    really: gr.Button
    keep: gr.Button
    to_try: gr.Button
    wish: list  # push, name, private, pause, healthiest and what was said of them
    ask: gr.Button
    log: gr.Textbox

    @property
    def beside(self) -> list:
        """What `show_beside` fills, in its order."""
        return [self.log, *self.wish[:-1]]

    @property
    def watched(self) -> list:
        """What `look` fills, in its order."""
        of_run = [self.stop, self.resume, self.preview, self.save]
        buttons = [*of_run, self.clone, self.delete, self.to_try, self.further]
        shown = [self.status, self.progress, self.rollout, self.samples, self.curve, self.health]
        return [self.seen, self.runs, *shown, *buttons, self.wish[-1], self.timer]


def train_step() -> TrainStep:
    """Lays the step out."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320):
            status = gr.HTML(EMPTY, elem_id="run-status")
            progress = gr.HTML(elem_id="run-progress")
            with gr.Row(elem_classes="buttons"):
                stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="stop")
                resume_button = gr.Button("Resume", interactive=False, elem_id="resume")
                preview = gr.Button("Preview now", interactive=False, elem_id="preview-now")
                save = gr.Button("Save now", interactive=False, elem_id="save-now")
                to_try = gr.Button("Try it", variant="primary", interactive=False, elem_id="to-try")
            with gr.Row(visible=False, elem_classes="buttons") as further:
                more = gr.Number(MORE, label="More steps", precision=0, minimum=1, elem_id="more-steps")
                go_on = gr.Button("Train further", elem_id="go-on")
            rollout = gr.HTML(elem_id="rollout")
            samples = gr.HTML(elem_id="samples")
            health = gr.LinePlot(
                x="step",
                y="score",
                color="of",
                color_map={name: colour for name, (colour, _) in SCORES.items()},
                colors_in_legend=[],  # Gradio's own is cut off below the plot
                height=240,
                label="Health (step 0 is the base model)",
                elem_id="health",
                visible=False,
                buttons=[],
            )
            gr.HTML(LEGEND, elem_id="health-legend")
            curve = gr.LinePlot(
                x="step", y="loss", height=220, label="Loss", elem_id="loss", visible=False, buttons=[]
            )
            gr.HTML(
                "<p class='hint'>The loss is noisy and does not go to zero: trust the pictures.</p>",
                elem_id="loss-hint",
            )
            with gr.Accordion("Log", open=False, elem_id="log") as log:
                log_text = words.code_box("Log", "log-text")
        with gr.Column(scale=1, min_width=280):
            runs = gr.Radio([], label="Runs", elem_id="runs", elem_classes="runs")
            with gr.Row(elem_classes="buttons"):
                clone = gr.Button("Use again", interactive=False, size="sm", elem_id="clone")
                delete = gr.Button("Delete", interactive=False, size="sm", elem_id="delete")
            with gr.Row(visible=False, elem_classes="buttons") as sure:
                really = gr.Button("Delete for good", variant="stop", size="sm", elem_id="really-delete")
                keep = gr.Button("Keep it", size="sm", elem_id="keep-run")
            with gr.Accordion("When finished", open=False, elem_id="when-finished"):
                wish, ask = _wish_parts()
    run_id, seen = gr.State(""), seen_marks()
    timer = gr.Timer(RESTING)
    log.expand(guarded(read_log), run_id, log_text, api_visibility="private", show_progress="hidden")
    return TrainStep(
        run_id, runs, timer, seen, status, progress, rollout, samples, curve, health,
        stop, resume_button, further, more, go_on, preview, save, clone, delete, sure, really, keep,
        to_try, wish, ask, log_text,
    )  # fmt: skip


def _wish_parts() -> tuple[list, gr.Button]:
    push = gr.Checkbox(label="Push to the Hub", elem_id="wish-push")
    name = gr.Textbox(label="Name on the Hub", max_length=200, elem_id="wish-name")
    private = gr.Checkbox(True, label="Private", elem_id="wish-private")
    pause = gr.Checkbox(
        label="Then pause this Space: its disk is lost",
        info="Needs the secret PAUSE_TOKEN: a token with the right to write to this Space",
        visible=this_space() is not None,
        elem_id="wish-pause",
    )
    healthiest = gr.Checkbox(
        label="The step in best health",
        info="Where an earlier one is better than the last",
        elem_id="wish-healthiest",
    )
    ask = gr.Button("Save", size="sm", elem_id="wish-keep")
    return [push, name, private, pause, healthiest, gr.HTML(elem_id="wish-said")], ask


def show_wish(run_id: str) -> list:
    """What is to happen when the run has finished, and what became of it."""
    if not run_id:
        return [False, "", True, False, False]
    run = the_run(run_id)
    if (asked := read_wish(run).publication) is None:
        return [False, suggest_name(run.config), True, False, False]
    return [True, asked.name, asked.private, asked.pause, asked.checkpoint == BEST]


def show_beside(run_id: str) -> list:
    """The log and the wish of a run."""
    return [read_log(run_id) if run_id else "", *show_wish(run_id)]


def keep_wish(
    run_id: str,
    push: bool,
    name: str,
    private: bool,
    pause: bool,
    healthiest: bool,
    oauth_token: str | None = None,
) -> str:
    """Keeps a wish, and says so."""
    wish(run_id, push, name, private, pause, healthiest, oauth_token)
    return _told(the_run(run_id))


def _told(run: Run) -> str:
    asked = read_wish(run)
    if asked.reason:
        return words.lines([asked.reason], "problem")
    if asked.publication is None:
        return ""
    name, best = words.text(asked.publication.name), asked.publication.checkpoint == BEST
    lora = "The LoRA, of its step in best health," if best else "The LoRA"
    if waits_for_sign_in(run, asked):
        where = "at the top of the page" if this_space() else "with <code>hf auth login</code>"
        said = f"{lora} waits to be published as {name}: sign in {where}, then press Save."
    elif asked.done:
        said = f"{lora} was published as {name}."
    else:
        said = f"{lora} will be published as {name} when the run has finished."
    return f"<p class='note' role='status'>{said}</p>"


def look(run_id: str, seen: dict) -> list:
    """New values for all that shows runs; what this tab has already is left as it is.

    `seen` is what the tab was sent before: a mark for each output, so that pictures travel once.
    """
    known = statuses()
    run, view = _view(run_id, [run for run, _ in known])
    busy = any(status.busy for _, status in known)
    choices = [(_label(run, status), run.id) for run, status in known]
    chosen = run.id if run else None
    values = {
        "runs": {"choices": choices, "value": chosen},
        **_pictures_of_run(view, NONE_CHOSEN if known else EMPTY),
        **_buttons(run, view),
        "wish": (told := _told(run) if view else "", lambda: told),
        "timer": (busy, lambda: gr.Timer(WATCHING if busy else RESTING)),
    }
    return only_new(values, seen)


def _view(run_id: str, runs: list[Run]) -> tuple[Run | None, RunView | None]:
    run = next((run for run in runs if run.id == run_id), None)
    try:
        return (run, watcher.look(run)) if run else (None, None)
    except FileNotFoundError:  # deleted between two lines
        return None, None


def _label(run: Run, status: Status) -> str:
    made = datetime.strptime(run.id[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC).astimezone()
    state = words.STATES[status.state]
    if status.state in ("training", "stopping", "stopped", "interrupted", "failed") and status.steps:
        state += f", {status.step} / {status.steps}"
    return f"{run_name(run)} · {state} · {made:%d %b %H:%M}"


def _pictures_of_run(view: RunView | None, otherwise: str) -> dict:
    """A mark and a maker for each part that shows the chosen run."""
    if view is None:
        return {
            "status": (otherwise, lambda: otherwise),
            **{key: (None, lambda: "") for key in ("progress", "rollout", "samples")},
            **{key: (None, lambda: gr.LinePlot(visible=False)) for key in ("curve", "health")},
        }
    status = view.status
    return {
        "status": ((status.state, status.reason, view.check, view.warnings), lambda: _status(view)),
        "progress": ((status.step, status.steps, status.state, view.download), lambda: _progress(view)),
        "rollout": ((view.rollouts[-1:], not view.samples), lambda: _rollout(view)),
        "samples": (view.samples, lambda: _samples(view.samples)),
        "curve": (view.curve, lambda: _curve(view.curve)),
        "health": (view.health, lambda: _health(view.health)),
    }


def _status(view: RunView) -> str:
    status = view.status
    notes = [plainly(status.reason)] if status.reason else []
    if status.state == "finished":
        notes.append(GOOD if view.passed else view.check)
    notes += view.warnings[-3:]
    kind = {"failed": "bad", "interrupted": "bad", "finished": "good"}.get(status.state, "plain")
    lines = "".join(f"<p>{words.message(note)}</p>" for note in notes if note)
    return (
        f"<div class='status {kind}'><p role='status' aria-live='polite'>"
        f"{words.STATES[status.state]}</p>{lines}</div>"
    )


def _progress(view: RunView) -> str:
    status = view.status
    if status.state == "downloading" and view.download:
        return _download(view.download)
    share = status.step / status.steps if status.steps else 0
    facts = [f"Step {status.step} of {status.steps}"]
    if view.seconds_per_step is not None:
        facts.append(f"{words.pace(view.seconds_per_step)} per step")
    if view.seconds_left is not None:
        facts.append(f"{words.in_time(view.seconds_left)} left")
    if view.memory:
        facts.append(f"{words.memory(view.memory)} of memory")
    cells = "".join(f"<span>{fact}</span>" for fact in facts)
    return (
        f"<progress max='1' value='{share:.4f}' aria-label='Steps done'></progress>"
        f"<div class='facts'>{cells}</div>"
    )


def _download(progress: DownloadProgress) -> str:
    share = progress.done / progress.total if progress.total else 0
    return (
        f"<progress max='1' value='{share:.4f}' aria-label='Base model fetched'></progress>"
        f"<div class='facts'><span>{words.download(progress)}</span></div>"
    )


def _rollout(view: RunView) -> str:
    if not view.rollouts:
        empty = "<div class='empty'><p>The first preview appears here while the model trains.</p></div>"
        return "" if view.samples else empty  # not every objective makes a roll-out
    latest = view.rollouts[-1]
    picture = words.image(latest.file, "The student's states above the teacher's", 2400)
    return (
        f"<figure class='film'><figcaption><b>The roll-out of step {latest.step}</b>"
        " Above, the student's guess after each of its few steps; below, the teacher's correction."
        f"</figcaption><div class='rows'><span>Student</span><span>Teacher</span></div>{picture}</figure>"
    )


def _samples(samples: tuple[Preview, ...]) -> str:
    if not samples:
        return ""
    latest, *earlier = reversed(samples)
    older = "".join(
        f"<figure><figcaption>Step {sample.step}</figcaption>{_sample(sample, 512)}</figure>"
        for sample in earlier
    )
    strip = f"<div class='strip' tabindex='0' role='group' aria-label='Earlier samples'>{older}</div>"
    return (
        "<div class='over-time'><h2>The same prompts and seeds over time</h2>"
        "<p class='hint'>Left: the base model. Right: with your LoRA.</p>"
        f"<figure class='latest'><figcaption><b>Step {latest.step}</b></figcaption>{_sample(latest, 2400)}"
        f"</figure>{strip if earlier else ''}</div>"
    )


def _sample(sample: Preview, longest: int) -> str:
    return words.image(sample.file, f"Base and LoRA at step {sample.step}", longest)


def _curve(points: tuple[tuple[float, float], ...]):
    if len(points) < 2:
        return gr.LinePlot(visible=False)
    return gr.LinePlot(pd.DataFrame(points, columns=["step", "loss"]), visible=True)


def _health(measured: tuple[HealthMeasured, ...]):
    if len(measured) < 2:
        return gr.LinePlot(visible=False)
    rows = [
        (health.step, score, name)
        for health in measured
        for name, score in zip(SCORES, _scores(health), strict=True)
        if score is not None
    ]
    return gr.LinePlot(pd.DataFrame(rows, columns=["step", "score", "of"]), visible=True)


def _scores(health: HealthMeasured) -> tuple[float | None, ...]:
    return health.concept, health.following, health.quality, health.drift


def _buttons(run: Run | None, view: RunView | None) -> dict:
    state = view.status.state if view else ""
    live = state in ("downloading", "loading", "encoding", "training")
    active = {
        "stop": live or state == "queued",
        "resume": state in ("draft", "stopped", "failed", "interrupted"),
        "preview": state == "training",
        "save": state == "training",
        "clone": bool(view),
        "delete": bool(view) and not (live or state == "stopping"),
        "to_try": bool(run) and can_try(run),
    }
    further = bool(run) and can_go_on(run, state)
    values = {key: (on, lambda on=on: gr.Button(interactive=on)) for key, on in active.items()}
    return values | {"further": (further, lambda: gr.Row(visible=further))}
