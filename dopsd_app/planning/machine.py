"""Facts about this computer: graphics cards, memory, disk."""

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")
REMEMBERED = 5  # seconds that an answer of nvidia-smi is good for; asking takes up to a second


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA card as its driver describes it."""

    name: str
    memory: int  # bytes
    free_memory: int


@dataclass(frozen=True)
class Machine:
    """What there is to train on."""

    gpus: tuple[Gpu, ...]  # those that a process started from here may use
    torch_has_cuda: bool  # whether the installed torch can use an NVIDIA card
    memory: int  # bytes that this process and its like may use in all
    free_memory: int
    cores: int


def read_machine() -> Machine:
    """This computer as it stands now."""
    total, free = _memory()
    lent = os.environ.get("SPACES_ZERO_GPU", "").lower() == "true"  # for moments: nothing can train on it
    gpus = () if lent else _visible(_gpus(round(time.monotonic() / REMEMBERED)))
    return Machine(gpus, torch_has_cuda(), total, free, _cores())


@functools.lru_cache(maxsize=1)
def _gpus(moment: int) -> tuple[Gpu, ...]:
    """The cards that nvidia-smi lists; none where it is missing or fails. `moment` makes the memory short."""
    query = ["--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        answer = subprocess.run([program, *query], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):  # a driver that hangs or does not fit its card
        return ()
    cards = []
    for line in answer.stdout.splitlines():
        card = re.fullmatch(r"(.+), *(\d+), *(\d+)", line.strip())
        if card:  # memory that is shared with the computer is "[N/A]"
            name, total, free = card.groups()
            cards.append(Gpu(name, int(total) * 1024**2, int(free) * 1024**2))
    return tuple(cards)


def _visible(gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    """The cards that CUDA_VISIBLE_DEVICES leaves, in its order; CUDA stops at what it cannot read."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or "GPU-" in chosen or "MIG-" in chosen:  # by serial number: which is which is not told
        return gpus
    visible = []
    for text in chosen.split(","):
        if not text.strip().isdecimal() or int(text) >= len(gpus):
            break
        visible.append(gpus[int(text)])
    return tuple(visible)


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


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: a container may have been given only some
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
