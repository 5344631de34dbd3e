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


def recompute_blocks(
    base_model: BaseModel, fetch: Callable[[torch.nn.Module], AbstractContextManager] = nullcontext
) -> None:
    """Of the first blocks, as many as the memory plan says, keeps nothing but what goes into them.

    In halves, what a block does by itself in its forward is done in each part of it in the context that
    `fetch` makes of the block: also while recomputing.

    Recomputing happens under whichever adapter is active at that moment: with the teacher left active, the
    student would silently get no gradient, so it raises.
    """
    plan, transformer = base_model.memory_plan, base_model.transformer
    run = partial(_recomputed, transformer, InputsInRam if plan.inputs_in_ram else nullcontext)
    for block in blocks_of(transformer, base_model.block_lists)[: plan.recomputed_blocks]:
        if plan.halves:
            block.forward = base_model.in_halves(block, partial(_run_part, run, fetch))
        else:
            block.forward = partial(run, block.forward)


def _run_part(
    run: Callable,
    fetch: Callable[[torch.nn.Module], AbstractContextManager],
    part: Callable,
    block: torch.nn.Module,
    *values: Any,
) -> Any:
    return run(partial(_fetched, fetch, part, block), *values)


def _fetched(fetch: Callable, part: Callable, block: torch.nn.Module, *values: Any) -> Any:
    with fetch(block):
        return part(block, *values)


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
