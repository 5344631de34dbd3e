"""The warm worker's side of drawings: it takes the GPU, takes what waits, and gives way."""

import os
from pathlib import Path

from filelock import FileLock, Timeout

from dopsd_app.jobs.drawing import (
    ASKED_TO_LEAVE,
    CUT_OFF,
    Drawing,
    drawings_folder,
    read_worker,
    refuse_beside_training,
    settle,
    unfinished_drawings,
    write_drawing_status,
    write_worker,
)
from dopsd_app.jobs.runs import RunError, is_alive, list_runs, start_lock


def claim(runs_dir: Path, lock: FileLock) -> bool:
    """Takes the GPU's lock for this process, the warm worker; not while a run trains or another job works."""
    with start_lock(runs_dir):
        if (known := read_worker(runs_dir)).pid not in (os.getpid(), os.getppid()) and is_alive(known):
            return False  # another worker lives, and the drawings are its own
        try:
            refuse_beside_training(runs_dir)
            lock.acquire(timeout=1)
        except (RunError, Timeout) as error:
            reason = str(error) if isinstance(error, RunError) else ASKED_TO_LEAVE
            _leave(runs_dir, reason)
            return False
        # In a virtual environment of Windows the process that was started is a launcher, our parent.
        write_worker(runs_dir, os.getpid())
    return True


def next_drawing(runs_dir: Path) -> Drawing | None:
    """The drawing that has waited longest, now "loading"."""
    with start_lock(runs_dir):
        drawing = next(iter(unfinished_drawings(runs_dir)), None)
        if drawing:
            write_drawing_status(drawing, "loading")
        return drawing


def is_cancelled(drawing: Drawing) -> bool:
    return (drawing.path / "cancel").exists()


def reason_to_leave(runs_dir: Path) -> str:
    """Why the warm worker must free the GPU now, as the sentence for drawings that this cuts off; or ""."""
    asked = (drawings_folder(runs_dir) / "leave").exists()
    if any(run.status.state == "queued" for run in list_runs(runs_dir)):
        return CUT_OFF  # whoever queues a run may also ask, afterwards: so that is looked at first
    return ASKED_TO_LEAVE if asked else ""


def leave(runs_dir: Path, lock: FileLock, reason: str) -> bool:
    """Frees the GPU and ends what is unfinished with this sentence; without one, only if nothing waits."""
    with start_lock(runs_dir):
        if not reason and unfinished_drawings(runs_dir):
            return False
        _leave(runs_dir, reason)
        lock.release()
    return True


def _leave(runs_dir: Path, reason: str) -> None:
    settle(runs_dir, reason)
    folder = drawings_folder(runs_dir)
    (folder / "worker.json").unlink(missing_ok=True)
    (folder / "leave").unlink(missing_ok=True)
