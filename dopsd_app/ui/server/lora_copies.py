"""LoRA files where browsers may fetch them: a run's own folder, with its pictures, stays shut."""

import functools
import hashlib
import os
import shutil
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from gradio.utils import get_upload_folder

from dopsd_app.jobs.manifest import CHECKPOINT_LORA
from dopsd_app.jobs.runs import Run, checkpoint_folders

_lock = threading.Lock()  # two tabs may ask at once


@functools.cache
def _copies() -> tempfile.TemporaryDirectory:
    """In Gradio's own folder: what lies there it serves as it is, and anything else it would copy into it."""
    Path(get_upload_folder()).mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix="dopsd-", dir=get_upload_folder(), ignore_cleanup_errors=True)


def lora_copy(run: Run, file: Path, name: str) -> str:
    """A LoRA file of the run where browsers may fetch it, under this name.

    What else the run has there is dropped where its file is gone or is another, or under an older name.
    """
    folder = _folder(run) / _version(file)
    with _lock:
        folder.mkdir(parents=True, exist_ok=True)
        copy = folder / name
        if not copy.exists():
            try:
                os.link(file, copy)  # takes no room, while the file is there
            except OSError:  # another disk, or a file system without links
                shutil.copyfile(file, copy)
        _drop_old(run, copy)
    return str(copy)


def _drop_old(run: Run, copy: Path) -> None:
    checkpoints = (folder / CHECKPOINT_LORA for folder in checkpoint_folders(run))
    there = {_version(file) for file in (run.lora_file, *checkpoints) if file.exists()}
    for folder in _folder(run).iterdir():
        if folder.name not in there:
            shutil.rmtree(folder, ignore_errors=True)
    for other in copy.parent.iterdir():
        if other != copy:
            with suppress(PermissionError):  # Windows, while it is being fetched
                other.unlink()


def drop_copies(run: Run) -> None:
    """Takes a deleted run's LoRA away from the browsers too."""
    shutil.rmtree(_folder(run), ignore_errors=True)


def _folder(run: Run) -> Path:
    return Path(_copies().name) / _name(run.id)


def _version(file: Path) -> str:
    return _name(f"{file} {file.stat().st_mtime_ns}")


def _name(text: str) -> str:
    # An address tells neither the run nor where it lies.
    return hashlib.sha256(text.encode()).hexdigest()[:32]
