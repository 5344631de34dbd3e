"""Blocks of a transformer whose frozen weights wait in the computer's memory, and are copied in turn.

Two buffers on the device take them: while one block computes, the next is copied. Nothing is ever copied
back, since nothing changes these weights.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from dopsd_app.models.frozen import placeholder
from dopsd_app.models.memory_plan import ComputersMemoryError

ALIGNED = 512  # bytes: where a tensor may begin, as the device's own allocator has it
SMALLEST = 4096  # bytes of pinned memory, a page


def first_blocks(block_lists: Sequence[str], number: int, transformer: Module) -> list[Module]:
    """The first so many blocks of a transformer, in the order of a pass; all, where it has no more."""
    return [block for blocks in block_lists for block in transformer.get_submodule(blocks).children()][
        :number
    ]


class StoredBlock:
    """A block's weights, side by side in memory that the device can read by itself.

    The block is left with placeholders on the device: whatever adapts a layer later looks there for it.
    """

    def __init__(self, block: Module, device: torch.device):
        # The very tensors: what adapts a layer changes their names, and adds weights that stay.
        self.parameters = list(block.parameters())
        self.starts, self.size = _layout(self.parameters)
        together = torch.empty(self.size, dtype=torch.uint8)
        for parameter, start in zip(self.parameters, self.starts, strict=True):
            _view(together, start, parameter).copy_(parameter.data)
        self.pieces = _to_pieces(together, pinned=device.type == "cuda")
        self.placeholders = [placeholder(each.shape, each.dtype, device) for each in self.parameters]
        self.point(self.placeholders)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The weights in a buffer that holds them side by side."""
        return [
            _view(buffer, start, like) for start, like in zip(self.starts, self.placeholders, strict=True)
        ]

    def point(self, tensors: list[Tensor]) -> None:
        """Has the block compute with these."""
        for parameter, tensor in zip(self.parameters, tensors, strict=True):
            parameter.data = tensor


class OffloadedBlocks:
    """Has each block's weights on the device while it computes, and while it is computed anew.

    `blocks` come in the order of a pass. Their activations must be made anew in the backward pass
    (`torch.utils.checkpoint`, not reentrant), for autograd would otherwise keep weights that have left; those
    are NaN, or refused by NF4's product, so that it would be noticed.

    A block always has the same buffer, and its neighbours have the other one. What is copied for a block
    overwrites one that is two further: a forward pass has left it, and so has a backward pass, in which a
    block is recomputed only when those behind it have their gradients. On a card the copy waits for all that
    was asked of the card before, and the block waits for its copy.
    """

    def __init__(self, blocks: dict[Module, StoredBlock], device: torch.device):
        self.places = {block: place for place, block in enumerate(blocks)}
        self.stored = list(blocks.values())
        largest = max(block.size for block in self.stored)
        count = min(2, len(blocks))
        self.buffers = [torch.empty(largest, dtype=torch.uint8, device=device) for _ in range(count)]
        # Of a block's weights in its buffer.
        self.views = [block.views(self.buffers[place % 2]) for place, block in enumerate(self.stored)]
        self.held: list[int | None] = [None, None]  # the place of the block in each buffer
        self.last, self.step = 0, 1
        on_card = device.type == "cuda"
        self.stream = torch.cuda.Stream(device) if on_card else None
        self.copied = [torch.cuda.Event() for _ in range(2)] if on_card else []
        for block in blocks:
            block.forward = _Fetching(self, block, block.forward)

    def fetch(self, block: Module) -> None:
        """Has a block's weights on the device for what is computed next, and copies the next block's.

        The pass goes on the way it came: to the next block, or in a backward pass to the one before. A block
        that is not offloaded has its weights. One that is computed in parts may be asked for before each.
        """
        place = self.places.get(block)
        if place is None:
            return
        if place in (0, len(self.places) - 1):
            self.step = 1 if place == 0 else -1  # what is behind the end is not asked for: no harm is done
        elif place != self.last:
            self.step = 1 if place > self.last else -1
        self.last = place
        self._copy(place)
        if self.stream is not None:
            torch.cuda.current_stream(self.stream.device).wait_event(self.copied[place % 2])
        if 0 <= place + self.step < len(self.places):
            self._copy(place + self.step)

    @torch.no_grad()
    def _copy(self, place: int) -> None:
        """Copies a block's weights into its buffer, unless they are there."""
        number = place % 2
        before = self.held[number]
        if before == place:
            return
        if before is not None:
            self.stored[before].point(self.stored[before].placeholders)
        buffer = self.buffers[number]
        if self.stream is None:
            _fill(buffer, self.stored[place].pieces)
        else:
            self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
            with torch.cuda.stream(self.stream):
                _fill(buffer, self.stored[place].pieces)
                self.copied[number].record()
            buffer.record_stream(self.stream)
        self.stored[place].point(self.views[place])
        self.held[number] = place


class _Fetching:
    """A block's forward pass with its weights fetched before."""

    def __init__(self, offloaded: OffloadedBlocks, block: Module, forward):
        self.offloaded, self.block, self.forward = offloaded, block, forward

    def __call__(self, *args, **options):
        self.offloaded.fetch(self.block)
        return self.forward(*args, **options)


def _layout(parameters: Sequence[Parameter]) -> tuple[list[int], int]:
    """Where each tensor begins, and the bytes of all."""
    starts, end = [], 0
    for parameter in parameters:
        starts.append(end)
        end += -(-parameter.nbytes // ALIGNED) * ALIGNED
    return starts, end


def _view(flat: Tensor, start: int, like: Tensor) -> Tensor:
    return flat[start : start + like.nbytes].view(like.dtype).view(like.shape)


def _to_pieces(together: Tensor, *, pinned: bool) -> tuple[Tensor, ...]:
    """Bytes in pieces of a power of two each: as torch rounds up what it pins, one piece could take double.

    Raises `ComputersMemoryError` where the system pins no more.
    """
    pieces, start = [], 0
    while (left := together.numel() - start) > 0:
        size = max(1 << (left.bit_length() - 1), SMALLEST)
        try:
            piece = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        except RuntimeError as error:
            raise ComputersMemoryError(f"{size} bytes could not be pinned: {error}") from error
        pieces.append(piece[: min(size, left)].copy_(together[start : start + size]))
        start += size
    return tuple(pieces)


def _fill(buffer: Tensor, pieces: Sequence[Tensor]) -> None:
    start = 0
    for piece in pieces:
        buffer[start : start + piece.numel()].copy_(piece, non_blocking=True)
        start += piece.numel()
