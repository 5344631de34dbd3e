"""A base model fetched from the Hub, as a job of its own."""

from collections.abc import Generator

from dopsd_app.errors import KnownFailure
from dopsd_app.jobs.base_jobs import ask_for_check, read_asked
from dopsd_app.jobs.job import Job
from dopsd_app.models.base_download import fetch_base_model
from dopsd_app.models.catalog import find_base_model
from dopsd_app.planning.plan import check_device
from dopsd_app.progress import PhaseProgress


def work(job: Job) -> Generator[PhaseProgress, None, dict]:
    """Fetches what the base model lacks here, and has it checked where it could be trained on.

    Where all of it lies is what comes of it, and why it was not checked.
    """
    config = read_asked(job)
    yield from fetch_base_model(config.base_model, config.revision, config.teacher_context)
    place = find_base_model(config.base_model, config.revision, config.teacher_context)
    unchecked = ""
    try:
        check_device(config)
        ask_for_check(job.runs_dir, config)
    except KnownFailure as error:
        unchecked = str(error)
    paths = {"folder": str(place.folder), "vision_tower": str(place.vision_tower or "")}
    return {**paths, "commit": place.commit, "unchecked": unchecked}
