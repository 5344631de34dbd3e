"""How a run stands, as the fourth step shows it: HTML and plots."""

import gradio as gr
import pandas as pd

from dopsd_app.jobs.events import HealthMeasured
from dopsd_app.jobs.watch import Preview, RunView
from dopsd_app.progress import DownloadProgress
from dopsd_app.ui import words
from dopsd_app.ui.plan import plainly

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

GOOD = "The LoRA file was loaded back into the base model and draws what was trained."


def status(view: RunView) -> str:
    """The run's state, and what there is to know about it."""
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


def progress(view: RunView) -> str:
    """How far the run is, how fast, and how long it still takes."""
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


def rollout(view: RunView) -> str:
    """The newest roll-out."""
    if not view.rollouts:
        empty = "<div class='empty'><p>The first preview appears here while the model trains.</p></div>"
        return "" if view.samples else empty  # not every objective makes a roll-out
    latest = view.rollouts[-1]
    picture = words.image(latest.file, "The student's states above the teacher's", 2400)
    return (
        f"<figure class='rollout'><figcaption><b>The roll-out of step {latest.step}</b>"
        " Above, the student's guess after each of its few steps; below, the teacher's correction."
        f"</figcaption><div class='rows'><span>Student</span><span>Teacher</span></div>{picture}</figure>"
    )


def samples(samples: tuple[Preview, ...], edits: bool) -> str:
    """The samples of base and LoRA over time, the newest large; of an edit, beside what they start from."""
    if not samples:
        return ""
    latest, *earlier = reversed(samples)
    order = "Left: the base model. Right: with your LoRA."
    if edits:
        order = "Left: the source. In the middle: the base model. Right: with your LoRA."
    older = "".join(
        f"<figure><figcaption>Step {sample.step}</figcaption>{_sample(sample, 512)}</figure>"
        for sample in earlier
    )
    strip = f"<div class='strip' tabindex='0' role='group' aria-label='Earlier samples'>{older}</div>"
    return (
        "<div class='over-time'><h2>The same prompts and seeds over time</h2>"
        f"<p class='hint'>{order}</p>"
        f"<figure class='latest'><figcaption><b>Step {latest.step}</b></figcaption>{_sample(latest, 2400)}"
        f"</figure>{strip if earlier else ''}</div>"
    )


def _sample(sample: Preview, longest: int) -> str:
    return words.image(sample.file, f"Base and LoRA at step {sample.step}", longest)


def curve(points: tuple[tuple[float, float], ...]) -> gr.LinePlot:
    """The loss by step."""
    if len(points) < 2:
        return gr.LinePlot(visible=False)
    return gr.LinePlot(pd.DataFrame(points, columns=["step", "loss"]), visible=True)


def health(measured: tuple[HealthMeasured, ...]) -> gr.LinePlot:
    """The scores of the run's health by step."""
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
