"""Facts about this computer: graphics cards, memory, disk."""

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import psutil

from dopsd_app.gpus import Gpu, list_gpus
from dopsd_app.processor import count_cores, read_load

CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Machine:
    """What there is to train on."""

    gpus: tuple[Gpu, ...]  # those that a process started from here may use
    torch_has_cuda: bool  # whether the installed torch can use an NVIDIA card
    memory: int  # bytes that this process and its like may use in all
    free_memory: int
    cores: int
    load: float = 0.0  # threads that want these cores, those of our own jobs included


def read_machine() -> Machine:
    """This computer as it stands now."""
    total, free = _memory()
    return Machine(list_gpus(), torch_has_cuda(), total, free, count_cores(), read_load())


@functools.cache
def torch_has_cuda() -> bool:
    """Whether the installed torch was built for NVIDIA cards; pip's torch for Windows is not."""
    spec = importlib.util.find_spec("torch")  # finds it without importing it
    if spec is None or spec.origin is None:
        return False
    version = Path(spec.origin).with_name("version.py")
    lines = version.read_text(encoding="utf-8").splitlines() if version.is_file() else []
    return any(line.startswith("cuda") and not line.rstrip().endswith("None") for line in lines)


def _memory() -> tuple[int, int]:
    """Total and free bytes of this computer; in a container, what its limit leaves."""
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    limit, used = _read_number(CGROUP / "memory.max"), _read_number(CGROUP / "memory.current")
    if limit is not None and used is not None and limit < total:
        # What files were read into counts as used, but is given up when memory is asked for.
        total, free = limit, min(free, limit - used + _reclaimable())
    return total, free


def _read_number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:  # no Linux, or another kind of control group
        return None
    return int(text) if text.isdecimal() else None  # "max": no limit


def _reclaimable() -> int:
    try:
        lines = (CGROUP / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))
