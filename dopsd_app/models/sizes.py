"""How large a base model is: what memory, time and disk of a run are reckoned from."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from dopsd_app.models.pipeline_folder import EYES_PREFIX, WEIGHTS, read_header

# Of the teacher's picture, in pixels, as in the method's released code: whatever the folder of the eyes says.
# Qwen3-VL's own bounds let a picture fill the message, or be so small that nothing is seen.
CONTEXT_AREA = (512**2, 768**2)
EYES_PARAMETERS = 415_347_712  # of Qwen3-VL-4B's vision tower and mergers, in bfloat16 on the Hub
EYES_PATCH = {"patch_size": 16, "merge_size": 2}
DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError)  # what odd configurations raise


@dataclass(frozen=True)
class Sizes:
    """Of a Z-Image transformer (attention dim x dim, feed-forward 8/3 dim) and the parts beside it."""

    parameters: int  # of the transformer
    dim: int
    layers: int  # blocks that picture and caption go through together
    refiners: int  # blocks before them, for the picture alone, and as many for the caption alone
    caption_features: int  # of one caption token
    encoder_parameters: int  # text encoder and the teacher's vision tower
    decoder_parameters: int  # autoencoder
    decoder_channels: int  # of its largest feature maps, which have the picture's size
    token_side: int  # pixels of the side of a square that is one token
    context_side: int  # the same for the picture in the teacher's context ...
    context_area: tuple[int, int]  # ... which is scaled to between so many pixels
    stored_bytes: int  # of all parts on disk; 0 where they are not there

    def to_fields(self) -> dict:
        return asdict(self)

    @classmethod
    def from_fields(cls, fields: dict) -> "Sizes":
        """What `to_fields` made, after a way through JSON; TypeError or KeyError for another version's."""
        return cls(**{**fields, "context_area": tuple(fields["context_area"])})

    @property
    def blocks(self) -> int:
        return self.layers + 2 * self.refiners

    @property
    def linear_parameters(self) -> int:
        """Of the layers that a LoRA adapts and nf4 rounds: attention 4 dim^2 and feed-forward 8 dim^2."""
        return 12 * self.dim**2 * self.blocks

    def lora_parameters(self, rank: int) -> int:
        """rank x (in + out) of attention's 4 and feed-forward's 3 matrices: 8 dim and 11 dim."""
        return 19 * self.dim * rank * self.blocks


Z_IMAGE_TURBO = Sizes(  # where its folder is not there to be read
    parameters=6_154_908_736,
    dim=3840,
    layers=30,
    refiners=2,
    caption_features=2560,
    encoder_parameters=4_022_468_096 + 415_347_712,
    decoder_parameters=83_819_683,
    decoder_channels=128,
    token_side=16,
    context_side=32,
    context_area=CONTEXT_AREA,
    stored_bytes=0,
)


def read_sizes(folder: Path, vision_tower: Path | None) -> Sizes:
    """Sizes of a pipeline's folder and the teacher's eyes, Qwen3-VL-4B's where these are not here yet.

    Raises one of `DAMAGED` for what is not as it should be.
    """
    parts = [part for part in folder.iterdir() if part.is_dir()] + ([vision_tower] if vision_tower else [])
    stored = {path for part in parts for path in part.iterdir() if path.is_file()}
    eyes = _read_json(vision_tower / "preprocessor_config.json") if vision_tower else EYES_PATCH
    seeing = count_parameters(vision_tower) if vision_tower else EYES_PARAMETERS
    return make_sizes(
        transformer=_read_json(folder / "transformer" / "config.json"),
        decoder=_read_json(folder / "vae" / "config.json"),
        eyes=eyes,
        parameters=count_parameters(folder / "transformer"),
        encoder_parameters=count_parameters(folder / "text_encoder") + seeing,
        decoder_parameters=count_parameters(folder / "vae"),
        stored_bytes=sum(path.stat().st_size for path in stored),
    )


def make_sizes(
    *,
    transformer: dict,
    decoder: dict,
    eyes: dict,
    parameters: int,
    encoder_parameters: int,
    decoder_parameters: int,
    stored_bytes: int,
) -> Sizes:
    """Sizes by the configurations of the parts and the numbers of their parameters."""
    return Sizes(
        parameters=parameters,
        dim=transformer["dim"],
        layers=transformer["n_layers"],
        refiners=transformer["n_refiner_layers"],
        caption_features=transformer["cap_feat_dim"],
        encoder_parameters=encoder_parameters,
        decoder_parameters=decoder_parameters,
        decoder_channels=decoder["block_out_channels"][0],
        token_side=2 ** len(decoder["block_out_channels"]),  # halved between blocks, then 2 x 2 latents
        context_side=eyes["patch_size"] * eyes["merge_size"],
        context_area=CONTEXT_AREA,
        stored_bytes=stored_bytes,
    )


def count_parameters(folder: Path) -> int:
    """Numbers in a folder's weights, by their headers; of a whole vision-language model in its eyes alone."""
    shapes: dict[str, list[int]] = {}
    for path in folder.glob("*.safetensors"):
        if WEIGHTS.fullmatch(path.name):
            shapes |= _read_shapes(path)
    seeing = {name for name in shapes if name.startswith(EYES_PREFIX)}
    return sum(math.prod(shapes[name]) for name in seeing or shapes)


def _read_shapes(path: Path) -> dict[str, list[int]]:
    header, _ = read_header(path)
    return {name: tensor["shape"] for name, tensor in header.items() if name != "__metadata__"}


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
