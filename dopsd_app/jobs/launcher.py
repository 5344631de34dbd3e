"""Where jobs run: in processes of this machine, known by their number and by when they started."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import psutil

from dopsd_app.gpus import on_card
from dopsd_app.hub_errors import ambient_token
from dopsd_app.jobs.status import Status

# What a worker needs of these comes on its own way (`secret`): others may read a process's environment.
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "PAUSE_TOKEN", "OAUTH_CLIENT_SECRET")
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
LOG = "log.txt"  # in a job's folder: what its worker prints
# For OpenMP's threads, on which torch computes. By default one that waits for the others keeps a core busy
# for long: beside other programs, it takes that core from the very thread that it waits for. One that sleeps
# at once (OMP_WAIT_POLICY=PASSIVE) halves the pace on a computer that does nothing else. This costs neither.
PATIENT = {"GOMP_SPINCOUNT": "3000"}
GRACE_SECONDS = 5.0  # that a process has to end by itself when it is asked to


class Launcher(Protocol):
    """Starts workers, knows whether they live, and ends them."""

    def start(self, folder: Path, secret: str = "", card: str = "") -> dict:
        """Starts the worker of the job in this folder; returns the fields of `Status` that tell it again.

        `card` is the UUID of the one that it is to compute on; without one, this process's own.
        `secret` is a token that the worker gets and nobody else can read; without one, this process's own.
        Raises `OSError`.
        """

    def alive(self, status: Status) -> bool:
        """Whether the worker that wrote this status is still at work."""

    def stop(self, status: Status) -> None:
        """Ends the worker that wrote this status, and comes back when it is gone."""


class LocalProcess:
    """A process in a session of its own, which outlives the terminal, the page and its server."""

    def __init__(self):
        self.command = (sys.executable, "-m", "dopsd_app.jobs.worker")  # gets the job's folder, and "-"

    def start(self, folder: Path, secret: str = "", card: str = "") -> dict:
        """Starts the worker of the job in this folder; see `Launcher`."""
        apart = 0
        if os.name == "nt":
            apart = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.DETACHED_PROCESS
        ours = {name: value for name, value in os.environ.items() if name not in SECRETS}
        with (folder / LOG).open("ab") as log, signals_blocked():
            process = subprocess.Popen(
                [*self.command, str(folder), "-"],
                cwd=Path(__file__).parents[2],  # from here, `-m dopsd_app.jobs.worker` is found
                # A log to follow, in one encoding.
                env=({} if "OMP_WAIT_POLICY" in ours else PATIENT)
                | ours
                | (on_card(card) if card else {})
                | {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                creationflags=apart,
                start_new_session=os.name != "nt",
            )
        assert process.stdin is not None  # a pipe, as was asked for
        with suppress(BrokenPipeError), process.stdin as pipe:  # it may have died at once
            pipe.write((secret or ambient_token()).encode())
        threading.Thread(target=process.wait, daemon=True).start()  # or it stays a zombie as long as we live
        return {"pid": process.pid, "pid_started": process_started(process.pid)}

    def alive(self, status: Status) -> bool:
        """Whether the process that wrote this status, not a later one of the same number, is at work."""
        return is_process(status.pid, status.pid_started)

    def stop(self, status: Status) -> None:
        """Ends the process; see `Launcher`."""
        if not self.alive(status):
            return
        with suppress(psutil.NoSuchProcess):  # it ends by itself in this moment
            process = psutil.Process(status.pid)
            process.terminate()
            try:
                process.wait(GRACE_SECONDS)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait(GRACE_SECONDS)


@contextmanager
def signals_blocked() -> Generator[None]:
    """A process that is started meanwhile is asked to stop only once it listens (`unblock_signals`)."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows, whose detached processes get no signals
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock_signals() -> None:
    """For a worker that knows what to do when it is asked to stop: what came before reaches it now."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def process_started(pid: int) -> float | None:
    """When a process started, in seconds on a clock that nobody sets; None when it is gone."""
    try:
        process = psutil.Process(pid)
        # A dead process stays in the table as a zombie while its parent does not ask, in containers for ever.
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        started = process.create_time()
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # gone; or another user's, so not the one we mean
        return None
    # Linux counts from boot, and psutil adds the time of boot, which moves whenever the clock is set.
    return started - psutil.boot_time() if psutil.LINUX else started


def is_process(pid: int | None, started: float | None) -> bool:
    """Whether the process of this number that started then is there, not a later one of the same number."""
    now = process_started(pid) if pid and pid > 0 else None
    return now is not None and started is not None and abs(now - started) < 2


launcher: Launcher = LocalProcess()
