"""LoRA files as other programs read them: of a run's end, or of one of its checkpoints."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from dopsd_app.config import OBJECTIVES, TrainConfig
from dopsd_app.files import replace_file
from dopsd_app.jobs.job import RunError
from dopsd_app.jobs.runs import LORA_FILE, Run, complete_checkpoints

if TYPE_CHECKING:
    import numpy as np


def save_lora(path: Path, weights: Mapping[str, "np.ndarray"], config: TrainConfig, steps: int) -> None:
    """Writes an adapter as diffusers and ComfyUI read it: `transformer.<module>.lora_A/lora_B.weight`.

    The strength (alpha / rank) is folded into B and no alpha is written: every loader then applies exactly 1.
    What a person may want to know stands in the metadata, under a key of our own.
    """
    import numpy as np  # slow to import, and the command line's light commands need neither
    from safetensors.numpy import save

    tensors = {
        f"transformer.{name}": np.ascontiguousarray(weight * (config.strength if "lora_B" in name else 1))
        for name, weight in weights.items()
    }
    facts = {
        "base_model": Path(config.base_model).name if Path(config.base_model).is_dir() else config.base_model,
        "revision": config.revision,
        "trigger_word": config.trigger_word,
        "rank": config.rank,
        "alpha": config.strength * config.rank,
        "steps": steps,
        "seed": config.seed,
        "method": OBJECTIVES[config.objective].method,
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "peft")},
    }
    # One key only: safetensors writes several in no fixed order, and the same LoRA is to be the same bytes.
    replace_file(path, save(tensors, {"dopsd": json.dumps(facts)}))


def find_lora(run: Run, checkpoint: int | None) -> Path:
    """The LoRA file of a run's end or, by its step, of a complete checkpoint; None takes what is newest.

    A checkpoint's is made when it is asked for, in place of the one before it: each takes as much room as
    the finished LoRA. Raises `RunError` where there is none.
    """
    if checkpoint is None and run.lora_file.exists():
        return run.lora_file
    folders = {int(folder.name): folder for folder in complete_checkpoints(run)}
    wanted = max(folders, default=None) if checkpoint is None else checkpoint
    if wanted not in folders:
        missing = "LoRA or checkpoint" if checkpoint is None else f"checkpoint of step {checkpoint}"
        steps = ", ".join(map(str, folders)) or "none"
        raise RunError(f"{run.id} has no {missing}. Checkpoints there are: {steps}.")
    file = folders[wanted] / LORA_FILE
    if not file.exists():
        for other in folders.values():
            (other / LORA_FILE).unlink(missing_ok=True)
        from safetensors.numpy import load_file

        save_lora(file, load_file(folders[wanted] / "student.safetensors"), run.config, wanted)
    return file
