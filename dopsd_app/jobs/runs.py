"""The run folder and the queue: create, list, start, command, resume, delete.

Every fact about a run is a file in its folder. How it stands is what status.json says.
"""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from filelock import FileLock, Timeout

from dopsd_app.config import TrainConfig, load_config, save_config
from dopsd_app.errors import KnownFailure
from dopsd_app.files import insist, replace_file
from dopsd_app.jobs.manifest import CHECKPOINT_LORA, RESUME_FILE, is_of_another_version, is_there
from dopsd_app.models.catalog import full_name

if TYPE_CHECKING:
    from dopsd_app.data.pictures import Dataset

WORKER = (sys.executable, "-m", "dopsd_app.train")  # gets the run folder as its last argument
COMMANDS = ("stop", "preview-now", "save-now")
RUN_NAME = re.compile(r"\d{8}-\d{6}-.+-[0-9a-f]{12}")  # as `create_run` makes it
LORA_FILE = "pytorch_lora_weights.safetensors"  # the name that every loader looks for first
# States that a living process must stand behind.
LIVE = ("downloading", "loading", "encoding", "training", "stopping")

KILLED = "Its process ended without saying why: killed, or the computer went off."
FETCHED_KEPT = "What was fetched is kept: resume, and it goes on from there."


class RunError(KnownFailure):
    """Something that cannot be done with a run as it stands."""


@dataclass(frozen=True)
class Run:
    """One run: a folder; everything else is read from it."""

    path: Path  # absolute

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def runs_dir(self) -> Path:
        return self.path.parent

    @property
    def config(self) -> TrainConfig:
        return load_config(self.path / "config.json")

    @property
    def status(self) -> "Status":
        return read_status(self)

    @property
    def status_file(self) -> Path:
        return self.path / "status.json"

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def log_file(self) -> Path:
        return self.path / "log.txt"

    @property
    def dataset(self) -> Path:
        return self.path / "dataset"

    @property
    def commands(self) -> Path:
        return self.path / "commands"

    @property
    def previews(self) -> Path:
        return self.path / "previews"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def lora_file(self) -> Path:
        return self.path / LORA_FILE

    @property
    def check_file(self) -> Path:
        return self.path / "check.json"

    @property
    def reserve_file(self) -> Path:
        return self.path / ".reserve"


@dataclass(frozen=True)
class Status:
    """How a run stands, as status.json holds it."""

    # one of LIVE, or draft, queued, stopped, failed, finished or interrupted
    state: str = "draft"
    step: int = 0  # optimizer steps done; while training up to a fifth of a second old
    steps: int = 0
    pid: int | None = None  # the worker's, and when it started: a pid alone may be reused
    pid_started: float | None = None
    queue_number: int | None = None  # first in, first out
    reason: str = ""  # a sentence for the person: why it failed or was interrupted
    updated: float = 0.0  # seconds since 1970

    @property
    def live(self) -> bool:
        return self.state in LIVE


# --- create, list, find, delete


def default_runs_dir() -> Path:
    """Where runs are kept unless the person says otherwise: DOPSD_RUNS, or `runs` in the current folder."""
    return Path(os.environ.get("DOPSD_RUNS") or "runs").absolute()


def create_run(runs_dir: Path, config: TrainConfig, dataset: "Dataset") -> Run:
    """A new run in state "draft", with its own copy of the pictures; `enqueue` makes it ready to start.

    The folder appears whole, or not at all.
    """
    from dopsd_app.data.pictures import copy_examples  # brings Pillow: not for commands that only list runs

    # The last part keeps others from guessing the folder's name, the date sorts, the middle is for people.
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{_safe(config.name)}-{secrets.token_hex(6)}"
    runs_dir = runs_dir.absolute()
    runs_dir.mkdir(parents=True, exist_ok=True)
    new = Run(runs_dir / f".new-{name}")
    try:
        for folder in (new.path, new.commands, new.previews, new.checkpoints):
            folder.mkdir()
        # The worker has another current folder.
        config = replace(config, base_model=full_name(config.base_model))
        save_config(config, new.path / "config.json")
        copy_examples(dataset, new.dataset)
        write_status(new, steps=config.steps)
        reserve_space(new)
        return Run(insist(lambda: new.path.rename(runs_dir / name)))
    except BaseException:
        shutil.rmtree(new.path, ignore_errors=True)
        raise


def _safe(name: str) -> str:
    """The name in letters, digits and dashes, which every file system takes."""
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub("[^A-Za-z0-9]+", "-", ascii_name).strip("-")[:40].strip("-") or "lora"


def reserve_space(run: Run) -> None:
    """Puts bytes aside in the run folder: given up on a full disk, they leave room to say what happened."""
    if not run.reserve_file.exists():
        run.reserve_file.write_bytes(os.urandom(256 * 1024))  # random: some disks compress


def list_runs(runs_dir: Path) -> list[Run]:
    """All runs, newest first."""
    if not runs_dir.is_dir():
        return []
    made = {}
    for folder in runs_dir.absolute().iterdir():
        with suppress(FileNotFoundError, NotADirectoryError):  # not a run, or one that is just being deleted
            # Other folders may lie here too: only what has a run's name and both its files is one.
            if RUN_NAME.fullmatch(folder.name) and (folder / "status.json").is_file():
                # Two runs of one second are told apart by their settings file, which never changes.
                made[Run(folder)] = (folder.name[:15], (folder / "config.json").stat().st_mtime_ns)
    return sorted(made, key=made.get, reverse=True)


def known_run(runs_dir: Path, run_id: str) -> Run:
    """The run of exactly this id, never a path that somebody made up; `RunError` when there is none."""
    for run in list_runs(runs_dir):
        if run.id == run_id:
            return run
    raise RunError("This run is not there any more. Choose another one from the list.")


def find_run(runs_dir: Path, text: str) -> Run:
    """The run that a person means: "latest", a run's id or folder, or a beginning of either end of an id."""
    runs = list_runs(runs_dir)
    if not runs:
        raise RunError(f"There are no runs in {runs_dir}. Name their folder with --runs.")
    if text == "latest":
        return runs[0]
    text = Path(text).name
    found = [run for run in runs if run.id == text] or [
        run
        for run in runs
        if text and (run.id.startswith(text) or run.id.rpartition("-")[2].startswith(text))
    ]
    if len(found) != 1:
        known = "\n".join(f"  {run.id}" for run in found or runs)
        problem = "More than one run begins" if found else "No run begins"
        raise RunError(f"{problem} with `{text}`. There are:\n{known}")
    return found[0]


def delete_run(run: Run) -> None:
    """Removes a run's folder for good; a run that a process works on is refused."""
    with start_lock(run.runs_dir):
        if run.status.live:
            raise RunError(f"{run.id} is at work. Stop it first, then delete it.")
        # Renamed first, so that nobody ever reads half a run.
        doomed = insist(lambda: run.path.rename(run.runs_dir / f".deleted-{run.id}"))
    shutil.rmtree(doomed)


def pin_revision(run: Run, commit: str) -> None:
    """Keeps in the run's settings which commit of its base model's repository it uses from now on."""
    if commit not in ("", run.config.revision):
        _change_settings(run, revision=commit)


def _change_settings(run: Run, **changes) -> None:
    file = run.path / "config.json"
    made = file.stat()
    replace_file(file, json.dumps(asdict(replace(run.config, **changes)), indent=2))
    os.utime(file, ns=(made.st_atime_ns, made.st_mtime_ns))  # the list of runs is ordered by it


def latest_checkpoint(run: Run) -> Path | None:
    """The newest checkpoint that the run can go on from, as far as sizes of files tell."""
    whole = (folder for folder in reversed(complete_checkpoints(run)) if is_there(folder, RESUME_FILE))
    return next(whole, None)


def complete_checkpoints(run: Run) -> list[Path]:
    """The folders of all complete checkpoints, oldest first; of old ones only the LoRA is there."""
    return [folder for folder in checkpoint_folders(run) if is_there(folder, CHECKPOINT_LORA)]


def checkpoint_folders(run: Run) -> list[Path]:
    """All folders of checkpoints, oldest first, complete or not; what else lies beside them is not ours."""
    folders = [path for path in run.checkpoints.glob("*") if path.name.isdecimal() and path.is_dir()]
    return sorted(folders, key=lambda folder: int(folder.name))


def refuse_other_versions(run: Run) -> None:
    """Raises `RunError` for a run whose checkpoints another version of this program made."""
    if any(is_of_another_version(folder) for folder in checkpoint_folders(run)):
        raise RunError(
            f"The checkpoints of {run.id} were made by another version of this program: this one cannot go on"
            " from them. Start a new run with the same pictures and settings, or use that version."
        )


# --- status


def read_status(run: Run) -> Status:
    """How the run stands now; a live state without its process reads as "interrupted"."""
    status = _stored_status(run)
    if status.live and not is_alive(status):
        status = _stored_status(run)  # it may have had its last word between the two looks
        if status.live and not is_alive(status):
            reason = f"{KILLED} {FETCHED_KEPT}" if status.state == "downloading" else _last_words(run)
            return replace(status, state="interrupted", reason=reason)
    if status.live and (run.commands / "stop").exists():  # asked for, and the step at hand may be long
        return replace(status, state="stopping")
    return status


def write_status(run: Run, **changes) -> Status:
    """Changes these fields of the stored status; for the worker, or under `start_lock`."""
    stored = _stored_status(run) if run.status_file.exists() else Status()
    status = replace(stored, **changes, updated=time.time())
    replace_file(run.status_file, json.dumps(asdict(status)))
    return status


def _stored_status(run: Run) -> Status:
    content = insist(run.status_file.read_bytes)
    try:
        return Status(**json.loads(content))
    except (ValueError, TypeError) as error:  # a bad disk, or a hand: the other runs must not suffer
        return Status("failed", reason=f"status.json cannot be read: {error}. Resume writes it anew.")


def is_alive(status: Status) -> bool:
    """Whether the process that wrote this status, not a later one of the same number, is still at work."""
    started = process_started(status.pid) if status.pid else None
    return started is not None and status.pid_started is not None and abs(started - status.pid_started) < 2


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


def _last_words(run: Run) -> str:
    if not run.log_file.exists():
        return KILLED
    with run.log_file.open("rb") as file:
        file.seek(max(0, run.log_file.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").split("\n")
    lines = [line.rpartition("\r")[2].strip() for line in lines]
    last = next((line for line in reversed(lines) if line), "")
    return f"{KILLED} log.txt ends with: {last[:300]}" if last else KILLED


# --- commands


def send_command(run: Run, command: str) -> None:
    """Asks a run's worker for "stop", "preview-now" or "save-now"; stop also takes a run out of the queue."""
    if command not in COMMANDS:
        raise ValueError(f"`command` must be one of {', '.join(COMMANDS)}, got {command!r}.")
    with start_lock(run.runs_dir):
        status = run.status
        if status.state == "queued" and command == "stop":
            write_status(run, state="stopped")
        elif status.live:
            place_command(run, command)
        else:
            raise RunError(f"{run.id} is not at work: it is {status.state}.")


def place_command(run: Run, command: str) -> None:
    """Leaves a command for the worker without looking whether there is one."""
    (run.commands / command).touch()


def drop_commands(run: Run) -> None:
    """Forgets what was asked of an earlier process."""
    for command in COMMANDS:
        (run.commands / command).unlink(missing_ok=True)


def take_commands(run: Run) -> set[str]:
    """The commands that came since the last call, for the worker between its steps."""
    taken = {command for command in COMMANDS if (run.commands / command).exists()}
    if "stop" in taken:
        write_status(run, state="stopping")
    for command in taken:
        insist((run.commands / command).unlink)
    return taken


# --- queue


def run_lock(runs_dir: Path) -> FileLock:
    """One GPU, one job: whoever computes holds this lock; the system frees it when its process ends."""
    return FileLock(runs_dir / ".gpu.lock")


def start_lock(runs_dir: Path) -> FileLock:
    """Held for moments, by whoever decides what starts next: two starts at once must not both go ahead."""
    return FileLock(runs_dir / ".start.lock", timeout=60)


def enqueue(run: Run) -> None:
    """Puts a run at the end of the queue; refused while it waits or works, and when it is finished."""
    with start_lock(run.runs_dir):
        status = run.status
        if status.live or status.state in ("queued", "finished"):
            hint = (
                "Say how many more steps it is to make."
                if status.state == "finished"
                else "There is nothing to do."
            )
            raise RunError(f"{run.id} is {status.state} already. {hint}")
        drop_commands(run)
        numbers = [other.status.queue_number or 0 for other in list_runs(run.runs_dir)]
        write_status(
            run, state="queued", queue_number=max(numbers) + 1, pid=None, pid_started=None, reason=""
        )


def resume(run: Run, more_steps: int | None = None) -> Path | None:
    """Puts a run back into the queue; returns the checkpoint that it will go on from.

    With `more_steps`, finished runs go on too: it is how many steps come after that checkpoint, whatever was
    left to do.
    """
    refuse_other_versions(run)
    if more_steps is not None:
        _set_end(run, more_steps)
    enqueue(run)
    return latest_checkpoint(run)


def _set_end(run: Run, more_steps: int) -> None:
    """Makes the run one that was stopped at its last checkpoint, with so many steps to do."""
    if more_steps < 1:
        raise RunError(f"Say how many more steps: at least 1, not {more_steps}.")
    with start_lock(run.runs_dir):
        status, checkpoint = run.status, latest_checkpoint(run)
        if status.live or status.state == "queued":
            raise RunError(f"{run.id} is {status.state}. Wait for its end, or stop it first.")
        if checkpoint is None:
            raise RunError(f"{run.id} has no checkpoint to go on from. Start a new run with more steps.")
        steps = int(checkpoint.name) + more_steps
        # Who says how many does not want it to end where its health stops improving.
        _change_settings(run, steps=steps, stop_early=False)
        write_status(run, state="stopped", step=int(checkpoint.name), steps=steps, reason="")


def queued_runs(runs_dir: Path) -> list[Run]:
    """The runs that wait, first come first."""
    statuses = {run: run.status for run in list_runs(runs_dir)}
    waiting = [run for run, status in statuses.items() if status.state == "queued"]
    return sorted(waiting, key=lambda run: statuses[run].queue_number)


def start_next(runs_dir: Path) -> Run | None:
    """Starts the worker of the first queued run, when nothing holds the GPU; returns the run it started."""
    if not runs_dir.is_dir():
        return None
    with start_lock(runs_dir):
        # A worker that was started takes the lock only when it is up: until then its status speaks for it.
        if not (waiting := queued_runs(runs_dir)) or any(run.status.live for run in list_runs(runs_dir)):
            return None
        try:
            with run_lock(runs_dir).acquire(timeout=0):
                pass
        except Timeout:
            return None
        run = waiting[0]
        try:
            pid = start_process([*WORKER, str(run.path)], run.log_file)
        except OSError as error:  # it must not be tried again and again
            write_status(run, state="failed", reason=f"The worker could not be started: {error}.")
            return None
        # The worker waits for the start lock before it writes, so this cannot overwrite its word. If it dies
        # before that, a live state without a process is left: that reads as interrupted and stays so.
        write_status(run, state="loading", pid=pid, pid_started=process_started(pid))
        return run


def start_process(command: Sequence[str], log_file: Path) -> int:
    """Starts a worker in a session of its own, which outlives the terminal, the page and its server."""
    if os.name == "nt":
        apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.DETACHED_PROCESS}
    else:
        apart = {"start_new_session": True}
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=Path(__file__).parents[2],  # from here, `-m dopsd_app.train` is found
            env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"},  # a log to follow, in one encoding
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            **apart,
        )
    threading.Thread(target=process.wait, daemon=True).start()  # or it stays a zombie as long as we live
    return process.pid
