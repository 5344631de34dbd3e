"""The third step: the settings that matter, and what a run with them will need."""

import dataclasses
import hashlib
import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import gradio as gr
from filelock import FileLock
from gradio.blocks import Block
from gradio.components import Component

from dopsd_app.config import (
    LEARNING,
    MAIN,
    MEMORY,
    PREVIEWS,
    SETTINGS,
    ConfigError,
    TrainConfig,
    load_preset,
    presets_for,
)
from dopsd_app.data.drafts import Draft, draft_config, draft_dataset, set_settings
from dopsd_app.errors import KnownFailure
from dopsd_app.files import read_value, replace_file
from dopsd_app.gpus import Gpu
from dopsd_app.jobs.card import is_card_free
from dopsd_app.jobs.job import RunError
from dopsd_app.jobs.promise import keep_promise
from dopsd_app.jobs.queue import enqueue, start_next
from dopsd_app.jobs.runs import Run, create_run, default_runs_dir, list_runs
from dopsd_app.models.base_download import ask_hub
from dopsd_app.models.catalog import is_known
from dopsd_app.planning.machine import read_machine
from dopsd_app.planning.plan import Plan, check_base, make_plan
from dopsd_app.ui import words
from dopsd_app.ui.events import WRITES_DRAFT, held, listen
from dopsd_app.ui.kept_text import KeptText, kept_text
from dopsd_app.ui.navigation import TRAIN
from dopsd_app.ui.shown_draft import draft_of, read_shown, the_draft

if TYPE_CHECKING:
    from dopsd_app.ui.page import Page

PROMPTS = "preview_prompts"  # one per line
BUSY = 0.5  # share of the last moment, from which on a card is called busy
CARD = "card"  # shown where there are several
GROUPS = {LEARNING: "Learning", MEMORY: "Memory", PREVIEWS: "Previews and checkpoints"}
STARTED = "started.json"  # in the draft's folder: which run was started from it


@dataclass(frozen=True)
class Started:
    """What a draft remembers of the run that was last started from it."""

    run: str  # id
    content: str  # digest of the draft as it was then


@dataclass(frozen=True)
class ShownPlan:
    """What a tab was filled with: it lives in the tab."""

    draft: str  # its id
    preset: str
    settings: dict


@dataclass(eq=False)
class Control:
    """What a person chooses a setting with; its value is kept at once."""

    step: "PlanStep" = field(init=False)
    name: str  # of the setting
    part: gr.Dropdown | gr.Number | KeptText

    @property
    def component(self) -> Component:
        """What holds the value."""
        return self.part.box if isinstance(self.part, KeptText) else self.part

    @property
    def outputs(self) -> list[Block]:
        """What `show` fills."""
        return self.part.outputs if isinstance(self.part, KeptText) else [self.part]

    def connect(self, step: "PlanStep") -> None:
        """Connects the control's event."""
        self.step = step
        needs = step.of_needs
        if isinstance(self.part, KeptText):
            self.part.connect(step.shown, self.write, needs)
        else:
            inputs = [step.shown, self.part]
            listen(self.part.input, self.write, inputs, needs, trigger_mode="always_last", **WRITES_DRAFT)

    def show(self, value: Any) -> dict:
        """The setting's value."""
        if isinstance(self.part, KeptText):
            return self.part.fill(value)
        if self.name == CARD:
            cards = _card_choices(value)
            return {self.part: gr.Dropdown(choices=cards, value=value, visible=len(cards) > 2 or bool(value))}
        if SETTINGS[self.name].rare:
            return {self.part: gr.Dropdown(choices=_choices(self.name, value), value=value)}
        return {self.part: value}

    def write(self, shown: object, value: object) -> dict:
        """Keeps the setting, and shows what a run will need now."""
        last = read_shown(ShownPlan, shown)
        draft = the_draft(last.draft)
        if draft.preset != last.preset:
            return {}  # what shows the new preset is on its way
        return self.step.show_needs(keep_settings(draft, {self.name: value}))


@dataclass(eq=False)
class PlanStep:
    """The components of this step, and what its events do."""

    page: "Page" = field(init=False)
    preset: gr.Radio
    about: gr.HTML
    controls: list[Control]
    shown: gr.JSON  # the `ShownPlan`
    needs: gr.HTML
    missing: gr.HTML  # why it cannot start, in a line
    start: gr.Button

    @property
    def outputs(self) -> list[Block]:
        """What `show` fills."""
        controls = [component for control in self.controls for component in control.outputs]
        return [self.shown, self.preset, self.about, *controls, *self.of_needs]

    @property
    def of_needs(self) -> list[Block]:
        """What `show_needs` fills."""
        return [self.needs, self.missing, self.start]

    def connect(self, page: "Page") -> None:
        """Connects the step's events."""
        self.page = page
        preset = [page.pictures.draft, self.preset]
        listen(self.preset.input, self.choose_preset, preset, self.outputs, progress_on=self.needs)
        for control in self.controls:
            control.connect(self)
        listen(
            self.start.click,
            self.start_run,
            {self.shown, *(control.component for control in self.controls)},
            [*page.navigation.outputs, *page.train.outputs],
            progress_on=self.needs,
            trigger_mode="once",
            **WRITES_DRAFT,
        )

    # --- what the step shows

    def show(self, draft: Draft) -> dict:
        """The draft's settings, and what a run with them will need."""
        chosen = load_preset(draft.preset)
        presets = presets_for(chosen.settings["base_model"])
        _learn(draft)
        usual = {**asdict(TrainConfig()), **chosen.settings, **draft.settings}
        settings = {control.name: usual[control.name] for control in self.controls}
        settings[PROMPTS] = "\n".join(settings[PROMPTS])
        controls: dict = {}
        for control in self.controls:
            controls |= control.show(settings[control.name])
        return {
            self.shown: asdict(ShownPlan(draft.id, draft.preset, settings)),
            self.preset: gr.Radio(
                choices=[(preset.label, preset.name) for preset in presets], value=chosen.name
            ),
            self.about: f"<p class='hint'>{words.text(chosen.description)}</p>",
            **controls,
            **self.show_needs(draft),
        }

    def show_needs(self, draft: Draft) -> dict:
        """What the run will need, and whether it can start."""
        try:
            plan = plan_draft(draft)
        except ConfigError as error:
            lines = [plainly(line) for line in str(error).split("\n")]
            return {self.needs: words.lines(lines, "problem"), **self._show_foot(lines)}
        return {self.needs: _needs(plan), **self._show_foot([plainly(line) for line in plan.problems], plan)}

    def _show_foot(self, problems: list[str], plan: Plan | None = None) -> dict:
        """Whether a run can start, and what stands in its way or what it will take."""
        if problems:
            more = f" ({len(problems) - 1} more above)" if len(problems) > 1 else ""
            line = f"{problems[0]}{more}"
        else:
            line = f"It takes {words.in_time(plan.seconds)}" if plan and plan.promise else ""
        return {self.missing: words.foot(line), self.start: gr.Button(interactive=not problems)}

    # --- what its events do

    def choose_preset(self, shown: object, preset: str) -> dict:
        """Takes another preset, which drops what was changed of the last one."""
        return self.show(set_settings(draft_of(shown), preset=preset))

    def start_run(self, values: dict) -> dict:
        """Starts a run, or puts it into the queue, and goes on to the next step."""
        shown = read_shown(ShownPlan, values[self.shown])
        draft = the_draft(shown.draft)
        if draft.preset != shown.preset:
            raise KnownFailure("Another preset was chosen meanwhile. Reload the page to see it.")
        # The last change may still wait for its turn. What this tab only shows, another may have changed.
        now = {control.name: values[control.component] for control in self.controls}
        changed = {name: value for name, value in now.items() if value != shown.settings.get(name)}
        run_id = start(keep_settings(draft, changed))
        return {**self.page.navigation.go_to(TRAIN), **self.page.train.show(run_id)}


def plan_step() -> PlanStep:
    """Lays the step out."""
    gr.HTML("<h2>The plan</h2>")
    preset = gr.Radio([], label="Preset", elem_id="preset")
    about = gr.HTML(elem_id="preset-about")
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=300):
            controls = [_control(name) for name in _names(MAIN)]
        with gr.Column(scale=1, min_width=300):
            needs = gr.HTML(elem_id="needs")
    with gr.Accordion("More settings", open=False, elem_id="more"), gr.Row(equal_height=False):
        for group, title in GROUPS.items():
            with gr.Column(min_width=260):
                gr.HTML(f"<h3>{title}</h3>")
                controls += [_control(name) for name in _names(group)]
    with gr.Row(elem_classes="foot"):
        missing = gr.HTML(elem_id="plan-missing")
        start = gr.Button("Start", variant="primary", interactive=False, elem_id="start")
    return PlanStep(preset, about, controls, held(), needs, missing, start)


def _names(page: str) -> list[str]:
    return [name for name, setting in SETTINGS.items() if setting.page == page]


def _control(name: str) -> Control:
    setting = SETTINGS[name]
    label, info, elem_id = setting.label, setting.info or None, f"set-{name.replace('_', '-')}"
    kind = next(field.type for field in dataclasses.fields(TrainConfig) if field.name == name)
    part: gr.Dropdown | gr.Number | KeptText
    if name == CARD:
        part = gr.Dropdown(_card_choices(""), label=label, info=info, elem_id=elem_id, visible=False)
    elif setting.choices:
        part = gr.Dropdown(_choices(name), label=label, info=info, elem_id=elem_id)
    elif kind is str:
        part = kept_text(label, info=info, elem_id=elem_id, max_length=100)
    elif name == PROMPTS:
        part = kept_text(label, info=info, elem_id=elem_id, lines=3, max_lines=8, max_length=20_000)
    else:
        part = gr.Number(precision=0 if kind is int else None, label=label, info=info, elem_id=elem_id)
    return Control(name, part)


def _choices(name: str, chosen: str = "") -> list[tuple[str, str]]:
    """What is offered: a rare choice only where it is the one that was chosen, in a run's copy."""
    setting = SETTINGS[name]
    return [
        (label, value)
        for value, label in setting.choices.items()
        if value == chosen or value not in setting.rare
    ]


def _card_choices(chosen: str) -> list[tuple[str, str]]:
    """The cards that there are, and one that was chosen and is not there any more."""
    found = [(_card_label(gpu), gpu.uuid) for gpu in read_machine().gpus if gpu.uuid]
    gone = [("A card that is not here", chosen)] if chosen not in ("", *(uuid for _, uuid in found)) else []
    return [("Automatic", ""), *found, *gone]


def _card_label(gpu: Gpu) -> str:
    busy = "" if is_card_free(gpu.uuid) and gpu.busy < BUSY else ", busy"
    return f"{gpu.name}, {words.memory(gpu.memory)}{busy}"


def _learn(draft: Draft) -> None:
    """Asks the Hub about a base model of which nothing is known here; elsewhere it says what it refuses."""
    with suppress(KnownFailure):
        config = draft_config(draft)
        if not is_known(config.base_model, config.revision):
            ask_hub(config.base_model, config.revision, config.teacher_context)


def plainly(message: str) -> str:
    """A message about settings in the words that the page has for them and for their values."""
    for name, setting in SETTINGS.items():
        for value, words_for in {**setting.choices, "true": "on", "false": "off"}.items():
            label = words_for.partition(":")[0]
            for between in (" ", " is "):
                message = re.sub(
                    rf"`{name}`{between}{value}\b", f"“{setting.label}”{between}“{label}”", message
                )
        message = message.replace(f"`{name}`", f"“{setting.label}”")
    return message


def _needs(plan: Plan) -> str:
    if not plan.memory:  # nothing is known of the base model
        return _messages(plan)
    time, pace = words.in_time(plan.seconds), words.pace(plan.seconds_per_step)
    free, disk_free = words.memory(plan.memory_free), words.disk(plan.disk_free)
    sources = f", with {words.count(plan.sources, 'source')}" if plan.sources else ""
    timed = f"{pace} a step, {plan.source}{'; without the download' if plan.lacks else ''}"
    cells = {
        "Steps": (f"{plan.steps}", f"{words.count(plan.pictures_per_step, 'picture')} each{sources}"),
        **({"Time": (time, timed)} if plan.promise else {}),
        **(
            {"Memory": (words.memory(plan.memory), f"at most, of {free} free, {plan.device}")}
            if plan.promise
            else {}
        ),
        "Disk": (words.disk(plan.disk), f"at most, of {disk_free} free"),
    }
    if lacks := plan.lacks:
        size, most = (words.disk(lacks.size), "at most, ") if lacks.size else ("Size not known yet", "")
        cells["Download"] = (size, f"{most}{lacks.what} from the Hub, once, before it begins")
    items = "".join(
        f"<div><dt>{name}</dt><dd>{words.text(figure)}<small>{words.text(remark)}</small></dd></div>"
        for name, (figure, remark) in cells.items()
    )
    return f"<dl class='plan'>{items}</dl>{_memory(plan)}{_messages(plan)}"


def _memory(plan: Plan) -> str:
    """How the run is made to fit: a bar of all that may be used, and one sentence."""
    if plan.promise is None:  # it cannot run here, and what is wrong is said
        return ""
    assert plan.fitted is not None  # as of each run that can
    whole = max(plan.fitted.budget.device, plan.fitted.memory.training)
    parts = [part for part in plan.fitted.memory.parts if part[1] > 0]
    told = ", ".join(f"{name} {words.memory(taken)}" for name, taken in parts)
    bar = "".join(
        f"<span class='{name.split()[0].lower()}' style='width:{100 * taken / whole:.2f}%'></span>"
        for name, taken in parts
    )
    legend = "".join(
        f"<li><span class='{name.split()[0].lower()}'></span>{name} {words.memory(taken)}</li>"
        for name, taken in parts
    )
    label = f"Memory while it trains: {told}, of {words.memory(whole)}"
    return (
        f"<div class='memory'><div class='bar' role='img' aria-label='{words.text(label)}'>{bar}</div>"
        f"<ul>{legend}</ul><p>{words.text(plan.fitted_in_words)}</p>{_options(plan)}</div>"
    )


def _options(plan: Plan) -> str:
    """The same run at other resolutions."""
    if len(plan.options) < 2:
        return ""
    rows = "".join(
        f"<tr><th scope='row'>{option.resolution} x {option.resolution}</th>"
        f"<td>{words.memory(option.memory)}</td><td>{words.in_time(option.seconds)}</td></tr>"
        for option in plan.options
    )
    head = "<tr><th scope='col'>Resolution</th><th scope='col'>Memory</th><th scope='col'>Time</th></tr>"
    return f"<table class='options'><thead>{head}</thead><tbody>{rows}</tbody></table>"


def _messages(plan: Plan) -> str:
    problems = [plainly(line) for line in plan.problems]
    warnings = [plainly(line) for line in plan.warnings]
    return words.lines(problems, "problem") + words.lines(warnings, "advice")


# --- actions


def check_ready(config: TrainConfig) -> None:
    """Raises `RunError` where the base model cannot be used or fetched, in the words of the page."""
    try:
        check_base(config)
    except KnownFailure as error:
        raise RunError(plainly(str(error))) from error


def plan_draft(draft: Draft) -> Plan:
    """What a run of this draft would need; `ConfigError` for settings that cannot work."""
    return make_plan(
        draft_config(draft),
        pictures=len(draft.items),
        sources=draft.sources,
        runs_dir=default_runs_dir(),
        machine=read_machine(),
    )


def keep_settings(draft: Draft, values: dict) -> Draft:
    """Keeps settings where they differ from the preset; an empty field goes back to the preset's value."""
    usual = {**asdict(TrainConfig()), **load_preset(draft.preset).settings}
    changes = {}
    for name, value in values.items():
        if name == PROMPTS:
            value = [line.strip() for line in (value or "").splitlines() if line.strip()]
        same = value is None or value == usual[name] or (isinstance(value, list) and not value)
        changes[name] = None if same else value
    return set_settings(draft, **changes)


def start(draft: Draft) -> str:
    """Starts a run of the draft, or puts it into the queue; returns its id.

    While a run of this very draft waits or works, it is that run: a second tab must not train the same twice.
    """
    if run := _started(draft):
        return run.id
    check_ready(draft_config(draft))  # it may ask the Hub: not while another tab waits for the lock
    with FileLock(draft.path / ".start.lock", timeout=60):
        if run := _started(draft):
            return run.id
        config, dataset = draft_config(draft), draft_dataset(draft)
        plan = plan_draft(draft)
        if plan.problems:
            raise RunError("\n".join(plainly(problem) for problem in plan.problems))
        run = create_run(default_runs_dir(), config, dataset)
        assert plan.promise is not None  # it is left out only where there are problems
        keep_promise(run.path, plan.promise)
        enqueue(run)
        replace_file(draft.path / STARTED, json.dumps(asdict(Started(run.id, _digest(draft)))))
    start_next(run.runs_dir)
    return run.id


def _started(draft: Draft) -> Run | None:
    """The run that was started from the draft as it is now, while it waits or works."""
    with suppress(OSError, ValueError):  # nothing was started, or nobody can read what
        started = read_value(Started, (draft.path / STARTED).read_bytes())
        if started.content == _digest(draft):
            runs = list_runs(default_runs_dir())
            return next((run for run in runs if run.id == started.run and run.status.busy), None)
    return None


def _digest(draft: Draft) -> str:
    return hashlib.sha256(json.dumps(asdict(draft.content), sort_keys=True).encode()).hexdigest()
