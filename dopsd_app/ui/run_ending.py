"""What became of a run that is over: its time, its best checkpoint and why, and what to do next."""

from dataclasses import replace

from dopsd_app.checks.health_rules import best_step, complaint, merit
from dopsd_app.errors import KnownFailure
from dopsd_app.jobs.events import HealthMeasured
from dopsd_app.jobs.runs import Run, complete_checkpoints, latest_checkpoint
from dopsd_app.jobs.watch import RunView
from dopsd_app.models.catalog import find_facts, is_known
from dopsd_app.ui import words

GOOD = "The LoRA file was loaded back into the base model and draws what was trained."
WORSE = {
    "following": "later ones follow prompts less",
    "quality": "pictures of later ones are less clean",
    "drift": "later ones change pictures of other things more",
    "concept": "later ones are less like your pictures",
}


def headline(view: RunView) -> str:
    """How a run stands, in a few words."""
    state = words.STATES[view.status.state]
    if view.status.state == "finished" and view.seconds:
        return f"{state} in {words.in_time(view.seconds).removeprefix('about ')}"
    if view.status.state == "stopped":
        return f"{state} at step {view.status.step} of {view.status.steps}"
    return state


def ending(run: Run, view: RunView) -> list[str]:
    """What there is to know of a run that is over: a sentence each, of which the last says what is next."""
    state = view.status.state
    if state == "finished":
        found = [GOOD if view.passed else view.check, _best(run, view), _health(run, view)]
        return [*filter(None, found), _after_finish(view)]
    if state in ("stopped", "failed", "interrupted"):
        return [*filter(None, [_best(run, view)]), _after_stop(run, state)]
    return []


def _best(run: Run, view: RunView) -> str:
    steps = [int(folder.name) for folder in complete_checkpoints(run)]
    best = best_step(view.health, steps)
    if best is None or len(steps) < 2:
        return ""
    by_step = {health.step: health for health in view.health}
    later = [by_step[step] for step in steps if step > best and step in by_step]
    if not later:
        return f"Best checkpoint: the last one, step {best}."
    return f"Best checkpoint: step {best} ({_why(by_step[best], later[-1], view.health[0])})."


def _why(best: HealthMeasured, later: HealthMeasured, base: HealthMeasured) -> str:
    """What a later step has lost the most of, by what the merit of steps is made of."""
    lost = {
        "quality": best.quality - later.quality,
        "drift": later.drift - best.drift,
        "concept": best.concept - later.concept,
    }
    if best.following is not None and later.following is not None:
        lost["following"] = best.following - later.following
    part = {
        # The merit that the best would have if it had lost this alone.
        name: merit(replace(best, **{name: getattr(later, name)}), base)
        for name, share in lost.items()
        if share > 0
    }
    worst = min(part, key=part.__getitem__, default="")
    return WORSE.get(worst, "later ones are no better")


def _health(run: Run, view: RunView) -> str:
    if len(view.health) < 2:
        return ""
    base, last = view.health[0], view.health[-1]
    try:
        config = run.config
    except KnownFailure:  # damaged, or of another version: all else of the run is shown
        return ""
    if not is_known(config.base_model, config.revision):
        return ""
    judged = find_facts(config.base_model, config.revision).scoring(config) == "judge"
    if bad := complaint(last, judged):
        return f"Health: {bad}"
    likeness = f"likeness to your pictures went from {base.concept:.2f} to {last.concept:.2f}"
    if last.concept <= base.concept:
        return f"Health: {likeness}: it has learned little. More steps or a higher learning rate help."
    # How far prompts count is not measured with one prompt alone.
    prompts = "prompts still count, and " if last.following is not None else "and "
    return f"Health: {likeness}, {prompts}pictures are clean."


def _after_finish(view: RunView) -> str:
    if not view.passed:
        return "Next: look into the log, and start another run."
    return "Next: try it, and publish it if you like it; train further if it is not yet like your pictures."


def _after_stop(run: Run, state: str) -> str:
    checkpoint = latest_checkpoint(run)
    if checkpoint is None:
        return "Next: resume, and it begins anew." if state == "stopped" else "Next: mend that, then resume."
    step = int(checkpoint.name)
    first = "Next: " if state == "stopped" else "Next: mend what is said above, then "
    return f"{first}resume from step {step}, or try what it has learned until there."
