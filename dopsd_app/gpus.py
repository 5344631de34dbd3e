"""The NVIDIA cards of this computer, as their driver's library (NVML) tells them."""

import functools
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import pynvml

ANSWER_SECONDS = 5  # seconds that an answer of the driver is good for
PATIENCE = 10.0  # seconds until a driver that does not answer counts as none
BFLOAT16 = (8, 0)  # the least compute capability that computes in it: of the A100, and the RTX 30 series
CARDS = "DOPSD_CARDS"  # in the environment of who has settled on one: the UUIDs of all, with commas between
VISIBLE = "CUDA_VISIBLE_DEVICES"
MIG = "MIG-"  # how the UUID of a part of a card begins, that has memory of its own

NOT_FOUND = pynvml.nvmlExceptionClass(pynvml.NVML_ERROR_NOT_FOUND)
UNKNOWN = tuple(  # what a driver or a card says of a question that it cannot answer
    pynvml.nvmlExceptionClass(number)
    for number in (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
)

T = TypeVar("T")


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA card, or a part of one (MIG), as its driver describes it."""

    name: str
    memory: int  # bytes; 0 where it has none of its own
    free_memory: int
    uuid: str = ""  # of this very card, the same in every program; "" where it is not told
    busy: float = 0.0  # share of the last moment in which somebody computed on it; 0 where it is not told
    capability: tuple[int, int] | None = None  # compute capability, (8, 9); None where it is not told
    driver: int = 0  # its first number, which decides what it can do; 0 where it is not told
    shares_memory: bool = False  # whether it computes in the computer's own memory


def list_gpus() -> tuple[Gpu, ...]:
    """The cards that this process computes on, in CUDA's order: the first is the one that it takes.

    Where nobody has chosen, those that compute in bfloat16 come first, and of those the largest.
    """
    if os.environ.get("SPACES_ZERO_GPU", "").lower() == "true":  # lent for moments: nothing can train on it
        return ()
    cards = _cards(round(time.monotonic() / ANSWER_SECONDS))
    if VISIBLE in os.environ:
        return _visible(cards, os.environ[VISIBLE])
    found = [gpu for card in cards for gpu in card]
    return tuple(sorted(found, key=lambda gpu: (_computes(gpu), gpu.memory), reverse=True))


def all_gpus() -> tuple[Gpu, ...]:
    """The cards that jobs which are started from here may use: first this process's own."""
    own = list_gpus()
    allowed = os.environ.get(CARDS, "").split(",")
    found = [gpu for card in _cards(round(time.monotonic() / ANSWER_SECONDS)) for gpu in card]
    others = [gpu for gpu in found if gpu.uuid in allowed and gpu.uuid not in {each.uuid for each in own}]
    return (*own, *sorted(others, key=lambda gpu: allowed.index(gpu.uuid)))


def automatic_gpus() -> tuple[Gpu, ...]:
    """Those that a job may be given whose card nobody chose: the first of all, and those that can as much.

    What was planned for the first fits them too.
    """
    order = os.environ.get(CARDS, "").split(",")
    gpus = sorted(all_gpus(), key=lambda gpu: order.index(gpu.uuid) if gpu.uuid in order else 0)
    return tuple(gpu for gpu in gpus if _computes(gpu) >= _computes(gpus[0]) and gpu.memory >= gpus[0].memory)


def _computes(gpu: Gpu) -> bool:
    return (gpu.capability or (0, 0)) >= BFLOAT16


def on_card(uuid: str) -> dict[str, str]:
    """The environment of a process that is to compute on this card alone, and to know of the others."""
    known = os.environ.get(CARDS) or ",".join(gpu.uuid for gpu in all_gpus())
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", CARDS: known, VISIBLE: uuid}


def can_grow() -> bool:
    """Whether torch's segments of a card's memory can grow: not on Windows, nor in its Linux subsystem."""
    return sys.platform == "linux" and "microsoft" not in platform.release().lower()


def settle_on_a_card(chosen: str = "") -> None:
    """Leaves this process one card of several: plan and training mean the same. `chosen` is a UUID.

    CUDA would take the one that it holds for the fastest. Before torch is imported. What the person has
    chosen by CUDA_VISIBLE_DEVICES counts in the driver's order; of several, the first is taken.
    """
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    _let_memory_grow()
    gpus = list_gpus()
    if len(gpus) > 1 and all(gpu.uuid for gpu in gpus):
        there = [gpu.uuid for gpu in gpus]
        os.environ.update(on_card(chosen if chosen in there else there[0]))


def _let_memory_grow() -> None:
    """As plans are reckoned: without, what freed segments leave between them is lost. Before torch."""
    if can_grow():
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def settle_on_own_card() -> None:
    """The same for one of several processes that a launcher has started: the first has the first card."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        settle_on_a_card()
        return
    _let_memory_grow()
    if gpus := list_gpus():
        rank = int(os.environ.get("LOCAL_RANK", 0))
        # One without a card computes on the processor, which the first process refuses in words.
        os.environ.update(on_card(gpus[rank].uuid if rank < len(gpus) else ""))


# --- what the driver tells

# One that hangs would take whoever asks it along: it is asked in a thread, and nobody waits for that for
# ever. While it hangs, it is not asked again.
_asking = threading.Lock()
_silent = threading.Event()  # while one that was asked does not answer


@functools.lru_cache(maxsize=1)
def _cards(moment: int) -> tuple[tuple[Gpu, ...], ...]:
    """What computes on each card, in the driver's order: itself, or its parts. `moment` makes it short-lived.

    None where there is no driver, or it does not answer.
    """
    if not _asking.acquire(timeout=0 if _silent.is_set() else PATIENCE):
        return ()
    answer: list[tuple[Gpu, ...]] = []
    complete = threading.Event()

    def ask() -> None:
        try:
            answer.extend(_ask())
            complete.set()
        finally:
            _silent.clear()
            _asking.release()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if thread.is_alive():
        _silent.set()
    return tuple(answer) if complete.is_set() else ()


def _ask() -> list[tuple[Gpu, ...]]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver, or one that does not fit its card
        return []
    try:
        number = _told(pynvml.nvmlSystemGetDriverVersion, default="").partition(".")[0]
        driver = int(number) if number.isdecimal() else 0
        found = [_read_card(index, driver) for index in range(pynvml.nvmlDeviceGetCount())]
        return [card for card in found if card]
    except pynvml.NVMLError:
        return []
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _read_card(index: int, driver: int) -> tuple[Gpu, ...]:
    """A card, or its parts where it is divided; nothing of one that tells a failure."""
    try:
        card = pynvml.nvmlDeviceGetHandleByIndex(index)
        capability = _told(pynvml.nvmlDeviceGetCudaComputeCapability, card, default=None)
        if _told(pynvml.nvmlDeviceGetMigMode, card, default=(0, 0))[0]:
            return tuple(_read_gpu(part, capability, driver) for part in _parts(card))
        return (_read_gpu(card, capability, driver),)
    except pynvml.NVMLError:
        return ()


def _parts(card) -> list:
    found = []
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(card)):
        try:
            found.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(card, index))
        except NOT_FOUND:  # so many are possible
            continue
    return found


def _read_gpu(handle, capability: tuple[int, int] | None, driver: int) -> Gpu:
    memory = _told(pynvml.nvmlDeviceGetMemoryInfo, handle, default=None)
    used = _told(pynvml.nvmlDeviceGetUtilizationRates, handle, default=None)  # parts of cards do not tell it
    return Gpu(
        name=pynvml.nvmlDeviceGetName(handle),
        memory=memory.total if memory else 0,
        free_memory=memory.free if memory else 0,
        uuid=_told(pynvml.nvmlDeviceGetUUID, handle, default=""),
        busy=used.gpu / 100 if used else 0.0,
        capability=capability,
        driver=driver,
        shares_memory=memory is None,
    )


def _told(ask: Callable[..., T], *of, default: T) -> T:
    """An answer, or `default` where driver or card do not know this question."""
    try:
        return ask(*of)
    except UNKNOWN:
        return default


def _visible(cards: tuple[tuple[Gpu, ...], ...], chosen: str) -> tuple[Gpu, ...]:
    """What CUDA_VISIBLE_DEVICES leaves, in its order, as CUDA reads it.

    It stops at what it cannot read, takes nothing at all where something stands twice, and of parts of cards
    the first alone. The number of a card that is divided means its first part.
    """
    visible: list[Gpu] = []
    for text in map(str.strip, chosen.split(",")):
        if text.startswith(MIG):
            found = [gpu for card in cards for gpu in card if gpu.uuid == text]
        elif text.startswith("GPU-"):  # the beginning of a card's own number is enough
            found = [card[0] for card in cards if card[0].uuid.startswith(text)]
        else:
            found = [cards[int(text)][0]] if text.isdecimal() and int(text) < len(cards) else []
        if len(found) != 1:
            break
        visible += found
    if len(set(visible)) < len(visible):
        return ()
    return tuple([gpu for gpu in visible if gpu.uuid.startswith(MIG)][:1] or visible)
