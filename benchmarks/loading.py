"""How much of the computer's own memory it takes to load parts as large as Z-Image-Turbo's tensors are.

Each part is saved as it lies on the Hub (float32 transformer, bfloat16 text encoder, three shards and an
index), with Z-Image-Turbo's widths and fewer layers, about a tenth of its bytes. Every number is random.

    python -m benchmarks.loading
"""

import argparse
import json
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers import ZImageTransformer2DModel
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3Model

from benchmarks.record import save_result
from dopsd_app.models.frozen import load_frozen
from dopsd_app.models.quantize import quantize_layer
from dopsd_app.models.z_image import ZImage

MB = 1024**2
SMALL = Path("assets/pocket-turbo")
SHARDS = 3
TRANSFORMER = {"n_layers": 2, "n_refiner_layers": 1}  # of 30 and 2
TEXT = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 3, "num_attention_heads": 32}
TEXT |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32_000}  # of 36 layers, 151,936 tokens
CASES = (
    ("transformer", "bfloat16"),
    ("transformer", "nf4"),
    ("transformer", "float32"),
    ("text_encoder", "bfloat16"),
)
COLUMNS = (
    "part",
    "to",
    "way",
    "program_mb",
    "result_mb",
    "tensor_mb",
    "peak_mb",
    "above_in_tensors",
    "seconds",
)


# --- the parts on disk


def save_parts(folder: Path) -> None:
    """A float32 transformer and a bfloat16 text encoder; one shard at a time is in memory."""
    with init_empty_weights():
        transformer = ZImageTransformer2DModel(**TRANSFORMER)
        text_encoder = Qwen3Model(Qwen3Config(**TEXT))
    transformer.save_config(folder / "transformer")
    text_encoder.config.save_pretrained(folder / "text_encoder")
    save_shards(transformer, folder / "transformer", "diffusion_pytorch_model", torch.float32)
    save_shards(text_encoder, folder / "text_encoder", "model", torch.bfloat16, prefix="model.")


def save_shards(
    module: torch.nn.Module, folder: Path, stem: str, dtype: torch.dtype, prefix: str = ""
) -> None:
    """Random weights for a module that is on "meta", in shards of about the same size, and their index."""
    index = {}
    for number, shapes in enumerate(split(module), start=1):
        file = f"{stem}-{number:05}-of-{SHARDS:05}.safetensors"
        weights = {
            f"{prefix}{name}": torch.empty(shape, dtype=dtype).normal_(0, 0.02) for name, shape in shapes
        }
        save_file(weights, folder / file)
        index |= dict.fromkeys(weights, file)
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def split(module: torch.nn.Module) -> Iterator[list[tuple[str, torch.Size]]]:
    """Names and shapes of a module's tensors, shard by shard."""
    tensors = [(name, tensor.shape) for name, tensor in module.state_dict().items()]
    numbers, total, bounds = 0, sum(shape.numel() for _, shape in tensors), [0]
    for place, (_, shape) in enumerate(tensors):
        numbers += shape.numel()
        if numbers >= len(bounds) * total / SHARDS:
            bounds.append(place + 1)
    return (tensors[start:end] for start, end in pairwise([*bounds[:SHARDS], len(tensors)]))


# --- loading


def load_ours(folder: Path, part: str, to: str) -> torch.nn.Module:
    """A part as the product loads it."""
    device, folder = torch.device("cpu"), folder / part
    if part == "text_encoder":
        config = Qwen3Config.from_pretrained(folder)
        return load_frozen(lambda: Qwen3Model(config), folder, torch.bfloat16, device, prefix="model.")
    config = ZImageTransformer2DModel.load_config(folder)
    return load_frozen(
        lambda: ZImageTransformer2DModel.from_config(config),
        folder,
        torch.float32 if to == "float32" else torch.bfloat16,
        device,
        quantization="nf4" if to == "nf4" else "none",
        targets=ZImage.lora_targets,
    )


def load_theirs(folder: Path, part: str, to: str) -> torch.nn.Module:
    """A part as the libraries load it; they quantize on cards alone, so nf4 comes afterwards."""
    model_class = Qwen3Model if part == "text_encoder" else ZImageTransformer2DModel
    dtype = torch.float32 if to == "float32" else torch.bfloat16
    module = model_class.from_pretrained(folder / part, dtype=dtype, use_safetensors=True)
    if to == "nf4":
        for name in [name for name, _ in module.named_modules() if re.fullmatch(ZImage.lora_targets, name)]:
            module.set_submodule(name, quantize_layer(module.get_submodule(name), "nf4"))
    return module


WAYS: dict[str, Callable] = {"ours": load_ours, "from_pretrained": load_theirs}


def measure(folder: Path, part: str, to: str, way: str) -> dict:
    """What loading one part took, in a process of its own."""
    # The built-in base first: what the libraries load of themselves on the way belongs to the program.
    WAYS[way](SMALL, part, to)
    program, started = read_memory("VmRSS"), time.perf_counter()
    module = WAYS[way](folder, part, to)
    seconds = time.perf_counter() - started
    # Used once: from_pretrained leaves weights in the file where nothing is cast, and reads them only now.
    for weight in module.parameters():
        weight.sum()
    peak = read_memory("VmHWM")
    result, tensor = result_bytes(module), largest_tensor(folder / part)
    return {
        "part": part,
        "to": to,
        "way": way,
        "program_mb": round(program / MB),
        "result_mb": round(result / MB),
        "tensor_mb": round(tensor / MB),  # the largest, as it is stored
        "peak_mb": round(peak / MB),
        "above_in_tensors": round((peak - program - result) / tensor, 2),
        "seconds": round(seconds, 1),
    }


def read_memory(field: str) -> int:
    """Bytes of this process in memory, now (VmRSS) or at the most (VmHWM), pages of mapped files included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def result_bytes(module: torch.nn.Module) -> int:
    """Bytes of a module's weights and buffers, with what nf4 needs beside its weights."""
    tensors = [*module.parameters(), *module.buffers()]
    for layer in module.modules():
        # The names of bitsandbytes' own format tell its statistics from the weights.
        tensors += [value for name, value in layer.state_dict().items() if name.startswith("weight.")]
    return sum(tensor.nbytes for tensor in tensors)


def largest_tensor(folder: Path) -> int:
    sizes = []
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        ends = [tensor["data_offsets"] for name, tensor in header.items() if name != "__metadata__"]
        sizes += [end - start for start, end in ends]
    return max(sizes)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    rows, spawn = [], multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "base"
        with spawn.Pool(1) as pool:
            pool.apply(save_parts, (folder,))
        stored = sum(file.stat().st_size for file in folder.glob("*/*.safetensors"))
        os.sync()  # what is still being written would take time from the first case
        print("  ".join(COLUMNS))
        for part, to in CASES:
            for way in WAYS:
                with spawn.Pool(1) as pool:  # a process for each: none finds what another left in memory
                    rows.append(pool.apply(measure, (folder, part, to, way)))
                print("  ".join(f"{rows[-1][name]!s:>{len(name)}}" for name in COLUMNS), flush=True)
    print(save_result("loading", {"stored_mb": round(stored / MB), "rows": rows}))


if __name__ == "__main__":
    main()
