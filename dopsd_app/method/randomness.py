"""Every random draw of a run, as a function of (seed, step, example index) on a CPU generator.

Nothing is drawn from a running stream. A resumed run, a retry after running out of memory, another
micro-batch and several processes then train the same LoRA.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

# What a number is drawn for: the same step and index must give unrelated numbers for each purpose.
ORDER, CAPTION, NOISE, PREVIEW = range(4)
SIGMA, CHOICE, PRIOR, MADE, STATE = range(10, 15)  # by objectives other than D-OPSD

WHOLE_STEP = 2**31  # in place of an index: what is drawn for all of a step is not one example's again


def generator(seed: int, purpose: int, *indices: int) -> torch.Generator:
    """A CPU generator that depends on nothing but its arguments."""
    state = np.random.SeedSequence((seed, purpose, *indices)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


def draw_examples(seed: int, step: int, batch_size: int, count: int) -> list[int]:
    """Which of `count` examples make the batch of this step (from 1): an epoch is a shuffle of all."""
    positions = range((step - 1) * batch_size, step * batch_size)
    return [
        int(torch.randperm(count, generator=generator(seed, ORDER, position // count))[position % count])
        for position in positions
    ]


def draw_caption(seed: int, step: int, index: int, count: int) -> int:
    """Which of an example's `count` captions the batch's `index`-th example is trained with in this step."""
    return int(torch.randint(count, (), generator=generator(seed, CAPTION, step, index)))


def draw_noise(shape: tuple[int, ...], seed: int, step: int, index: int, purpose: int = NOISE) -> Tensor:
    """Fresh noise (C, h, w) for the batch's `index`-th example in this step."""
    return torch.randn(shape, generator=generator(seed, purpose, step, index))


def draw_noises(
    shape: tuple[int, ...], seed: int, step: int, indices: Iterable[int], purpose: int = NOISE
) -> Tensor:
    """Fresh noise (B, C, h, w) for these of the batch's examples."""
    return torch.stack([draw_noise(shape, seed, step, index, purpose) for index in indices])


def draw_uniform(seed: int, step: int, indices: Iterable[int], batch_size: int, purpose: int) -> Tensor:
    """Numbers (B,) in [0, 1) for these of the batch's examples."""
    drawn = torch.rand(batch_size, generator=generator(seed, purpose, step, WHOLE_STEP))
    return drawn[list(indices)]
