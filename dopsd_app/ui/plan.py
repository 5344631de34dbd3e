"""The third step: the settings that matter, and what a run with them will need."""

import dataclasses
import hashlib
import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial

import gradio as gr
from filelock import FileLock

from dopsd_app.config import OBJECTIVES, ConfigError, TrainConfig, load_preset, presets_for
from dopsd_app.data.draft_file import read_state
from dopsd_app.data.drafts import Draft, draft_config, draft_dataset, set_settings
from dopsd_app.errors import KnownFailure
from dopsd_app.files import replace_file
from dopsd_app.jobs.job import RunError
from dopsd_app.jobs.promise import keep_promise
from dopsd_app.jobs.queue import enqueue, start_next
from dopsd_app.jobs.runs import Run, create_run, default_runs_dir, list_runs
from dopsd_app.models.base_download import ask_hub
from dopsd_app.models.catalog import is_known
from dopsd_app.planning.machine import read_machine
from dopsd_app.planning.plan import Plan, check_base, make_plan
from dopsd_app.ui import words
from dopsd_app.ui.pictures import the_draft
from dopsd_app.ui.typing_order import typing_order

STARTED = "started.json"  # in the draft's folder: which run was started from it
MAIN = ("name", "steps", "resolution", "rank", "preview_prompts")
CHOICES = {
    "objective": [("D-OPSD", "dopsd"), ("SFT (ordinary fine-tuning, for comparison)", "sft")],
    "optimizer": [("AdamW, 8 bits: less memory", "adamw8bit"), ("AdamW", "adamw")],
    "loss": [("Denoised picture", "denoised"), ("Velocity", "velocity")],
    "teacher": [("Slow copy of the student", "ema"), ("The base model", "base")],
    "precision": [("Automatic", "auto"), ("32 bits", "float32"), ("16 bits", "bfloat16")],
    "quantization": [("As they are", "none"), ("4 bits: less memory", "nf4")],
    "device": [("Automatic", "auto"), ("Processor", "cpu"), ("NVIDIA card", "cuda")],
}
LABELS = {
    "name": ("Name", "Names the run and the LoRA"),
    "steps": ("Steps", "How often the LoRA is changed a little"),
    "resolution": ("Resolution", "Pixels: pictures are cropped to about this, squared"),
    "rank": ("Rank", "The size of the LoRA: higher holds more, and needs more"),
    "preview_prompts": ("Preview prompts", "One per line, drawn while it trains; empty: the first captions"),
    "objective": ("Objective", "What the LoRA is trained by"),
    "learning_rate": ("Learning rate", "Higher learns faster and breaks sooner"),
    "batch_size": ("Pictures per step", ""),
    "micro_batch": ("Pictures at a time", "Changes memory and speed, never the result"),
    "rollout_steps": ("States per roll-out", "Must divide the model's few steps"),
    "num_inference_steps": ("The model's few steps", "As the base model was made for"),
    "gradient_checkpointing": ("Save memory, a third slower", ""),
    "optimizer": ("Optimizer", ""),
    "quantization": ("Base model's weights", ""),
    "precision": ("Arithmetic", ""),
    "loss": ("Loss", ""),
    "teacher": ("Teacher", ""),
    "ema_decay": ("Teacher's decay", "How slowly it follows the student, per step"),
    "lora_alpha": ("LoRA alpha", "0: twice the rank"),
    "max_grad_norm": ("Gradient clipping", ""),
    "preview_every": ("Steps between previews", "0: none"),
    "checkpoint_every": ("Steps between checkpoints", "What a crash can lose at most"),
    "stop_early": ("Stop when it no longer improves", "By its health; needs previews"),
    "seed": ("Seed", ""),
    "device": ("Device", ""),
}


@dataclass(frozen=True)
class PlanStep:
    """The components of this step that others set or listen to."""

    preset: gr.Radio
    about: gr.HTML
    controls: dict[str, gr.components.Component]  # by setting
    sent: gr.JSON  # the controls' values, as this tab was sent them or has sent them itself
    needs: gr.HTML
    start: gr.Button

    @property
    def shown(self) -> list:
        """What `show` fills, in its order."""
        return [self.preset, self.about, *self.controls.values(), self.sent, self.needs, self.start]


def plan_step() -> PlanStep:
    """Lays the step out."""
    gr.HTML("<h2>The plan</h2>")
    preset = gr.Radio([], label="Preset", elem_id="preset")
    about = gr.HTML(elem_id="preset-about")
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=300):
            controls = {name: _control(name) for name in MAIN}
        with gr.Column(scale=1, min_width=300):
            needs = gr.HTML(elem_id="needs")
            start = gr.Button("Start", variant="primary", interactive=False, elem_id="start")
    with gr.Accordion("More", open=False, elem_id="more"), gr.Row(elem_classes="more"):
        controls |= {name: _control(name) for name in LABELS if name not in MAIN}
    return PlanStep(preset, about, controls, gr.JSON({}, visible=False), needs, start)


def _control(name: str) -> gr.components.Component:
    label, info = LABELS[name]
    common = {"label": label, "info": info or None, "elem_id": f"set-{name.replace('_', '-')}"}
    kinds = {field.name: field.type for field in dataclasses.fields(TrainConfig)}
    if name in CHOICES:
        return gr.Dropdown(CHOICES[name], **common)
    if kinds[name] is bool:
        return gr.Checkbox(**common)
    if kinds[name] is str:
        return gr.Textbox(max_length=100, **common)
    if name == "preview_prompts":
        return gr.Textbox(lines=3, max_lines=8, max_length=20_000, **common)
    return gr.Number(precision=0 if kinds[name] is int else None, **common)


# --- what the step shows


def show(draft: Draft) -> list:
    """New values for the whole step."""
    base = load_preset(draft.preset).settings.get("base_model")
    presets = presets_for(base)
    chosen = load_preset(draft.preset)
    _learn(draft)
    usual = {**asdict(TrainConfig()), **chosen.settings, **draft.settings}
    values = [_shown(name, usual[name]) for name in _order()]
    return [
        gr.Radio(choices=[(preset.label, preset.name) for preset in presets], value=chosen.name),
        f"<p class='hint'>{words.text(chosen.description)}</p>",
        *map(_with_its_choice, _order(), values),
        dict(zip(_order(), values, strict=True)),
        *show_needs(draft),
    ]


def _order() -> list[str]:
    return [*MAIN, *(name for name in LABELS if name not in MAIN)]


def _shown(name: str, value):
    return "\n".join(value) if name == "preview_prompts" else value


def _with_its_choice(name: str, value):
    """Objectives that are there for the command line are offered where one was chosen: in a run's copy."""
    if name != "objective" or value not in OBJECTIVES:
        return value
    known = [choice for _, choice in CHOICES[name]]
    more = [] if value in known else [(OBJECTIVES[value].name, value)]
    return gr.Dropdown(choices=CHOICES[name] + more, value=value)


def _learn(draft: Draft) -> None:
    """Asks the Hub about a base model of which nothing is known here; what it refuses is told elsewhere."""
    with suppress(KnownFailure):
        config = draft_config(draft)
        if not is_known(config.base_model, config.revision):
            ask_hub(config.base_model, config.revision)


def show_needs(draft: Draft) -> list:
    """What the run will need, and whether it can start."""
    try:
        plan = plan_draft(draft)
    except ConfigError as error:
        problems = words.lines([plainly(line) for line in str(error).split("\n")], "problem")
        return [problems, gr.Button(interactive=False)]
    return [_needs(plan), gr.Button(interactive=not plan.problems)]


def plainly(message: str) -> str:
    """A message about settings in the words that the page has for them and for their values."""
    for name, (label, _) in LABELS.items():
        for words_for, value in [*CHOICES.get(name, ()), ("on", "true"), ("off", "false")]:
            said = words_for.partition(":")[0]
            for between in (" ", " is "):
                message = re.sub(rf"`{name}`{between}{value}\b", f"“{label}”{between}“{said}”", message)
        message = message.replace(f"`{name}`", f"“{label}”")
    return message


def _needs(plan: Plan) -> str:
    if not plan.memory:  # nothing is known of the base model
        return _messages(plan)
    time, pace = words.in_time(plan.seconds), words.pace(plan.seconds_per_step)
    free, disk_free = words.memory(plan.memory_free), words.disk(plan.disk_free)
    fetched = plan.download == 0
    timed = f"{pace} a step, {plan.source}{'' if fetched else '; without the download'}"
    cells = {
        "Steps": (f"{plan.steps}", f"{words.count(plan.pictures_per_step, 'picture')} each"),
        **({"Time": (time, timed)} if plan.promise else {}),
        "Memory": (words.memory(plan.memory), f"of {free} free, {plan.device}"),
        "Disk": (words.disk(plan.disk), f"at most, of {disk_free} free"),
    }
    if not fetched:
        size = words.disk(plan.download) if plan.download else "Size not known yet"
        cells["Download"] = (
            size,
            f"{'at most, ' if plan.download else ''}from the Hub, once, before it begins",
        )
    items = "".join(
        f"<div><dt>{name}</dt><dd>{words.text(figure)}<small>{words.text(remark)}</small></dd></div>"
        for name, (figure, remark) in cells.items()
    )
    return f"<dl class='plan'>{items}</dl>{_messages(plan)}"


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
        draft_config(draft), pictures=len(draft.items), runs_dir=default_runs_dir(), machine=read_machine()
    )


def tell(draft: Draft) -> dict:
    """The plan as plain values."""
    return asdict(plan_draft(draft))


def keep_settings(tab: str, moment: float, draft: Draft, values: dict) -> None:
    """Keeps these settings, as they stood in this tab at this moment, where they differ from the preset.

    An empty field goes back to the preset's value.
    """
    usual = {**asdict(TrainConfig()), **load_preset(draft.preset).settings}
    changes = {}
    for name, value in values.items():
        if name == "preview_prompts":
            value = [line.strip() for line in (value or "").splitlines() if line.strip()]
        same = value is None or value == usual[name] or (isinstance(value, list) and not value)
        changes[name] = None if same else value
    typing_order.keep(tab, f"{draft.id} plan", moment, partial(set_settings, draft, **changes))


def start(draft_id: str) -> str:
    """Starts a run of the draft, or puts it into the queue; returns its id.

    While a run of this very draft waits or works, it is that run: a second tab must not train the same twice.
    """
    draft = the_draft(draft_id)
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
        keep_promise(run.path, plan.promise)
        enqueue(run)
        replace_file(draft.path / STARTED, json.dumps({"run": run.id, "state": _state_mark(draft)}))
    start_next(run.runs_dir)
    return run.id


def _started(draft: Draft) -> Run | None:
    """The run that was started from the draft as it is now, while it waits or works."""
    if not (draft.path / STARTED).exists():
        return None
    started = json.loads((draft.path / STARTED).read_bytes())
    for run in list_runs(default_runs_dir()):
        if run.id == started["run"] and started["state"] == _state_mark(draft):
            status = run.status
            return run if status.busy else None
    return None


def _state_mark(draft: Draft) -> str:
    return hashlib.sha256(json.dumps(read_state(draft.path), sort_keys=True).encode()).hexdigest()
