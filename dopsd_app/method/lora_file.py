"""LoRA files as other programs read them."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from dopsd_app.config import OBJECTIVES, TrainConfig
from dopsd_app.files import replace_file
from dopsd_app.jobs.lora_file import LORA_SCHEMA
from dopsd_app.schema import stamp


def save_lora(path: Path, weights: Mapping[str, np.ndarray], config: TrainConfig, steps: int) -> None:
    """Writes an adapter as diffusers and ComfyUI read it: `transformer.<module>.lora_A/lora_B.weight`.

    The strength (alpha / rank) is folded into B and no alpha is written: every loader then applies exactly 1.
    What a person may want to know stands in the metadata, under a key of our own.
    """
    tensors = {
        f"transformer.{name}": np.ascontiguousarray(weight * (config.strength if "lora_B" in name else 1))
        for name, weight in weights.items()
    }
    facts = {
        **stamp(LORA_SCHEMA),
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
