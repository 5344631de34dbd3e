"""What can be done with runs: plain functions of plain values, for the page and for its endpoints."""

from collections.abc import Sequence
from dataclasses import asdict, replace

from dopsd_app.config import EDIT
from dopsd_app.data.drafts import Draft, check_draft
from dopsd_app.data.run_settings import take_settings as set_run_settings
from dopsd_app.errors import KnownFailure
from dopsd_app.hub import scheduled_push
from dopsd_app.hub.publication import BEST, Publication
from dopsd_app.jobs.job import RunError, delete_job
from dopsd_app.jobs.queue import send_command, start_next
from dopsd_app.jobs.run_notes import name_of, read_notes, set_name, set_notes
from dopsd_app.jobs.runs import Run, default_runs_dir, known_run, latest_checkpoint, list_runs, resume
from dopsd_app.jobs.status import Status
from dopsd_app.jobs.watch import RunWatcher
from dopsd_app.jobs.worked_time import worked_seconds
from dopsd_app.planning.machine import read_machine
from dopsd_app.progress import words_for_count
from dopsd_app.ui.base_choice import unsuited_pictures, unsuited_sources
from dopsd_app.ui.server.lora_copies import drop_copies

LOG_BYTES = 40_000
RUN_FACTS = ("state", "step", "steps", "reason")

watcher = RunWatcher()


def the_run(run_id: str) -> Run:
    """The page's run of exactly this id; `RunError` when there is none (any more)."""
    return known_run(default_runs_dir(), run_id)


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
    name = name_of(run)
    delete_job(run)
    drop_copies(run)
    return f"{name} is deleted."


def remove_runs(run_ids: Sequence[str]) -> str:
    """Deletes runs as `remove_run` does, each that can be; those that are gone already count as deleted.

    `RunError` where none could be.
    """
    deleted, problems = 0, []
    for run_id in run_ids:
        try:
            remove_run(run_id)
        except RunError as error:
            if run_id in (run.id for run in list_runs(default_runs_dir())):
                problems.append(str(error))
                continue
        deleted += 1
    if not deleted:
        raise RunError("\n".join(problems))
    return " ".join([f"{words_for_count(deleted, 'run')} deleted.", *problems])


def rename_run(run_id: str, name: str) -> str:
    """Calls a run so from now on, and returns its name; "" goes back to the one that it was started with.

    Its LoRA, and what is said in that, stay as they are.
    """
    run = the_run(run_id)
    set_name(run, name)
    return name_of(run)


def write_notes(run_id: str, notes: str) -> None:
    """Keeps what is written about a run, in place of what was."""
    set_notes(the_run(run_id), notes)


def take_settings(draft: Draft, run_id: str) -> tuple[Draft, list[str]]:
    """Gives a draft a run's settings; the draft as it is then, and what of them does not fit its pictures."""
    run = the_run(run_id)
    config, edits = run.config, run.sources > 0
    remarks = []
    if config.card and config.card not in {gpu.uuid for gpu in read_machine().gpus}:
        remarks.append("The card that this run was given is not in this computer: any that is free is taken.")
        config = replace(config, card="")
    if edits and draft.kind != EDIT:
        remarks.append("This run has learned an edit, and your pictures have none to start from.")
    if draft.kind == EDIT and not edits:
        remarks.append("This run has learned no edit, and your pictures are one.")
    before = check_draft(draft).get("", ())
    draft = set_run_settings(draft, config)
    remarks += [problem for problem in check_draft(draft).get("", ()) if problem not in before]
    return draft, remarks + list(filter(None, (unsuited_sources(draft), unsuited_pictures(draft))))


def list_all_runs() -> list[dict]:
    """All runs, newest first: id, name, notes, seconds at work, state, step, steps, why it ended early."""
    return [
        {
            "id": run.id,
            "name": name_of(run),
            "notes": read_notes(run),
            "worked_seconds": worked_seconds(run),
            **{key: getattr(status, key) for key in RUN_FACTS},
        }
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
    """Whether it has a LoRA or a checkpoint to draw with; its own training draws between two steps."""
    return run.lora_file.exists() or latest_checkpoint(run) is not None
