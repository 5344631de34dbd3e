"""A checkpoint without a model, for tests of what is done with its files."""

from dopsd_app.jobs.manifest import CHECKPOINT_LORA, RESUME_FILE, file_facts, write_manifest


def leave_checkpoint(run, step, lora=b"weights"):
    """A complete checkpoint of this step."""
    folder = run.checkpoints / f"{step:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CHECKPOINT_LORA).write_bytes(lora)
    (folder / RESUME_FILE).write_bytes(b"state of the optimizer")
    write_manifest(folder, step, file_facts(folder, (CHECKPOINT_LORA, RESUME_FILE)))
    return folder
