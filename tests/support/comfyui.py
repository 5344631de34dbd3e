"""Where ComfyUI puts a LoRA's tensors, as facts of its key maps (comfy/lora.py and comfy/utils.py, 2026).

Its own modules hold some of diffusers' side by side: a LoRA of one of those changes a part of their rows.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A module of ComfyUI's, and which of how many equal parts of its rows."""

    module: str
    part: int = 0
    parts: int = 1


# diffusers' name (with the block's number): ComfyUI's name, and the part of its rows.
Z_IMAGE = {
    r"((?:layers|noise_refiner|context_refiner)\.\d+)\.attention\.to_q": (r"\1.attention.qkv", 0, 3),
    r"((?:layers|noise_refiner|context_refiner)\.\d+)\.attention\.to_k": (r"\1.attention.qkv", 1, 3),
    r"((?:layers|noise_refiner|context_refiner)\.\d+)\.attention\.to_v": (r"\1.attention.qkv", 2, 3),
    r"((?:layers|noise_refiner|context_refiner)\.\d+)\.attention\.to_out\.0": (r"\1.attention.out", 0, 1),
    r"((?:layers|noise_refiner|context_refiner)\.\d+)\.feed_forward\.(w[123])": (
        r"\1.feed_forward.\2",
        0,
        1,
    ),
}
FLUX2 = {
    r"transformer_blocks\.(\d+)\.attn\.to_q": (r"double_blocks.\1.img_attn.qkv", 0, 3),
    r"transformer_blocks\.(\d+)\.attn\.to_k": (r"double_blocks.\1.img_attn.qkv", 1, 3),
    r"transformer_blocks\.(\d+)\.attn\.to_v": (r"double_blocks.\1.img_attn.qkv", 2, 3),
    r"transformer_blocks\.(\d+)\.attn\.add_q_proj": (r"double_blocks.\1.txt_attn.qkv", 0, 3),
    r"transformer_blocks\.(\d+)\.attn\.add_k_proj": (r"double_blocks.\1.txt_attn.qkv", 1, 3),
    r"transformer_blocks\.(\d+)\.attn\.add_v_proj": (r"double_blocks.\1.txt_attn.qkv", 2, 3),
    r"transformer_blocks\.(\d+)\.attn\.to_out\.0": (r"double_blocks.\1.img_attn.proj", 0, 1),
    r"transformer_blocks\.(\d+)\.attn\.to_add_out": (r"double_blocks.\1.txt_attn.proj", 0, 1),
    r"transformer_blocks\.(\d+)\.ff\.linear_in": (r"double_blocks.\1.img_mlp.0", 0, 1),
    r"transformer_blocks\.(\d+)\.ff\.linear_out": (r"double_blocks.\1.img_mlp.2", 0, 1),
    r"transformer_blocks\.(\d+)\.ff_context\.linear_in": (r"double_blocks.\1.txt_mlp.0", 0, 1),
    r"transformer_blocks\.(\d+)\.ff_context\.linear_out": (r"double_blocks.\1.txt_mlp.2", 0, 1),
    r"single_transformer_blocks\.(\d+)\.attn\.to_qkv_mlp_proj": (r"single_blocks.\1.linear1", 0, 1),
    r"single_transformer_blocks\.(\d+)\.attn\.to_out": (r"single_blocks.\1.linear2", 0, 1),
}
PREFIX, A, B = "transformer.", ".lora_A.weight", ".lora_B.weight"


def place_of(module: str, names: dict) -> Place | None:
    """Where a module's change goes; None for one that is not in the map, which ComfyUI leaves out."""
    for pattern, (target, part, parts) in names.items():
        if found := re.fullmatch(pattern, module):
            return Place(found.expand(target), part, parts)
    return None


def changes_of(tensors: dict, names: dict) -> tuple[dict, list[str]]:
    """What a LoRA file adds to the weights at each place, and the keys that nothing is made of.

    Without an alpha in the file, ComfyUI takes the rank for it: the change is B @ A.
    """
    changes, unused = {}, []
    for key in tensors:
        module = key.removeprefix(PREFIX).removesuffix(A).removesuffix(B)
        place = place_of(module, names) if key.startswith(PREFIX) else None
        if place is None or not key.endswith((A, B)):
            unused.append(key)
        elif key.endswith(A):
            changes[place] = tensors[PREFIX + module + B] @ tensors[key]
    return changes, unused
