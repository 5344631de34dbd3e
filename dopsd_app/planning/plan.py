"""What a run will need, told before it starts: time, memory, disk, and whether it can work."""

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dopsd_app.checks.health_rules import PROMPTS, SHOWN
from dopsd_app.checks.preview_steps import early_samples, early_steps, preview_steps
from dopsd_app.config import TrainConfig, memory_levers
from dopsd_app.data.pictures import check_count
from dopsd_app.errors import KnownFailure
from dopsd_app.files import free_disk
from dopsd_app.gpus import Gpu
from dopsd_app.jobs.card import read_holder
from dopsd_app.jobs.kept_plan import KeptPlan
from dopsd_app.jobs.promise import Promise
from dopsd_app.jobs.queue import computing
from dopsd_app.models.architecture import BaseModelError, BaseModelFacts, Sizes
from dopsd_app.models.base_download import ask_hub, needs_fetching
from dopsd_app.models.base_report import find_measured, refuse_failed
from dopsd_app.models.catalog import (
    Lacking,
    check_base_model,
    check_context,
    check_resolution,
    find_facts,
    find_repository,
    what_lacks,
)
from dopsd_app.models.memory_plan import MemoryPlan
from dopsd_app.planning.cost import disk, picture_work, preview_work, step_work
from dopsd_app.planning.machine import Machine, read_machine
from dopsd_app.planning.memory import Budget, Fitted, budget_of, fit, least_card, within, words_for_plan
from dopsd_app.planning.pace import Pace, reckon_pace, weighted_work
from dopsd_app.progress import words_for_count, words_for_time

GIB = 1024**3
LONG = 12 * 3600  # seconds
RESOLUTIONS = (512, 768, 1024)  # pixels, that are told beside the one that is chosen
SLOW = 1.5  # times the time of a computer that does nothing else: from here on it is told
START = 10  # seconds until torch and diffusers are imported
READING = 5e8  # bytes of weights per second, from disk to where they are used


@dataclass(frozen=True)
class Option:
    """What the same run would take at another resolution; reckoned from the plan's own step."""

    resolution: int  # pixels
    memory: int  # bytes at the most, on the device that trains
    seconds: float  # the whole run


@dataclass(frozen=True)
class Plan:
    """What a run will need; all figures are estimates unless `source` says where they were measured."""

    device: str  # for the person: "NVIDIA GeForce RTX 4070", "CPU, 2 cores"
    steps: int  # optimizer steps
    pictures_per_step: int
    sources: int  # pictures to start from, of one of them at the most
    memory_total: int  # bytes, of the device that trains
    memory_free: int
    disk_free: int
    # Nothing is known of these while the base model cannot be read; no time is where it cannot run here.
    seconds_per_step: float = 0.0
    lacks: Lacking | None = None  # what is fetched from the Hub first
    source: str = ""  # of seconds_per_step, in a few words
    seconds: float = 0.0  # the whole run, with loading and previews
    promise: Promise | None = None  # the same in parts, for the run's folder
    fitted: Fitted | None = None  # how it is made to fit into the memory
    fitted_in_words: str = ""  # the same as one sentence
    options: tuple[Option, ...] = ()  # for a base model that needs a card: resolutions that fit
    disk: int = 0  # bytes that the run folder grows to
    problems: tuple[str, ...] = ()  # a start is refused for each of these
    warnings: tuple[str, ...] = ()

    @property
    def memory(self) -> int:
        """Bytes at the most, on the device that trains; 0 where nothing is known of the base model."""
        return self.fitted.memory.peak if self.fitted else 0


def make_plan(
    config: TrainConfig, *, pictures: int, sources: int = 0, runs_dir: Path, machine: Machine
) -> Plan:
    """What a run with these settings and so many pictures will need, and why it cannot start; see `Plan`.

    `sources` is how many pictures to start from one of them has, at the most.
    """
    missing_card = _missing_card(config, machine)
    machine = machine.only(config.card)
    gpu = _card(config, machine)
    on_gpu = gpu is not None
    device = gpu or machine
    plan = Plan(
        device=_device_name(gpu, machine),
        steps=config.steps,
        pictures_per_step=config.batch_size,
        sources=sources,
        memory_total=device.memory,
        memory_free=device.free_memory,
        disk_free=free_disk(runs_dir),
    )
    problems = [problem.message for problem in check_count(pictures, "the set")]
    problems += [*missing_card, *_base_problems(config)]
    try:
        facts = find_facts(config.base_model, config.revision)
        sizes = facts.sizes_for(config, sources)
        facts.architecture.check_sources(sources, facts.label)
    except BaseModelError as error:
        return replace(plan, problems=tuple(dict.fromkeys([*problems, str(error)])))
    fitted, too_much, warnings = _fit_memory(config, sizes, machine, runs_dir)
    pace = reckon_pace(config, sizes, fitted.plan, runs_dir, machine, on_gpu, sources)
    promise = _promise(config, facts, sizes, fitted, pace)
    plan = replace(
        plan,
        seconds_per_step=pace.seconds,
        source=pace.source,
        seconds=promise.seconds(config.steps),
        promise=promise,
        lacks=what_lacks(config.base_model, config.revision, config.teacher_context, facts, sizes),
        fitted=fitted,
        fitted_in_words=words_for_plan(fitted, sizes),
        disk=disk(config, sizes, pictures, sources),
    )
    # Here, whatever else is done. How much a processor would need, nobody wants to know who needs a card.
    impossible = [*_device_problems(config, sizes, machine)] or too_much
    problems += [*impossible, *_disk_problems(plan)]
    if impossible:
        plan = replace(plan, seconds_per_step=0.0, source="", seconds=0.0, promise=None)
    else:
        warnings += [*_time_warnings(plan, pace), *_card_warnings(config, machine)]
        plan = replace(plan, options=tuple(_options(config, facts, sources, fitted, promise)))
    warnings += _steps_warnings(config, facts.native_steps)
    return replace(plan, problems=tuple(problems), warnings=tuple(warnings))


def plan_memory(config: TrainConfig, sizes: Sizes, machine: Machine, *, own: bool = True) -> Budget:
    """What a plan may take here, corrected by what the check of the base model has measured."""
    budget = budget_of(config, machine, own=own)
    checked = find_measured(config.base_model, config.revision, config.teacher_context, budget.on_gpu)
    share = checked.memory / checked.planned_memory if checked and checked.memory else 1.0
    return replace(budget, measured=share)


def choose_plan(
    config: TrainConfig,
    machine: Machine,
    *,
    sources: int = 0,
    kept: KeptPlan | None = None,
    begun: bool = False,
) -> Fitted:
    """The plan for a run that begins now, or has `begun`: then with the weights that it has trained with.

    Raises `KnownFailure` where none fits into what is free of the card, and of the computer's own memory.
    """
    if kept and begun:
        config = replace(config, quantization=kept.plan.quantization)
    sizes = find_facts(config.base_model, config.revision).sizes_for(config, sources)
    budget = plan_memory(config, sizes, machine)
    if kept:
        budget = replace(budget, ran_out=kept.ran_out)
    fitted = within(config, sizes, budget)
    if budget.on_gpu and (lack := _lack(fitted, budget)):
        limit = "Raise `memory_limit`" if config.memory_limit else "Close other programs that use it"
        raise KnownFailure(f"{lack}. {limit}, or start a run with a lower `resolution` or `rank`.")
    return fitted


def _lack(fitted: Fitted, budget: Budget) -> str:
    """What a plan needs more than there is, as a sentence without its end; empty where it fits."""
    holder = "the card" if budget.on_gpu else "this computer"
    for needed, there, of_what, where in (
        (fitted.memory.peak, budget.device, "of memory", f"on {holder}"),
        (fitted.memory.computer, budget.computer, "of the computer's own memory", "there"),
    ):
        if needed > there:
            more, less = tell_apart(needed, there, GIB)
            return f"The run needs about {more} {of_what}, and {less} are free {where} now"
    return ""


def plan_drawing(config: TrainConfig, kept: KeptPlan | None = None) -> MemoryPlan:
    """The plan for a process that only draws, or shows what a teacher sees; `kept` is of a LoRA's run."""
    if kept:
        config = replace(config, quantization=kept.plan.quantization)
    sizes = find_facts(config.base_model, config.revision).sizes_for(config)
    plan = within(config, sizes, plan_memory(config, sizes, read_machine())).plan
    return replace(plan, autoencoder_in_ram=False)


def _fit_memory(
    config: TrainConfig, sizes: Sizes, machine: Machine, runs_dir: Path
) -> tuple[Fitted, list[str], list[str]]:
    """How a run is made to fit, and problems and warnings where it cannot be.

    While a job of ours computes, the memory that it has will be free.
    """
    now = plan_memory(config, sizes, machine, own=not _ours(runs_dir))
    if fitted := fit(config, sizes, now):
        return fitted, [], []
    alone = plan_memory(config, sizes, machine, own=False)
    fitted = within(config, sizes, alone)
    if fitted.memory.peak > alone.device:
        needed, there = tell_apart(fitted.memory.peak, alone.device, GIB)
        holder = "the card" if now.on_gpu else "this computer"
        limit = "may use" if config.memory_limit else "has"
        nothing = "Raise `memory_limit`." if config.memory_limit else "No settings make it small enough."
        advice = _advice(config, sizes, alone) or nothing
        return fitted, [f"The run needs about {needed} of memory, and {holder} {limit} {there}. {advice}"], []
    if fitted.memory.computer > alone.computer:
        needed, there = tell_apart(fitted.memory.computer, alone.computer, GIB)
        return fitted, [f"The run needs about {needed} of the computer's own memory, which has {there}."], []
    return fitted, [], [f"{_lack(within(config, sizes, now), now)}. Close other programs that use it."]


def _ours(runs_dir: Path) -> bool:
    """Whether a job of ours holds memory that the next one will have: at work, or warm after a drawing."""
    holder = read_holder()
    return bool(computing(runs_dir)) or (holder is not None and holder.warm)


def check_base(config: TrainConfig) -> None:
    """Raises `KnownFailure` where a base model cannot be trained on here, or cannot be fetched.

    For what is to begin at once: the Hub is asked, which takes seconds.
    """
    problems = [*_base_problems(config)]
    if problems:
        raise KnownFailure("\n".join(dict.fromkeys(problems)))
    check_fetch(config, config.teacher_context)
    check_device(config)


def check_device(config: TrainConfig) -> None:
    """Raises `KnownFailure` where a base model of which something is known cannot be computed here."""
    machine, facts = read_machine().only(config.card), find_facts(config.base_model, config.revision)
    sizes = facts.sizes_for(config)  # which also looks at its settings
    if problems := list(_device_problems(config, sizes, machine)):
        raise KnownFailure("\n".join(dict.fromkeys(problems)))


def check_fetch(config: TrainConfig, context: str) -> None:
    """Raises `KnownFailure` where a base model is not here and cannot be fetched, as far as the Hub tells.

    `context` is the teacher's, or UNTAUGHT for one that only draws.
    """
    if needs_fetching(config.base_model, config.revision, context):
        ask_hub(config.base_model, config.revision, context)


def _card(config: TrainConfig, machine: Machine) -> Gpu | None:
    """The card that a run is for; None for the processor."""
    return None if config.device == "cpu" else machine.card(config.precision)


def _missing_card(config: TrainConfig, machine: Machine) -> list[str]:
    if config.device == "cpu" or not config.card or machine.only(config.card).gpus:
        return []
    return ["The card that `card` names is not here. Choose another one, or leave it empty."]


def _options(
    config: TrainConfig, facts: BaseModelFacts, sources: int, fitted: Fitted, promise: Promise
) -> Iterator[Option]:
    """The usual resolutions, where a base model has a choice of them."""
    sizes = facts.sizes_for(config, sources)
    if not sizes.needs_card:
        return
    own = weighted_work(config, sizes, fitted.plan)
    for resolution in sorted({*RESOLUTIONS, config.resolution}):
        other = replace(config, resolution=resolution)
        found = fitted if other == config else fit(other, sizes, fitted.budget)
        if found is not None and (not facts.resolutions or resolution <= facts.resolutions[1]):
            share = weighted_work(other, sizes, found.plan) / own
            seconds = promise.loading + share * (promise.seconds(config.steps) - promise.loading)
            yield Option(resolution, found.memory.peak, seconds)


def _device_name(gpu: Gpu | None, machine: Machine) -> str:
    if gpu is None:
        return f"CPU, {words_for_count(machine.cores, 'core')}"
    return f"{gpu.name}, in the computer's own memory" if gpu.shares_memory else gpu.name


def _promise(config: TrainConfig, facts: BaseModelFacts, sizes: Sizes, fitted: Fitted, pace: Pace) -> Promise:
    """The time of the whole run; drawing is reckoned in the time of a step, by its work.

    A preview draws its prompts; for the health, where it is measured, more of the captions and neutral ones.
    """
    whole, early, drawn = (len(steps(config)) for steps in (preview_steps, early_steps, early_samples))
    shown = prompts = len(config.preview_prompts) or SHOWN
    if facts.scoring(config) != "none":
        prompts = max(prompts, PROMPTS) + len(facts.neutral_prompts)
    bases = 1 if whole else 0  # the base's pictures once more, before the first step and the first preview
    work = (whole + bases) * preview_work(config, sizes, prompts)
    work += early * preview_work(config, sizes, 0) + drawn * shown * picture_work(config, sizes)
    drawing = work / step_work(config, sizes, fitted.plan)
    loading = START + sizes.stored_bytes / READING
    return Promise(loading, pace.seconds, drawing / config.steps, pace.slowness)


def _base_problems(config: TrainConfig) -> Iterator[str]:
    def problem(check: Callable, *arguments) -> Iterator[str]:
        try:
            check(config.base_model, *arguments)
        except BaseModelError as error:
            yield str(error)

    yield from problem(check_base_model)
    if config.revision and not find_repository(config.base_model):
        yield f"`revision` is of a repository on the Hub, and {config.base_model} is none: leave it out."
    yield from problem(check_resolution, config.resolution)
    yield from problem(check_context, config.revision, config.teacher_context)
    yield from problem(refuse_failed, config.revision, config.teacher_context)


def _device_problems(config: TrainConfig, sizes: Sizes, machine: Machine) -> Iterator[str]:
    missing = "`device` is cpu." if config.device == "cpu" else machine.why_no_card(config.precision)
    if missing and sizes.needs_card:
        yield (
            f"A base model of this size needs an NVIDIA card with {least_card(sizes)} GB or more; a processor"
            f" would train for weeks. {missing}"
        )
    elif missing and config.device == "cuda":
        yield f"`device` is cuda, and there is none that can be used. {missing}"
    wanted = {"`optimizer` adamw8bit": config.optimizer, "`quantization` nf4": config.quantization}
    needing = [words for words, value in wanted.items() if words.endswith(f" {value}")]
    if needing and importlib.util.find_spec("bitsandbytes") is None:
        yield f"The package bitsandbytes is missing: install it, or do without {' and '.join(needing)}."


def _disk_problems(plan: Plan) -> Iterator[str]:
    if plan.disk > plan.disk_free:
        needed, free = tell_apart(plan.disk, plan.disk_free, 1e9)
        yield (
            f"The run would take up to {needed}, and {free} are free on the disk. Delete old runs, or lower"
            " `rank`."
        )


def _advice(config: TrainConfig, sizes: Sizes, budget: Budget) -> str:
    """The first settings, lever after lever, with which the run would fit; "" where there are none."""
    changed, before = [], within(config, sizes, budget).memory.peak
    for name, value in memory_levers(config):
        smaller = replace(config, **{name: value})
        needed = within(smaller, sizes, budget).memory.peak
        if needed >= before:
            continue
        config, before = smaller, needed
        changed.append(f"`{name}` {str(value).lower()}")
        if fit(config, sizes, budget):
            return f"Set {' and '.join(changed)}: about {_gib(needed)}."
    return ""


def _card_warnings(config: TrainConfig, machine: Machine) -> Iterator[str]:
    """Of a card that is there, and that a run which may choose does without."""
    if config.device == "auto" and machine.gpus and (why := machine.why_no_card(config.precision)):
        yield f"Training is on the processor. {why}"


def _steps_warnings(config: TrainConfig, native: int | None) -> Iterator[str]:
    if native and config.num_inference_steps != native:
        yield (
            f"The base model was made to draw in {words_for_count(native, 'step')}, and"
            f" `num_inference_steps` is {config.num_inference_steps}: its pictures may be worse."
        )


def _time_warnings(plan: Plan, pace: Pace) -> Iterator[str]:
    if pace.slowness >= SLOW:
        yield (
            "Other programs are at work: each step takes far longer than with the computer to itself. Close"
            " them, or start when they have ended."
        )
    if plan.seconds > LONG:
        yield f"This takes {words_for_time(plan.seconds)}. Fewer steps or a lower resolution are faster."


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GB"  # as cards and memory are sold


def tell_apart(larger: float, smaller: float, unit: float) -> tuple[str, str]:
    """Two amounts in GB of `unit` bytes, with as many digits as show that the first is the larger one."""
    larger, smaller = larger / unit, smaller / unit
    apart = (digits for digits in range(1, 10) if round(larger, digits) > round(smaller, digits))
    digits = next(apart, 1)
    return f"{larger:.{digits}f} GB", f"{smaller:.{digits}f} GB"
