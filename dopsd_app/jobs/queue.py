"""What starts when: jobs that compute wait for a card, and trainings go first."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dopsd_app.config import load_config
from dopsd_app.jobs.card import (
    CardLock,
    ask_for_card,
    automatic_cards,
    card_names,
    is_card_free,
    is_card_wanted,
    note_waiting,
    read_holder,
    take_waiting,
)
from dopsd_app.jobs.job import (
    COMMANDS,
    Job,
    RunError,
    drop_commands,
    kind_or_none,
    list_jobs,
    place_command,
    start_lock,
    write_status,
)
from dopsd_app.jobs.kinds import CAPTION, CHECK_BASE, TRAIN
from dopsd_app.jobs.launcher import launcher
from dopsd_app.jobs.status import Status

CUT_OFF = "A training began; draw again when it has done its first step."
ASKED_TO_LEAVE = "Another job needed the computer; draw again when it has ended."


def enqueue(job: Job) -> None:
    """Puts a job at the end of the queue; refused while it waits or works, and when it is finished."""
    with start_lock(job.runs_dir):
        status = job.status
        if status.busy or status.state == "finished":
            ended = status.state == "finished"
            hint = "Say how many more steps it is to make." if ended else "There is nothing to do."
            raise RunError(f"{job.id} is {status.state} already. {hint}")
        put_in_queue(job)


def put_in_queue(job: Job) -> None:
    """The same without a look at how it stands; under `start_lock`."""
    drop_commands(job)
    numbers = [status.queue_number or 0 for _, status in statuses(job.runs_dir)]
    number = max(numbers, default=0) + 1
    write_status(job, state="queued", queue_number=number, pid=None, pid_started=None, reason="")


def statuses(runs_dir: Path) -> list[tuple[Job, Status]]:
    """All jobs with how they stand, the oldest first."""
    found = []
    for job in list_jobs(runs_dir):
        try:
            found.append((job, job.status))
        except FileNotFoundError:  # just being deleted
            continue
    return found


def waiting_jobs(runs_dir: Path) -> list[Job]:
    """The jobs that wait, in the order in which they will be done."""
    queued = [
        (job, status) for job, status in statuses(runs_dir) if status.state == "queued" and kind_or_none(job)
    ]
    return [job for job, status in sorted(queued, key=_place)]


def _place(waiting: tuple[Job, Status]) -> tuple:
    job, status = waiting
    return job.kind.warm, status.queue_number or 0


def computing(runs_dir: Path) -> list[Job]:
    """The jobs of this folder that compute now, those included whose worker is just starting."""
    live = [job for job, status in statuses(runs_dir) if status.live]
    return [job for job in live if (kind := kind_or_none(job)) and kind.computes]


def describe(job: Job) -> str:
    """What others read of the job that computes."""
    if job.kind == CHECK_BASE:
        return "The check of a base model"
    if job.kind == CAPTION:
        return "The writing of captions"
    return f"The training of {job.id}" if job.kind == TRAIN else "A drawing"


def start_next(runs_dir: Path) -> Job | None:
    """Starts the workers of waiting jobs that find a card free; returns the first job that it started."""
    if not runs_dir.is_dir():
        return None
    with start_lock(runs_dir):
        waiting = waiting_jobs(runs_dir)
        taken = _taken_cards(runs_dir) if waiting else set()
        started = []
        for job in waiting:
            if (card := _find_card(job, taken)) and start(job, card=card):
                taken.add(card)
                started.append(job)
        return started[0] if started else None


def start_what_waits(runs_dir: Path) -> None:
    """For whoever gives the card back: starts the next job of its folder of runs, or else of another one."""
    others = [folder for folder in take_waiting() if folder != runs_dir.absolute()]
    for folder in (runs_dir, *others):
        start_next(folder)  # which notes again that something waits, where it does


def chosen_card(job: Job) -> str:
    """The card that a training's settings ask for, by its UUID; "" where any will do."""
    if kind_or_none(job) != TRAIN:
        return ""
    with suppress(OSError, ValueError):
        return load_config(job.path / "config.json").card
    return ""  # what cannot be read, its worker tells


def _cards_for(job: Job) -> tuple[str, ...]:
    chosen = chosen_card(job)
    # One that is not there any more: its worker tells that on any card.
    return (chosen,) if chosen in card_names() else automatic_cards()


def _taken_cards(runs_dir: Path) -> set[str]:
    """The cards of this folder's jobs; a worker takes its own when it is up, its status tells it before."""
    taken: set[str] = set()
    for job, status in statuses(runs_dir):
        if status.live and (kind := kind_or_none(job)) and kind.computes:
            taken |= {status.card} if status.card else set(card_names())
    return taken


def _find_card(job: Job, taken: set[str]) -> str:
    """A card that the job can have now; "" where there is none, and then who holds them knows of it."""
    runs_dir, cards = job.runs_dir.absolute(), _cards_for(job)
    held = [(card, holder) for card in cards if (holder := read_holder(card)) and holder.warm]
    # A warm worker of this folder takes the next drawing by itself.
    if not (job.kind.warm and any(holder.runs_dir == str(runs_dir) for _, holder in held)):
        for card in cards:
            if card not in taken and is_card_free(card):
                return card
        for card, _ in held[:1]:
            ask_for_card(card)
    for card in cards:
        note_waiting(runs_dir, card)
    return ""


def start(job: Job, secret: str = "", card: str = "") -> bool:
    """Starts a job's worker at once, under `start_lock`; False where the system does not allow it.

    `card` is the one that it gets, by its name among locks.
    """
    try:
        process = launcher.start(job.path, secret, card if len(card_names()) > 1 else "")
    except OSError as error:  # it must not be tried again and again
        write_status(job, state="failed", reason=f"The worker could not be started: {error}.")
        return False
    # The worker waits for the start lock before it writes, so this cannot overwrite its word. If it dies
    # before that, a live state without a process is left: that reads as interrupted and stays so.
    write_status(job, state="loading", card=card, **process)
    return True


def is_card_to_spare(runs_dir: Path) -> bool:
    """Whether, of several cards, one is free that no training waits for, or has a warm worker from here."""
    cards, taken = automatic_cards(), _taken_cards(runs_dir)
    if len(cards) == 1 or any(job.kind == TRAIN for job in waiting_jobs(runs_dir)):
        return False
    if any(card not in taken and is_card_free(card) for card in cards):
        return True
    holders = [holder for card in cards if (holder := read_holder(card))]
    return any(holder.warm and holder.runs_dir == str(runs_dir.absolute()) for holder in holders)


def send_command(job: Job, command: str) -> None:
    """Asks a job's worker for a command of COMMANDS; stop also takes a job out of the queue.

    A job that does not compute has nothing to save before it stops: its process is ended.
    """
    if command not in COMMANDS:
        raise ValueError(f"`command` must be one of {', '.join(COMMANDS)}, got {command!r}.")
    with start_lock(job.runs_dir):
        status, kind = job.status, kind_or_none(job)
        if status.state == "queued" and command == "stop":
            write_status(job, state="stopped")
        elif not status.live:
            raise RunError(f"{job.id} is not at work: it is {status.state}.")
        elif kind and not kind.computes:
            launcher.stop(status)
            if job.status.state == "interrupted":  # else it has had its last word
                write_status(job, state="stopped", pid=None, pid_started=None)
        else:
            place_command(job, command)


def take_next(runs_dir: Path, process: dict, takes: Callable[[Job], bool] = lambda job: True) -> Job | None:
    """The next waiting job for a warm worker, now its own; None where there is none. It holds the card.

    Also for a training that draws between its steps: it leaves to others what it does not take.
    """
    # Looked at five times a second: without the lock.
    taken = [job for job in _waiting_warm(runs_dir) if takes(job)]
    if not taken:
        return None
    with start_lock(runs_dir):
        for job in _waiting_warm(runs_dir):
            if job in taken:
                write_status(job, state="loading", **process)
                return job
    return None


def _waiting_warm(runs_dir: Path) -> list[Job]:
    return [job for job in waiting_jobs(runs_dir) if job.kind.warm]


def reason_to_leave(runs_dir: Path) -> str:
    """Why a warm worker must give its card back, as the sentence for drawings that this cuts off; or ""."""
    # Read first: a training is in the queue before it asks for the card, and is not to be taken for another.
    wanted = is_card_wanted()
    if not wanted and len(card_names()) > 1:  # another card may be free: whoever needs this one asks for it
        return ""
    waiting = [job.kind for job in waiting_jobs(runs_dir) if not job.kind.warm]
    if TRAIN in waiting:
        return CUT_OFF
    return ASKED_TO_LEAVE if wanted or waiting else ""


def leave(runs_dir: Path, lock: CardLock, reason: str) -> bool:
    """Gives a warm worker's card back, and ends the drawings that wait with this sentence.

    Without one, for want of work, it is refused where some has come.
    """
    with start_lock(runs_dir):
        waiting = _waiting_warm(runs_dir)
        if waiting and not reason:
            return False
        for job in waiting:  # nobody waits an hour for a picture
            write_status(job, state="failed", reason=reason)
        lock.give_back()
    return True
