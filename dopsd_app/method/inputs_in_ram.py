"""What blocks are recomputed from waits in the computer's memory until the backward pass comes to it."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

LEAST = 2**20  # bytes: what is smaller is not worth a copy


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

        def pack(tensor: Tensor) -> Tensor | tuple[Tensor, torch.device]:
            return (copy_to_ram(tensor), tensor.device) if tensor.data_ptr() in moved else tensor

        def unpack(packed: Tensor | tuple[Tensor, torch.device]) -> Tensor:
            return packed if isinstance(packed, Tensor) else copy_back(*packed)

        super().__init__(pack, unpack)


def copy_to_ram(tensor: Tensor) -> Tensor:
    """A copy in the computer's memory, which a card writes while it computes on."""
    if tensor.device.type != "cuda":
        return tensor.clone()
    stream = _copying(tensor.device)
    stream.wait_stream(torch.cuda.current_stream(tensor.device))
    # Page-locked: a card can write it by itself.
    copy = torch.empty_like(tensor, device="cpu", pin_memory=True)
    with torch.cuda.stream(stream):
        copy.copy_(tensor, non_blocking=True)
    # Its memory may be used again only after the copy.
    tensor.record_stream(stream)
    return copy


def copy_back(copy: Tensor, device: torch.device) -> Tensor:
    """The tensor on its device again, for what is computed next there."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).wait_stream(_copying(device))
    return copy.to(device, non_blocking=True)


@cache
def _copying(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
