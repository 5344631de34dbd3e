"""A base model fetched from the Hub, as a job of its own."""

from collections.abc import Generator
from pathlib import Path

from dopsd_app.jobs.job import Job, create_job, start_lock
from dopsd_app.jobs.kinds import DOWNLOAD
from dopsd_app.jobs.queue import start
from dopsd_app.models.base_download import fetch_base_model
from dopsd_app.models.catalog import find_base_model
from dopsd_app.progress import PhaseProgress


def ask_for_download(runs_dir: Path, name: str, revision: str, token: str = "") -> Job:
    """Starts fetching at once, whatever computes meanwhile; `token` is for a repository that wants one."""
    job = create_job(runs_dir, DOWNLOAD, {"base_model": name, "revision": revision})
    with start_lock(job.runs_dir):
        start(job, token)
    return job


def work(job: Job) -> Generator[PhaseProgress, None, dict]:
    """Fetches what the base model lacks here; where all of it lies is what comes of it."""
    name, revision = job.request["base_model"], job.request["revision"]
    yield from fetch_base_model(name, revision)
    place = find_base_model(name, revision)
    return {"folder": str(place.folder), "vision_tower": str(place.vision_tower), "commit": place.commit}
