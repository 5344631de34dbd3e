"""Examples per second of one process with one thread, and of two that share each step's batch.

python -m benchmarks.two_processes

Runs of the built-in base, in turn; of each, the middle one of its steps after the first few. Two processes
can only be faster on two cores that do nothing else: the load that was found is noted with each run.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.record import save_result
from dopsd_app.config import load_preset, make_config
from dopsd_app.data.pictures import read_examples
from dopsd_app.jobs.events import StepDone, read_events
from dopsd_app.jobs.runs import create_run
from dopsd_app.planning.machine import read_machine

EXAMPLE = Path("assets/examples/zorp")
STEPS, WARMING_UP = 16, 4
ROUNDS = 3


def main() -> None:
    config = make_config(load_preset("pocket").settings)
    # Passes of four pictures in both: fewer at a time would be another measurement.
    config = replace(config, batch_size=8, steps=STEPS, preview_every=0, checkpoint_every=STEPS)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            for processes in (1, 2):
                load = read_machine().load
                rate = config.batch_size / measure(config, processes, Path(folder))
                rows.append(
                    {"processes": processes, "examples_per_second": round(rate, 3), "load": round(load, 2)}
                )
                print(rows[-1])
    one, two = (
        statistics.median(row["examples_per_second"] for row in rows if row["processes"] == processes)
        for processes in (1, 2)
    )
    result = {"steps": STEPS, "batch_size": config.batch_size, "micro_batch": config.micro_batch}
    save_result("two_processes", result | {"times_as_fast": round(two / one, 2), "rows": rows})


def measure(config, processes: int, folder: Path) -> float:
    """Seconds of a step."""
    run = create_run(folder, config, read_examples(EXAMPLE, minimum_side=config.minimum_side))
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes), "-m"]
    subprocess.run(
        [*command, "dopsd_app.train", str(run.path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    seconds = [event.seconds for event in read_events(run.events_file) if isinstance(event, StepDone)]
    return statistics.median(seconds[WARMING_UP:])


if __name__ == "__main__":
    main()
