"""Several processes that train one LoRA together: each backpropagates its share of every batch.

The first drives: it alone reads commands and writes into the run. They meet once before each optimizer step
and, while they prepare, at a few points more; whoever has failed or ended says so there, and all end.
"""

import os
import traceback
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from dopsd_app.errors import KnownFailure

# That one waits for another: a download, previews at real size. That one ends, the others hear at once.
PATIENCE = timedelta(days=7)
LOST = (
    "Another process of this training ended without saying why: it may have been killed. Resume the run to"
    " go on from its last checkpoint."
)


class Ended(Exception):
    """The first process has ended, or one has failed, and this one is not to be heard of any more."""


@dataclass(frozen=True)
class _Failure:
    rank: int
    reason: str
    trace: str  # of the process, for the log


class _End:
    """What the first process says when it has ended."""


@dataclass(eq=False)
class Processes:
    """This process among those that train together; by default it is alone."""

    rank: int = 0
    count: int = 1
    explain: Callable[[Exception], str] = field(default=str)  # a failure, as a sentence for the person
    over: bool = False  # whether nobody listens any more

    @property
    def leads(self) -> bool:
        """Whether it is the first one, which alone writes into the run."""
        return self.rank == 0

    def share(self, positions: Iterable[int]) -> list[int]:
        """Those of a batch's positions that this process backpropagates; the first one's hold 0."""
        return [position for position in positions if position % self.count == self.rank]

    @contextmanager
    def together(self, told: Any = None) -> Generator[list]:
        """Meets the others at the end: what all have told is in the list then.

        Raises in the first process its own failure, or `KnownFailure` for another's; in the others `Ended`.
        """
        all_told: list = [told]
        if self.count == 1:
            yield all_told
            return
        try:
            yield all_told
        except Exception as error:
            with suppress(RuntimeError):  # nobody is left who could hear it
                trace = "".join(traceback.format_exception(error))
                self._exchange(_Failure(self.rank, self.explain(error), trace))
            if self.leads:
                raise
            traceback.print_exception(error)
            raise Ended from error
        all_told[:] = self.meet(told)

    def meet(self, told: Any = None) -> list:
        """Waits for the others; returns what each has told, by rank. Raises as `together` does."""
        if self.count == 1:
            return [told]
        try:
            all_told = self._exchange(told)
        except RuntimeError as error:
            raise self._lost() from error
        if not self.over:
            return all_told
        if not self.leads:
            raise Ended
        raise _of_another(next(each for each in all_told if isinstance(each, _Failure)))

    def add_up(self, weights: Sequence[Parameter], losses: Iterable[Tensor]) -> Tensor:
        """Exhausts `losses`, which backpropagates; then all have the sum of all gradients and losses."""
        if self.count == 1:
            return torch.stack(list(losses)).sum()
        with self.together():
            told = torch.stack(list(losses)).sum()
            gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
            flat = torch.cat([*(gradient.flatten() for gradient in gradients), told[None]])
        try:
            dist.all_reduce(flat)  # between two of these, all is each one's own
        except RuntimeError as error:
            raise self._lost() from error
        parts = flat[:-1].split([weight.numel() for weight in weights])
        for weight, part in zip(weights, parts, strict=True):
            weight.grad = part.view_as(weight)
        return flat[-1]

    def end(self) -> None:
        """Tells the others that this one, the first, has ended; it may be called again."""
        if self.count > 1 and not self.over:
            with suppress(RuntimeError):
                self._exchange(_End())

    def _exchange(self, told: Any) -> list:
        """What each has told, by rank; through the computer's memory, wherever they compute."""
        all_told: list = [None] * self.count
        try:
            dist.all_gather_object(all_told, told)
        except RuntimeError:
            self.over = True
            raise
        self.over = any(isinstance(each, _Failure | _End) for each in all_told)
        return all_told

    def _lost(self) -> Exception:
        self.over = True
        return KnownFailure(LOST) if self.leads else Ended()


def _of_another(failure: _Failure) -> KnownFailure:
    error = KnownFailure(f"In process {failure.rank}: {failure.reason}")
    error.detail = failure.trace
    return error


ALONE = Processes()


@contextmanager
def joined(explain: Callable[[Exception], str]) -> Generator[Processes]:
    """This process among those that a launcher (`accelerate launch`, `torchrun`) has started with it."""
    count, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if count == 1:
        yield Processes(explain=explain)
        return
    backend = "cpu:gloo,cuda:nccl" if dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    processes = Processes(rank, count, explain)
    try:
        yield processes
    finally:
        if processes.leads:
            processes.end()
        with suppress(RuntimeError):
            dist.destroy_process_group()
