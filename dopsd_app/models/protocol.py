"""What every base model offers to the method, and the conditioning that it works with.

One direction of time everywhere: sigma is 1 for noise and 0 for the picture, velocity is noise - picture.
A model that thinks otherwise is corrected in its own file.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor

from dopsd_app.models.architecture import Architecture, Role, Sizes
from dopsd_app.models.catalog import BaseModelPaths
from dopsd_app.models.memory_plan import MemoryPlan


@dataclass(frozen=True)
class Pictures:
    """The pictures of one example, which a base model is given with a caption."""

    picture: Image.Image | None = None  # the training picture, cropped: for the teacher's eyes only
    sources: tuple[Image.Image, ...] = ()  # editing: those to start from, which the student sees too

    @property
    def training_picture(self) -> Image.Image:
        """The picture; ValueError for a prompt, which has none."""
        if self.picture is None:
            raise ValueError("There is no training picture for the teacher to see.")
        return self.picture


NO_PICTURES = Pictures()  # of a prompt


@dataclass(frozen=True)
class Conditioning:
    """What one pass of the transformer gets besides the noisy latents.

    `prompt_embeds` is (L, D), without padding; `reference_latents` holds (C, h, w) latents of pictures
    that the transformer itself sees, and is empty for models that cannot see any.
    """

    prompt_embeds: Tensor
    reference_latents: tuple[Tensor, ...] = ()


class Transformer(Protocol):
    """What is used of a transformer: a module with diffusers' `ModelMixin` and `PeftAdapterMixin`."""

    peft_config: dict[str, Any]  # by adapter; there once it has one
    adapters: Any  # student and teacher, of the method; there while it has them

    def modules(self) -> Iterator[torch.nn.Module]: ...
    def get_submodule(self, target: str, /) -> Any: ...
    def named_modules(self) -> Iterator[tuple[str, torch.nn.Module]]: ...
    def add_adapter(self, adapter_config: Any, adapter_name: str = ...) -> None: ...
    def delete_adapters(self, adapter_names: list[str]) -> None: ...
    def set_adapter(self, adapter_name: str) -> None: ...
    def disable_adapters(self) -> None: ...
    def enable_adapters(self) -> None: ...


class Pipeline(Protocol):
    """What is used of an official pipeline: diffusers' `DiffusionPipeline` with the mixin for its LoRAs."""

    def set_progress_bar_config(self, *, disable: bool) -> None: ...
    def load_lora_weights(self, weights: Path | dict[str, Tensor], /, **options: Any) -> None: ...
    def unload_lora_weights(self) -> None: ...
    def set_adapters(self, adapter_names: str, adapter_weights: float) -> None: ...
    def disable_lora(self) -> None: ...
    def enable_lora(self) -> None: ...


Part = TypeVar("Part")


def loaded(part: Part | None) -> Part:
    """A part of a base model that its caller must have loaded; RuntimeError where it is not there."""
    if part is None:
        raise RuntimeError("This part of the base model is not loaded.")
    return part


class BaseModel(Protocol):
    """A frozen few-step model; B pictures of one size make a batch, whose captions may differ in length."""

    architecture: Architecture
    teacher_context: str  # what the teacher sees: one of the architecture's contexts, or UNTAUGHT
    transformer: Transformer  # there after load_transformer()
    lora_targets: str  # regular expression over module names: full match is adapted
    block_lists: tuple[str, ...]  # names of its lists of blocks, in the order of a pass
    picture_multiple: int  # pixels: the sides of a picture must be multiples of this
    conditioning_version: str  # changes whenever the same caption and picture would be encoded differently
    device: torch.device
    dtype: torch.dtype  # of the frozen weights' arithmetic
    memory_plan: MemoryPlan

    def __init__(
        self,
        place: BaseModelPaths,
        device: torch.device,
        dtype: torch.dtype,
        *,
        sizes: Sizes,
        memory_plan: MemoryPlan,
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

    def fetch(self, block: torch.nn.Module) -> None:
        """Has a block's weights on the device for what is computed next: of a part of it that runs alone."""

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

    def in_halves(self, block: Any, attend: Callable, feed: Callable) -> Callable:
        """The forward of one of its blocks in an attention half, and a feed-forward half in chunks of tokens.

        `attend(part, block, *values)` and `feed`, each called with what a half or a chunk of it computes
        with, give what `part(block, *values)` is.
        """

    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of latents (B, C, h, w)."""

    def make_pipeline(self) -> Pipeline:
        """The official pipeline around the loaded parts: what the user of a LoRA file will run."""

    def draw(self, pipeline: Any, conditioning: Conditioning, **options: Any) -> Image.Image:
        """A picture by the official pipeline, of what the student sees.

        `options`: height and width in pixels, num_inference_steps, generator; and `image`, a list of the
        pictures to start from, where there are any.
        """

    # What the check of a base model holds the rest against.

    def official_features(self, caption: str) -> Tensor:
        """Features (L, D) of a caption as the official pipeline's `encode_prompt` makes them."""

    def official_latents(
        self,
        conditioning: Conditioning,
        noise: Tensor,
        num_inference_steps: int,
        references: Sequence[Image.Image] = (),
    ) -> list[Tensor]:
        """Latents (1, C, h, w) after each step of the official pipeline from `noise`, which is as large.

        `references` are the pictures whose latents the conditioning has.
        """

    def teacher_text_features(self, caption: str) -> Tensor:
        """Features (L, D) that the teacher's encoder makes of a caption alone: where all is right, as
        the student's."""
