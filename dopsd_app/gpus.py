"""The NVIDIA cards of this computer, as their driver tells them."""

import functools
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass

ANSWER_SECONDS = 5  # seconds that an answer of nvidia-smi is good for; asking takes up to a second


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA card as its driver describes it."""

    name: str
    memory: int  # bytes
    free_memory: int
    uuid: str = ""  # of this very card, the same in every program
    busy: float = 0.0  # share of the last moment in which somebody computed on it; 0 where it is not told


def list_gpus() -> tuple[Gpu, ...]:
    """The cards that a process started from here may use, in CUDA's order."""
    lent = os.environ.get("SPACES_ZERO_GPU", "").lower() == "true"  # for moments: nothing can train on it
    return () if lent else _visible(_gpus(round(time.monotonic() / ANSWER_SECONDS)))


@functools.lru_cache(maxsize=1)
def _gpus(moment: int) -> tuple[Gpu, ...]:
    """The cards that nvidia-smi lists; none where it is missing or fails. `moment` makes the memory short."""
    query = [
        "--query-gpu=name,memory.total,memory.free,uuid,utilization.gpu",
        "--format=csv,noheader,nounits",
    ]
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        answer = subprocess.run([program, *query], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):  # a driver that hangs or does not fit its card
        return ()
    cards = []
    for line in answer.stdout.splitlines():
        card = re.fullmatch(r"(.+), *(\d+), *(\d+), *(\S+), *(.+)", line.strip())
        if card:  # memory that is shared with the computer is "[N/A]"
            name, total, free, uuid, busy = card.groups()
            percent = int(busy) if busy.isdecimal() else 0  # some drivers and parts of cards: "[N/A]"
            cards.append(Gpu(name, int(total) * 1024**2, int(free) * 1024**2, uuid, percent / 100))
    return tuple(cards)


def _visible(gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    """The cards that CUDA_VISIBLE_DEVICES leaves, in its order; CUDA stops at what it cannot read."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or "MIG-" in chosen:  # parts of a card: which is which is unknown
        return gpus
    visible = []
    for text in map(str.strip, chosen.split(",")):
        if text.startswith("GPU-"):  # the beginning of a card's own number is enough for CUDA
            found = [gpu for gpu in gpus if gpu.uuid.startswith(text)]
        else:
            found = [gpus[int(text)]] if text.isdecimal() and int(text) < len(gpus) else []
        if len(found) != 1:
            break
        visible += found
    return tuple(visible)
