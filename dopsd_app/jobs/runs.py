"""Trainings: their folders, what is in them, and which one a person means."""

import os
import re
import shutil
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dopsd_app.config import ConfigError, TrainConfig, load_config, save_config
from dopsd_app.files import find_renamed, retry
from dopsd_app.jobs.job import JOB_NAME, Job, RunError, job_name, lay_out, start_lock, write_status
from dopsd_app.jobs.kept_plan import read_kept_plan
from dopsd_app.jobs.kinds import TRAIN
from dopsd_app.jobs.manifest import CHECKPOINT_LORA, RESUME_FILE, is_of_another_version, is_there
from dopsd_app.jobs.queue import enqueue, put_in_queue
from dopsd_app.models.catalog import full_name
from dopsd_app.models.memory_plan import MemoryPlan

if TYPE_CHECKING:
    from dopsd_app.data.pictures import Dataset

LORA_FILE = "pytorch_lora_weights.safetensors"  # the name that every loader looks for first


@dataclass(frozen=True, eq=False)
class Run(Job):
    """One training: a job whose folder holds its settings and pictures, and everything that it makes."""

    @property
    def config(self) -> TrainConfig:
        """The settings; `ConfigError` where they cannot be read."""
        try:
            return load_config(self.path / "config.json")
        except (OSError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"The settings of {self.id} cannot be read: its config.json is damaged."
            ) from error

    @property
    def dataset(self) -> Path:
        return self.path / "dataset"

    @property
    def sources(self) -> int:
        """The most pictures to start from that one of its pictures has; 0 for a run that edits nothing."""
        from dopsd_app.data.source_pictures import count_copies  # brings Pillow: not for those that only list

        return count_copies(self.dataset)

    def sources_of(self, number: int) -> list[Path]:
        """What the picture of this number, from 1, is made from: copies that belong to the run."""
        from dopsd_app.data.source_pictures import find_copies

        return find_copies(self.dataset, number)

    @property
    def memory_plan(self) -> MemoryPlan | None:
        """What it trains by; None for one that has not begun."""
        kept = read_kept_plan(self.path)
        return kept.plan if kept else None

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
        """What the check of the LoRA file found."""
        return find_renamed(self.path / "lora_check.json", "check.json")


# --- create, list, find


def default_runs_dir() -> Path:
    """Where runs are kept unless the person says otherwise: DOPSD_RUNS, or `runs` in the current folder."""
    return Path(os.environ.get("DOPSD_RUNS") or "runs").absolute()


def create_run(runs_dir: Path, config: TrainConfig, dataset: "Dataset") -> Run:
    """A new run in state "draft", with its own copy of the pictures; `enqueue` makes it ready to start.

    The folder appears whole, or not at all.
    """
    from dopsd_app.data.pictures import copy_examples  # brings Pillow: not for commands that only list runs

    runs_dir = runs_dir.absolute()
    runs_dir.mkdir(parents=True, exist_ok=True)
    name = job_name(_safe(config.name))
    new = Run(runs_dir / f".new-{name}")
    new.path.mkdir()
    try:
        # The worker has another current folder.
        config = replace(config, base_model=full_name(config.base_model))
        save_config(config, new.path / "config.json")
        new.previews.mkdir()
        new.checkpoints.mkdir()
        copy_examples(dataset, new.dataset)
        lay_out(new, TRAIN, {})
        write_status(new, steps=config.steps)
        return Run(retry(lambda: new.path.rename(runs_dir / name)))
    except BaseException:
        shutil.rmtree(new.path, ignore_errors=True)
        raise


def _safe(name: str) -> str:
    """The name in letters, digits and dashes, which every file system takes."""
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub("[^A-Za-z0-9]+", "-", ascii_name).strip("-")[:40].strip("-") or "lora"


def list_runs(runs_dir: Path) -> list[Run]:
    """All runs, newest first."""
    if not runs_dir.is_dir():
        return []
    made = {}
    for folder in runs_dir.absolute().iterdir():
        # Other folders may lie here too: only what has a run's name is one, in whatever state its files are.
        if JOB_NAME.fullmatch(folder.name) and folder.is_dir():
            # Two runs of one second are ordered by their settings file, which never changes.
            settings = folder / "config.json"
            made[Run(folder)] = (folder.name[:15], settings.stat().st_mtime_ns if settings.exists() else 0)
    return sorted(made, key=made.__getitem__, reverse=True)


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


def pin_revision(run: Run, commit: str) -> None:
    """Keeps in the run's settings which commit of its base model's repository it uses from now on."""
    if commit not in ("", run.config.revision):
        _change_settings(run, revision=commit)


def _change_settings(run: Run, **changes) -> None:
    file = run.path / "config.json"
    made = file.stat()
    save_config(replace(run.config, **changes), file)
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


def resume(run: Run, more_steps: int | None = None) -> Path | None:
    """Puts a run back into the queue; returns the checkpoint that it will go on from.

    With `more_steps`, finished runs go on too: it is how many steps come after that checkpoint, whatever was
    left to do.
    """
    refuse_other_versions(run)
    if more_steps is None:
        enqueue(run)
    else:
        with start_lock(run.runs_dir):
            _set_end(run, more_steps)
            put_in_queue(run)
    return latest_checkpoint(run)


def _set_end(run: Run, more_steps: int) -> None:
    """Makes the run one that was stopped at its last checkpoint, with so many steps to do; under the lock."""
    if more_steps < 1:
        raise RunError(f"Say how many more steps: at least 1, not {more_steps}.")
    status, checkpoint = run.status, latest_checkpoint(run)
    if status.busy:
        raise RunError(f"{run.id} is {status.state}. Wait for its end, or stop it first.")
    if checkpoint is None:
        raise RunError(f"{run.id} has no checkpoint to go on from. Resume it as it is, and it begins anew.")
    steps = int(checkpoint.name) + more_steps
    _change_settings(run, steps=steps)
    write_status(run, state="stopped", step=int(checkpoint.name), steps=steps, reason="")
