"""What every base model offers to the method, and the conditioning that it works with.

One direction of time everywhere: sigma is 1 for noise and 0 for the picture, velocity is noise - picture.
A model that thinks otherwise is corrected in its own file.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """What one pass of the transformer is told besides the noisy latents.

    `prompt_embeds` is (L, D), without padding; `reference_latents` holds (C, h, w) latents of pictures
    that the transformer itself sees, and is empty for models that cannot see any.
    """

    prompt_embeds: Tensor
    reference_latents: tuple[Tensor, ...] = ()


class BaseModel(Protocol):
    """A frozen few-step model; B pictures of one size make a batch, whose captions may differ in length."""

    transformer: torch.nn.Module  # there after load_transformer()
    lora_targets: str  # regular expression over module names: full match is adapted
    picture_multiple: int  # pixels: the sides of a picture must be multiples of this
    conditioning_version: str  # changes whenever the same caption and picture would be encoded differently
    device: torch.device
    dtype: torch.dtype  # of the frozen weights' arithmetic

    def load_encoders(self) -> None:
        """Loads what `encode_student` and `encode_teacher` need."""

    def free_encoders(self) -> None:
        """Gives the encoders' memory back."""

    def load_transformer(self) -> None:
        """Loads the transformer and the autoencoder, frozen, onto the device."""

    def encode_student(self, caption: str) -> Conditioning:
        """What the student sees: exactly what the pipeline gives the transformer at inference."""

    def encode_teacher(self, picture: Image.Image, caption: str) -> Conditioning:
        """What the teacher sees: the caption and the training picture (the privileged context)."""

    def encode_picture(self, picture: Image.Image) -> Tensor:
        """Latents (C, h, w) of an RGB picture, scaled as the transformer expects them."""

    def picture_features(self, picture: Image.Image) -> Tensor:
        """What the teacher's eyes make of a picture: (tokens, D), for cosines; needs no `load_encoders`."""

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of the latents of a picture of height x width pixels."""

    def sigmas(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        """The pipeline's own schedule for this size: num_inference_steps + 1 values from 1 down to 0."""

    def predict_velocity(self, latents: Tensor, sigma: Tensor, conditionings: list[Conditioning]) -> Tensor:
        """Velocity of latents, both (B, C, h, w) in float32; sigma is one for all, or (B,)."""

    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of latents (B, C, h, w)."""

    def make_pipeline(self) -> DiffusionPipeline:
        """The official pipeline around the loaded parts: what the user of a LoRA file will run."""
