"""What is otherwise simulated, measured on a card: memory by plan, seconds per step, and the released loop.

    timeout 590 python -m benchmarks.card

In at most ten minutes, on a card with more memory than it is held to (an H200, say): the tests that need a
card first; then the product's own run of a base of real size with random weights at 1024 x 1024, one picture
a step and K = 4, without a limit and as on cards of 12, 16, 24 and 8 GB; and the released loop (arXiv
2605.05204): PEFT's own layers, the graphs of all states kept for one backward pass with diffusers' gradient
checkpointing, a bfloat16 base and a float32 LoRA. Each is a process of its own, and a row of
results/card.json as soon as it is done. GB are 2^30 bytes, as cards are sold.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from multiprocessing.context import BaseContext
from pathlib import Path

import torch
from PIL import Image

from benchmarks.hollow_bases import save_base_like
from benchmarks.real_size import EXAMPLE, draw_file, enlarge, measure, read_context, to_gb
from benchmarks.record import RESULTS, hardware, save_result
from benchmarks.simulate import PHASES, Simulated, simulate_run
from benchmarks.speed import plain_step
from dopsd_app.config import TrainConfig, load_preset, make_config
from dopsd_app.data.pictures import read_examples
from dopsd_app.gpus import settle_on_a_card
from dopsd_app.jobs.kept_plan import read_kept_plan
from dopsd_app.jobs.runs import create_run
from dopsd_app.method.encode import EncodedExample
from dopsd_app.models.catalog import find_facts
from dopsd_app.models.load import load_base_model
from dopsd_app.models.memory_plan import NOTHING_SAVED, MemoryPlan
from dopsd_app.models.protocol import Pictures
from dopsd_app.planning.cards import peak_operations
from dopsd_app.planning.cost import step_work
from dopsd_app.planning.machine import read_machine
from dopsd_app.planning.memory import program_bytes, within
from dopsd_app.planning.plan import plan_memory
from dopsd_app.train import train, use_repeatable_kernels

PRESETS = {"z-image-turbo": "z-image-subject", "klein-4b": "klein-4b-subject"}
RESULT = RESULTS / "card.json"
UNLIMITED, RELEASED = "unlimited", "released loop"
CARDS, TINY_CARDS = (12, 16, 24, 8), (12, 8)  # GB; those first for which a goal is set
WARM_UP, STEPS, STATES = 1, 3, 4
PICTURES = 4  # as few as a run may have
RESOLUTION, TINY_RESOLUTION = 1024, 64
SLOWER = {12: 1.3, 16: 1.2, 24: 1.1}  # goals: by GB, times the unlimited plan's seconds
TIMES_THE_FLOOR = 1.6  # of the unlimited plan's seconds
OF_RELEASED = 0.75  # the unlimited plan's seconds
LESS, AT_MOST = 0.35, 1.15  # some plan's memory and seconds, both of the released loop's
# Of what is simulated and what is planned, the phases that a run tells.
PHASES_OF = {
    "encoding": ("encode student", "encode teacher"),
    "training": ("teacher", "student", "backward", "optimizer"),
    "drawing": ("preview", "decode"),
}


def make_settings(base: str, folder: Path, limit: float, tiny: bool) -> TrainConfig:
    """The preset's own, but for one picture a step and a single preview."""
    steps = WARM_UP + STEPS
    changed = {"base_model": str(folder), "resolution": TINY_RESOLUTION if tiny else RESOLUTION}
    changed |= {"batch_size": 1, "micro_batch": 1, "rollout_steps": STATES, "memory_limit": float(limit)}
    changed |= {"steps": steps, "preview_every": steps, "checkpoint_every": steps}
    return make_config(load_preset(PRESETS[base]).settings | changed)


# --- in a process of their own


def save_base(base: str, folder: Path, tiny: bool) -> dict:
    """Makes the folder; tells of the card, on whose multiprocessors the work space of kernels depends."""
    save_base_like(base, folder, draw_file, tiny=tiny)
    cuda = torch.cuda.is_available()
    count = torch.cuda.get_device_properties(0).multi_processor_count if cuda else 24
    return {"hardware": hardware(), "multiprocessors": count}


def run_plan(config: TrainConfig) -> dict:
    """The product's run, phase by phase, in what memory it is allowed."""
    use_repeatable_kernels()
    with tempfile.TemporaryDirectory() as place:
        pictures = enlarge(EXAMPLE, Path(place) / "pictures", config.resolution, most=PICTURES)
        run = create_run(
            Path(place) / "runs", config, read_examples(pictures, minimum_side=config.minimum_side)
        )
        row = measure(train(run))
        kept = read_kept_plan(run.path)
    # With the kernels that were loaded on the way.
    row["context_gb"] = to_gb(read_context()) if torch.cuda.is_available() else 0.0
    # Another one than was planned where memory ran out on the way: the warnings say where.
    row["plan_at_the_end"] = kept.plan.to_fields() if kept else None
    return row


def run_released(config: TrainConfig) -> dict:
    """The released loop's steps, with the same picture, optimizer and rank."""
    torch.manual_seed(0)
    base_model = load_base_model(config, NOTHING_SAVED)
    with tempfile.TemporaryDirectory() as place:
        pictures = enlarge(EXAMPLE, Path(place) / "pictures", config.resolution, most=PICTURES)
        example = read_examples(pictures, minimum_side=config.minimum_side).examples[0]
        with Image.open(example.image) as file:
            picture = file.convert("RGB")
    base_model.load_encoders()
    caption = example.captions[0]
    student, teacher = (
        base_model.encode(Pictures(picture), caption, role) for role in ("student", "teacher")
    )
    base_model.free_encoders()
    base_model.load_transformer()
    keep_as_released(base_model.transformer)
    encoded = EncodedExample((student,), (teacher,), picture.height, picture.width)
    step = plain_step(base_model, config, encoded, graphs_kept=True)
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for number in range(1, WARM_UP + STEPS + 1):
        started = time.perf_counter()
        step(number)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(round(time.perf_counter() - started, 3))
    return {
        "allocated_gb": {"training": to_gb(torch.cuda.max_memory_allocated() if cuda else 0)},
        "reserved_until_gb": {"training": to_gb(torch.cuda.max_memory_reserved() if cuda else 0)},
        "seconds_per_step": seconds,
    }


def keep_as_released(transformer: torch.nn.Module) -> None:
    """Gives its layers their classes' own arithmetic again, and checkpoints by diffusers."""
    for module in transformer.modules():
        for name in ("forward", "_forward_silu_gating"):
            module.__dict__.pop(name, None)
    transformer.enable_gradient_checkpointing()


def without_card() -> None:
    """For a process that simulates: it is to find no card."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)


def simulated_gb(config: TrainConfig, plan: MemoryPlan, sms: int) -> dict[str, dict[str, float]]:
    """What the simulation says of the same run, CUDA's context included."""
    config = replace(config, memory_limit=0.0, rollout_steps=1, num_inference_steps=STATES)
    simulated = simulate_run(replace(config, precision="bfloat16"), plan, sms=sms)
    return {
        "allocated": by_phase(simulated, simulated.allocated),
        "reserved": by_phase(simulated, simulated.reserved),
        "reserved_expandable": by_phase(simulated, simulated.reserved_expandable),
    }


def by_phase(simulated: Simulated, peaks: dict[str, int]) -> dict[str, float]:
    assert simulated.allocated.keys() <= set(PHASES)
    program = program_bytes(on_gpu=True)
    return {phase: to_gb(program + max(peaks[name] for name in names)) for phase, names in PHASES_OF.items()}


# --- what the rows say together


def step_seconds(row: dict) -> float | None:
    """The median of the steps behind the warm-up; None of a run that did not come so far."""
    after = row.get("seconds_per_step", [])[WARM_UP:]
    return statistics.median(after) if len(after) == STEPS else None


def training_gb(row: dict, context: float) -> float | None:
    """Of the card, while it trains, with CUDA's context; None where there is no card."""
    reserved = row.get("reserved_until_gb", {}).get("training")
    return reserved + context if reserved else None


def compare(rows: list[dict], floor_seconds: float) -> list[dict]:
    """Each row with its seconds and memory in units of others', and the goals that it is held to."""
    by_name = {row["name"]: row for row in rows}
    unlimited, released = (by_name.get(name, {}) for name in (UNLIMITED, RELEASED))
    context = unlimited.get("context_gb", 0.0)
    compared = []
    for row in rows:
        seconds, taken = step_seconds(row), training_gb(row, context)
        row = {**row, "step_seconds": seconds, "training_gb": taken}
        row["most_gb"] = round(row.get("reserved_gb", 0.0) + row.get("context_gb", 0.0), 2) or None
        row["times_unlimited"] = ratio(seconds, step_seconds(unlimited))
        row["times_released"] = ratio(seconds, step_seconds(released))
        row["memory_of_released"] = ratio(taken, training_gb(released, context))
        row["times_the_floor"] = ratio(seconds, floor_seconds)
        compared.append({**row, "goals": goals_of(row)})
    return compared


def ratio(one: float | None, other: float | None) -> float | None:
    return round(one / other, 3) if one and other else None


def goals_of(row: dict) -> list[str]:
    """What was wanted of a row, and what came of it, in words."""
    wanted = []
    if row["name"] == UNLIMITED:
        wanted += [("times the floor", row["times_the_floor"], TIMES_THE_FLOOR)]
        wanted += [("times the released loop's seconds", row["times_released"], OF_RELEASED)]
    elif row["name"] != RELEASED:
        wanted += [("GB of the card at the most", row["most_gb"], row["card_gb"])]
        if row["card_gb"] in SLOWER:
            what = "times the unlimited plan's seconds"
            wanted += [(what, row["times_unlimited"], SLOWER[row["card_gb"]])]
        # Both of some plan, at the same time.
        wanted += [("times the released loop's memory", row["memory_of_released"], LESS)]
        wanted += [("times the released loop's seconds", row["times_released"], AT_MOST)]
    return [
        f"{got} {what}; the goal is at most {most}: {'reached' if got <= most else 'missed'}"
        for what, got, most in wanted
        if got is not None
    ]


# --- the whole


def run_tests() -> str:
    """The last line of what pytest says of the tests that need a card."""
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", "tests/test_cuda.py"]
    command = [sys.executable, "-m", "pytest", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    print(done.stdout[-4000:], done.stderr[-2000:], flush=True)
    return (done.stdout.strip().splitlines() or ["pytest said nothing"])[-1]


def alone(context: BaseContext, function: Callable, *given) -> dict:
    """A function's result from a process of its own: none finds what another has left on the card.

    What it failed by is its result, so that the other rows are measured.
    """
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return result_of(pool.submit(function, *given))


def result_of(submitted: Future) -> dict:
    """What came of it, or what it failed by."""
    try:
        return submitted.result()
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {str(error)[:500]}"}


def measure_all(base: str, tiny: bool, save: Callable[[str, list[dict]], None]) -> None:
    """All rows, handed to `save` with the card's name whenever there is something new.

    This process leaves the card alone: what it took would be missing there.
    """
    rows: list[dict] = []
    # A tiny base's processes are forked with the libraries imported, which takes longest there.
    context = multiprocessing.get_context("forkserver" if tiny else "spawn")
    context.set_forkserver_preload(["benchmarks.simulate", "dopsd_app.train"])
    with tempfile.TemporaryDirectory() as place, ProcessPoolExecutor(2, context, without_card) as pool:
        # The rounded weights that the product keeps for the next run would outlive this one.
        os.environ["HF_HOME"] = f"{place}/cache"
        folder = Path(place) / "base"
        about = alone(context, save_base, base, folder, tiny)
        if "failed" in about:
            raise SystemExit(about["failed"])
        plain, machine = make_settings(base, folder, 0, tiny), read_machine()
        sizes = find_facts(str(folder)).sizes_for(plain)
        floor = step_work(plain, sizes, NOTHING_SAVED)
        card = machine.gpus[0].name if machine.gpus else ""
        floor_seconds = floor / (peak_operations(card) * 1e12)
        waiting: list[tuple[dict, Future]] = []

        def tell() -> None:
            for row, simulated in [pair for pair in waiting if pair[1].done()]:
                row["simulated_gb"] = result_of(simulated)
                waiting.remove((row, simulated))
            save(about["hardware"], compare(rows, floor_seconds))

        for limit in (0, None, *(TINY_CARDS if tiny else CARDS)):
            name = {0: UNLIMITED, None: RELEASED}.get(limit, f"{limit} GB")
            config = make_settings(base, folder, limit or 0, tiny)
            row = {"name": name, "base": base, "resolution": config.resolution, "card_gb": limit or None}
            rows.append(row)
            started = time.perf_counter()
            if name == RELEASED:
                row |= alone(context, run_released, config)
            else:
                # As the run itself chooses: it finds the card as free as it is now.
                fitted = within(config, sizes, plan_memory(config, sizes, read_machine()))
                plan, memory = fitted.plan, fitted.memory
                row |= {"memory_plan": plan.to_fields(), "planned_slower": round(fitted.slower, 3)}
                row["planned_gb"] = {phase: to_gb(getattr(memory, phase)) for phase in PHASES_OF}
                waiting.append((row, pool.submit(simulated_gb, config, plan, about["multiprocessors"])))
                row |= alone(context, run_plan, config)
            row["seconds_in_all"] = round(time.perf_counter() - started, 1)
            tell()
        while waiting:
            waiting[0][1].exception()  # waits for it
            tell()


def other_rows(base: str) -> list[dict]:
    """What was measured before, of other bases."""
    rows = json.loads(RESULT.read_text(encoding="utf-8"))["rows"] if RESULT.exists() else []
    return [row for row in rows if row["base"] != base]


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", choices=PRESETS, default="z-image-turbo")
    parser.add_argument("--tiny", action="store_true", help="a tiny base, to try this script on a processor")
    arguments = parser.parse_args(given)
    # For the processes that are started from here: card and allocator as the product has them.
    settle_on_a_card()
    tests = run_tests()
    printed: set[str] = set()

    def save(card: str, rows: list[dict]) -> None:
        for row in rows:
            text = json.dumps(row)
            if text not in printed:
                printed.add(text)
                print(text, flush=True)
        if not arguments.tiny:
            about = {"hardware": card, "tests": tests, "states": STATES}
            about |= {"steps": STEPS, "warm_up_steps": WARM_UP}
            save_result("card", {**about, "rows": [*other_rows(arguments.base), *rows]})

    measure_all(arguments.base, arguments.tiny, save)


if __name__ == "__main__":
    main()
