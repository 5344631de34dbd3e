"""Two runs side by side: what differs of their settings, how they ended, and what they draw."""

from pathlib import Path

from dopsd_app.config import SETTINGS, TrainConfig
from dopsd_app.jobs.events import PreviewSaved, read_events
from dopsd_app.jobs.run_notes import name_of
from dopsd_app.jobs.runs import Run
from dopsd_app.jobs.worked_time import worked_seconds
from dopsd_app.ui import words
from dopsd_app.ui.run_actions import watcher
from dopsd_app.ui.run_charts import SCORES
from dopsd_app.ui.run_rows import base_label

NOTHING = "-"
UNLIKE = "These runs share no prompt: their newest samples are shown as they are."


def compare(first: Run, second: Run) -> str:
    """What there is to see of the two, as HTML; `RunError` where the settings of one cannot be read."""
    names = [name_of(run) for run in (first, second)]
    different = _table("Settings that differ", names, _settings(first.config, second.config))
    same = "" if different else "<p class='hint'>Their settings are the same.</p>"
    results = _table("How they stand", names, _results(first, second))
    return (
        f"<h2>{words.text(' and '.join(names))}</h2><div class='sides'>{different}{same}{results}</div>"
        f"{_samples(first, second, names)}"
    )


def _table(title: str, names: list[str], lines: list[tuple[str, str, str]]) -> str:
    if not lines:
        return ""
    head = "".join(f"<th scope='col'><span>{words.text(name)}</span></th>" for name in names)
    body = "".join(
        f"<tr><th scope='row'>{words.text(label)}</th>"
        f"<td>{words.text(one)}</td><td>{words.text(other)}</td></tr>"
        for label, one, other in lines
    )
    head = f"<thead><tr><td></td>{head}</tr></thead>"
    return f"<table><caption>{title}</caption>{head}<tbody>{body}</tbody></table>"


def _settings(first: TrainConfig, second: TrainConfig) -> list[tuple[str, str, str]]:
    """Label and values of each setting that differs, in the words of the page."""
    pairs = ((name, getattr(first, name), getattr(second, name)) for name in SETTINGS)
    return [
        (SETTINGS[name].label, _value(first, name), _value(second, name))
        for name, one, other in pairs
        if one != other
    ]


def _value(config: TrainConfig, name: str) -> str:
    value = getattr(config, name)
    if name == "base_model":
        return base_label(config)
    if isinstance(value, tuple):
        return "\n".join(value) or "The first captions"
    if isinstance(value, float):
        return f"{value:g}"
    return SETTINGS[name].choices.get(value) or str(value) or NOTHING


def _results(first: Run, second: Run) -> list[tuple[str, str, str]]:
    ours, theirs = _result(first), _result(second)
    labels = dict.fromkeys([*ours, *theirs])
    return [(label, ours.get(label, NOTHING), theirs.get(label, NOTHING)) for label in labels]


def _result(run: Run) -> dict[str, str]:
    view = watcher.read(run)
    status = view.status
    found = {
        "State": words.STATES[status.state],
        "Steps done": f"{status.step} of {status.steps}",
        "Worked for": words.in_time(seconds) if (seconds := worked_seconds(run)) >= 1 else NOTHING,
        "Pictures": str(len(list(run.dataset.glob("*.png")))),
    }
    if view.seconds_per_step is not None:
        found["Time per step"] = words.pace(view.seconds_per_step)
    if view.health:
        last = view.health[-1]
        scores = (last.concept, last.following, last.quality, last.drift)
        known = zip(SCORES, scores, strict=True)
        found |= {
            f"{name}, at step {last.step}": f"{score:.2f}" for name, score in known if score is not None
        }
    return found


# --- pictures


def _samples(first: Run, second: Run, names: list[str]) -> str:
    ours, theirs = newest_samples(first), newest_samples(second)
    shared = [prompt for prompt in ours if prompt in theirs]
    if not ours or not theirs:
        return ""
    note = "" if shared else f"<p class='hint'>{UNLIKE}</p>"
    rows = [(prompt, [ours[prompt], theirs[prompt]]) for prompt in shared] or [
        ("", [next(iter(ours.values())), next(iter(theirs.values()))])
    ]
    figures = "".join(
        f"<figure><figcaption>{words.text(prompt)}</figcaption>"
        f"<div class='pair'>{_pair(prompt, pair, names)}</div></figure>"
        for prompt, pair in rows
    )
    return f"<h3>Newest samples</h3>{note}<div class='shared'>{figures}</div>"


def _pair(prompt: str, pair: list[tuple[int, Path]], names: list[str]) -> str:
    return "".join(
        f"<div><span>{words.text(name)}, step {step}</span>"
        + words.picture(file, f"{name}, step {step}", group="compared", caption=prompt)
        + "</div>"
        for name, (step, file) in zip(names, pair, strict=True)
    )


def newest_samples(run: Run) -> dict[str, tuple[int, Path]]:
    """The step and the file of each prompt's newest sample; "" stands for a sheet of all prompts."""
    found = {}
    for event in read_events(run.events_file):
        if isinstance(event, PreviewSaved) and event.kind == "samples" and event.step:
            prompts = event.prompts or [""]  # an earlier version made one sheet
            pairs = zip(prompts, event.files, strict=False)
            found |= {prompt: (event.step, run.path / file) for prompt, file in pairs}
    return {prompt: sample for prompt, sample in found.items() if sample[1].is_file()}
