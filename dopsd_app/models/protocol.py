"""What every base model offers to the method, and the conditioning that it works with.

One direction of time everywhere: sigma is 1 for noise and 0 for the picture, velocity is noise - picture.
A model that thinks otherwise is corrected in its own file.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from dopsd_app.models.architecture import Architecture, Role, Sizes
from dopsd_app.models.catalog import BaseModelPaths


@dataclass(frozen=True)
class Pictures:
    """The pictures of one example, which a base model is given with a caption."""

    picture: Image.Image | None = None  # the training picture, cropped: for the teacher's eyes only
    sources: tuple[Image.Image, ...] = ()  # editing: those to start from, which the student sees too


NO_PICTURES = Pictures()  # of a prompt


@dataclass(frozen=True)
class Conditioning:
    """What one pass of the transformer gets besides the noisy latents.

    `prompt_embeds` is (L, D), without padding; `reference_latents` holds (C, h, w) latents of pictures
    that the transformer itself sees, and is empty for models that cannot see any.
    """

    prompt_embeds: Tensor
    reference_latents: tuple[Tensor, ...] = ()


class BaseModel(Protocol):
    """A frozen few-step model; B pictures of one size make a batch, whose captions may differ in length."""

    architecture: Architecture
    teacher_context: str  # what the teacher sees: one of the architecture's contexts
    transformer: torch.nn.Module  # there after load_transformer()
    lora_targets: str  # regular expression over module names: full match is adapted
    picture_multiple: int  # pixels: the sides of a picture must be multiples of this
    conditioning_version: str  # changes whenever the same caption and picture would be encoded differently
    device: torch.device
    dtype: torch.dtype  # of the frozen weights' arithmetic

    def __init__(
        self,
        place: BaseModelPaths,
        device: torch.device,
        dtype: torch.dtype,
        *,
        sizes: Sizes,
        quantization: str,
        teacher_context: str,
    ):
        """Reads configurations; the parts are loaded phase by phase."""

    def load_encoders(self) -> None:
        """Loads what `encode` needs: the autoencoder too where pictures are encoded for the transformer."""

    def free_encoders(self) -> None:
        """Gives the encoders' memory back, but for the autoencoder's."""

    def load_autoencoder(self) -> None:
        """Loads the autoencoder, frozen, onto the device, where it is not there yet."""

    def load_transformer(self) -> None:
        """Loads the transformer and the autoencoder, frozen, onto the device."""

    def free_transformer(self) -> None:
        """Gives the memory of the transformer and the autoencoder back."""

    def encode(self, pictures: Pictures, caption: str, role: Role) -> Conditioning:
        """What the student sees: exactly what the pipeline gives the transformer at inference.

        The teacher sees the training picture as well (the privileged context), in its `teacher_context`.
        """

    def encode_picture(self, picture: Image.Image) -> Tensor:
        """Latents (C, h, w) of an RGB picture, scaled as the transformer expects; needs the autoencoder."""

    def picture_features(self, picture: Image.Image) -> Tensor:
        """What the teacher's eyes make of a picture: (tokens, D), for cosines; needs no `load_encoders`.

        Only of a base model whose architecture has eyes.
        """

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

    def draw(self, pipeline: DiffusionPipeline, conditioning: Conditioning, **options: Any) -> Image.Image:
        """A picture by the official pipeline, of what the student sees.

        `options`: height and width in pixels, num_inference_steps, generator.
        """
