"""How long a step takes: from this computer's own runs where there are any, else from data sheets."""

import functools
import itertools
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from dopsd_app.config import ConfigError, TrainConfig
from dopsd_app.data.source_pictures import count_copies
from dopsd_app.errors import KnownFailure
from dopsd_app.jobs.drawing import CheckRequest, Drawing
from dopsd_app.jobs.events import StepDone, read_events, read_timed_events
from dopsd_app.jobs.job import kind_or_none, list_jobs
from dopsd_app.jobs.kinds import CHECK_TEACHER, DRAW
from dopsd_app.jobs.promise import LEAST_STEPS, WARMING_UP, read_promise
from dopsd_app.jobs.queue import computing
from dopsd_app.jobs.runs import Run, known_run, list_runs
from dopsd_app.models.architecture import Sizes
from dopsd_app.models.base_report import find_measured
from dopsd_app.models.catalog import full_name
from dopsd_app.models.memory_plan import MemoryPlan
from dopsd_app.planning.cards import USEFUL_CORES, WEIGHTS_SLOWER, operations_per_second
from dopsd_app.planning.cost import picture_work, step_work
from dopsd_app.planning.machine import Machine
from dopsd_app.progress import PhaseProgress

LOOKED_AT = 20  # newest runs that are read for their pace
FRESH = 600  # seconds after which a drawing says nothing any more of what else the computer does


@dataclass(frozen=True)
class Pace:
    """Seconds of an optimizer step, how slow the computer is for it now, and where the figure comes from."""

    seconds: float
    slowness: float  # times the seconds of a computer that does nothing else
    source: str


def reckon_pace(
    config: TrainConfig,
    sizes: Sizes,
    plan: MemoryPlan,
    runs_dir: Path,
    machine: Machine,
    on_gpu: bool,
    sources: int = 0,
) -> Pace:
    """How long a step takes: an earlier run here tells it best, then pictures that were drawn here.

    `sizes` are those of the run, with so many pictures to start from.
    """
    now = slowness(machine, on_gpu, training=bool(computing(runs_dir)))
    scaled = None
    for run in list_runs(runs_dir)[:LOOKED_AT]:
        measured = _measured(run, config, on_gpu)
        if measured is None:
            continue
        earlier, seconds = measured
        seconds *= now / _slowness_then(run)
        before_plan = run.memory_plan or plan
        if _alike(earlier, config) and before_plan == plan and run.sources == sources:
            seconds *= config.batch_size / earlier.batch_size
            return Pace(seconds, now, "measured in an earlier run here")
        if scaled is None:
            before = sizes.with_sources(run.sources)
            scaled = (
                seconds * weighted_work(config, sizes, plan) / weighted_work(earlier, before, before_plan)
            )
    if scaled is not None:
        return Pace(scaled, now, "reckoned from an earlier run here with other settings")
    work = weighted_work(config, sizes, plan)
    if checked := find_measured(config.base_model, config.revision, config.teacher_context, on_gpu):
        same = work == checked.work
        source = "measured when the base model was checked here"
        source = source if same else "reckoned from the check of the base model here"
        return Pace(checked.seconds * now / checked.slowness * work / checked.work, now, source)
    if rate := _drawn_rate(config, sizes, runs_dir, now):
        return Pace(work / rate, now, "reckoned from the last pictures drawn here")
    source = (
        "a rough estimate from the card's data sheet" if on_gpu else "a rough estimate for this processor"
    )
    return Pace(now * work / operations_per_second(machine, on_gpu), now, source)


def weighted_work(config: TrainConfig, sizes: Sizes, plan: MemoryPlan) -> float:
    """Operations of a step; more where weights have to be unpacked for each of them."""
    return step_work(config, sizes, plan) * WEIGHTS_SLOWER[plan.quantization]


def slowness(machine: Machine, on_gpu: bool, training: bool) -> float:
    """How many times as long a step takes as on a computer that does nothing else.

    `training` tells that a job of ours is at work, which ends before this run begins: its threads, and what
    it does on the card, do not count.
    """
    threads = 1 if on_gpu else min(machine.cores, USEFUL_CORES)
    others = max(0.0, machine.load - threads) if training else machine.load
    crowd = max(1.0, (others + threads) / machine.cores)  # threads for each core: they take turns
    busy = machine.gpus[0].busy if on_gpu and not training else 0.0
    return crowd * (1 + busy)


def seconds_per_picture(
    config: TrainConfig, sizes: Sizes, runs_dir: Path, machine: Machine, on_gpu: bool
) -> float | None:
    """How long one picture takes, told by those that were drawn here last; None where none was.

    `sizes` are those of the picture, with so many pictures to start from.
    """
    now = slowness(machine, on_gpu, training=bool(computing(runs_dir)))
    rate = _drawn_rate(config, sizes, runs_dir, now)
    return picture_work(config, sizes) / rate if rate else None


def _slowness_then(run: Run) -> float:
    promise = read_promise(run.path)
    return promise.slowness if promise else 1.0


def _drawn_rate(config: TrainConfig, sizes: Sizes, runs_dir: Path, now: float) -> float | None:
    """Operations per second with which this base was last drawn here, for the computer as it is now."""
    for job in reversed(list_jobs(runs_dir)):
        if kind_or_none(job) not in (DRAW, CHECK_TEACHER):
            continue
        try:
            drawing = Drawing(job.path)
            drawn, sources = _asked_for(runs_dir, drawing)
            written = job.events_file.stat()
            seconds = _seconds_per_picture(job.events_file, written.st_size, written.st_mtime_ns)
        except (OSError, KnownFailure):  # just being deleted, damaged, or of a run that is gone
            continue
        alike = (drawn.base_model, drawn.device) == (full_name(config.base_model), config.device)
        if alike and seconds:
            # A fresh one has met whatever the computer does now; of an old one nobody knows what it met.
            fresh = abs(time.time() - written.st_mtime) < FRESH
            work = picture_work(drawn, sizes.with_sources(sources))
            return work / seconds / (1 if fresh else now)
    return None


def _asked_for(runs_dir: Path, drawing: Drawing) -> tuple[TrainConfig, int]:
    """The settings of a drawing, and how many pictures it starts from."""
    asked = drawing.asked
    if isinstance(asked, CheckRequest):
        return asked.config, count_copies(asked.folder)
    return known_run(runs_dir, asked.run_id).config, len(drawing.sources)


@functools.lru_cache(maxsize=256)
def _seconds_per_picture(events: Path, size: int, changed: int) -> float | None:
    """The median of an events file; of two pictures the slower one, for the base's may be remembered."""
    times = [
        written for written, event in read_timed_events(events)
        if isinstance(event, PhaseProgress) and event.phase == "drawing"
    ]  # fmt: skip
    seconds = [after - before for before, after in itertools.pairwise(times)]
    return statistics.median_high(seconds) if seconds else None


def _measured(run: Run, config: TrainConfig, on_gpu: bool) -> tuple[TrainConfig, float] | None:
    """Settings of a run and the median seconds of its steps, if it tells about this base and device."""
    try:
        earlier = run.config
        if earlier.base_model != config.base_model:
            return None
        written = run.events_file.stat()
        seconds = _median_seconds(run.events_file, written.st_size, written.st_mtime_ns, on_gpu)
    except (OSError, ConfigError):  # just being deleted, or of another version
        return None
    return (earlier, seconds) if seconds is not None else None


@functools.lru_cache(maxsize=256)
def _median_seconds(events: Path, size: int, changed: int, on_gpu: bool) -> float | None:
    """Of the steps of an events file, which has this size and time: a plan is made at every keystroke."""
    steps = [event for event in read_events(events) if isinstance(event, StepDone)][WARMING_UP:]
    seconds = [step.seconds for step in steps if (step.peak_memory > 0) == on_gpu]
    return statistics.median(seconds) if len(seconds) >= LEAST_STEPS else None


def _alike(earlier: TrainConfig, config: TrainConfig) -> bool:
    names = (
        "objective",
        "resolution",
        "rollout_steps",
        "teacher_context",
        "teacher_picture_minimum",
        "teacher_picture_maximum",
        "quantization",
        "precision",
        "micro_batch",
    )
    return all(getattr(earlier, name) == getattr(config, name) for name in names)
