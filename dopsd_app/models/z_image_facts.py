"""Z-Image, without loading it: what is known of Z-Image-Turbo, and of every model of its architecture."""

import math
from dataclasses import dataclass, replace
from typing import Self

from dopsd_app.models.architecture import (
    CAPTION_TOKENS,
    CHUNK,
    Architecture,
    BaseModelFacts,
    Blocks,
    Eyes,
    Licence,
    PassTokens,
    Sizes,
    Stored,
    Working,
    change_area,
)

# Of the teacher's picture, in pixels, as in the method's released code: whatever the folder of the eyes says.
# Qwen3-VL's own bounds let a picture fill the message, or be so small that nothing is seen.
CONTEXT_AREA = (512**2, 768**2)
# The transformer knows the places of 1,536 tokens: 1,024 of such a picture leave enough for every caption.
CONTEXT_SIDE_LIMIT = 1024
QWEN3_VL_4B = Eyes(  # made for the text encoder Qwen3-4B
    "Qwen/Qwen3-VL-4B-Instruct",
    parameters=415_347_712,
    width=2560,
    configuration={"patch_size": 16, "merge_size": 2},
)
APACHE = Licence("apache-2.0", "Apache 2.0", "https://www.apache.org/licenses/LICENSE-2.0")

# Numbers for each token and each of its features: benchmarks/results/simulated.json.
KEPT, BESIDE = 20.25, 3.0
BACK, PASSING = Working(24.6, 22.97), Working(13.15, 10.5)
BACK_IN_HALVES = Working(0.0, 11.3, chunk=12.1), Working(14.35, 2.3, chunk=12.1)
PASSING_IN_HALVES = Working(12.15, 0.0, chunk=11.6)
WORK_OF_HALVES = 0.54, 0.0
INPUTS_IN_HALVES = 2.5


@dataclass(frozen=True, kw_only=True)
class ZImageSizes(Sizes):
    """Of a Z-Image transformer (attention dim x dim, feed-forward 8/3 dim) and the parts beside it."""

    dim: int
    layers: int  # blocks that picture and caption go through together
    refiners: int  # blocks before them, for the picture alone, and as many for the caption alone
    caption_features: int  # of one caption token
    decoder_channels: int  # of its largest feature maps, which have the picture's size
    token_side: int  # pixels of the side of a square that is one token
    context_side: int  # the same for the picture in the teacher's context ...
    context_area: tuple[int, int]  # ... which is scaled to between so many pixels

    @classmethod
    def of(cls, stored: Stored) -> "ZImageSizes":
        transformer, decoder = stored.configurations["transformer"], stored.configurations["vae"]
        return cls(
            parameters=stored.parameters["transformer"],
            dim=transformer["dim"],
            layers=transformer["n_layers"],
            refiners=transformer["n_refiner_layers"],
            caption_features=transformer["cap_feat_dim"],
            encoder_parameters=stored.parameters["text_encoder"] + stored.eyes_parameters,
            decoder_parameters=stored.parameters["vae"],
            decoder_channels=decoder["block_out_channels"][0],
            token_side=2 ** len(decoder["block_out_channels"]),  # halved between blocks, then 2 x 2 latents
            context_side=stored.eyes["patch_size"] * stored.eyes["merge_size"],
            context_area=CONTEXT_AREA,
            stored_bytes=stored.stored_bytes,
        )

    def as_known(self, known: Self) -> Self:
        return replace(self, context_area=known.context_area)

    def with_teacher_picture(self, context: str, least: int, most: int) -> Self:
        possible = self.context_side, CONTEXT_SIDE_LIMIT
        return replace(self, context_area=change_area(self.context_area, least, most, possible=possible))

    @property
    def side_multiple(self) -> int:
        return self.token_side

    @property
    def linear_parameters(self) -> int:
        """Attention 4 dim^2 and feed-forward 8 dim^2 in each block."""
        return 12 * self.dim**2 * (self.layers + 2 * self.refiners)

    def lora_parameters(self, rank: int) -> int:
        """rank x (in + out) of attention's 4 and feed-forward's 3 matrices: 8 dim and 11 dim."""
        return 19 * self.dim * rank * (self.layers + 2 * self.refiners)

    def student_tokens(self, resolution: int) -> PassTokens:
        return PassTokens(_padded((resolution / self.token_side) ** 2), CAPTION_TOKENS)

    def teacher_tokens(self, resolution: int, context: str) -> PassTokens:
        """The eyes' tokens of the picture stand before those of the caption."""
        least, most = self.context_area
        area = min(max(resolution**2, least), most)
        caption = _padded(CAPTION_TOKENS + area / self.context_side**2)
        return replace(self.student_tokens(resolution), caption=caption)

    def work(self, tokens: PassTokens) -> tuple[float, float]:
        """2 for each weight and token; in attention 4 x dim for each pair of tokens."""
        together = tokens.picture + tokens.caption
        passed = self.layers * together + self.refiners * together  # blocks x tokens that go through them
        pairs = self.layers * together**2 + self.refiners * (tokens.picture**2 + tokens.caption**2)
        return 24.0 * self.dim**2 * passed, 4.0 * self.dim * pairs

    def blocks(self, tokens: PassTokens) -> tuple[Blocks, ...]:
        """The refiners of the picture and of the caption, and the blocks that both go through."""
        kinds = (  # with what reads the time, but for the caption's: 4 dim numbers from 256
            (self.refiners, tokens.picture, 1028 * self.dim),
            (self.refiners, tokens.caption, 0),
            (self.layers, tokens.picture + tokens.caption, 1028 * self.dim),
        )
        return tuple(
            Blocks(
                count=count,
                parameters=12 * self.dim**2,
                others=others + 4 * self.dim,
                largest=8 * self.dim**2 // 3,
                features=length * self.dim,
                chunk=CHUNK * self.dim,
                kept=KEPT,
                beside=BESIDE,
                back=BACK,
                passing=PASSING,
                back_in_halves=BACK_IN_HALVES,
                passing_in_halves=PASSING_IN_HALVES,
                work_of_halves=WORK_OF_HALVES,
                inputs_in_halves=INPUTS_IN_HALVES,
            )
            for count, length, others in kinds
        )

    def conditioning_bytes(self, resolution: int, context: str) -> int:
        """Features in float32."""
        student, teacher = self.student_tokens(resolution), self.teacher_tokens(resolution, context)
        return (student.caption + teacher.caption) * self.caption_features * 4

    def decoding_work(self, resolution: int) -> float:
        # Counted: 2.48 TFLOP for a picture of 512 x 512 with 128 channels. Twice, for float32 is slower.
        return 5e12 * (resolution / 512) ** 2 * (self.decoder_channels / 128) ** 2

    def decoding_bytes(self, resolution: int) -> int:
        """Six feature maps of the picture's size in float32, as counted; cuDNN's work space is on top."""
        return 6 * 4 * self.decoder_channels * resolution**2


def _padded(tokens: float) -> int:
    return math.ceil(tokens / 32) * 32  # as the transformer pads each sequence


def _undistilled(index: dict, scheduler: dict) -> str:
    # Nothing else in its files tells Z-Image from Z-Image-Turbo, whose scheduler shifts by 3.
    return "its scheduler is Z-Image's, with a shift of 6" if scheduler.get("shift") == 6 else ""


Z_IMAGE = Architecture(
    pipeline_class="ZImagePipeline",
    family="Z-Image-Turbo",
    undistilled=_undistilled,
    base_model="dopsd_app.models.z_image:ZImage",
    sizes=ZImageSizes,
    teacher_contexts=("vision_language",),
    eyes=(QWEN3_VL_4B,),
    guidance=0.0,
)

Z_IMAGE_TURBO = BaseModelFacts(
    label="Z-Image-Turbo",
    description="Photographs, people and lettering in English and Chinese, in 8 steps.",
    repository="Tongyi-MAI/Z-Image-Turbo",
    licence=APACHE,
    resolutions=(256, 1536),
    architecture=Z_IMAGE,
    native_steps=8,
    native_sigmas=(1.0, 0.9545, 0.9, 0.8333, 0.75, 0.6429, 0.5, 0.3, 0.0),
    comfyui=True,
    known_as="Z-Image",
    kohya_name="zimage",
    sizes=ZImageSizes(  # where its folder is not there to be read
        parameters=6_154_908_736,
        dim=3840,
        layers=30,
        refiners=2,
        caption_features=2560,
        encoder_parameters=4_022_468_096 + QWEN3_VL_4B.parameters,
        decoder_parameters=83_819_683,
        decoder_channels=128,
        token_side=16,
        context_side=32,
        context_area=CONTEXT_AREA,
        stored_bytes=0,
    ),
)
