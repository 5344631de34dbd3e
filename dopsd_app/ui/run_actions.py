"""What can be done with runs: plain functions of plain values, for the page and for its endpoints."""

from dataclasses import asdict

from dopsd_app.errors import KnownFailure
from dopsd_app.hub import scheduled_push
from dopsd_app.hub.publication import BEST, Publication
from dopsd_app.jobs.job import delete_job
from dopsd_app.jobs.queue import send_command, start_next
from dopsd_app.jobs.runs import Run, default_runs_dir, known_run, latest_checkpoint, list_runs, resume
from dopsd_app.jobs.status import Status
from dopsd_app.jobs.watch import RunWatcher
from dopsd_app.ui.server.lora_copies import drop_copies

LOG_BYTES = 40_000
RUN_FACTS = ("state", "step", "steps", "reason")

watcher = RunWatcher()


def the_run(run_id: str) -> Run:
    """The page's run of exactly this id; `RunError` when there is none (any more)."""
    return known_run(default_runs_dir(), run_id)


def run_name(run: Run) -> str:
    """What a person calls the run: the name in its folder's name."""
    return run.id[16:].rpartition("-")[0] or run.id


def stop_run(run_id: str) -> str:
    """Asks a run to save a checkpoint and stop, or takes it out of the queue."""
    run = the_run(run_id)
    state = run.status.state
    send_command(run, "stop")
    if state == "queued":
        return "It is out of the queue."
    if state == "downloading":
        return "Stopping. What was fetched is kept."
    return (
        "Stopping after this step. A checkpoint is kept." if state in ("training", "beside") else "Stopping."
    )


def resume_run(run_id: str, steps: int = 0) -> str:
    """Puts a run back into the queue; it goes on from its last checkpoint.

    `steps` 0 does what was left to do; any other number is how many more steps it makes, also a finished run.
    """
    run = the_run(run_id)
    checkpoint = resume(run, steps or None)
    start_next(run.runs_dir)
    if not checkpoint:
        return "Starts from the beginning."
    return f"Goes on from step {int(checkpoint.name)}" + (f" to {run.config.steps}." if steps else ".")


def preview_now(run_id: str) -> str:
    """Asks a run for previews after its present step."""
    send_command(the_run(run_id), "preview-now")
    return "The next step brings a preview."


def save_now(run_id: str) -> str:
    """Asks a run for a checkpoint after its present step."""
    send_command(the_run(run_id), "save-now")
    return "The next step is saved as a checkpoint."


def remove_run(run_id: str) -> str:
    """Deletes a run with its pictures, checkpoints and LoRA for good."""
    run = the_run(run_id)
    delete_job(run)
    drop_copies(run)
    return f"{run_name(run)} is deleted."


def list_all_runs() -> list[dict]:
    """All runs, newest first: id, name, state, step, steps and the reason where one ended early."""
    return [
        {"id": run.id, "name": run_name(run), **{key: getattr(status, key) for key in RUN_FACTS}}
        for run, status in statuses()
    ]


def show_run(run_id: str) -> dict:
    """How a run stands: state, step, pace, time left, losses, health, warnings, the LoRA's check."""
    run = the_run(run_id)
    view = watcher.read(run)
    return {
        **{key: getattr(view.status, key) for key in RUN_FACTS},
        "seconds_per_step": view.seconds_per_step,
        "seconds_left": view.seconds_left,
        "memory": view.memory,
        "loss": [list(point) for point in view.curve],
        "health": [asdict(health) for health in view.health],
        "download": asdict(view.download) if view.download else None,
        "warnings": list(view.warnings),
        "check": view.check,
    }


def read_log(run_id: str) -> str:
    """The end of a run's log."""
    log = the_run(run_id).log_file
    if not log.exists():
        return "Nothing was written yet."
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_BYTES))
        return file.read().decode(errors="replace")


def statuses() -> list[tuple[Run, Status]]:
    """All runs with how they stand, newest first."""
    found = []
    for run in list_runs(default_runs_dir()):
        try:
            found.append((run, run.status))
        except FileNotFoundError:  # just being deleted
            continue
    return found


def schedule_push(
    run_id: str,
    push: bool,
    name: str,
    private: bool,
    pause: bool,
    healthiest: bool = False,
    oauth_token: str | None = None,
) -> str:
    """Asks for a push to the Hub when the run has finished and, on a Space, for its pause after that.

    `healthiest` takes the last step in good health where that is an earlier one than the last.
    """
    run = the_run(run_id)
    if pause and not push:
        raise KnownFailure(
            "A pause empties the Space's disk, so it comes only after a push. Choose that too."
        )
    if not push:
        scheduled_push.schedule_push(run, None, oauth_token)
        return "Nothing will be done."
    checkpoint = BEST if healthiest else None
    publication = Publication(name.strip(), private, checkpoint=checkpoint, pause=pause)
    scheduled_push.schedule_push(run, publication, oauth_token)
    return f"It will be published as {name.strip()} when it has finished."


def can_go_on(run: Run, state: str) -> bool:
    """Whether a run that is over can make more steps: it has kept what training needs."""
    return state in ("finished", "stopped") and latest_checkpoint(run) is not None


def can_try(run: Run) -> bool:
    """Whether there is a LoRA or a checkpoint of it to draw with, and nothing trains it now."""
    status = run.status
    there = run.lora_file.exists() or latest_checkpoint(run) is not None
    return there and not status.busy
