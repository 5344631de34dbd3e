"""What blocks are recomputed from waits in the computer's memory until the backward pass comes to it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dopsd_app.models.memory_plan import ComputersMemoryError

LEAST = 2**20  # bytes: what is smaller is not worth a copy
SMALLEST = 2**16  # bytes, of a piece


@dataclass(frozen=True)
class Copy:
    """A tensor's bytes in the computer's memory, and what it was."""

    pieces: Sequence[Tensor]
    shape: torch.Size
    dtype: torch.dtype


class InputsInRam(torch.autograd.graph.saved_tensors_hooks):
    """Meanwhile, of what is saved for the backward pass, the large ones of these inputs are moved.

    Those that need no gradient (positions, masks) stay: all blocks share them.
    """

    def __init__(self, inputs: Iterable[Any]):
        # By their place: what hooks are given is detached, and tells nothing of gradients. A small piece of
        # a large tensor would hold all of it.
        moved = {
            value.data_ptr()
            for value in inputs
            if isinstance(value, Tensor) and value.requires_grad and value.untyped_storage().nbytes() >= LEAST
        }

        def pack(tensor: Tensor) -> Tensor | tuple[Copy, torch.device]:
            return (copy_to_ram(tensor), tensor.device) if tensor.data_ptr() in moved else tensor

        def unpack(packed: Tensor | tuple[Copy, torch.device]) -> Tensor:
            return packed if isinstance(packed, Tensor) else copy_back(*packed)

        super().__init__(pack, unpack)


def copy_to_ram(tensor: Tensor) -> Copy:
    """A copy in the computer's memory, which a card writes while it computes on."""
    # Before the copying stream is told what to wait for: this may be work of the computing one.
    together = tensor.contiguous().view(torch.uint8).flatten()
    stream = _copying(tensor.device)
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream(tensor.device))
    # Page-locked for a card, which can then write it by itself.
    try:
        pieces = [
            torch.empty(size, dtype=torch.uint8, pin_memory=stream is not None)
            for size in piece_sizes(together.numel())
        ]
    except RuntimeError as error:
        raise ComputersMemoryError(f"{together.numel()} bytes could not be pinned: {error}") from error
    with torch.cuda.stream(stream):
        for piece, part in _parts(pieces, together):
            piece.copy_(part, non_blocking=True)
    if stream is not None:
        # Its memory may be used again only after the copy.
        together.record_stream(stream)
    return Copy(pieces, tensor.shape, tensor.dtype)


def copy_back(copy: Copy, device: torch.device) -> Tensor:
    """The tensor on its device again, for what is computed next there."""
    stream = _copying(device)
    if stream is not None:
        torch.cuda.current_stream(device).wait_stream(stream)
    tensor = torch.empty(copy.shape, dtype=copy.dtype, device=device)
    for piece, part in _parts(copy.pieces, tensor.view(torch.uint8).flatten()):
        part.copy_(piece, non_blocking=True)
    return tensor


def piece_sizes(size: int) -> list[int]:
    """Powers of two that make up so many bytes, but for the last: torch rounds what it pins up to one."""
    sizes = []
    while size > 0:
        sizes.append(max(1 << (size.bit_length() - 1), SMALLEST))
        size -= sizes[-1]
    return sizes


def _parts(pieces: Sequence[Tensor], together: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each piece, as far as it is used, and the part of all bytes that is in it."""
    start = 0
    for piece in pieces:
        part = together[start : start + piece.numel()]
        yield piece[: part.numel()], part
        start += piece.numel()


@cache
def _copying(device: torch.device) -> torch.cuda.Stream | None:
    """Where a card copies beside what it computes."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None
