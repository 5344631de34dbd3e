"""How long the README's first training run takes, from the command to the checked LoRA file.

python -m benchmarks.first_run
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import save_result
from dopsd_app.jobs.events import StepDone, read_events
from dopsd_app.jobs.runs import find_run

EXAMPLE = Path("assets/examples/zorp")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = ["train", "--images", str(EXAMPLE), "--trigger-word", EXAMPLE.name, "--runs", folder]
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "dopsd_app", *command], check=True)
        seconds = time.perf_counter() - started
        run = find_run(Path(folder), "latest")
        steps = [event.seconds for event in read_events(run.events_file) if isinstance(event, StepDone)]
        result = {
            "seconds": round(seconds, 1),
            "steps": len(steps),
            "median_seconds_per_step": round(statistics.median(steps), 3),
            "check": json.loads(run.check_file.read_text()),
        }
    print(f"Saved {save_result('first_run', result).name}: {result['seconds']} s")


if __name__ == "__main__":
    main()
