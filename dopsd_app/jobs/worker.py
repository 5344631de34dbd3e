"""The worker's side of a job: one process that computes, tells, obeys and leaves a reason.

`python -m dopsd_app.jobs.worker FOLDER` does the job in this folder. What its kind needs is imported only
then, when signals are heard already.
"""

import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from dopsd_app import __version__
from dopsd_app.config import memory_levers
from dopsd_app.errors import KnownFailure, is_out_of_memory, unexpected
from dopsd_app.files import is_disk_full, replace_file
from dopsd_app.gpus import settle_on_a_card
from dopsd_app.hub_errors import keep_token
from dopsd_app.jobs.awake import awake
from dopsd_app.jobs.card import CardLock, card_name
from dopsd_app.jobs.events import (
    Event,
    Failed,
    Finished,
    Resumed,
    StepDone,
    Stopped,
    append_event,
)
from dopsd_app.jobs.job import (
    Job,
    drop_commands,
    is_asked,
    place_command,
    read_status,
    reserve_space,
    start_lock,
    write_status,
)
from dopsd_app.jobs.kinds import TRAIN
from dopsd_app.jobs.launcher import STOP_SIGNALS, process_started, unblock_signals
from dopsd_app.jobs.queue import chosen_card, describe, leave, reason_to_leave, start_what_waits, take_next
from dopsd_app.jobs.runs import Run, latest_checkpoint
from dopsd_app.progress import DownloadProgress, PhaseProgress

FAILED, BUSY = 1, 75  # exit codes; 75 is sysexits' "try again later"
STATUS_SECONDS = 0.2  # the step in status.json is written at most this often: events.jsonl has every step
IDLE_SECONDS = 300.0  # that a warm worker keeps what it has loaded, while nobody asks for anything
POLL_SECONDS = 0.2  # between its looks for work, or for a reason to leave

Function = Callable[[Job], Generator[Event, None, dict | None]]


def work(job: Job, function: Function | None = None, idle_seconds: float = IDLE_SECONDS) -> int:
    """Does a job in this process and records what it yields; returns the exit code.

    `function` is that of the job's kind, unless it is given. When another process computes, the job stays in
    the queue. SIGINT and SIGTERM become the stop command. Then the next starts.
    """
    if not job.kind.computes:
        # A signal ends it at once: it may wait for the network, and has nothing to save.
        unblock_signals()
        return _exit_code(_record_all(job, function)) if _claim(job, None) else BUSY
    lock = CardLock()
    try:
        with _stop_on_signals(job) as received_signals:
            if not _claim(job, lock):
                return BUSY
            ending = _record_all(job, function)
        if job.kind.warm and not received_signals:
            _stay_warm(job.runs_dir, lock, idle_seconds)
    finally:
        lock.give_back()
    start_what_waits(job.runs_dir)
    return _exit_code(ending)


def _exit_code(ending: Event | None) -> int:
    return FAILED if isinstance(ending, Failed) else 0


def _claim(job: Job, lock: CardLock | None) -> bool:
    """Takes the card for this job, or says on stderr why that cannot be."""
    with start_lock(job.runs_dir):
        status = read_status(job)
        # In a virtual environment of Windows the process that was started is a launcher, our parent.
        ours = status.pid in (os.getpid(), os.getppid())
        if status.state == "finished" or (status.live and not ours):
            print(f"{job.id} is {status.state} already.", file=sys.stderr)
            return False
        if lock and not lock.take(job.runs_dir, describe(job), warm=job.kind.warm, timeout=1):
            waits = "this one waits in the queue" if status.busy else "wait for its end, or stop it"
            print(f"Another job uses the GPU; {waits}.", file=sys.stderr)
            if status.live:
                state = "stopped" if is_asked(job, "stop") else "queued"
                write_status(job, state=state, pid=None, pid_started=None)
            return False
        if not status.live:  # started by hand, without the queue
            drop_commands(job)
        write_status(job, state="loading", reason="", **_this_process())
    return True


def _this_process() -> dict:
    return {"pid": os.getpid(), "pid_started": process_started(os.getpid()), "card": card_name()}


@contextmanager
def _stop_on_signals(job: Job) -> Generator[list[int]]:
    """Makes signals the stop command meanwhile; the value holds those that came."""
    heard = []

    def stop(number, frame):
        heard.append(number)
        place_command(job, "stop")
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait

    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    unblock_signals()
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stay_warm(runs_dir: Path, lock: CardLock, idle_seconds: float) -> None:
    """Does what else is asked for, oldest first, until somebody else wants the card or nobody asks."""
    active = time.monotonic()
    while True:
        reason = reason_to_leave(runs_dir)
        idle = time.monotonic() - active > idle_seconds
        if (reason or idle) and leave(runs_dir, lock, reason):
            return
        job = take_next(runs_dir, _this_process())
        if job is None:
            time.sleep(POLL_SECONDS)
            continue
        with _stop_on_signals(job) as received_signals:
            _record_all(job, None)
        if received_signals:
            return
        active = time.monotonic()


def do_beside(host: Job, function: Function, takes: Callable[[Job], bool]) -> bool:
    """Does the drawing that has waited longest, between two steps of a job here; False where none waits.

    Only of those that `takes` does not leave to others. When the host is asked to stop, none is begun, and
    the one at hand goes back into the queue.
    """
    if is_asked(host, "stop") or (job := take_next(host.runs_dir, _this_process(), takes)) is None:
        return False
    write_status(host, state="beside")
    try:
        _record_all(job, function, host)
    finally:
        write_status(host, state="training")
    return True


# --- one job


def _record_all(job: Job, function: Function | None, host: Job | None = None) -> Event | None:
    """Does the job to its end; returns the event that ended it.

    One that is done between two steps of a host may be put back into the queue instead: None.
    """
    step = read_status(job).step
    event = None
    try:
        reserve_space(job)
        _log(job, f"version {__version__}, process {os.getpid()} begins")
        if job.kind == TRAIN:
            write_status(job, steps=Run(job.path).config.steps)
        function = function or find_function(job)
        with awake() as kept, closing(_events_of(job, function)) as events:
            _log(job, kept)
            for event in events:
                step = getattr(event, "step", step)
                _record(job, event)
                if not isinstance(event, PhaseProgress):
                    continue
                if host and is_asked(host, "stop") and _put_back(job):
                    return None
                if ending := _cut_off(job, step, host):
                    return ending
        if not isinstance(event, Finished | Stopped | Failed):
            raise RuntimeError(f"The job ended without saying how; its last event was {event}.")
    except Exception as error:
        # The border: whatever went wrong, the person is told, and the job is not left "live".
        event = Failed(step, explain(error, job))
        _record_failure(job, event, error)
    return event


def find_function(job: Job) -> Function:
    """The function that does jobs of this kind."""
    module, _, name = job.kind.function.partition(":")
    return getattr(importlib.import_module(module), name)


def _events_of(job: Job, function: Function) -> Generator[Event]:
    """The function's events; what it returns becomes the job's result, and its end."""
    result = yield from function(job)
    if result is not None:
        replace_file(job.result_file, json.dumps(result))
        yield Finished(read_status(job).step, job.result_file.name)


def _put_back(job: Job) -> bool:
    """Leaves a job to the next worker, in its place in the queue; False where it is asked to stop."""
    with start_lock(job.runs_dir):
        if is_asked(job, "stop"):
            return False
        write_status(job, state="queued", done=0, total=0, pid=None, pid_started=None)
    return True


def _cut_off(job: Job, step: int, host: Job | None) -> Event | None:
    """Ends a job that is asked to stop before it computes, or whose warm worker must give way."""
    if is_asked(job, "stop"):  # nobody waits for a model to load only to stop
        ending = Stopped(step)
    elif job.kind.warm and not host and (reason := reason_to_leave(job.runs_dir)):
        ending = Failed(step, reason)
    else:
        return None
    _record(job, ending)
    return ending


def _record(job: Job, event: Event) -> None:
    append_event(job.events_file, event)
    changes: dict[str, Any] = {}
    match event:
        case PhaseProgress(phase=phase, done=done, total=total):
            speed = event.speed if isinstance(event, DownloadProgress) else 0.0
            changes = {"state": phase, "done": done, "total": total, "speed": speed}
        case StepDone(step=step):
            changes = {"state": "training", "step": step}
        case Resumed(step=step):
            changes = {"step": step}
        case Stopped(step=step):
            changes = {"state": "stopped", "step": step}
        case Failed(step=step, reason=reason):
            changes = {"state": "failed", "step": step, "reason": reason}
        case Finished(step=step):
            changes = {"state": "finished", "step": step}
    if not isinstance(event, PhaseProgress | StepDone):
        _log(job, str(event))
    if isinstance(event, Finished):
        job.reserve_file.unlink(missing_ok=True)
    status = read_status(job)
    if status.state == "stopping" and isinstance(event, PhaseProgress | StepDone):
        changes["state"] = "stopping"
    state_changes = changes.get("state", status.state) != status.state
    if changes and (state_changes or abs(time.time() - status.updated) > STATUS_SECONDS):
        write_status(job, **changes)


def _record_failure(job: Job, event: Failed, error: Exception) -> None:
    if is_disk_full(error):
        job.reserve_file.unlink(missing_ok=True)
    # The status comes last, so that who reads "failed" finds the rest; it alone must get through.
    with suppress(OSError):
        detail = getattr(error, "detail", "")  # the Hub's client's own words
        _log(job, "".join(traceback.format_exception(error)) + f"{event.reason} {detail}".rstrip())
    with suppress(OSError):
        append_event(job.events_file, event)
    write_status(job, state="failed", step=event.step, reason=event.reason)


def _log(job: Job, text: str) -> None:
    with job.log_file.open("a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def explain(error: Exception, job: Job) -> str:
    """One sentence or two for the person: what happened and what to do."""
    again = job.kind.again
    if is_disk_full(error):
        return f"The disk is full. Free some space, then {again}{_kept(job, ': ')}."
    if isinstance(error, KnownFailure):
        return str(error)
    if is_out_of_memory(error):
        return f"Out of memory. {_smaller(job)}"
    return f"{unexpected(error)} The whole trace is in log.txt{_kept(job, '; ')}."


def _kept(job: Job, before: str) -> str:
    """What a training has kept of its work."""
    if job.kind != TRAIN:
        return ""
    checkpoint = latest_checkpoint(Run(job.path))
    return before + (
        f"the checkpoint of step {int(checkpoint.name)} is kept"
        if checkpoint
        else "no checkpoint was made yet"
    )


def _smaller(job: Job) -> str:
    """What would need less memory."""
    others = "Close other programs that use memory"
    levers = memory_levers(Run(job.path).config) if job.kind == TRAIN else []
    for name, value in levers:
        return f"{others}, or start a run with `{name}` {str(value).lower()}."
    return f"{others}, then {job.kind.again}."


def main(arguments: list[str]) -> int:
    """Does the job in this folder; a "-" after it says that a token for the Hub comes on standard input."""
    folder, *more = arguments
    job = Job(Path(folder).absolute())
    settle_on_a_card(chosen_card(job))
    if more == ["-"]:
        keep_token(sys.stdin.read())
    return work(job)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
