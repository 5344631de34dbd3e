"""The blocks of a transformer, as a memory plan counts them, and what their halves have in common."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from dopsd_app.models.architecture import CHUNK
from dopsd_app.models.protocol import Transformer


class Run(Protocol):
    """How a part of a block is run: what it makes of block and values, recomputed for the backward pass."""

    def __call__(self, part: Callable, block: Any, /, *values: Any) -> Any: ...


def blocks_of(transformer: Transformer, block_lists: Sequence[str]) -> list[Any]:
    """Its blocks in the order in which a pass goes through them."""
    return [block for name in block_lists for block in transformer.get_submodule(name)]


def in_chunks(function: Callable[..., Tensor], *tokens: Tensor) -> Tensor:
    """What a function makes of tokens (B, T, ...), a number of them at a time."""
    made = [function(*chunks) for chunks in chunks_of(*tokens)]
    return torch.cat(made, dim=1) if len(made) > 1 else made[0]


def chunks_of(*tokens: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """A number of tokens at a time, of each of these tensors (B, T, ...)."""
    return zip(*(each.split(CHUNK, dim=1) for each in tokens), strict=True)
