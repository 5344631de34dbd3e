"""FLUX.2 klein, without loading it: what is known of its models, and of every model of its architecture."""

from dataclasses import dataclass, replace
from typing import Self

from dopsd_app.models.architecture import (
    BY_EYES,
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
from dopsd_app.models.z_image_facts import APACHE, CONTEXT_AREA, CONTEXT_SIDE_LIMIT, QWEN3_VL_4B

LAYERS = 3  # of the text encoder, whose outputs side by side are a caption's features
CAPTION_TOKENS = 512  # as its pipeline pads every caption
# Of a reference, in pixels: what its pipeline takes, and what it scales larger ones to.
REFERENCE_AREA = (64**2, 1024**2)
REFERENCE_SIDES = (64, 1024)
SOURCE_AREA = 1024**2  # pixels that its pipeline scales larger pictures to, of those to start from
CONTEXT_SIDE = 32  # pixels of the side of a square that is one token of the eyes
QWEN3_VL_8B = Eyes(
    "Qwen/Qwen3-VL-8B-Instruct",
    parameters=576_388_336,
    width=4096,
    configuration={"patch_size": 16, "merge_size": 2},
)
NON_COMMERCIAL = Licence(
    "other",
    "flux-non-commercial-license",
    "https://huggingface.co/black-forest-labs/FLUX.2-klein-9B/blob/main/LICENSE.md",
)

# Numbers for each token and each of its features: benchmarks/results/simulated.json.
KEPT_DOUBLE, KEPT_SINGLE, BESIDE = 18.9, 18.46, 2.7
BACK, PASSING = Working(29.4, 13.3), Working(0.0, 21.5, unpacked=0.5)
BACK_IN_HALVES = Working(0.0, 13.3, chunk=10.6), Working(0.0, 12.1, chunk=1.1)
PASSING_IN_HALVES = Working(17.2, 10.6, chunk=12.8)
WORK_OF_HALVES = 2.03, 1.35
INPUTS_IN_HALVES = 3.0


@dataclass(frozen=True, kw_only=True)
class KleinSizes(Sizes):
    """Of a FLUX.2 transformer (feed-forward 3 x dim, gated) and the parts beside it."""

    dim: int
    double_blocks: int  # in which picture and caption have weights of their own
    single_blocks: int  # in which they have the same
    caption_features: int  # of one caption token
    latent_channels: int  # of the square that is one token
    decoder_channels: int  # of its largest feature maps, which have the picture's size
    token_side: int  # pixels of the side of a square that is one token
    reference_area: tuple[int, int]  # pixels between which the teacher's reference is scaled ...
    context_area: tuple[int, int]  # ... and the picture that it sees by eyes
    sources: int = 0  # pictures to start from

    @classmethod
    def of(cls, stored: Stored) -> "KleinSizes":
        transformer, decoder = stored.configurations["transformer"], stored.configurations["vae"]
        return cls(
            parameters=stored.parameters["transformer"],
            dim=transformer["num_attention_heads"] * transformer["attention_head_dim"],
            double_blocks=transformer["num_layers"],
            single_blocks=transformer["num_single_layers"],
            caption_features=transformer["joint_attention_dim"],
            latent_channels=transformer["in_channels"],
            encoder_parameters=stored.parameters["text_encoder"] + stored.eyes_parameters,
            decoder_parameters=stored.parameters["vae"],
            decoder_channels=decoder["block_out_channels"][0],
            token_side=2 ** len(decoder["block_out_channels"]),  # halved between blocks, then 2 x 2 latents
            reference_area=REFERENCE_AREA,
            context_area=CONTEXT_AREA,
            stored_bytes=stored.stored_bytes,
        )

    def with_teacher_picture(self, context: str, least: int, most: int) -> Self:
        if context != BY_EYES:
            area = change_area(self.reference_area, least, most, possible=REFERENCE_SIDES)
            return replace(self, reference_area=area)
        possible = CONTEXT_SIDE, CONTEXT_SIDE_LIMIT
        eyes = KLEIN.eyes_for(context, self.caption_features // LAYERS)
        assert eyes is not None  # of this context
        return replace(
            self,
            context_area=change_area(self.context_area, least, most, possible=possible),
            encoder_parameters=self.encoder_parameters + eyes.parameters,
            stored_bytes=self.stored_bytes + eyes.stored_bytes if self.stored_bytes else 0,
        )

    def with_sources(self, sources: int) -> Self:
        return replace(self, sources=sources)

    @property
    def side_multiple(self) -> int:
        return self.token_side

    @property
    def linear_parameters(self) -> int:
        """Attention 4 dim^2 and feed-forward 9 dim^2: twice in a double block, once in a single one."""
        return 13 * self.dim**2 * (2 * self.double_blocks + self.single_blocks)

    def lora_parameters(self, rank: int) -> int:
        """rank x (in + out): 19 dim for picture and caption each; in a single block's two matrices 15 dim."""
        return rank * self.dim * (2 * 19 * self.double_blocks + 15 * self.single_blocks)

    def student_tokens(self, resolution: int) -> PassTokens:
        picture = round((resolution / self.token_side) ** 2)
        source = round(min(resolution**2, SOURCE_AREA) / self.token_side**2)
        return PassTokens(picture, CAPTION_TOKENS, reference=self.sources * source)

    def teacher_tokens(self, resolution: int, context: str) -> PassTokens:
        student, by_eyes = self.student_tokens(resolution), context == BY_EYES
        least, most = self.context_area if by_eyes else self.reference_area
        area = min(max(resolution**2, least), most)
        if by_eyes:
            return replace(student, caption=round(CAPTION_TOKENS + area / CONTEXT_SIDE**2))
        return replace(student, reference=student.reference + round(area / self.token_side**2))

    def work(self, tokens: PassTokens) -> tuple[float, float]:
        """2 for each weight and token; in attention 4 x dim for each pair of tokens."""
        together = tokens.picture + tokens.caption + tokens.reference
        blocks = self.double_blocks + self.single_blocks
        return 26.0 * self.dim**2 * blocks * together, 4.0 * self.dim * blocks * together**2

    def blocks(self, tokens: PassTokens) -> tuple[Blocks, ...]:
        """Those in which picture and caption have weights of their own, and those in which they share."""
        features = (tokens.picture + tokens.caption + tokens.reference) * self.dim
        double = Blocks(
            count=self.double_blocks,
            parameters=26 * self.dim**2,
            others=0,
            largest=6 * self.dim**2,
            features=features,
            chunk=CHUNK * self.dim,
            kept=KEPT_DOUBLE,
            beside=BESIDE,
            back=BACK,
            passing=PASSING,
            back_in_halves=BACK_IN_HALVES,
            passing_in_halves=PASSING_IN_HALVES,
            work_of_halves=WORK_OF_HALVES,
            inputs_in_halves=INPUTS_IN_HALVES,
        )
        single = replace(
            double,
            count=self.single_blocks,
            parameters=13 * self.dim**2,
            largest=9 * self.dim**2,
            kept=KEPT_SINGLE,
        )
        return double, single

    def conditioning_bytes(self, resolution: int, context: str) -> int:
        """Features and latents in float32."""
        student, teacher = self.student_tokens(resolution), self.teacher_tokens(resolution, context)
        references = (student.reference + teacher.reference) * self.latent_channels
        return 4 * ((student.caption + teacher.caption) * self.caption_features + references)

    def encoding_bytes(self, resolution: int, context: str) -> int:
        """The autoencoder in float32, and its activations for a reference, as for a decoded picture."""
        if context == BY_EYES and not self.sources:
            return 0
        side = min(resolution, round(self.reference_area[1] ** 0.5))
        return 4 * self.decoder_parameters + self.decoding_bytes(side)

    def decoding_work(self, resolution: int) -> float:
        # Its decoder is built as Z-Image's: counted there.
        return 5e12 * (resolution / 512) ** 2 * (self.decoder_channels / 128) ** 2

    def decoding_bytes(self, resolution: int) -> int:
        """Six feature maps of the picture's size in float32, as counted; cuDNN's work space is on top."""
        return 6 * 4 * self.decoder_channels * resolution**2


def _undistilled(index: dict, scheduler: dict) -> str:
    # FLUX.2 klein base says nothing of it on the Hub, and diffusers saves a no.
    return (
        "" if index.get("is_distilled") is True else "its model_index.json does not say that it is distilled"
    )


KLEIN = Architecture(
    pipeline_class="Flux2KleinPipeline",
    family="FLUX.2 klein",
    undistilled=_undistilled,
    base_model="dopsd_app.models.klein:Klein",
    sizes=KleinSizes,
    teacher_contexts=("reference", BY_EYES),
    eyes=(QWEN3_VL_4B, QWEN3_VL_8B),
    guidance=1.0,
    edits=True,
)

NATIVE_SIGMAS = (1.0, 0.967, 0.908, 0.767, 0.0)
KLEIN_4B = BaseModelFacts(
    label="FLUX.2 klein 4B",
    description="Photographs, people, products and styles, in 4 steps; the smallest of its kind.",
    repository="black-forest-labs/FLUX.2-klein-4B",
    licence=APACHE,
    resolutions=(256, 1536),
    architecture=KLEIN,
    native_steps=4,
    native_sigmas=NATIVE_SIGMAS,
    comfyui=True,
    known_as="Flux.2-klein-4b",
    kohya_name="flux2_klein_4b",
    sizes=KleinSizes(  # where its folder is not there to be read
        parameters=3_875_544_576,
        dim=3072,
        double_blocks=5,
        single_blocks=20,
        caption_features=7680,
        latent_channels=128,
        encoder_parameters=4_022_468_096,
        decoder_parameters=84_046_115,
        decoder_channels=128,
        token_side=16,
        reference_area=REFERENCE_AREA,
        context_area=CONTEXT_AREA,
        stored_bytes=0,
    ),
)

KLEIN_9B = BaseModelFacts(
    label="FLUX.2 klein 9B",
    description=(
        "As the 4B, and better at people and lettering. Not for commercial use, nor are its LoRAs:"
        " you accept its terms on the Hub before it can be fetched."
    ),
    repository="black-forest-labs/FLUX.2-klein-9B",
    licence=NON_COMMERCIAL,
    resolutions=(256, 1536),
    architecture=KLEIN,
    native_steps=4,
    native_sigmas=NATIVE_SIGMAS,
    comfyui=True,
    gated=True,
    known_as="Flux.2-klein-9b",
    kohya_name="flux2_klein_9b",
    sizes=KleinSizes(
        parameters=9_078_581_248,
        dim=4096,
        double_blocks=8,
        single_blocks=24,
        caption_features=12288,
        latent_channels=128,
        encoder_parameters=7_568_405_504,
        decoder_parameters=84_046_115,
        decoder_channels=128,
        token_side=16,
        reference_area=REFERENCE_AREA,
        context_area=CONTEXT_AREA,
        stored_bytes=0,
    ),
)
