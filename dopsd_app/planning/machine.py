"""Facts about this computer: graphics cards, memory, disk."""

from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from dopsd_app.gpus import Gpu, all_gpus
from dopsd_app.processor import count_cores, read_load
from dopsd_app.torch_build import TorchBuild, installed_torch, why_unusable

CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Machine:
    """What there is to train on."""

    gpus: tuple[Gpu, ...]  # those that jobs of this process may use; it computes on the first
    torch: TorchBuild  # the installed one
    memory: int  # bytes that this process and its like may use in all
    free_memory: int
    cores: int
    load: float = 0.0  # threads that want these cores, those of our own jobs included

    def only(self, card: str) -> "Machine":
        """The same with this card alone, by its UUID; as it is where none is named."""
        return replace(self, gpus=tuple(gpu for gpu in self.gpus if gpu.uuid == card)) if card else self

    def card(self, precision: str = "auto") -> Gpu | None:
        """The card that computes in this precision of `TrainConfig`; None where the processor has to."""
        return self.gpus[0] if self.gpus and not self.why_no_card(precision) else None

    def why_no_card(self, precision: str = "auto") -> str:
        """Why no card can compute in this precision, and what would help; "" where one can."""
        if not self.gpus:
            return "No NVIDIA card was found here."
        return why_unusable(self.gpus[0], self.torch, precision)


def read_machine() -> Machine:
    """This computer as it stands now."""
    total, free = _memory()
    gpus = tuple(
        replace(gpu, memory=total, free_memory=free) if gpu.shares_memory else gpu for gpu in all_gpus()
    )
    return Machine(gpus, installed_torch(), total, free, count_cores(), read_load())


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
