"""How a run is made to fit into a card: a value that planning chooses, and base model and training apply."""

from dataclasses import asdict, dataclass, fields

ALL = 10_000  # blocks: more than any transformer has


class ComputersMemoryError(MemoryError):
    """The system sets no more of the computer's own memory aside for a card."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What is held on the card, and what is made anew or copied there when it is needed.

    Blocks are the transformer's, counted in the order in which a pass goes through them. But for
    `quantization` nothing here changes what is trained, only memory and time.
    """

    quantization: str = "none"  # of the frozen base's linear layers: "none", "int8" or "nf4"
    offloaded_blocks: int = 0  # the first so many wait in the computer's memory, and are copied in turn
    recomputed_blocks: int = 0  # of the first so many, activations are made anew in the backward pass
    halves: bool = False  # each of those in two halves, the feed-forward one in chunks of tokens
    inputs_in_ram: bool = False  # what they are made anew from waits in the computer's memory
    autoencoder_in_ram: bool = False  # but while a picture is encoded or decoded
    encoders_by_layer: bool = False  # the text encoder is read layer by layer, for every caption
    tiled_decode: bool = False  # pictures are decoded in overlapping tiles

    def __post_init__(self):
        if self.offloaded_blocks > self.recomputed_blocks:
            raise ValueError("Only blocks whose activations are made anew can be offloaded.")

    def to_fields(self) -> dict:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_fields(cls, values: dict) -> "MemoryPlan":
        """What `to_fields` made; TypeError for another version's."""
        if values.keys() != {field.name for field in fields(cls)}:
            raise TypeError("These are not the fields of a memory plan.")
        return cls(**values)


NOTHING_SAVED = MemoryPlan()
