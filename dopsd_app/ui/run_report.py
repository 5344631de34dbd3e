"""How a run stands, as the fourth step shows it: HTML."""

from dopsd_app.jobs.runs import Run
from dopsd_app.jobs.watch import RunView
from dopsd_app.progress import DownloadProgress
from dopsd_app.ui import words
from dopsd_app.ui.plan import plainly
from dopsd_app.ui.run_ending import ending, headline

EMPTY = (
    "<div class='empty'><p>No run yet. Choose pictures, look at the plan and press <b>Start</b>.</p></div>"
)
NONE_CHOSEN = "<div class='empty'><p>Choose one of the runs to see how it stands.</p></div>"


NEXT = {
    "finished": "The LoRA is there: try it, then publish it.",
    "stopped": "It is stopped: resume it, or try what it has learned so far.",
    "failed": "It has failed: what to do stands above.",
    "interrupted": "It was interrupted: resume it, and it goes on from its last checkpoint.",
}


def status(run: Run, view: RunView) -> str:
    """The run's state, and what there is to know about it."""
    status = view.status
    notes = [plainly(status.reason)] if status.reason else []
    notes += ending(run, view)
    notes += [warning for warning in view.warnings[-3:] if not any(warning in note for note in notes)]
    kind = {"failed": "bad", "interrupted": "bad", "finished": "good"}.get(status.state, "plain")
    lines = "".join(f"<p>{words.message(note)}</p>" for note in notes if note)
    return f"<div class='status {kind}'><p role='status' aria-live='polite'>{headline(view)}</p>{lines}</div>"


def progress(view: RunView) -> str:
    """How far the run is, how fast, and how long it still takes."""
    status = view.status
    if status.state == "downloading" and view.download:
        return _download(view.download)
    if status.state == "drawing":
        return _counted("The base model's pictures drawn", status.done, status.total)
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


def _counted(what: str, done: int, total: int) -> str:
    share = done / total if total else 0
    return (
        f"<progress max='1' value='{share:.4f}' aria-label='{what}'></progress>"
        f"<div class='facts'><span>{what}: {done} of {total}</span></div>"
    )


def foot(view: RunView) -> str:
    """In one line, what the run does and what comes next."""
    status = view.status
    doing = words.STATES[status.state]
    if status.state == "training" and status.step:
        doing = f"Step {status.step} of {status.steps}"
    if view.seconds_left is not None:
        doing += f", {words.in_time(view.seconds_left)} left"
    return words.foot(NEXT.get(status.state, doing))
