"""A job: a folder that tells what was asked for, how it stands, what happened, and what came of it.

Every fact is a file of that folder. Whatever is damaged is reported of this job, and no other one suffers.
"""

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from dopsd_app.errors import KnownFailure
from dopsd_app.files import read_value, replace_file, retry
from dopsd_app.jobs.kinds import KINDS, TRAIN, Kind
from dopsd_app.jobs.launcher import LOG, launcher
from dopsd_app.jobs.status import Status
from dopsd_app.schema import check_schema, stamp

JOB_NAME = re.compile(r"\d{8}-\d{6}-.+-[0-9a-f]{12}")  # of a folder, as `job_name` makes it
JOBS_FOLDER = ".jobs"  # folder below that of the runs: all jobs but the trainings, which people look for
COMMANDS = ("stop", "preview-now", "save-now")
RESERVED = 256 * 1024  # bytes
SCHEMA = 1  # of job.json; a later one is refused
LOCK_SECONDS = 60.0  # that others may hold what is held for moments

KILLED = "Its process ended without saying why: killed, or the computer went off."
FETCHED_KEPT = "What was fetched is kept: resume, and it goes on from there."
GONE = "This is not kept any more: its folder was removed."


class RunError(KnownFailure):
    """Something that cannot be done with a job as it stands."""


class Gone(RunError, FileNotFoundError):
    """A job whose folder was deleted."""


@dataclass(frozen=True, eq=False)
class Job:
    """One job: a folder; everything else is read from it. Of one folder, all are equal."""

    path: Path  # absolute

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def runs_dir(self) -> Path:
        """The folder of runs that it belongs to."""
        return self.path.parent.parent if self.path.parent.name == JOBS_FOLDER else self.path.parent

    @property
    def kind(self) -> Kind:
        """`RunError` where the folder does not tell it, or tells one that this version has not."""
        return read_kind(self)

    @property
    def request(self) -> dict:
        """What was asked for, as plain values; `RunError` where that cannot be read."""
        return _read_job(self)["request"]

    @property
    def status(self) -> Status:
        return read_status(self)

    @property
    def result(self) -> dict:
        """What its function returned; empty before that."""
        return read_result(self)

    @property
    def job_file(self) -> Path:
        return self.path / "job.json"

    @property
    def status_file(self) -> Path:
        return self.path / "status.json"

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def log_file(self) -> Path:
        return self.path / LOG

    @property
    def result_file(self) -> Path:
        return self.path / "result.json"

    @property
    def commands(self) -> Path:
        return self.path / "commands"

    @property
    def reserve_file(self) -> Path:
        return self.path / ".reserve"


# --- create, list, find, delete


def job_name(middle: str) -> str:
    """A new folder's name: the date sorts, the middle is for people, the end keeps others from guessing."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{middle}-{secrets.token_hex(6)}"


def create_job(runs_dir: Path, kind: Kind, request: dict) -> Job:
    """A new job in state "draft"; the folder appears whole, or not at all. `request` holds plain values."""
    folder = runs_dir.absolute() / JOBS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    # Microseconds: of two jobs that were asked for in one second, one was the first.
    name = job_name(f"{datetime.now(UTC):%f}-{kind.name}")
    new = Job(folder / f".new-{name}")
    new.path.mkdir()
    try:
        lay_out(new, kind, request)
        return Job(retry(lambda: new.path.rename(folder / name)))
    except BaseException:
        shutil.rmtree(new.path, ignore_errors=True)
        raise


def lay_out(job: Job, kind: Kind, request: dict) -> None:
    """Puts into a new folder what every job has."""
    job.commands.mkdir()
    fields = {**stamp(SCHEMA), "kind": kind.name, "request": request}
    replace_file(job.job_file, json.dumps(fields, default=str))
    write_status(job)
    reserve_space(job)


def list_jobs(runs_dir: Path) -> list[Job]:
    """All jobs of a folder of runs, trainings too, the oldest first."""
    if not runs_dir.is_dir():
        return []
    folders = [*_folders(runs_dir.absolute()), *_folders(runs_dir.absolute() / JOBS_FOLDER)]
    return [Job(folder) for folder in sorted(folders, key=lambda folder: folder.name)]


def _folders(folder: Path) -> Iterable[Path]:
    # Other things may lie here too: only what has a job's name is one, in whatever state its files are.
    if folder.is_dir():
        yield from (path for path in folder.iterdir() if JOB_NAME.fullmatch(path.name) and path.is_dir())


def find_job(runs_dir: Path, job_id: str, *kinds: Kind) -> Job:
    """The job of exactly this id, which may come from anywhere; `RunError` without one of these kinds."""
    for job in list_jobs(runs_dir):
        if job.id == job_id and job.kind in kinds:
            return job
    raise RunError(GONE)


def delete_job(job: Job) -> None:
    """Removes a job's folder for good; one that is at work is refused."""
    with start_lock(job.runs_dir):
        if job.status.live:
            raise RunError(f"{job.id} is at work. Stop it first, then delete it.")
        renamed = _put_away(job)
    shutil.rmtree(renamed)


def _put_away(job: Job) -> Path:
    """Renames its folder before it is removed, so that nobody ever reads half a job."""
    return retry(lambda: job.path.rename(job.path.with_name(f".deleted-{job.id}")))


def sweep(runs_dir: Path, kind: Kind, kept: int, counts: Callable[[Job], bool] = lambda job: True) -> None:
    """Removes the oldest jobs of a kind that rest, until at most `kept` are left; under `start_lock`.

    Of those only what `counts`. Damaged ones, of which nobody knows the kind, count too. What a kill left
    half made goes as well.
    """
    jobs = [job for job in _resting(runs_dir, kind) if kind_or_none(job) is None or counts(job)]
    _remove_all(runs_dir, jobs[: max(0, len(jobs) - kept)])


def sweep_bytes(runs_dir: Path, kind: Kind, most: int) -> None:
    """The same until all that rest take at most so many bytes."""
    taken, oldest = 0, []
    for job in reversed(_resting(runs_dir, kind)):
        with suppress(OSError):  # a file that is just being replaced
            taken += sum(file.stat().st_size for file in job.path.iterdir())
        if taken > most:
            oldest.append(job)
    _remove_all(runs_dir, oldest)


def _resting(runs_dir: Path, kind: Kind) -> list[Job]:
    return [job for job in list_jobs(runs_dir) if kind_or_none(job) in (kind, None) and not job.status.busy]


def _remove_all(runs_dir: Path, jobs: Iterable[Job]) -> None:
    for job in jobs:
        with suppress(OSError):  # what a reader holds open stays till the next time
            _put_away(job)
    for torn in (runs_dir / JOBS_FOLDER).glob(".*"):
        shutil.rmtree(torn, ignore_errors=True)


def reserve_space(job: Job) -> None:
    """Puts bytes aside in the folder: given up on a full disk, they leave room to say what happened."""
    if not job.reserve_file.exists():
        job.reserve_file.write_bytes(os.urandom(RESERVED))  # random: some disks compress


# --- what it is


def read_kind(job: Job) -> Kind:
    """The kind of a job; `RunError` for one that this version does not know."""
    if job.path.parent.name != JOBS_FOLDER:
        return TRAIN  # nothing else lies there; runs of earlier versions have no job.json
    name = _read_job(job)["kind"]
    if name not in KINDS:
        raise RunError(f"{job.id} is a job that this version does not know: {name}.")
    return KINDS[name]


def kind_or_none(job: Job) -> Kind | None:
    """The kind of a job; None for one that nobody can do."""
    try:
        return read_kind(job)
    except RunError:
        return None


def _read_job(job: Job) -> dict:
    damaged = RunError(f"{job.id} cannot be read: its job.json is damaged. Delete it.")
    try:
        fields = json.loads(retry(job.job_file.read_bytes))
    except FileNotFoundError:
        if not job.path.is_dir():
            raise Gone(GONE) from None
        raise damaged from None
    except (ValueError, OSError) as error:
        raise damaged from error
    wanted = {"kind": str, "request": dict}
    if not isinstance(fields, dict) or any(not isinstance(fields.get(k), t) for k, t in wanted.items()):
        raise damaged
    try:
        check_schema(fields, SCHEMA, job.id, RunError)
    except ValueError as error:
        raise error if isinstance(error, RunError) else damaged from error
    return fields


def read_result(job: Job) -> dict:
    """What a job's function returned; empty before that, and where it cannot be read."""
    try:
        fields = json.loads(retry(job.result_file.read_bytes))
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}


# --- status


def read_status(job: Job) -> Status:
    """How the job stands now; a live state without its process reads as "interrupted".

    Raises `Gone` where the job was deleted.
    """
    status = _stored_status(job)
    if status.live and not launcher.alive(status):
        status = _stored_status(job)  # it may have had its last word between the two looks
        if status.live and not launcher.alive(status):
            reason = f"{KILLED} {FETCHED_KEPT}" if status.state == "downloading" else _last_words(job)
            return replace(status, state="interrupted", reason=reason)
    if status.live and is_asked(job, "stop"):  # and the step at hand may be long
        return replace(status, state="stopping")
    return status


def write_status(job: Job, **changes) -> Status:
    """Changes these fields of the stored status; for the worker, or under `start_lock`."""
    stored = _stored_status(job) if job.status_file.exists() else Status("draft")
    status = replace(stored, **changes, updated=time.time())
    if job.status_file.is_dir():  # a hand's doing, which resuming repairs
        shutil.rmtree(job.status_file)
    replace_file(job.status_file, json.dumps(asdict(status)))
    return status


def _stored_status(job: Job) -> Status:
    try:
        return read_value(Status, retry(job.status_file.read_bytes))
    except FileNotFoundError:
        if not job.path.is_dir():
            raise Gone(GONE) from None
        problem = "is missing"
    except (ValueError, OSError):  # a bad disk, or a hand
        problem = "is damaged"
    return Status("failed", reason=f"Its status.json {problem}. Resume writes it anew.")


def _last_words(job: Job) -> str:
    try:
        with job.log_file.open("rb") as file:
            file.seek(max(0, job.log_file.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return KILLED
    lines = [line.rpartition("\r")[2].strip() for line in lines]
    last = next((line for line in reversed(lines) if line), "")
    return f"{KILLED} log.txt ends with: {last[:300]}" if last else KILLED


# --- commands


def place_command(job: Job, command: str) -> None:
    """Leaves a command for the worker without looking whether there is one."""
    job.commands.mkdir(exist_ok=True)
    (job.commands / command).touch()


def is_asked(job: Job, command: str) -> bool:
    """Whether this command waits for the worker."""
    return (job.commands / command).exists()


def drop_commands(job: Job) -> None:
    """Forgets what was asked of an earlier process."""
    for command in COMMANDS:
        (job.commands / command).unlink(missing_ok=True)


def take_commands(job: Job) -> set[str]:
    """The commands that came since the last call, for the worker between its steps."""
    taken = {command for command in COMMANDS if is_asked(job, command)}
    if "stop" in taken:
        write_status(job, state="stopping")
    for command in taken:
        retry((job.commands / command).unlink)
    return taken


# --- deciding


@contextmanager
def start_lock(runs_dir: Path) -> Generator[None]:
    """Held for moments, by whoever decides what starts next: two starts at once must not both go ahead.

    Raises `RunError` where another process holds it for longer than LOCK_SECONDS.
    """
    file = runs_dir / ".start.lock"
    lock = FileLock(file, timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(
            f"Another process of this program has held {file} for {LOCK_SECONDS:g} seconds: it hangs, or the"
            " disk does not answer. Try again; if that does not help, end the processes that use this folder."
        ) from None
    try:
        yield
    finally:
        lock.release()
