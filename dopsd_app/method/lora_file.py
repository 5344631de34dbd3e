"""LoRA files as other programs read them."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from dopsd_app.files import replace_file


def save_lora(
    path: Path, weights: Mapping[str, np.ndarray], strength: float, metadata: Mapping[str, str]
) -> None:
    """Writes an adapter as diffusers and ComfyUI read it: `transformer.<module>.lora_A/lora_B.weight`.

    The strength (alpha / rank) is folded into B and no alpha is written: every loader then applies exactly 1.
    """
    tensors = {
        f"transformer.{name}": np.ascontiguousarray(weight * (strength if "lora_B" in name else 1))
        for name, weight in weights.items()
    }
    content = memoryview(save(tensors))
    start = 8 + int.from_bytes(content[:8], "little")
    # The library writes metadata in no fixed order, and the same LoRA is to be the same bytes.
    header = {"__metadata__": dict(metadata), **json.loads(bytes(content[8:start]))}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers behind it are aligned
    replace_file(path, [len(text).to_bytes(8, "little"), text, content[start:]])
