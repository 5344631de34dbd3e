"""A tiny random Qwen3-VL that writes words: they mean nothing, and depend on all that it is shown."""

import json
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file

from dopsd_app.gpus import Gpu
from dopsd_app.models.captioner import LoadedCaptioner, load_captioner
from dopsd_app.models.captioner_download import CaptionerPaths
from dopsd_app.planning.machine import Machine
from dopsd_app.torch_build import TorchBuild, installed_torch
from tests.support.real_layout import save_qwen_vl_repository, save_shards

GIB = 2**30
AREA = 64**2, 96**2
WORDS = (
    *("a", "blue", "red", "green", "old", "wide", "dark", "soft", "sofa", "garden", "street", "table"),
    *("window", "beach", "forest", "rain", "light", "evening", "near", "lies", "stands", "close"),
)


def save_captioner_repository(folder: Path, *, seed: int = 0, attention: float = 2.0) -> None:
    """Qwen/Qwen3-VL-4B-Instruct in the real layout, but for a tokenizer with some words of its own.

    The more `attention`, the more what is written depends on what is seen, and the less it ends by itself.
    """
    save_qwen_vl_repository(folder, seed=seed)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    first = 1 + max(map(int, config["added_tokens_decoder"]))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": False}
    words = dict(enumerate(WORDS, start=first))
    config["added_tokens_decoder"] |= {
        str(id): {"content": f" {word}", **flags} for id, word in words.items()
    }
    file.write_text(json.dumps(config))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    weights = {name: value.clone() for shard in shards for name, value in load_file(folder / shard).items()}
    _teach(weights, [*words, _end(config)], seed, attention)
    names = [name for name in index["weight_map"] if name in weights]
    save_shards(folder, "model", {name: weights[name] for name in names}, len(shards))


def _end(config: dict) -> int:
    """The token that ends an answer."""
    return next(
        int(id) for id, token in config["added_tokens_decoder"].items() if token["content"] == "<|im_end|>"
    )


def _teach(weights: dict[str, torch.Tensor], order: list[int], seed: int, attention: float) -> None:
    """Has each of these tokens follow the one before it; where it begins, what it is shown decides."""
    generator = torch.Generator().manual_seed(seed)
    prefix = "model.language_model."
    table = weights[f"{prefix}embed_tokens.weight"]
    drawn = torch.randn(table.shape, generator=generator)
    drawn = drawn / drawn.norm(dim=1, keepdim=True)
    loud = torch.full((len(table), 1), 0.05)
    loud[order] = 1.0
    weights[f"{prefix}embed_tokens.weight"] = (loud * drawn).to(table.dtype)
    last = max(name for name in weights if name.startswith(prefix) and name.endswith("mlp.down_proj.weight"))
    mlp = last.removesuffix("down_proj.weight")
    for part in ("gate_proj", "up_proj", "down_proj"):
        weights[f"{mlp}{part}.weight"] = torch.zeros_like(weights[f"{mlp}{part}.weight"])
    for place, (token, following) in enumerate(pairwise(order)):
        weights[f"{mlp}gate_proj.weight"][place] = 2 * drawn[token]
        weights[f"{mlp}up_proj.weight"][place] = 2 * drawn[token]
        weights[f"{mlp}down_proj.weight"][:, place] = drawn[following]
    for name in weights:
        if name.endswith(("o_proj.weight", "v_proj.weight")):
            weights[name] = weights[name] * attention


def load(folder: Path, quantization: str = "none") -> LoadedCaptioner:
    """The captioner of a folder, on the processor, which looks at small pictures."""
    place = CaptionerPaths(folder, folder)
    return load_captioner(place, torch.float32, torch.device("cpu"), quantization, AREA)


def with_card(gigabytes: int, free: int = 0) -> Machine:
    """A computer with a card of so much memory."""
    card = Gpu(
        "NVIDIA GeForce RTX 4070", gigabytes * GIB, (free or gigabytes) * GIB, capability=(8, 9), driver=600
    )
    return Machine((card,), TorchBuild("2.9.0", "12.8", ("sm_80", "sm_86", "sm_90")), 32 * GIB, 24 * GIB, 8)


def on_processor(gigabytes: int, cores: int = 2) -> Machine:
    """A computer without a card, with so much memory."""
    return Machine((), installed_torch(), gigabytes * GIB, gigabytes * GIB, cores)
