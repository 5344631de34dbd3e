"""The worker's side of a run: one process that computes, tells, obeys and leaves a reason."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

from filelock import FileLock, Timeout

from dopsd_app.config import TrainConfig, memory_levers
from dopsd_app.errors import KnownFailure, is_out_of_memory, unexpected
from dopsd_app.files import is_disk_full
from dopsd_app.jobs.events import Event, Failed, Finished, Resumed, StepDone, Stopped, append_event
from dopsd_app.jobs.runs import (
    Run,
    drop_commands,
    latest_checkpoint,
    place_command,
    process_started,
    read_status,
    reserve_space,
    run_lock,
    start_lock,
    start_next,
    write_status,
)
from dopsd_app.progress import PhaseProgress

FAILED, BUSY = 1, 75  # exit codes; 75 is sysexits' "try again later"
STATUS_SECONDS = 0.2  # the step in status.json is written at most this often: events.jsonl has every step


def work(run: Run, job: Callable[[Run], Iterator[Event]]) -> int:
    """Does a run's job in this process and records what it yields; returns the exit code.

    `job` ends with `Finished`, `Stopped` or `Failed`; an exception becomes `Failed`. Then the next starts.
    When another process computes, the run stays in the queue. SIGINT and SIGTERM become the stop command.
    """
    lock = run_lock(run.runs_dir)
    with _stop_on_signals(run):
        if not _claim(run, lock):
            return BUSY
        try:
            ending = _record_all(run, job)
        finally:
            lock.release()
    start_next(run.runs_dir)
    return FAILED if isinstance(ending, Failed) else 0


def _claim(run: Run, lock: FileLock) -> bool:
    """Takes the lock for this run, or says on stderr why that cannot be."""
    with start_lock(run.runs_dir):
        status = read_status(run)
        # In a virtual environment of Windows the process that was started is a launcher, our parent.
        ours = status.pid in (os.getpid(), os.getppid())
        if status.state == "finished" or (status.live and not ours):
            print(f"{run.id} is {status.state} already.", file=sys.stderr)
            return False
        try:
            lock.acquire(timeout=1)
        except Timeout:
            print("Another job uses the GPU; this run waits in the queue.", file=sys.stderr)
            if status.live:
                write_status(run, state="queued", pid=None, pid_started=None)
            return False
        if not status.live:  # started by hand, without the queue
            drop_commands(run)
    return True


@contextmanager
def _stop_on_signals(run: Run):
    def stop(number, frame):
        place_command(run, "stop")
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _record_all(run: Run, job: Callable[[Run], Iterator[Event]]) -> Event:
    """Runs the job to its end; returns the event that ended it."""
    step = read_status(run).step
    event = None
    try:
        started = process_started(os.getpid())
        write_status(run, state="loading", pid=os.getpid(), pid_started=started, reason="")
        write_status(run, steps=run.config.steps)  # apart: settings that cannot be read are told as a failure
        reserve_space(run)
        _log(run, f"process {os.getpid()} begins")
        with closing(job(run)) as events:
            for event in events:
                step = getattr(event, "step", step)
                _record(run, event)
                if isinstance(event, PhaseProgress) and (run.commands / "stop").exists():
                    event = Stopped(step)  # nobody waits for a model to load only to stop
                    _record(run, event)
                    break
        if not isinstance(event, Finished | Stopped | Failed):
            raise RuntimeError(f"The job ended without saying how; its last event was {event}.")
    except (
        Exception
    ) as error:  # the border: whatever went wrong, the person is told, and the run is not left "live"
        event = Failed(step, explain(error, run))
        if is_disk_full(error):
            run.reserve_file.unlink(missing_ok=True)
        # The status comes last, so that who reads "failed" finds the rest; it alone must get through.
        with suppress(OSError):
            detail = getattr(error, "detail", "")  # the Hub's client's own words
            _log(run, "".join(traceback.format_exception(error)) + f"{event.reason} {detail}".rstrip())
        with suppress(OSError):
            append_event(run.events_file, event)
        write_status(run, state="failed", step=step, reason=event.reason)
    return event


def _record(run: Run, event: Event) -> None:
    append_event(run.events_file, event)
    match event:
        case PhaseProgress(phase=phase):
            changes = {"state": phase}
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
        case _:
            changes = {}
    if not isinstance(event, PhaseProgress | StepDone):
        _log(run, str(event))
    if isinstance(event, Finished):
        run.reserve_file.unlink(missing_ok=True)
    status = read_status(run)
    if status.state == "stopping" and isinstance(event, PhaseProgress | StepDone):
        changes["state"] = "stopping"
    state_changes = changes.get("state", status.state) != status.state
    if changes and (state_changes or abs(time.time() - status.updated) > STATUS_SECONDS):
        write_status(run, **changes)


def _log(run: Run, text: str) -> None:
    with run.log_file.open("a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def explain(error: Exception, run: Run) -> str:
    """One sentence or two for the person: what happened and what to do."""
    checkpoint = latest_checkpoint(run)
    kept = (
        f"the checkpoint of step {int(checkpoint.name)} is kept"
        if checkpoint
        else "no checkpoint was made yet"
    )
    if is_disk_full(error):
        return f"The disk is full. Free some space, then resume the run: {kept}."
    if isinstance(error, KnownFailure):
        return str(error)
    if is_out_of_memory(error):
        return f"Out of memory. {_smaller(run.config)}"
    return f"{unexpected(error)} The whole trace is in log.txt; {kept}."


def _smaller(config: TrainConfig) -> str:
    """What would need less memory."""
    others = "Close other programs that use memory"
    for name, value in memory_levers(config):
        return f"{others}, or start a run with `{name}` {str(value).lower()}."
    return f"{others}, then resume the run."
