"""How long a step takes: from this computer's own runs where there are any, else from data sheets."""

import functools
import re
import statistics
from pathlib import Path

from dopsd_app.config import ConfigError, TrainConfig
from dopsd_app.jobs.events import StepDone, read_events
from dopsd_app.jobs.runs import Run, list_runs
from dopsd_app.models.architecture import Sizes
from dopsd_app.planning.cost import step_work
from dopsd_app.planning.machine import Machine

LOOKED_AT = 20  # newest runs that are read for their pace
LEAST_STEPS = 3  # of a run that tells a pace; the very first step, which warms up, is left out

# Dense bfloat16 with float32 accumulation, 10^12 operations per second, from NVIDIA's architecture papers
# and data sheets. The longest name that fits counts.
DATA_SHEET = {
    "RTX 3060": 26,
    "RTX 3060 Ti": 32,
    "RTX 3070": 41,
    "RTX 3080": 60,
    "RTX 3090": 71,
    "RTX 4060": 30,
    "RTX 4060 Ti": 44,
    "RTX 4070": 58,
    "RTX 4070 SUPER": 71,
    "RTX 4070 Ti": 80,
    "RTX 4080": 98,
    "RTX 4090": 165,
    "RTX 5060": 39,
    "RTX 5060 Ti": 47,
    "RTX 5070": 62,
    "RTX 5070 Ti": 88,
    "RTX 5080": 113,
    "RTX 5090": 210,
    "A10": 125,
    "A100": 312,
    "L4": 121,
    "L40S": 362,
    "H100": 756,
    "H200": 989,
}
UNKNOWN_CARD = 50  # a middling one
# Share of the data sheet that training reaches. Published steps of fine-tuning imply 0.23 (L40S, SimpleTuner)
# to 0.4 (a 12 GB card, ai-toolkit): an estimate from here can be wrong by a factor of two.
REACHED = 0.3
CPU_CORE = 2.3e10  # operations per second and core: benchmarks/results/first_run.json, on 2 cores
USEFUL_CORES = 4  # a small model's operators are too short to be shared out over more
NF4_SLOWER = 1.2  # unpacking weights in every pass


def seconds_per_step(
    config: TrainConfig, sizes: Sizes, runs_dir: Path, machine: Machine, on_gpu: bool
) -> tuple[float, str]:
    """Seconds of an optimizer step, and where the figure comes from."""
    scaled = None
    for run in list_runs(runs_dir)[:LOOKED_AT]:
        pace = _pace(run, config, on_gpu)
        if pace is None:
            continue
        earlier, seconds = pace
        if _alike(earlier, config):
            return seconds * config.batch_size / earlier.batch_size, "measured in an earlier run here"
        if scaled is None:
            scaled = seconds * step_work(config, sizes) / step_work(earlier, sizes)
            scaled *= _slowness(config) / _slowness(earlier)
    if scaled is not None:
        return scaled, "reckoned from an earlier run here with other settings"
    if on_gpu:
        rate = _card(machine.gpus[0].name) * 1e12 * REACHED
        return step_work(config, sizes) * _slowness(
            config
        ) / rate, "a rough estimate from the card's data sheet"
    return step_work(config, sizes) / (
        CPU_CORE * min(machine.cores, USEFUL_CORES)
    ), "a rough estimate for this processor"


def _pace(run: Run, config: TrainConfig, on_gpu: bool) -> tuple[TrainConfig, float] | None:
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
    steps = [event for event in read_events(events) if isinstance(event, StepDone)][1:]
    seconds = [step.seconds for step in steps if (step.peak_memory > 0) == on_gpu]
    return statistics.median(seconds) if len(seconds) >= LEAST_STEPS else None


def _alike(earlier: TrainConfig, config: TrainConfig) -> bool:
    names = (
        "objective",
        "resolution",
        "rollout_steps",
        "teacher_context",
        "quantization",
        "precision",
        "gradient_checkpointing",
        "micro_batch",
    )
    return all(getattr(earlier, name) == getattr(config, name) for name in names)


def _slowness(config: TrainConfig) -> float:
    return NF4_SLOWER if config.quantization == "nf4" else 1.0


def _card(name: str) -> float:
    """Operations per second of a card, in 10^12, by the longest of our names in its own."""
    found = [known for known in DATA_SHEET if re.search(rf"\b{re.escape(known)}\b", name, re.IGNORECASE)]
    return DATA_SHEET[max(found, key=len)] if found else UNKNOWN_CARD
