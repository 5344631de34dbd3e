"""Where a run's LoRA files are: that of its end, and one in each of its checkpoints."""

import json
from pathlib import Path

from dopsd_app.jobs.job import RunError
from dopsd_app.jobs.manifest import CHECKPOINT_LORA, hash_file, read_manifest
from dopsd_app.jobs.runs import Run, complete_checkpoints
from dopsd_app.schema import check_schema

LORA_SCHEMA = 1  # of the facts in a LoRA file's metadata, and of its tensors' names


def find_lora(run: Run, checkpoint: int | None) -> Path:
    """The LoRA file of a run's end or, by its step, of a checkpoint.

    None takes that of the end or, before there is one, of the newest checkpoint. Raises `RunError` where
    there is none.
    """
    if checkpoint is None and run.lora_file.exists():
        return run.lora_file
    folders = {int(folder.name): folder for folder in complete_checkpoints(run)}
    wanted = max(folders, default=None) if checkpoint is None else checkpoint
    if wanted not in folders:
        missing = "LoRA or checkpoint" if checkpoint is None else f"checkpoint of step {checkpoint}"
        steps = ", ".join(map(str, folders)) or "none"
        raise RunError(f"{run.id} has no {missing}. Checkpoints there are: {steps}.")
    return folders[wanted] / CHECKPOINT_LORA


def check_intact(run: Run, file: Path) -> None:
    """Raises `RunError` for a LoRA file of the run that is damaged, or that a later version wrote."""
    written = _written_hash(run, file)
    if written and hash_file(file) != written:
        where = "" if file == run.lora_file else f" of step {int(file.parent.name)}"
        raise RunError(
            f"The LoRA file{where} of {run.id} is damaged: it does not hold what was written. Take that of"
            " another step, and check the disk."
        )
    read_facts(file)


def read_facts(file: Path) -> dict:
    """What a LoRA file says of how it was made; empty where it says nothing.

    Raises `RunError` for a file of a later version of the program, and for what is no LoRA file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as opened:
            facts = json.loads((opened.metadata() or {}).get("dopsd", "{}"))
        check_schema(facts, LORA_SCHEMA, file.name, RunError)
        return facts
    except (SafetensorError, ValueError, AttributeError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"{file.name} cannot be read as a LoRA file: {error}.") from error


def _written_hash(run: Run, file: Path) -> str:
    """Empty where none was kept: before the check after saving, or of a file that an earlier version made."""
    if file != run.lora_file:
        return read_manifest(file.parent).get(file.name, {}).get("sha256", "")
    try:
        return json.loads(run.check_file.read_bytes())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
