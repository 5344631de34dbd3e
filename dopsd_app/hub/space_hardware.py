"""Cards that a Space can be given, and what huggingface.co asks for them."""

from dataclasses import dataclass

PRICED = "August 2026"  # when the prices were read


@dataclass(frozen=True)
class SpaceHardware:
    """One kind of hardware of a Space."""

    name: str  # as huggingface.co calls it
    card: str
    memory: int  # of the card, in GB
    price: float  # US dollars for an hour


# Only cards that compute in bfloat16: a T4 does not.
SPACE_HARDWARE = (
    SpaceHardware("l4x1", "NVIDIA L4", 24, 0.80),
    SpaceHardware("a10g-large", "NVIDIA A10G", 24, 1.50),
    SpaceHardware("l40sx1", "NVIDIA L40S", 48, 1.80),
)
