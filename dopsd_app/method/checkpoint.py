"""Everything that a run needs to go on as if it had never stopped."""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from dopsd_app.jobs.runs import Run, complete_checkpoints
from dopsd_app.method.adapters import adapter_weights, load_adapter_weights

RESUMABLE = 2  # newest checkpoints that are kept whole; of older ones only the student stays, to be tried
KEPT = 10  # newest checkpoints at all, and the best one: a student of rank 64 of a 6 B model takes 0.6 GB


def save_checkpoint(
    run: Run,
    step: int,
    transformer: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    keep: int | None = None,
) -> Path:
    """Writes student, teacher and optimizer of this step; complete once its last file, the manifest, is.

    Of old checkpoints, that of step `keep` stays. Raises `OSError` where the disk is full; what is complete
    stays complete.
    """
    folder = run.checkpoints / f"{step:06d}"
    if (folder / "manifest.json").exists():  # of the same step, so of the same weights
        return folder
    shutil.rmtree(folder, ignore_errors=True)  # torn by a kill
    folder.mkdir(parents=True)
    try:
        for adapter in transformer.peft_config:
            weights = {
                name: weight.detach().cpu() for name, weight in adapter_weights(transformer, adapter).items()
            }
            save_file(weights, folder / f"{adapter}.safetensors")
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")
        for file in folder.iterdir():
            _flush_to_disk(file)
        (folder / "manifest.json").write_text(json.dumps({"step": step}), encoding="utf-8")
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)  # the room may be needed to say what went wrong
        raise
    _thin_out(run, keep)
    return folder


def load_checkpoint(run: Run, transformer: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restores the newest complete checkpoint and returns its step; 0 where there is none."""
    complete = complete_checkpoints(run)
    for folder in set(run.checkpoints.iterdir()) - set(complete):  # torn by a kill: gigabytes at real size
        _remove(folder)
    if not complete:
        return 0
    folder = complete[-1]
    for adapter in transformer.peft_config:
        load_adapter_weights(transformer, adapter, load_file(folder / f"{adapter}.safetensors"))
    optimizer.load_state_dict(torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True))
    return int(folder.name)


def _flush_to_disk(file: Path) -> None:
    # Without it, a power cut could leave a manifest on disk and not the weights that it vouches for.
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())


def _thin_out(run: Run, keep: int | None) -> None:
    complete = complete_checkpoints(run)
    for folder in complete[:-RESUMABLE]:
        for name in ("optimizer.pt", "teacher.safetensors"):
            (folder / name).unlink(missing_ok=True)
    for folder in complete[:-KEPT]:
        if int(folder.name) != keep:
            _remove(folder)


def _remove(folder: Path) -> None:
    (folder / "manifest.json").unlink(missing_ok=True)  # first: nobody may take what is left for a checkpoint
    shutil.rmtree(folder, ignore_errors=True)
