"""Checking a base model on this computer: as a job, after whatever fetched it, and for the command line."""

from collections.abc import Generator
from pathlib import Path

from dopsd_app.checks.base_check import Planned, check_base_model
from dopsd_app.config import TrainConfig
from dopsd_app.jobs.base_jobs import read_asked
from dopsd_app.jobs.events import Event
from dopsd_app.jobs.job import Job
from dopsd_app.models.architecture import BaseModelError
from dopsd_app.models.base_download import fetch_base_model, needs_fetching
from dopsd_app.models.base_report import BaseReport, refuse_failed
from dopsd_app.models.catalog import find_facts
from dopsd_app.planning.machine import read_machine
from dopsd_app.planning.memory import program_bytes, reckon
from dopsd_app.planning.pace import weighted_work
from dopsd_app.planning.plan import choose_plan, make_plan

PICTURES = 4  # of a set that the plan is asked about: their number changes nothing of a step


def check(config: TrainConfig, runs_dir: Path) -> Generator[Event, None, tuple[BaseReport, Path]]:
    """Checks a base model that is here against what is planned for a run with this configuration.

    What comes of it is the report, and the folder in which it is kept.
    """
    machine = read_machine()
    on_card = config.device != "cpu" and machine.card(config.precision) is not None
    plan = make_plan(config, pictures=PICTURES, runs_dir=runs_dir, machine=machine)
    sizes = find_facts(config.base_model, config.revision).sizes_for(config)
    memory_plan = choose_plan(config, machine).plan
    # What is held against the measured figures: not corrected by what was measured before.
    training = reckon(config, sizes, memory_plan, on_card).training - program_bytes(on_card)
    slow = plan.promise.slowness if plan.promise else 1.0
    work = weighted_work(config, sizes, memory_plan)
    planned = Planned(plan.seconds_per_step, training, work, slow, memory_plan)
    return (yield from check_base_model(config, planned))


def fetch_and_check(config: TrainConfig, runs_dir: Path) -> Generator[Event]:
    """Fetches what a base model lacks here, and checks it before anything is done with it.

    Where all is here, what an earlier check found counts. Raises `BaseModelError` for a model that does not
    pass.
    """
    if not needs_fetching(config.base_model, config.revision, config.teacher_context):
        refuse_failed(config.base_model, config.revision, config.teacher_context)
        return
    yield from fetch_base_model(config.base_model, config.revision, config.teacher_context)
    report, _ = yield from check(config, runs_dir)
    if not report.passed:
        raise BaseModelError(f"The base model did not pass its check. {report.problem}")


def work(job: Job) -> Generator[Event, None, dict]:
    """The job: checks a base model as a run with the configuration that was asked for would use it."""
    config = read_asked(job)
    report, _ = yield from check(config, job.runs_dir)
    if not report.passed:
        raise BaseModelError(report.problem)
    return {"passed": True}
