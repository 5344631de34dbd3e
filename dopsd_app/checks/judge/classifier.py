"""The judge: a small classifier that reads the world's attributes off pictures, so they can be counted."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from dopsd_app.checks.judge.world import (
    BACKGROUNDS,
    COLOURS,
    EYES,
    FREQUENCIES,
    OUTLINES,
    PATTERNS,
    PLACES,
    SIZES,
)

WEIGHTS = Path(__file__).with_name("judge.safetensors")
ATTRIBUTES = {
    "background": len(BACKGROUNDS),
    "outline": len(OUTLINES),
    "body": len(COLOURS),
    "second": len(COLOURS),
    "pattern": len(PATTERNS),
    "frequency": len(FREQUENCIES),
    "eyes": len(EYES),
    "place": len(PLACES),
    "size": len(SIZES),
}
CONCEPT = ("outline", "body", "second", "pattern", "frequency", "eyes")
FEATURES = 192


def convolution(channels: int, out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1), nn.GroupNorm(8, out), nn.SiLU())


class Judge(nn.Module):
    """Convolutions, then what is there (pooled) beside where it is (a coarse map)."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 32, 5, 2, 2),
            nn.SiLU(),
            convolution(32, 48, 1),
            convolution(48, 64, 2),
            convolution(64, 96, 1),
            convolution(96, 128, 2),
            convolution(128, 128, 1),
        )
        self.where = nn.Conv2d(128, 8, 1)
        self.features = nn.Sequential(nn.Linear(2 * 128 + 8 * 64, FEATURES), nn.SiLU())
        self.head = nn.Linear(FEATURES, sum(ATTRIBUTES.values()))

    def forward(self, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Pixels (B, 3, 64, 64) in [-1, 1] to features (B, 192) and the logits of every attribute."""
        x = self.trunk(pixels)
        x = torch.cat([x.mean((2, 3)), x.amax((2, 3)), self.where(x).flatten(1)], dim=1)
        features = self.features(x)
        logits = self.head(features).split(list(ATTRIBUTES.values()), dim=1)
        return features, dict(zip(ATTRIBUTES, logits, strict=True))


def chance_of(names: Iterable[str]) -> float:
    """How often attributes agree by chance, on the mean."""
    return float(np.mean([1 / ATTRIBUTES[name] for name in names]))


def load_judge(path: Path = WEIGHTS) -> Judge:
    judge = Judge().eval()
    judge.load_state_dict({name: weight.float() for name, weight in load_file(path).items()})
    return judge


def to_pixels(pictures: list[Image.Image] | Tensor | np.ndarray) -> Tensor:
    """Pictures, or (B, H, W, 3) uint8, to (B, 3, 64, 64) in [-1, 1]."""
    if isinstance(pictures, list):
        resized = [picture.convert("RGB").resize((64, 64), Image.Resampling.BOX) for picture in pictures]
        pictures = np.stack([np.asarray(picture) for picture in resized])
    return torch.as_tensor(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def judge(pictures: list[Image.Image] | Tensor | np.ndarray, model: Judge | None = None) -> dict[str, Tensor]:
    """What each picture shows: attribute to the predicted indices (B,) into the world's tables."""
    _, logits = (model or load_judge())(to_pixels(pictures))
    return {name: values.argmax(1) for name, values in logits.items()}


@torch.no_grad()
def features(pictures: list[Image.Image] | Tensor | np.ndarray, model: Judge | None = None) -> Tensor:
    """The judge's last features (B, 192), for distances between sets of pictures."""
    return (model or load_judge())(to_pixels(pictures))[0]
