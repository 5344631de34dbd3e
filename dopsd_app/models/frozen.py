"""Frozen parts of a base model, read one tensor at a time: memory holds the result and one tensor more."""

import json
import re
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dopsd_app.models.architecture import BaseModelError
from dopsd_app.models.pipeline_folder import ELSEWHERE, read_elsewhere
from dopsd_app.models.quantize import QUANTIZATIONS, quantize_layer
from dopsd_app.models.single_file import PREFIX

Module = TypeVar("Module", bound=torch.nn.Module)

# As diffusers and transformers name them; a variant (`model.fp16.safetensors`) is another file's copy.
WEIGHTS_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names of numbers that can be cast without a scale
KINDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int8: "I8",
    torch.uint8: "U8",
}
NAMED = 5  # weights that a message names; the rest is counted


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies, and what its file's header tells of it."""

    file: Path
    name: str  # in the file
    dtype: str
    shape: tuple[int, ...]
    value: Tensor | None = None  # of one that is known already: a view into its file


def load_frozen(
    make: Callable[[], Module],
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    *,
    prefix: str = "",
    quantization: str = "none",
    targets: str = "",
    unread: str = "",
    prepared: dict[str, StoredTensor] | None = None,
    waiting: Callable[[torch.nn.Module], Iterable[torch.nn.Module]] = lambda _: (),
    take: Callable[[torch.nn.Module], None] = lambda _: None,
    original: str = "",
) -> Module:
    """The module that `make` builds, with the weights of a folder, cast to `dtype`, on `device`.

    Where names in the folder begin with `prefix`, those alone are read, without it; where none does, all are.
    `original` is diffusers' class whose weights may lie in a single file under other names.
    Linear layers whose names match `targets` are quantized as soon as they are read. Where the result was
    kept (`prepared`: what `state_dict` gave), it is read, and nothing in the folder. Tensors whose names
    match `unread` are only checked to be there, and are placeholders. The weights of the modules that
    `waiting` chooses stay in the computer's memory, and each is given to `take` as soon as it has them all.
    Only safetensors files are read: a pickle could run code. Each name that the module knows must be stored,
    tied weights too.

    Raises `BaseModelError` for files that are missing or damaged, and before any tensor is read for weights
    that do not fit the module.
    """
    # Buffers are made as ever: rotary frequencies are computed then, and lie in no file.
    with init_empty_weights(include_buffers=False):
        module = make()
    module.eval().requires_grad_(False)
    wanted = module.state_dict()
    if prepared is None:
        stored = _read_original(folder, original) if original else {}
        stored = stored or read_headers(folder, prefix)
        _check_fit(folder, wanted, stored)
    names_of = {part: name for name, part in module.named_modules()}
    blocks = {names_of[part]: block for block in waiting(module) for part in block.modules()}
    del names_of  # it would keep each layer that a quantized one takes the place of
    before = None
    for layer, names in groupby(wanted, key=lambda name: name.rpartition(".")[0]):
        block = blocks.get(layer)
        if before is not None and block is not before:
            take(before)
        before = block
        rests = device if block is None else torch.device("cpu")
        is_quantized = quantization != "none" and re.fullmatch(targets, layer)
        place = device if is_quantized else rests  # a card quantizes faster
        if prepared is None:
            for name in names:
                if unread and re.fullmatch(unread, name):
                    tensor = placeholder(wanted[name].shape, dtype, place)
                else:
                    tensor = read_tensor(stored[name], dtype, place)
                _put(module, name, tensor)
            if is_quantized:
                _quantize(module, layer, quantization)
        elif is_quantized:
            _restore(module, layer, quantization, prepared, place)
        else:
            for name in names:
                _put(module, name, read_tensor(prepared[name], None, place))
        for weight in module.get_submodule(layer).parameters(recurse=False):
            weight.data = weight.data.to(rests)  # what NF4 has beside it is small, and stays
    if before is not None:
        take(before)
    # Those that were made with the module, and lie in no file.
    for name, buffer in module.named_buffers():
        _put(module, name, buffer.to(device))
    return module


def _quantize(module: torch.nn.Module, layer: str, quantization: str) -> None:
    linear = module.get_submodule(layer)
    assert isinstance(linear, torch.nn.Linear)  # a LoRA's targets are no others
    module.set_submodule(layer, quantize_layer(linear, quantization))


def _restore(
    module: torch.nn.Module,
    layer: str,
    quantization: str,
    prepared: dict[str, StoredTensor],
    device: torch.device,
) -> None:
    """Makes a quantized layer of what one gave to be kept."""
    linear, how = module.get_submodule(layer), QUANTIZATIONS[quantization]
    assert isinstance(linear, torch.nn.Linear)
    tensors = {part: read_tensor(prepared[f"{layer}.{part}"], None, device) for part in how.parts}
    bias = None
    if linear.bias is not None:
        bias = torch.nn.Parameter(read_tensor(prepared[f"{layer}.bias"], None, device), requires_grad=False)
    module.set_submodule(layer, how.make(linear, tensors, bias))


def _put(module: torch.nn.Module, name: str, tensor: Tensor) -> None:
    # Clearing the cache for every tensor would collect garbage hundreds of times.
    set_module_tensor_to_device(module, name, tensor.device, tensor, dtype=tensor.dtype, clear_cache=False)


def placeholder(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What stands for a weight that is elsewhere: one number in memory; whoever computes with it notices."""
    # By a kernel: a number that is copied there would wait for all that the device still computes.
    number = torch.full((), float("nan") if dtype.is_floating_point else 0, dtype=dtype, device=device)
    return number.expand(shape)


def is_placeholder(tensor: Tensor) -> bool:
    return tensor.numel() > 1 and tensor.untyped_storage().nbytes() == tensor.element_size()


def read_tensor(stored: StoredTensor, dtype: torch.dtype | None, device: torch.device) -> Tensor:
    """A tensor with memory of its own, in `dtype` if it is one of floats, or as it is stored."""
    # A file that stays open for the next tensor keeps the pages of all that were read before.
    if stored.value is not None:
        mapped = stored.value
    else:
        with open_weights(stored.file) as file:
            mapped = file.get_tensor(stored.name)
    return move(mapped, dtype, device)


def move(mapped: Tensor, dtype: torch.dtype | None, device: torch.device) -> Tensor:
    """The same for a tensor that is still in its file."""
    # Moved first: cast first, a card's computer would hold the tensor in both dtypes.
    tensor = mapped.to(device)
    if dtype is not None and mapped.is_floating_point():
        tensor = tensor.to(dtype)
    # Where nothing was to do, this is still the file: its pages would stay, and a file that is written anew
    # would change the weights or end the program.
    return tensor.clone() if tensor.data_ptr() == mapped.data_ptr() else tensor


# --- what the files hold


def read_headers(folder: Path, prefix: str) -> dict[str, StoredTensor]:
    """The tensors in a folder by their names without `prefix`; no tensor is read."""
    tensors = {}
    for file in _find_files(folder, prefix):
        with open_weights(file) as header:
            for name in header.keys():  # noqa: SIM118 (not a dict)
                tensor = header.get_slice(name)
                tensors[name] = StoredTensor(file, name, tensor.get_dtype(), tuple(tensor.get_shape()))
    return {name.removeprefix(prefix): tensors[name] for name in _select(tensors, prefix)}


def _read_original(folder: Path, original: str) -> dict[str, StoredTensor]:
    """The tensors of a part that lies as a single file of its original release, under diffusers' names.

    Empty for any other part. The file stays open as long as they are: its pages are the system's, which takes
    them back where it needs them.
    """
    if not (folder / ELSEWHERE).is_file():
        return {}
    files = read_elsewhere(folder)
    with open_weights(files[0]) as opened:
        tensors = {name.removeprefix(PREFIX): opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    # By its class; their own annotation counts all values of its table as one kind.
    convert: Any = SINGLE_FILE_LOADABLE_CLASSES.get(original, {}).get("checkpoint_mapping_fn")
    if len(files) > 1 or convert is None or not _is_original(tensors):
        return {}
    converted = convert(checkpoint=tensors, config=json.loads((folder / "config.json").read_bytes()))
    return {
        name: StoredTensor(
            files[0], name, KINDS.get(value.dtype, str(value.dtype)), tuple(value.shape), value
        )
        for name, value in converted.items()
    }


def _is_original(names: Iterable[str]) -> bool:
    """Whether tensors have the names of an original release, in which queries, keys and values are one."""
    return any(re.search(r"\.qkv\.weight$|^encoder\.down\.0\.", name) for name in names)


def _find_files(folder: Path, prefix: str) -> list[Path]:
    """The files that hold the tensors: of an index, only those that are needed must be there."""
    if (folder / ELSEWHERE).is_file():
        return read_elsewhere(folder)
    for weights in WEIGHTS_NAMES:
        index = folder / f"{weights}.index.json"
        if index.is_file():
            try:
                files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
                return [folder / file for file in sorted({files[name] for name in _select(files, prefix)})]
            except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
                raise BaseModelError(f"{_place(folder)}/{index.name} is damaged: fetch it again.") from error
        if (folder / weights).is_file():
            return [folder / weights]
    raise BaseModelError(
        f"{_place(folder)} is incomplete, it holds no weights: fetch {' or '.join(WEIGHTS_NAMES)} again."
    )


def _select(names: dict, prefix: str) -> list[str]:
    return [name for name in names if name.startswith(prefix)] or list(names)


@contextmanager
def open_weights(file: Path) -> Generator[safe_open]:
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except FileNotFoundError as error:
        raise BaseModelError(
            f"{_place(file.parent)} is incomplete: it lacks {file.name}. Fetch it again."
        ) from error
    except (OSError, SafetensorError) as error:
        raise BaseModelError(
            f"{_place(file.parent)}/{file.name} is damaged: fetch it again. ({error})"
        ) from error


def _place(folder: Path) -> str:
    """The last parts of a path, enough to find it: the model's folder and the part's."""
    return "/".join(folder.absolute().parts[-2:])


# --- whether it fits


def _check_fit(folder: Path, wanted: dict[str, Tensor], stored: dict[str, StoredTensor]) -> None:
    """Raises `BaseModelError` for all that is wrong: a part with a few random weights gives no other sign."""
    both = wanted.keys() & stored.keys()
    problems = {
        "lacks weights": wanted.keys() - stored.keys(),
        "has unknown weights": stored.keys() - wanted.keys(),
        "has weights of other shapes": [
            f"{name} ({_size(stored[name].shape)}, not {_size(wanted[name].shape)})"
            for name in both
            if stored[name].shape != wanted[name].shape
        ],
        "has numbers of other kinds, where float32, float16 or bfloat16 are read": [
            f"{name} ({stored[name].dtype})"
            for name in both
            # A count that was stored as a float is the same count.
            if wanted[name].is_floating_point() and stored[name].dtype not in FLOATS
        ],
    }
    sentences = [f"{problem}: {_list(names)}." for problem, names in problems.items() if names]
    if sentences:
        raise BaseModelError(f"{_place(folder)} {' It '.join(sentences)} Fetch it again, or take another.")


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def _list(names) -> str:
    first, rest = sorted(names)[:NAMED], len(names) - NAMED
    return ", ".join(first) + (f" and {rest} more" if rest > 0 else "")
