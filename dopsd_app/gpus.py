"""The NVIDIA cards of this computer, as their driver tells them."""

import functools
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass

ANSWER_SECONDS = 5  # seconds that an answer of nvidia-smi is good for; asking takes up to a second
FIELDS = (
    "name",
    "memory.total",
    "memory.free",
    "uuid",
    "utilization.gpu",
    "driver_version",
    "compute_cap",
)
NOT_TOLD = ("[N/A]", "[Not Supported]")  # as a memory: it is the computer's own


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA card as its driver describes it."""

    name: str
    memory: int  # bytes; 0 where it has none of its own
    free_memory: int
    uuid: str = ""  # of this very card, the same in every program; "" where it is not told
    busy: float = 0.0  # share of the last moment in which somebody computed on it; 0 where it is not told
    capability: tuple[int, int] | None = None  # compute capability, (8, 9); None where it is not told
    driver: int = 0  # its first number, which decides what it can do; 0 where it is not told
    shares_memory: bool = False  # whether it computes in the computer's own memory


def list_gpus() -> tuple[Gpu, ...]:
    """The cards that a process started from here may use, in the driver's order."""
    lent = os.environ.get("SPACES_ZERO_GPU", "").lower() == "true"  # for moments: nothing can train on it
    return () if lent else _visible(_gpus(round(time.monotonic() / ANSWER_SECONDS)))


def settle_on_a_card() -> None:
    """Leaves this process, and those that it starts, one card of several: plan and training mean the same.

    CUDA would take the one that it holds for the fastest, which need not be the driver's first. Before torch
    is imported. What the person has chosen by CUDA_VISIBLE_DEVICES stays, and counts in the driver's order.
    """
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    gpus = list_gpus()
    if len(gpus) > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ and all(gpu.uuid for gpu in gpus):
        # One that computes in bfloat16, and of those the largest.
        best = max(gpus, key=lambda gpu: ((gpu.capability or (0, 0)) >= (8, 0), gpu.memory))
        os.environ["CUDA_VISIBLE_DEVICES"] = best.uuid


def settle_on_own_card() -> None:
    """The same for one of several processes that a launcher has started: the first has the first card."""
    rank = int(os.environ.get("LOCAL_RANK", 0))
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        settle_on_a_card()
    elif gpus := list_gpus():
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        # One without a card computes on the processor, which the first process refuses in words.
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[rank].uuid if rank < len(gpus) else ""


@functools.lru_cache(maxsize=1)
def _gpus(moment: int) -> tuple[Gpu, ...]:
    """The cards that nvidia-smi lists; none where it is missing or fails. `moment` makes the memory short."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        answer = _ask(program)
    except (OSError, subprocess.SubprocessError):  # a driver that hangs or does not fit its card
        return ()
    return tuple(gpu for line in answer.splitlines() if (gpu := _read_gpu(line)))


def _ask(program: str) -> str:
    """What nvidia-smi answers, a line for each card with what `FIELDS` names."""
    for fields in (FIELDS, FIELDS[:-1]):
        query = [f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
        answer = subprocess.run([program, *query], capture_output=True, text=True, timeout=10)
        # An older driver than any torch of today takes does not know it, and then tells nothing at all.
        if "compute_cap" not in answer.stdout + answer.stderr:
            break
    answer.check_returncode()
    return answer.stdout


def _read_gpu(line: str) -> Gpu | None:
    """The card of a line of nvidia-smi's answer; None for one that tells a failure in a card's place."""
    values = [value.strip() for value in line.split(",")]
    if len(values) < len(FIELDS) - 1:
        return None
    told = dict(zip(FIELDS, values, strict=False))
    memory = [told["memory.total"], told["memory.free"]]
    shares_memory = memory[0] in NOT_TOLD
    if not shares_memory and not all(map(str.isdecimal, memory)):
        return None
    total, free = (0, 0) if shares_memory else (int(value) * 1024**2 for value in memory)
    busy, driver = told["utilization.gpu"], told["driver_version"].partition(".")[0]
    return Gpu(
        name=told["name"],
        memory=total,
        free_memory=free,
        uuid="" if told["uuid"] in NOT_TOLD else told["uuid"],
        busy=int(busy) / 100 if busy.isdecimal() else 0.0,  # some drivers and parts of cards: "[N/A]"
        capability=_read_capability(told.get("compute_cap", "")),
        driver=int(driver) if driver.isdecimal() else 0,
        shares_memory=shares_memory,
    )


def _read_capability(text: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


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
