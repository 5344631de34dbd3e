"""One card, one job: who computes on this machine, in whatever folder its runs are kept.

Functions are about the card of this process, unless another one is named.
"""

import hashlib
import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from dopsd_app.files import read_value, replace_file, retry
from dopsd_app.gpus import all_gpus, automatic_gpus, list_gpus
from dopsd_app.jobs.launcher import is_process, process_started


@dataclass(frozen=True)
class Holder:
    """The process that computes, as it says of itself."""

    pid: int
    pid_started: float | None
    runs_dir: str
    what: str  # for people: "The training of 20260101-..."
    warm: bool = False  # whether it only keeps a model loaded, and gives way


# A card stays what it is, but its driver may fail to answer.
_known_card = ""
_known_cards: tuple[str, ...] = ()


def card_name() -> str:
    """The card that jobs of this process use, by its own number, which is the same everywhere; or "cpu"."""
    global _known_card
    if not _known_card and (gpus := list_gpus()):
        _known_card = gpus[0].uuid
    return _known_card or "cpu"


def card_names() -> tuple[str, ...]:
    """All cards that jobs which are started from here may use, first that of this process."""
    global _known_cards
    if not _known_cards:
        _known_cards = tuple(gpu.uuid for gpu in all_gpus() if gpu.uuid)
    return tuple(dict.fromkeys((card_name(), *_known_cards)))


def automatic_cards() -> tuple[str, ...]:
    """Those that a job may be given whose card nobody chose, the best first."""
    return tuple(gpu.uuid for gpu in automatic_gpus() if gpu.uuid) or (card_name(),)


def _file(ending: str, card: str = "") -> Path:
    folder = user_cache_path("dopsd") / "cards"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{card or card_name()}.{ending}"


class CardLock:
    """Whoever computes holds it; the system frees it when its process ends."""

    def __init__(self):
        self._lock = FileLock(_file("lock"))

    def take(self, runs_dir: Path, what: str, *, warm: bool = False, timeout: float = 0) -> bool:
        """Takes the card, or returns False while another process has it."""
        try:
            self._lock.acquire(timeout=timeout)
        except Timeout:
            return False
        holder = Holder(os.getpid(), process_started(os.getpid()), str(runs_dir.absolute()), what, warm)
        replace_file(_file("json"), json.dumps(asdict(holder)))
        _file("wanted").unlink(missing_ok=True)
        return True

    def give_back(self) -> None:
        """Lets the next one have it; nothing where another process has it."""
        if self._lock.is_locked:
            _file("json").unlink(missing_ok=True)
            self._lock.release()


def is_card_free(card: str = "") -> bool:
    """Whether nobody computes at this moment."""
    try:
        with FileLock(_file("lock", card)).acquire(timeout=0):
            return True
    except Timeout:
        return False


def read_holder(card: str = "") -> Holder | None:
    """Who computes now; None where nobody does, or does not say so."""
    with suppress(OSError, ValueError):
        holder = read_value(Holder, retry(_file("json", card).read_bytes))
        if is_process(holder.pid, holder.pid_started):
            return holder
    return None


def what_computes(seconds: float = 1.0) -> str:
    """What computes and does not give way, for people; empty where nothing does.

    Waits for so many seconds: between a job's end and its card's being free, and between a card's being taken
    and its holder's saying so, there is a moment.
    """
    until = time.monotonic() + seconds
    while not (is_card_free() or ((holder := read_holder()) and holder.warm)):
        if time.monotonic() > until:
            return holder.what if holder else "Another job"
        time.sleep(0.05)
    return ""


def note_waiting(runs_dir: Path, card: str = "") -> None:
    """Tells whoever computes that something waits in this folder of runs too."""
    name = hashlib.sha256(str(runs_dir).encode()).hexdigest()[:16]
    file = _file("waiting", card) / name
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        replace_file(file, str(runs_dir))


def take_waiting() -> list[Path]:
    """The folders of runs in which something waited; from now on nothing is noted of them."""
    found = []
    for file in _file("waiting").glob("[!.]*"):
        with suppress(FileNotFoundError):  # another process looks at the same moment
            found.append(Path(file.read_text()))
            file.unlink()
    return found


def ask_for_card(card: str = "") -> None:
    """Asks a process that only keeps a model loaded to give way."""
    _file("wanted", card).touch()


def is_card_wanted() -> bool:
    """Whether somebody waits for the card that this process holds."""
    return _file("wanted").exists()


def wait_for_card(lock: CardLock, runs_dir: Path, what: str, seconds: float) -> bool:
    """Takes the card, for so long asking a process that keeps it warm to give way; False where in vain."""
    until = time.monotonic() + seconds
    while not lock.take(runs_dir, what, timeout=0.1):
        holder = read_holder()
        if holder and holder.warm:
            ask_for_card()
        elif time.monotonic() > until:
            return False
    return True
