"""Everything that a run needs to go on as if it had never stopped."""

import os
import shutil
from collections.abc import Generator, Mapping
from pathlib import Path

import torch

from dopsd_app.jobs.events import Warned
from dopsd_app.jobs.manifest import (
    CHECKPOINT_LORA,
    MANIFEST,
    MAX_CHECKPOINTS,
    RESUMABLE,
    RESUME_FILE,
    file_facts,
    find_damage,
    is_there,
    read_manifest,
    write_manifest,
)
from dopsd_app.jobs.runs import Run, checkpoint_folders, complete_checkpoints, refuse_other_versions
from dopsd_app.method.adapters import adapter_arrays, adapter_weights, load_adapter_weights
from dopsd_app.method.lora_file import save_lora
from dopsd_app.models.protocol import Transformer


def save_checkpoint(
    run: Run,
    step: int,
    transformer: Transformer,
    optimizer: torch.optim.Optimizer,
    metadata: Mapping[str, str],
    keep: int | None = None,
) -> Path:
    """Writes the LoRA of this step and what training needs besides; complete once its manifest is there.

    `metadata` is the LoRA file's. Of old checkpoints, that of step `keep` stays. Raises `OSError` where the
    disk is full; what is complete stays complete.
    """
    folder = run.checkpoints / f"{step:06d}"
    _remove(folder)  # torn by a kill, or left by a process that came further and went on from an earlier one
    folder.mkdir(parents=True)
    try:
        weights = adapter_arrays(transformer, "student")
        save_lora(folder / CHECKPOINT_LORA, weights, run.config.strength, metadata)
        # The student too, for in the LoRA file its strength is folded in, and rounded.
        adapters = {
            adapter: {name: w.detach().cpu() for name, w in adapter_weights(transformer, adapter).items()}
            for adapter in transformer.peft_config
        }
        torch.save({"adapters": adapters, "optimizer": optimizer.state_dict()}, folder / RESUME_FILE)
        _flush_to_disk(folder / RESUME_FILE)
        write_manifest(folder, step, file_facts(folder, (CHECKPOINT_LORA, RESUME_FILE)))
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)  # the room may be needed to say what went wrong
        raise
    _thin_out(run, step, keep)
    return folder


def load_checkpoint(
    run: Run, transformer: Transformer, optimizer: torch.optim.Optimizer
) -> Generator[Warned, None, int]:
    """Restores the newest checkpoint that is whole, and returns its step; 0 where there is none.

    Newer ones that are damaged are warned of, and put aside after that: of those whose LoRA is whole, it
    stays to be tried. Raises `RunError` for checkpoints of another version of this program.
    """
    refuse_other_versions(run)
    found, damaged = None, {}
    for folder in reversed(checkpoint_folders(run)):
        files = read_manifest(folder)
        if files and RESUME_FILE not in files:  # an old one, of which only the LoRA was kept
            continue
        damage = find_damage(folder, files) if files else f"{MANIFEST} cannot be read"
        if not damage:
            found = folder
            break
        if (folder / MANIFEST).exists():  # else torn by a kill, which is no damage
            damaged[folder] = damage
    step = int(found.name) if found else 0
    if found:
        saved = torch.load(found / RESUME_FILE, map_location="cpu", weights_only=True)
        for adapter in transformer.peft_config:
            load_adapter_weights(transformer, adapter, saved["adapters"][adapter])
        optimizer.load_state_dict(saved["optimizer"])
    if damaged:
        yield Warned(step, _damage_message(damaged, step))
    for folder in checkpoint_folders(run):
        if folder in damaged or not read_manifest(folder):
            _put_aside(folder)
    return step


def _damage_message(damaged: dict[Path, str], step: int) -> str:
    found = "; ".join(
        f"the checkpoint of step {int(folder.name)} ({damage})" for folder, damage in damaged.items()
    )
    rest = f"training goes on from that of step {step}" if step else "training starts from the beginning"
    return f"Damaged on disk: {found}. So {rest}. If this happens again, check the disk."


def _put_aside(folder: Path) -> None:
    lora = {name: facts for name, facts in read_manifest(folder).items() if name == CHECKPOINT_LORA}
    if lora and not find_damage(folder, lora):
        _keep_only_the_lora(folder)
    else:
        _remove(folder)  # gigabytes at real size


def _flush_to_disk(file: Path) -> None:
    # Without it, a power cut could leave a manifest on disk and not the weights that it vouches for.
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())


def _thin_out(run: Run, step: int, keep: int | None) -> None:
    # Not those of later steps: of a process that came further, and whose newer ones were damaged.
    complete = [folder for folder in complete_checkpoints(run) if int(folder.name) <= step]
    whole = [folder for folder in complete if is_there(folder, RESUME_FILE)][-RESUMABLE:]
    for folder in complete:
        if folder not in whole:
            _keep_only_the_lora(folder)
    for folder in complete[:-MAX_CHECKPOINTS]:
        if int(folder.name) != keep:
            _remove(folder)


def _keep_only_the_lora(folder: Path) -> None:
    files = read_manifest(folder)
    if RESUME_FILE in files:
        # First: a checkpoint without the file is then an old one, not a damaged one.
        write_manifest(folder, int(folder.name), {CHECKPOINT_LORA: files[CHECKPOINT_LORA]})
    (folder / RESUME_FILE).unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    (folder / MANIFEST).unlink(missing_ok=True)  # first: nobody may take what is left for a checkpoint
    shutil.rmtree(folder, ignore_errors=True)
