"""Which captioner fits here, in which precision, and how long it takes for a picture; all of it reckoned."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

from dopsd_app.config import TrainConfig
from dopsd_app.models.captioner_facts import (
    AREAS,
    ASKED_TOKENS,
    LARGE,
    LENGTHS,
    MOST_TOKENS,
    SMALL,
    Captioner,
)
from dopsd_app.planning.cards import USEFUL_CORES
from dopsd_app.planning.machine import Machine
from dopsd_app.planning.memory import BYTES, COMPUTER, WORKSPACE, Budget, budget_of, program_bytes

ERROR = 0.15  # of what is reckoned besides the program
# Numbers for each token, times its width and the widest inside a layer; for each of the four parts of a
# picture's token that the eyes see, of 1,024 and 4,096 numbers.
OF_WIDTH, OF_WIDEST = 8, 3
OF_PART = 8 * 1024 + 2 * 4096
ANSWERED = 0.6  # of the tokens that an answer may have, it takes so many
TOKEN_ON_CARD = 0.04  # seconds, whatever the card: most of it is the program's
READ_BY_CORE = 7.5e8  # weights per second, in whatever precision: a processor reads all for each token
SLOWER = {"float32": 1, "bfloat16": 3}  # times the time of what is looked at together, on a processor


@dataclass(frozen=True)
class Choice:
    """A captioner, and how it is loaded."""

    captioner: Captioner
    on_gpu: bool
    precision: str  # of what is not rounded, as torch calls it
    quantization: str  # of the language model's layers: "none" or "nf4"
    memory: int  # bytes at the most on the device, the program included
    seconds: float  # for a picture

    @property
    def area(self) -> tuple[int, int]:
        """Pixels between which a picture is scaled."""
        return AREAS[self.on_gpu]

    @property
    def in_words(self) -> str:
        """What it is, for the person."""
        bits = 4 if self.quantization == "nf4" else 16 if self.precision == "bfloat16" else 32
        usual = 16 if self.on_gpu else 32
        return self.captioner.label + (f" in {bits} bits" if bits != usual else "")


def captioners_that_fit(machine: Machine, *, pictures: int = 1, own: bool = True) -> list[Choice]:
    """Those that fit into what is free, or with `own` False into all that there is; the best first.

    `pictures` are looked at together: one, and what it is made from. On a processor it is the smaller one,
    for the larger takes twice the time.
    """
    budget = budget_of(TrainConfig(), machine, own=own)
    return [
        choice
        for choice in _candidates(machine, budget, pictures)
        if choice.memory <= budget.device and (not budget.on_gpu or budget.computer >= COMPUTER)
    ]


def why_none(machine: Machine) -> str:
    """What the smallest lacks of all that the computer has, as a sentence; "" where one fits."""
    if captioners_that_fit(machine, own=False):
        return ""
    budget = budget_of(TrainConfig(), machine, own=False)
    least = min(choice.memory for choice in _candidates(machine, budget, 1))
    holder = "the card" if budget.on_gpu else "this computer"
    return (
        f"Writing captions needs {least / 2**30:.1f} GB of memory, and {holder} has"
        f" {budget.device / 2**30:.1f} GB."
    )


def lengths_written(choice: Choice, length: str) -> tuple[str, ...]:
    """The lengths that are written in one look at a picture: all, or where each takes a minute this one."""
    return LENGTHS if choice.on_gpu else (length,)


def _candidates(machine: Machine, budget: Budget, pictures: int) -> Iterator[Choice]:
    if not budget.on_gpu:
        # Many processors compute more slowly in bfloat16, which takes half the room.
        for precision in ("float32", "bfloat16"):
            yield _choice(SMALL, precision, "none", machine, budget, pictures)
        return
    rounded = ["none"] + ["nf4"] * (importlib.util.find_spec("bitsandbytes") is not None)
    for captioner in (LARGE, SMALL):
        for quantization in rounded:
            yield _choice(captioner, "bfloat16", quantization, machine, budget, pictures)


def _choice(
    captioner: Captioner, precision: str, quantization: str, machine: Machine, budget: Budget, pictures: int
) -> Choice:
    number = 4 if precision == "float32" else 2
    rounded = captioner.layers * captioner.layer
    weights = rounded * (BYTES[quantization] or number) + (captioner.parameters - rounded) * number
    seen = pictures * AREAS[budget.on_gpu][1] // captioner.side**2
    tokens = seen + ASKED_TOKENS + max(MOST_TOKENS.values())
    remembered = captioner.layers * captioner.remembered * tokens * number
    thinking = tokens * (OF_WIDTH * captioner.width + OF_WIDEST * captioner.widest) * number
    unpacked = captioner.widest * captioner.width * number if quantization != "none" else 0
    working = max(4 * seen * OF_PART * number, thinking + unpacked) + (WORKSPACE if budget.on_gpu else 0)
    memory = program_bytes(budget.on_gpu) + round((weights + remembered + working) * (1 + ERROR))
    work = 2 * (rounded * (seen + ASKED_TOKENS) + captioner.eyes * 4 * seen)
    if budget.on_gpu:
        seconds = work / budget.rate + ANSWERED * sum(MOST_TOKENS.values()) * TOKEN_ON_CARD
    else:
        read = captioner.parameters / (READ_BY_CORE * min(machine.cores, USEFUL_CORES))
        seconds = SLOWER[precision] * work / budget.rate + ANSWERED * MOST_TOKENS["medium"] * read
    return Choice(captioner, budget.on_gpu, precision, quantization, memory, seconds)
