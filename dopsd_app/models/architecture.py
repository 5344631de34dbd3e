"""What is known of a base model without loading it: its kind, and how large one of that kind is.

A base model that is not built in is one file: it makes an `Architecture`, with the class that it names, and
hands it to `architectures.register`.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from dopsd_app.config import TrainConfig
from dopsd_app.errors import KnownFailure

Role = Literal["student", "teacher"]
BY_EYES = "vision_language"  # the teacher context that a vision tower is needed for
UNTAUGHT = "none"  # in place of a teacher context: for a base model that only draws, without any teacher
CHUNK = 1024  # tokens, of the half of a block in which they do not see each other
TILE = 384  # pixels: what a picture that is decoded in tiles is cut into; they overlap by a quarter
CAPTION_TOKENS = 64  # a caption of two sentences, with its chat template
REAL_SIZE = 1e9  # parameters of a transformer: on a processor, a larger one would train for weeks


class BaseModelError(KnownFailure):
    """A base model that is not there or cannot be used; the message says which and what to do."""


@dataclass(frozen=True)
class Licence:
    """A licence as the metadata of a model card spells it; all empty where nobody says it."""

    id: str = ""
    name: str = ""
    link: str = ""

    @property
    def forbids_commerce(self) -> bool:
        """Whether its name says that it is not for commercial use."""
        return bool(re.search(r"non-?commercial|\bnc\b", f"{self.id} {self.name}".lower()))

    @property
    def address(self) -> str:
        """Its link where that is one on the web; else empty."""
        return self.link if re.fullmatch(r"https?://[^\s()<>]+", self.link) else ""


@dataclass(frozen=True)
class Eyes:
    """A vision tower with which a teacher sees pictures, where the base model's own folder has none."""

    repository: str  # on the Hub, of the vision-language model that it is cut out of
    parameters: int  # of vision tower and mergers, in bfloat16 on the Hub
    width: int  # of the text encoders that it was made for: the numbers that stand for one token
    configuration: dict  # what its preprocessor_config.json says, as far as sizes are read from it

    @property
    def stored_bytes(self) -> int:
        return 2 * self.parameters


@dataclass(frozen=True)
class PassTokens:
    """What the transformer sees of one example in one pass."""

    picture: int  # of the noisy picture
    caption: int  # of the text encoder: of the caption, and of a picture that a vision tower saw with it
    reference: int = 0  # of the pictures that the transformer itself sees


@dataclass(frozen=True)
class Working:
    """What a block takes while it is at work, in numbers for each that goes into it."""

    most: float  # in between its products
    product: float  # in a product, beside which rounded weights are unpacked
    chunk: float = 0.0  # besides, of those that go into a chunk of its tokens
    unpacked: float = 1.0  # times the weights of its largest layer

    def bytes(self, features: int, chunk: int, number: int, unpacked: float) -> float:
        """At the most, with numbers of so many bytes; `unpacked` are the bytes of its largest layer."""
        in_product = number * (self.product * features + self.chunk * min(features, chunk))
        return max(self.most * features * number, in_product + self.unpacked * unpacked)


@dataclass(frozen=True)
class Blocks:
    """The transformer's blocks of one kind, one after the other in a pass, and what a picture takes in each.

    Numbers of the base's kind for each that goes into a block; they come from simulated steps.
    """

    count: int
    parameters: int  # of the linear layers of one of them that are rounded
    others: int  # of one of them besides
    largest: int  # in the largest of its layers
    features: int  # numbers that go into one of them: tokens times their width
    chunk: int  # of these, in a chunk of tokens
    kept: float  # by autograd, for the way back, of one that is not recomputed
    beside: float  # while such a one goes back
    back: Working  # while one goes back whose activations are made anew
    passing: Working  # in a pass without gradient
    # The same of one that is in halves: with inputs on the device, and in the computer's memory.
    back_in_halves: tuple[Working, Working]
    passing_in_halves: Working
    work_of_halves: tuple[float, float]  # that they take more, in passes
    inputs_in_halves: float  # times what goes into the block, of what goes into all its parts


@dataclass(frozen=True)
class Stored:
    """What the files of a base model tell, here or on the Hub."""

    configurations: dict[str, dict]  # part: its config.json
    parameters: dict[str, int]  # part: numbers in its weights; 0 for one without
    eyes: dict  # the preprocessor_config.json of the eyes; empty for a base without
    eyes_parameters: int
    stored_bytes: int  # of all that it is loaded from, the eyes included


def change_area(own: tuple[int, int], least: int, most: int, *, possible: tuple[int, int]) -> tuple[int, int]:
    """Bounds of an area in pixels: those of `own`, but for the sides of squares that are not 0.

    `possible` are the sides between which each of them may be; `BaseModelError` for any other.
    """
    area = least**2 or own[0], most**2 or own[1]
    if not possible[0] ** 2 <= area[0] <= area[1] <= possible[1] ** 2:
        sides = " and ".join(f"{bound**0.5:.0f}" for bound in area)
        raise BaseModelError(
            "`teacher_picture_minimum` and `teacher_picture_maximum` must be in this order and between"
            f" {possible[0]} and {possible[1]} for this base model, got {sides}."
        )
    return area


@dataclass(frozen=True, kw_only=True)
class Sizes(ABC):
    """How large one base model is: what memory, time and disk of a run are reckoned from.

    Each kind of base model adds the numbers that its own arithmetic needs. `context` is one of the
    architecture's teacher contexts, or "auto" for its own.
    """

    parameters: int  # of the transformer
    encoder_parameters: int  # of all that is loaded to encode: text encoder, and the teacher's eyes
    decoder_parameters: int  # autoencoder
    stored_bytes: int  # of all parts on disk; 0 where they are not there

    @classmethod
    @abstractmethod
    def of(cls, stored: Stored) -> "Sizes":
        """Sizes by what a base model's files tell; raises one of `sizes.DAMAGED` for odd ones."""

    def as_known(self, known: Self) -> Self:
        """With all that no file tells taken from the same model in the catalog."""
        return self

    @abstractmethod
    def with_teacher_picture(self, context: str, least: int, most: int) -> Self:
        """With other bounds of the picture that the teacher sees: sides of squares in pixels, 0 for no other.

        Raises `BaseModelError` for bounds between which there is nothing.
        """

    def to_fields(self) -> dict:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_fields(cls, fields: dict) -> "Sizes":
        """What `to_fields` made, after a way through JSON; TypeError for another version's."""
        values: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()}
        return cls(**values)

    def with_sources(self, sources: int) -> Self:
        """With so many pictures to start from, of a base model that edits."""
        return self

    @property
    def needs_card(self) -> bool:
        """Whether it can be trained on a graphics card alone, in any sensible time."""
        return self.parameters > REAL_SIZE

    @property
    @abstractmethod
    def side_multiple(self) -> int:
        """Pixels: the sides of a picture must be multiples of this."""

    @property
    @abstractmethod
    def linear_parameters(self) -> int:
        """Of the transformer's layers that a LoRA adapts and nf4 rounds."""

    @abstractmethod
    def lora_parameters(self, rank: int) -> int:
        """Of a LoRA of this rank."""

    @abstractmethod
    def student_tokens(self, resolution: int) -> PassTokens:
        """Of a picture of resolution x resolution pixels, of its caption and of its sources, as large."""

    @abstractmethod
    def teacher_tokens(self, resolution: int, context: str) -> PassTokens:
        """The same with what the teacher sees besides."""

    @abstractmethod
    def work(self, tokens: PassTokens) -> tuple[float, float]:
        """Floating-point operations of one pass for one picture: in the linear layers, and in attention."""

    @abstractmethod
    def blocks(self, tokens: PassTokens) -> tuple[Blocks, ...]:
        """The transformer's blocks in the order of a pass, and what they take of one picture."""

    @abstractmethod
    def conditioning_bytes(self, resolution: int, context: str) -> int:
        """On disk, of the student's and the teacher's conditioning of one caption."""

    def encoding_bytes(self, resolution: int, context: str) -> int:
        """In memory beside the encoders' weights, while what the teacher sees is encoded."""
        return 0

    @abstractmethod
    def decoding_work(self, resolution: int) -> float:
        """Floating-point operations of the autoencoder for one picture."""

    @abstractmethod
    def decoding_bytes(self, resolution: int) -> int:
        """The autoencoder's activations while it makes one picture of latents."""


@dataclass(frozen=True)
class Architecture:
    """A kind of base model. `BaseModel` is what it offers once it is loaded."""

    pipeline_class: str  # of diffusers, as model_index.json names it
    family: str  # of its few-step models, as a person knows it
    base_model: str  # "module:Class" of its BaseModel, which is imported when one is loaded
    sizes: type[Sizes]
    teacher_contexts: tuple[str, ...]  # what its teacher can see besides the caption; the first is its own
    eyes: tuple[Eyes, ...]  # that its teacher can see with, one for each width of its text encoders
    guidance: float  # of its pipeline's call, where a few-step model draws as it was made to
    edits: bool = False  # whether it starts from pictures: `Example.source_images`
    parts: tuple[str, ...] = ("transformer", "text_encoder", "vae")  # of its pipeline, those with weights
    # What tells, of a model_index.json and its scheduler's configuration, that a model of this kind takes
    # dozens of steps; "" where nothing does.
    undistilled: Callable[[dict, dict], str] = lambda index, scheduler: ""

    def check_sources(self, sources: int, name: str) -> None:
        """Raises `BaseModelError` for pictures to start from where a base model of this name cannot edit."""
        if sources and not self.edits:
            raise BaseModelError(
                f"There are source pictures to start from, and {name} cannot edit pictures. Remove them, or"
                " choose a base model that edits, such as FLUX.2 klein."
            )

    def choose_context(self, context: str) -> str:
        """The teacher context that a setting means; `BaseModelError` for one that is not offered."""
        if context == "auto":
            return self.teacher_contexts[0]
        if context not in self.teacher_contexts:
            offered = ", ".join(("auto", *self.teacher_contexts))
            raise BaseModelError(
                f"`teacher_context` is {context}, which this base model does not have. Set it to one of:"
                f" {offered}."
            )
        return context

    def eyes_for(self, context: str, width: int) -> Eyes | None:
        """The eyes that a teacher context needs beside a text encoder of this width; None for no eyes at all.

        For an odd width, they are the first: that they do not fit is told when they are loaded.
        """
        if context == UNTAUGHT or self.choose_context(context) != BY_EYES:
            return None
        return next((eyes for eyes in self.eyes if eyes.width == width), self.eyes[0])


NEUTRAL_PROMPTS = (
    "a bowl of fruit on a wooden table",
    "a red bicycle leaning against a brick wall",
    "an elderly man reading in a garden",
    "a mountain lake at sunrise",
)


@dataclass(frozen=True)
class BaseModelFacts:
    """What a person should know before choosing a base model, and what is reckoned with."""

    label: str
    description: str  # what it draws, and what it is good at
    repository: str  # on the Hub; "" for one that comes with the program or was given as a folder
    licence: Licence
    resolutions: tuple[int, int] | None  # pixels: the least and the greatest that it can draw, where known
    architecture: Architecture
    sizes: Sizes
    native_steps: int | None = None  # that it was made to draw in, where known
    native_sigmas: tuple[float, ...] = ()  # of these steps at 1024 x 1024 pixels, where known
    neutral_prompts: tuple[str, ...] = NEUTRAL_PROMPTS  # of what nobody trains: they should not change
    comfyui: bool = False  # whether ComfyUI can load it
    judge: bool = False  # whether there is a judge that knows all that it can draw
    gated: bool = False  # whether its terms have to be accepted on the Hub before it can be fetched
    # How other programs tell LoRAs of this kind and size from others; "" where they have no name for it.
    known_as: str = ""  # in ModelSpec's `architecture`
    kohya_name: str = ""  # in `ss_base_model_version`

    @property
    def spec_name(self) -> str:
        """What `modelspec.architecture` says: of what has no name there, the pipeline's of diffusers."""
        return self.known_as or self.architecture.pipeline_class

    def sizes_for(self, config: TrainConfig, sources: int = 0) -> Sizes:
        """Its sizes in a run: the teacher's picture is as the run wants it, beside so many to start from.

        Raises `BaseModelError` for a teacher context that it does not have, and for impossible bounds.
        """
        context = self.architecture.choose_context(config.teacher_context)
        bounds = config.teacher_picture_minimum, config.teacher_picture_maximum
        return self.sizes.with_teacher_picture(context, *bounds).with_sources(sources)

    def scoring(self, config: TrainConfig) -> str:
        """What the health of its LoRAs is measured with: "judge", "eyes" (a vision tower), or "none"."""
        if self.judge:
            return "judge"
        by_eyes = self.architecture.choose_context(config.teacher_context) == BY_EYES
        return "eyes" if by_eyes else "none"
