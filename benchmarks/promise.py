"""What the plan promises of a run's time beside what it takes, alone and while other programs are at work.

python -m benchmarks.promise [busy processes ...]

For each number of busy processes: the plan of an empty folder of runs (from the processor alone), the plan
after a check of the teacher (from the pictures that it drew), the run, and what is expected of it after its
first measured steps. The first number is that of a computer that does nothing else, as far as it is.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.record import save_result
from dopsd_app.config import TrainConfig, load_preset, make_config
from dopsd_app.jobs.drawing import CheckRequest, ask
from dopsd_app.jobs.events import StepDone, read_events
from dopsd_app.jobs.promise import LEAST_STEPS, WARMING_UP, expected_seconds, read_promise
from dopsd_app.jobs.runs import find_run
from dopsd_app.planning.machine import read_machine
from dopsd_app.planning.plan import make_plan

EXAMPLE = Path("assets/examples/zorp")
PICTURES = 6
STEPS = 6
BUSY = (0, 1, 2, 4)
SETTLING = 75  # seconds, so that the load average knows of the busy processes


def main(numbers: list[int]) -> None:
    settings = {"steps": STEPS, "preview_every": 0}
    config = replace(make_config(load_preset("pocket").settings), **settings)
    rows = []
    for number in numbers:
        with busy(number), tempfile.TemporaryDirectory() as folder:
            time.sleep(SETTLING if number else 0)
            rows.append({"busy_processes": number, **measure(config, settings, Path(folder))})
        print(rows[-1])
        save_result("promise", {"steps": STEPS, "rows": rows})  # a crowded computer may take an hour


@contextmanager
def busy(number: int) -> Iterator[None]:
    """So many processes that do nothing but compute."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(config: TrainConfig, settings: dict, runs_dir: Path) -> dict:
    """One run's promises and its time, all in seconds."""
    load = read_machine().load
    by_processor = plan(config, runs_dir)
    check = ask(runs_dir, CheckRequest(config, EXAMPLE))
    while check.status.busy:
        time.sleep(0.2)
    by_pictures = plan(config, runs_dir)
    command = ["train", "--images", str(EXAMPLE), "--runs", str(runs_dir), "--set"]
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "dopsd_app", *command, *(f"{key}={value}" for key, value in settings.items())],
        check=True,
    )
    seconds = time.perf_counter() - started
    run = find_run(runs_dir, "latest")
    steps = [event for event in read_events(run.events_file) if isinstance(event, StepDone)]
    first = steps[: WARMING_UP + LEAST_STEPS]
    return {
        "load": round(load, 1),
        "promised_by_the_processor": round(by_processor.seconds, 1),
        "promised_by_pictures": round(by_pictures.seconds, 1),
        "source_of_that": by_pictures.source,
        "expected_after_first_steps": round(expected_seconds(read_promise(run.path), first, STEPS), 1),
        "taken": round(seconds, 1),
        "slowness_reckoned": round(by_processor.promise.slowness, 2),
        "seconds_per_step": round(statistics.median(step.seconds for step in steps[WARMING_UP:]), 3),
    }


def plan(config: TrainConfig, runs_dir: Path):
    return make_plan(config, pictures=PICTURES, runs_dir=runs_dir, machine=read_machine())


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]] or list(BUSY))
