"""What a person calls a run, and what they write about it.

Both lie beside the settings, which name the LoRA: its file and all that is said in it stay as they are.
"""

import unicodedata
from pathlib import Path

from dopsd_app.config import ConfigError
from dopsd_app.files import replace_file, retry
from dopsd_app.jobs.job import RunError
from dopsd_app.jobs.runs import Run

NAME, NOTES = "name.txt", "notes.txt"  # in the run's folder
MAX_NAME, MAX_NOTES = 100, 20_000  # characters


def name_of(run: Run) -> str:
    """What the run is called: by a person, or else as it was started."""
    return _read(run.path / NAME).strip() or first_name(run)


def first_name(run: Run) -> str:
    """What the run was called when it was started: by its settings, or the name in its folder's name."""
    try:
        name = _in_one_line(run.config.name)
    except ConfigError:  # of another version, or damaged
        name = ""
    return name or run.id[16:].rpartition("-")[0] or run.id


def set_name(run: Run, name: str) -> None:
    """Calls the run so from now on; an empty name goes back to the first one."""
    name = _in_one_line(name)
    if len(name) > MAX_NAME:
        raise RunError(f"This name has {len(name)} characters. Shorten it to {MAX_NAME} at most.")
    if name in ("", first_name(run)):
        retry(lambda: (run.path / NAME).unlink(missing_ok=True))
    else:
        _write(run.path / NAME, name)


def read_notes(run: Run) -> str:
    """What was written about the run; empty where nothing was."""
    return _read(run.path / NOTES)


def set_notes(run: Run, notes: str) -> None:
    """Keeps what is written about the run."""
    if len(notes) > MAX_NOTES:
        raise RunError(f"These notes have {len(notes)} characters. Shorten them to {MAX_NOTES} at most.")
    if notes.strip():
        _write(run.path / NOTES, notes)
    else:
        retry(lambda: (run.path / NOTES).unlink(missing_ok=True))


def _in_one_line(text: str) -> str:
    # Of what is left, a terminal would obey the control characters.
    return "".join(letter for letter in " ".join(text.split()) if unicodedata.category(letter) != "Cc")


def _read(file: Path) -> str:
    try:
        return retry(file.read_bytes).decode("utf-8-sig", errors="replace")
    except OSError:  # most runs have none
        return ""


def _write(file: Path, text: str) -> None:
    replace_file(file, text.encode(errors="replace"))  # clients can send halves of a letter
