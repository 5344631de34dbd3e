"""Where a benchmark's figures go: JSON with the command, the versions and the hardware that made them."""

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def save_result(name: str, result: dict) -> Path:
    """Writes benchmarks/results/<name>.json and returns its path."""
    # Another version's folder by its name, wherever it lay: the file tells nothing of a computer's own paths.
    given = [f"../{Path(word).name}" if Path(word).is_absolute() else word for word in sys.argv[1:]]
    command = " ".join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *given])
    facts = {
        "command": command,
        "versions": {p: version(p) for p in ("torch", "diffusers", "transformers", "peft", "bitsandbytes")},
        # Given by who must not touch the card itself.
        "hardware": result.get("hardware") or hardware(),
        "threads": torch.get_num_threads(),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**facts, **result}, indent=2) + "\n", encoding="utf-8")
    return path


def hardware() -> str:
    """The card, where there is one, or the processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} cores, {_processor()}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text().splitlines()
            if "model name" in line
        ]
        if names:
            return names[0]
    return platform.processor() or platform.machine()
