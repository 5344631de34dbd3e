"""How large a base model is: what memory, time and disk of a run are reckoned from. No torch here."""

import json
import math
from dataclasses import dataclass
from pathlib import Path


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
    context_area=(512**2, 768**2),
    stored_bytes=0,
)


def read_sizes(folder: Path) -> Sizes:
    """Sizes of a diffusers folder with a vision_tower; OSError, KeyError or ValueError if it is damaged."""
    transformer = _read_json(folder / "transformer" / "config.json")
    decoder = _read_json(folder / "vae" / "config.json")
    context = _read_json(folder / "vision_tower" / "preprocessor_config.json")
    area = context.get("size", {})
    return Sizes(
        parameters=count_parameters(folder / "transformer"),
        dim=transformer["dim"],
        layers=transformer["n_layers"],
        refiners=transformer["n_refiner_layers"],
        caption_features=transformer["cap_feat_dim"],
        encoder_parameters=sum(count_parameters(folder / part) for part in ("text_encoder", "vision_tower")),
        decoder_parameters=count_parameters(folder / "vae"),
        decoder_channels=decoder["block_out_channels"][0],
        token_side=2 ** len(decoder["block_out_channels"]),  # halved between blocks, then 2 x 2 latents
        context_side=context["patch_size"] * context["merge_size"],
        context_area=(area["shortest_edge"], area["longest_edge"]),
        stored_bytes=sum(path.stat().st_size for path in folder.glob("*/*") if path.is_file()),
    )


def count_parameters(folder: Path) -> int:
    """Numbers in the safetensors files of a folder, by their headers."""
    return sum(_count(path) for path in folder.glob("*.safetensors"))


def _count(path: Path) -> int:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, 100_000_000)))  # safetensors' own limit
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
