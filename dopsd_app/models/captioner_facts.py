"""What writes captions, without loading it: which models there are, and how large they are."""

from dataclasses import dataclass

LENGTHS = ("short", "medium", "detailed")
# Tokens at the most that a caption of each length is given; a model that has not ended by then is cut off.
MOST_TOKENS = {"short": 40, "medium": 90, "detailed": 200}
# Tokens of all that is asked of it, but for the picture; as `captioner_words.instruction` has them.
ASKED_TOKENS = 420
# Pixels between which a picture is scaled before it is looked at: on a card, and on a processor, where twice
# as many would take twice as long.
AREAS = {True: (512**2, 768**2), False: (384**2, 512**2)}


@dataclass(frozen=True)
class Captioner:
    """A vision-language model of the Qwen3-VL family, at its real size.

    Its embeddings are also what it writes with.
    """

    repository: str  # on the Hub
    label: str  # for the person
    layers: int  # of the language model
    layer: int  # parameters of the linear layers in one of them: those that 4 bits round
    norms: int  # of one of them besides
    embedding: int
    width: int  # features of a token
    widest: int  # of a token, inside a layer
    remembered: int  # numbers that a layer remembers of a token
    eyes: int  # parameters of the vision tower with its mergers
    side: int = 32  # pixels of the side of a square that is one token; the eyes see four parts of it

    @property
    def parameters(self) -> int:
        """Of all of it."""
        language = self.layers * (self.layer + self.norms) + self.embedding + self.width
        return language + self.eyes

    @property
    def stored_bytes(self) -> int:
        """About what it takes on disk, in bfloat16: the Hub tells exactly."""
        return 2 * self.parameters


LARGE = Captioner(
    "Qwen/Qwen3-VL-4B-Instruct",
    "Qwen3-VL 4B",
    layers=36,
    layer=100_925_440,
    norms=5_376,
    embedding=388_956_160,
    width=2560,
    widest=9728,
    remembered=2048,
    eyes=415_347_712,
)
SMALL = Captioner(
    "Qwen/Qwen3-VL-2B-Instruct",
    "Qwen3-VL 2B",
    layers=28,
    layer=50_331_648,
    norms=4_352,
    embedding=311_164_928,
    width=2048,
    widest=6144,
    remembered=2048,
    eyes=406_957_056,
)
CAPTIONERS = (LARGE, SMALL)  # the better first
