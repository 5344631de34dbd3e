"""What PyTorch's caching allocator for CUDA reserves for a sequence of allocations.

After c10/cuda/CUDACachingAllocator.cpp, for one stream: best fit, split, coalesce. What is freed is kept for
later, so that more is reserved than ever was allocated at once.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass

MIB = 2**20
GRANULARITY = 512  # bytes: sizes are rounded up to multiples
SMALL = MIB  # larger allocations come from the pool of large ones
SMALL_SEGMENT, LARGE_SEGMENT = 2 * MIB, 20 * MIB
OWN_SEGMENT = 10 * MIB  # from here on a segment is as large as what it is made for, but for a rounding
SEGMENT_MULTIPLE = 2 * MIB

ADDRESSES = 10**6 * LARGE_SEGMENT  # bytes: more than any card has

EMPTY_CACHE = (0, 0)  # torch.cuda.empty_cache(), in place of an allocation

Event = tuple[int, int]  # number of an allocation, negative where it is freed, and its bytes


def rounded(size: int, multiple: int = GRANULARITY) -> int:
    """Bytes that an allocation takes."""
    return max(1, -(-size // multiple)) * multiple


def reserved(events: Iterable[Event], expandable: bool = False) -> list[int]:
    """Bytes that are reserved after each event, whose sizes are `rounded`.

    `expandable` is with PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True.
    """
    pool_class = ExpandablePool if expandable else Pool
    small, large = pool_class(small=True), pool_class(small=False)
    taken: dict[int, tuple[Pool, Block]] = {}
    history = []
    for number, size in events:
        if (number, size) == EMPTY_CACHE:
            small.empty_cache()
            large.empty_cache()
        elif number > 0:
            pool = small if size <= SMALL else large
            taken[number] = pool, pool.allocate(size)
        else:
            pool, block = taken.pop(-number)
            pool.free(block)
        history.append(small.reserved + large.reserved)
    return history


@dataclass(eq=False, slots=True)
class Block:
    """A part of a segment, between its neighbours."""

    size: int
    is_free: bool = False
    is_mapped: bool = True  # only of an expandable segment, a part may be without memory
    before: "Block | None" = None
    after: "Block | None" = None


class Pool:
    """The segments for small or for large allocations."""

    def __init__(self, small: bool):
        self.small, self.reserved = small, 0
        # The free blocks, the smallest first; the second number makes keys unique.
        self.blocks: list[tuple[int, int, Block]] = []

    def allocate(self, size: int) -> Block:
        block = self._find(size)
        block = self._take(block) if block else self._grow(size)
        if self._is_split(rest := block.size - size):
            self._put(self._cut(block, size, rest))
        return block

    def free(self, block: Block) -> None:
        """Back into the pool, as one with its free neighbours."""
        if block.before and block.before.is_free:
            block = self._join(self._take(block.before), block)
        if block.after and block.after.is_free:
            block = self._join(block, self._take(block.after))
        self._put(block)

    def empty_cache(self) -> None:
        """Gives segments back of which nothing is in use."""
        for _, _, block in list(self.blocks):
            if block.before is None and block.after is None:
                self.reserved -= self._take(block).size

    def _find(self, size: int) -> Block | None:
        place = bisect_left(self.blocks, (size, 0))
        return self.blocks[place][2] if place < len(self.blocks) else None

    def _grow(self, size: int) -> Block:
        """A new segment."""
        if self.small:
            new = Block(SMALL_SEGMENT)
        else:
            new = Block(LARGE_SEGMENT if size < OWN_SEGMENT else rounded(size, SEGMENT_MULTIPLE))
        self.reserved += new.size
        return new

    def _is_split(self, rest: int) -> bool:
        return rest >= GRANULARITY if self.small else rest > SMALL

    def _put(self, block: Block) -> None:
        block.is_free = True
        insort(self.blocks, (block.size, id(block), block))

    def _take(self, block: Block) -> Block:
        del self.blocks[bisect_left(self.blocks, (block.size, id(block)))]
        block.is_free = False
        return block

    def _cut(self, block: Block, size: int, rest: int) -> Block:
        """The rest of a block, which keeps its first `size` bytes."""
        new = Block(rest, before=block, after=block.after)
        if block.after:
            block.after.before = new
        block.after, block.size = new, size
        return new

    def _join(self, first: Block, second: Block) -> Block:
        first.size += second.size
        first.after = second.after
        if second.after:
            second.after.before = first
        return first


class ExpandablePool(Pool):
    """One range of addresses, of which whole pages are mapped where they are needed."""

    def __init__(self, small: bool):
        super().__init__(small)
        self.page = SMALL_SEGMENT if small else LARGE_SEGMENT
        self.first = Block(ADDRESSES, is_mapped=False)

    def empty_cache(self) -> None:
        """Unmaps the pages in which nothing is in use."""
        address, block = 0, self.first
        while block:
            after, end = block.after, address + block.size
            whole = rounded(address, self.page) if address else 0, end // self.page * self.page
            if block.is_free and whole[1] > whole[0]:
                self._unmap(self._take(block), whole[0] - address, whole[1] - whole[0])
            address, block = end, after

    def _unmap(self, block: Block, before: int, size: int) -> None:
        """Takes the memory from `size` bytes of a block, behind its first `before`."""
        self.reserved -= size
        if rest := block.size - before - size:
            self._put(self._cut(block, before + size, rest))
        if before:
            block, mapped = self._cut(block, before, size), block
            self._put(mapped)
        block.is_mapped = False
        for first, second in ((block, block.after), (block.before, block)):
            if first and second and not first.is_mapped and not second.is_mapped:
                self._join(first, second)

    def _find(self, size: int) -> Block | None:
        """The best fit, where one that can grow counts with all that it can grow by."""
        place = bisect_left(self.blocks, (size, 0))
        if place == len(self.blocks):
            return None
        while place + 1 < len(self.blocks) and self._possible(place + 1) < self._possible(place):
            place += 1
        return self.blocks[place][2]

    def _possible(self, place: int) -> int:
        block = self.blocks[place][2]
        return block.size + (block.after.size if block.after and not block.after.is_mapped else 0)

    def _grow(self, size: int) -> Block:
        """From the first unmapped pages that are enough, together with what is free around them."""
        block = self.first
        while not self._is_enough(block, size):
            assert block.after  # the last one is
            block = block.after
        if block.is_free:
            self._take(block)
        else:
            block = self._map(block, min(rounded(size, self.page), block.size))
        while block.size < size:
            after = block.after
            assert after
            if after.is_free:
                self._take(after)
            else:
                after = self._map(after, min(rounded(size - block.size, self.page), after.size))
            self._join(block, after)
        return block

    def _is_enough(self, block: Block, size: int) -> bool:
        """Whether an unmapped block is, from here on; or the free one before it."""
        if block.is_mapped and not (block.is_free and block.after and not block.after.is_mapped):
            return False
        total, following = 0, block
        while following and (following.is_free or not following.is_mapped) and total < size:
            total, following = total + following.size, following.after
        return total >= size

    def _map(self, block: Block, size: int) -> Block:
        """Memory for the beginning of an unmapped block."""
        self.reserved += size
        if rest := block.size - size:
            self._cut(block, size, rest).is_mapped = False
        block.is_mapped = True
        return block

    def _is_split(self, rest: int) -> bool:
        return rest >= GRANULARITY
