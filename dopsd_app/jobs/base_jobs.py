"""Asking for a base model: that it is fetched from the Hub, and that it is checked on this computer."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from dopsd_app.config import TrainConfig, make_config
from dopsd_app.errors import KnownFailure
from dopsd_app.jobs.job import Job, RunError, create_job, kind_or_none, list_jobs, start_lock, sweep
from dopsd_app.jobs.kinds import CHECK_BASE, DOWNLOAD, Kind
from dopsd_app.jobs.queue import put_in_queue, send_command, start, start_next
from dopsd_app.models.catalog import full_name

MAX_JOBS = 5  # ended jobs of each of both kinds


def ask_for_download(runs_dir: Path, config: TrainConfig) -> Job:
    """Starts fetching a configuration's base model at once, whatever computes meanwhile; then it is checked.

    Where the same is being fetched already, it is that job.
    """
    return _ask(runs_dir, DOWNLOAD, config, start)


def ask_for_check(runs_dir: Path, config: TrainConfig) -> Job:
    """Puts a check of a configuration's base model into the queue; where one waits already, it is that."""
    job = _ask(runs_dir, CHECK_BASE, config, put_in_queue)
    start_next(runs_dir)
    return job


def _ask(runs_dir: Path, kind: Kind, config: TrainConfig, begin: Callable[[Job], object]) -> Job:
    config = _wherever(config)
    runs_dir.mkdir(parents=True, exist_ok=True)
    with start_lock(runs_dir):
        if (job := latest(runs_dir, kind, config)) and job.status.busy:
            return job
        sweep(runs_dir, kind, MAX_JOBS)
        job = create_job(runs_dir, kind, {"config": asdict(config)})
        begin(job)
    return job


def latest(runs_dir: Path, kind: Kind, config: TrainConfig) -> Job | None:
    """The newest job of a kind about a configuration's base model, for its teacher context."""
    wanted = _subject(_wherever(config))
    for job in reversed(list_jobs(runs_dir)):
        if f"-{kind.name}-" not in job.id:  # asked twice a second: without a look into others' files
            continue
        try:
            if kind_or_none(job) == kind and _subject(read_asked(job)) == wanted:
                return job
        except KnownFailure:  # damaged, or of another version
            continue
    return None


def read_asked(job: Job) -> TrainConfig:
    """The configuration whose base model a job is about; `RunError` where that cannot be read."""
    config = job.request.get("config")
    if not isinstance(config, dict):
        raise RunError(f"{job.id} cannot be read: its job.json is damaged. Ask for it again.")
    return make_config(config)


def stop(job: Job) -> None:
    """Takes a job out of the queue, or ends it; what was fetched is kept."""
    if job.status.busy:
        send_command(job, "stop")


def _wherever(config: TrainConfig) -> TrainConfig:
    """With a name that means the same in a worker's current folder."""
    return replace(config, base_model=full_name(config.base_model))


def _subject(config: TrainConfig) -> tuple[str, str, str]:
    return config.base_model, config.revision, config.teacher_context
