"""A push to the Hub as a job: it goes on when its page is closed, is found again, and can be stopped."""

import time
from collections.abc import Callable, Generator
from dataclasses import asdict

from dopsd_app.hub.publication import Publication, Published
from dopsd_app.hub.push import PushRunningError, push
from dopsd_app.hub_errors import HubError, check_token, given_token
from dopsd_app.jobs.job import Job, create_job, kind_or_none, start_lock, sweep
from dopsd_app.jobs.kinds import PUSH
from dopsd_app.jobs.queue import send_command, start, statuses
from dopsd_app.jobs.runs import Run, known_run
from dopsd_app.jobs.status import Status
from dopsd_app.progress import PhaseProgress

MAX_PUSH_JOBS = 20  # jobs of ended pushes
POLL_SECONDS = 0.1
STOPPED = "Stopped. Whatever had not arrived is not published; pushing again works."


def work(job: Job) -> Generator[PhaseProgress, None, dict | None]:
    """Publishes what was asked for, with the token that the worker was given."""
    run = known_run(job.runs_dir, job.request["run_id"])
    for event in push(run, Publication.from_fields(job.request["publication"]), given_token()):
        if isinstance(event, Published):
            return {"link": event.link}
        yield event


def ask_for_push(run: Run, publication: Publication, token: str | None) -> Job:
    """Starts a push at once; refused while another one of this run is at work."""
    token = check_token(token)
    with start_lock(run.runs_dir):
        latest = latest_push(run)
        if latest and latest.status.busy:
            raise PushRunningError(f"{run.id} is being pushed already: wait for that, or cancel it.")
        sweep(run.runs_dir, PUSH, MAX_PUSH_JOBS)
        job = create_job(run.runs_dir, PUSH, {"run_id": run.id, "publication": asdict(publication)})
        start(job, token)
    return job


def latest_push(run: Run) -> Job | None:
    """The push of this run that was asked for last, while it is kept."""
    pushes = [job for job, _ in statuses(run.runs_dir) if kind_or_none(job) == PUSH]
    return next((job for job in reversed(pushes) if job.request.get("run_id") == run.id), None)


def cancel_push(run: Run) -> None:
    """Stops this run's push, where one is at work."""
    if (job := latest_push(run)) and job.status.live:
        send_command(job, "stop")


def wait_for_push(job: Job, report: Callable[[Status], None] = lambda status: None) -> str:
    """Comes back with the link when the push has ended; `HubError` says why there is none."""
    while (status := job.status).busy:
        report(status)
        time.sleep(POLL_SECONDS)
    if status.state == "finished":
        return job.result["link"]
    raise HubError(STOPPED if status.state == "stopped" else status.reason)
