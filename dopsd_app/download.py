"""A base model fetched from the Hub, as a job of its own."""

from collections.abc import Generator
from pathlib import Path

from dopsd_app.jobs.job import Job, create_job, kind_or_none, start_lock, sweep
from dopsd_app.jobs.kinds import DOWNLOAD
from dopsd_app.jobs.queue import start, statuses
from dopsd_app.models.base_download import fetch_base_model
from dopsd_app.models.catalog import find_base_model
from dopsd_app.progress import PhaseProgress

MAX_DOWNLOAD_JOBS = 5  # jobs of ended downloads


def ask_for_download(runs_dir: Path, name: str, revision: str, token: str = "") -> Job:
    """Starts fetching at once, whatever computes meanwhile, where the same is not being fetched already.

    `token` is for a repository that wants one.
    """
    request = {"base_model": name, "revision": revision}
    runs_dir.mkdir(parents=True, exist_ok=True)
    with start_lock(runs_dir):
        for job, status in statuses(runs_dir):
            if status.busy and kind_or_none(job) == DOWNLOAD and job.request == request:
                return job
        sweep(runs_dir, DOWNLOAD, MAX_DOWNLOAD_JOBS)
        job = create_job(runs_dir, DOWNLOAD, request)
        start(job, token)
    return job


def work(job: Job) -> Generator[PhaseProgress, None, dict]:
    """Fetches what the base model lacks here; where all of it lies is what comes of it."""
    name, revision = job.request["base_model"], job.request["revision"]
    yield from fetch_base_model(name, revision)
    place = find_base_model(name, revision)
    return {"folder": str(place.folder), "vision_tower": str(place.vision_tower), "commit": place.commit}
