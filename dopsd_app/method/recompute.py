"""Activations that are made anew for the backward pass: less memory, about a third more time."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from dopsd_app.method.adapters import student_must_be_active
from dopsd_app.method.inputs_in_ram import InputsInRam
from dopsd_app.models.blocks import blocks_of
from dopsd_app.models.protocol import BaseModel, Transformer

Waiting = Callable[[Iterable[Any]], AbstractContextManager]  # given the inputs of what is recomputed


def recompute_blocks(base_model: BaseModel, fetch: Callable[[torch.nn.Module], Any] = lambda _: None) -> None:
    """Of the first blocks, as many as the memory plan says, keeps nothing but what goes into them.

    In halves, a block is never there as a whole, nor its own forward used: `fetch` is called with it before
    each part of it, also while that is recomputed.

    Recomputing happens under whichever adapter is active at that moment: with the teacher left active, the
    student would silently get no gradient, so it raises.
    """
    plan, transformer = base_model.memory_plan, base_model.transformer
    run = partial(_recomputed, transformer, InputsInRam if plan.inputs_in_ram else nullcontext)
    for block in blocks_of(transformer, base_model.block_lists)[: plan.recomputed_blocks]:
        if not plan.halves:
            block.forward = partial(run, block.forward)
            continue
        apart, together = partial(_part, fetch, run), partial(_part, fetch, _called)
        if plan.inputs_in_ram:
            # Each half is made anew from what goes into it, which takes no room here.
            block.forward = base_model.in_halves(block, apart, apart)
        else:
            # What goes into the second halves would be as large as all that halves save: they are made anew
            # twice, with the block and alone.
            block.forward = partial(run, base_model.in_halves(block, together, apart))


def _part(fetch: Callable, run: Callable, part: Callable, block: torch.nn.Module, *values: Any) -> Any:
    return run(partial(_fetched, fetch, part, block), *values)


def _fetched(fetch: Callable, part: Callable, block: torch.nn.Module, *values: Any) -> Any:
    fetch(block)
    return part(block, *values)


def _called(function: Callable, *values: Any) -> Any:
    return function(*values)


def _recomputed(
    transformer: Transformer, waiting: Waiting, function: Callable, *args: Any, **kwargs: Any
) -> Any:
    """What the function makes of its arguments; where a graph is built, without what autograd would keep."""
    if not torch.is_grad_enabled():
        return function(*args, **kwargs)
    by_position = partial(_call, function, len(args), tuple(kwargs))
    # Only arguments by position are kept as autograd keeps tensors: hooks see them.
    values = (*args, *kwargs.values())
    with waiting(values):
        return checkpoint(
            by_position,
            *values,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=partial(_contexts, transformer),
        )


def _call(function: Callable, number: int, names: tuple[str, ...], *values: Any) -> Any:
    return function(*values[:number], **dict(zip(names, values[number:], strict=True)))


def _contexts(transformer: Transformer) -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), student_must_be_active(transformer)
