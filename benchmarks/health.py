"""Does a LoRA learn its concept, and does it leave the rest alone? Scores of few pictures, in features."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity


@dataclass(frozen=True)
class Health:
    """How a LoRA stands; the base itself has following 1 and drift 0."""

    concept: float  # likeness of the concept's pictures to the training pictures, -1 to 1
    following: float  # how far the prompts still make the difference that they make for the base, -1 to 1
    drift: float  # how far neutral prompts' pictures have moved from the base's, 0 to 2


def health_of(
    training: Tensor, base: Tensor, lora: Tensor, base_neutral: Tensor, lora_neutral: Tensor
) -> Health:
    """Scores features (N, D) of pictures that base and LoRA drew from the same prompts and noise.

    Features of any two pictures are alike; what is common to the training pictures and the base's own is
    taken off first. The LoRA's have no part in that: they would move the measure that they are measured with.
    """
    common = torch.cat([training, base, base_neutral]).mean(0)
    learned = (training - common).mean(0, keepdim=True)
    return Health(
        concept=cosine_similarity(lora - common, learned).mean().item(),
        following=cosine_similarity(lora - lora.mean(0), base - base.mean(0)).mean().item(),
        drift=1 - cosine_similarity(lora_neutral - common, base_neutral - common).mean().item(),
    )
