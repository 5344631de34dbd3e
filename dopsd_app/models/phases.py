"""The parts of a base model whose text encoder is a Qwen3, loaded and freed phase by phase."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, cast

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import free_memory
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen3Model, Qwen3VLModel, Qwen3VLVisionModel

from dopsd_app.models import qwen, vision_language
from dopsd_app.models.architecture import BY_EYES, TILE, UNTAUGHT
from dopsd_app.models.catalog import BaseModelPaths
from dopsd_app.models.frozen import load_frozen
from dopsd_app.models.lean_layers import keep_less
from dopsd_app.models.memory_plan import MemoryPlan
from dopsd_app.models.offload import OffloadedBlocks, StoredBlock, first_blocks
from dopsd_app.models.prepared import Prepared
from dopsd_app.models.protocol import loaded


class LoadedInPhases:
    """What `BaseModel` asks for of loading; a teacher that sees by eyes has them in front of the Qwen3."""

    lora_targets: str
    block_lists: tuple[str, ...]
    transformer_class: ClassVar[Any]  # of diffusers, as is the autoencoder's
    autoencoder_class: ClassVar[Any]

    def __init__(
        self,
        place: BaseModelPaths,
        device: torch.device,
        dtype: torch.dtype,
        *,
        memory_plan: MemoryPlan,
        teacher_context: str,
        context_area: tuple[int, int],
    ):
        self.place = place
        self.folder, self.eyes, self.context_area = place.folder, place.vision_tower, context_area
        self.device, self.dtype, self.memory_plan = device, dtype, memory_plan
        self.teacher_context = teacher_context
        # diffusers would add what it did not use only where it is asked to.
        self.scheduler = cast(
            FlowMatchEulerDiscreteScheduler,
            FlowMatchEulerDiscreteScheduler.from_pretrained(self.folder, subfolder="scheduler"),
        )
        self.vae_config: dict[str, Any] = self.autoencoder_class.load_config(self.folder, subfolder="vae")
        # Each is there once it is loaded.
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.text_encoder: Qwen3Model | None = None
        self.vision_tower: Qwen3VLVisionModel | None = None
        self.teacher_encoder: Qwen3VLModel | None = None
        self.transformer: Any = None
        self.offloaded: OffloadedBlocks | None = None  # where the plan offloads any
        self.vae: Any = None

    def load_encoders(self) -> None:
        """Loads onto the device what `encode` needs; for a teacher its eyes, or what encodes a reference."""
        self.tokenizer = qwen.load_tokenizer(self.folder)
        by_layer = self.memory_plan.encoders_by_layer
        self.text_encoder = qwen.load_text_encoder(self.folder, self.dtype, self.device, by_layer=by_layer)
        if self.teacher_context == BY_EYES:
            self._load_vision_tower()
            self.teacher_encoder = vision_language.join_encoders(
                self.text_encoder, loaded(self.vision_tower), self.tokenizer
            )
            if by_layer:
                qwen.read_by_layer(self.teacher_encoder.language_model, self.folder / "text_encoder")
        elif self.teacher_context != UNTAUGHT:
            self.load_autoencoder()

    def _load_vision_tower(self) -> None:
        assert self.eyes is not None  # as of each teacher that sees by eyes
        self.vision_tower = vision_language.load_vision_tower(self.eyes, self.dtype, self.device)
        self.image_processor = vision_language.load_image_processor(self.eyes, self.context_area)

    def free_encoders(self) -> None:
        """Gives the encoders' memory back, the vision tower's too."""
        self.text_encoder = self.teacher_encoder = self.vision_tower = None
        free_memory()

    def load_transformer(self) -> None:
        """Loads the transformer and the autoencoder, frozen, onto the device."""
        first = partial(first_blocks, self.block_lists, self.memory_plan.offloaded_blocks)
        stored: dict[torch.nn.Module, StoredBlock] = {}

        def take(block: torch.nn.Module) -> None:
            stored[block] = StoredBlock(block, self.device)

        self.transformer = self._load_transformer(first, take)
        keep_less(self.transformer, self.device)
        if offloaded := first(self.transformer):
            self.offloaded = OffloadedBlocks({block: stored[block] for block in offloaded}, self.device)
        self.load_autoencoder()

    def _load_transformer(
        self,
        waiting: Callable[[torch.nn.Module], list[torch.nn.Module]],
        take: Callable[[torch.nn.Module], None],
    ):
        """The transformer; a quantized one is read from where it was kept, or kept there."""
        quantization, targets = self.memory_plan.quantization, self.lora_targets
        load = partial(
            self._load, self.transformer_class, "transformer", self.dtype, self.device, waiting=waiting
        )
        if quantization == "none":
            return load(take=take)
        load = partial(load, quantization=quantization, targets=targets)
        prepared = Prepared.of(self.place, "transformer", quantization, targets, self.dtype, self.device.type)
        if kept := prepared.read():
            return load(prepared=kept, take=take)
        transformer = load()
        prepared.write(transformer.state_dict())  # before anything is taken out of it
        for block in waiting(transformer):
            take(block)
        return transformer

    def fetch(self, block: torch.nn.Module) -> None:
        """Has a block's weights on the device for what is computed next, where they wait elsewhere."""
        if self.offloaded:
            self.offloaded.fetch(block)

    def load_autoencoder(self) -> None:
        """Loads the autoencoder, frozen, where it is not there yet: onto the device, or to wait for it."""
        if self.vae is None:
            # Pictures of a bfloat16 autoencoder show bands; float32 costs 0.2 GB more.
            self.vae = self._load(self.autoencoder_class, "vae", torch.float32, self._autoencoder_rests)
            self.vae.tile_sample_min_size = TILE
            self.vae.tile_latent_min_size = TILE >> (len(self.vae_config["block_out_channels"]) - 1)

    @property
    def _autoencoder_rests(self) -> torch.device:
        return torch.device("cpu") if self.memory_plan.autoencoder_in_ram else self.device

    @contextmanager
    def _autoencoder(self) -> Generator[Any]:
        """The autoencoder, on the device for as long."""
        vae = loaded(self.vae).to(self.device)
        try:
            yield vae
        finally:
            if self._autoencoder_rests != self.device:
                vae.to(self._autoencoder_rests)
                free_memory()

    @contextmanager
    def _decoder(self) -> Generator[Any]:
        """The autoencoder, which decodes in tiles for as long where the plan wants it.

        Pictures are always encoded whole: their latents are what is trained on.
        """
        with self._autoencoder() as vae:
            vae.use_tiling = self.memory_plan.tiled_decode
            try:
                yield vae
            finally:
                vae.use_tiling = False

    def free_transformer(self) -> None:
        """Gives the memory of the transformer and the autoencoder back."""
        self.transformer = self.vae = self.offloaded = None
        free_memory()

    def _load(
        self,
        model_class,
        part: str,
        dtype: torch.dtype,
        device: torch.device,
        **how: Any,
    ):
        folder = self.folder / part
        config = model_class.load_config(folder)
        return load_frozen(
            lambda: model_class.from_config(config),
            folder,
            dtype,
            device,
            original=model_class.__name__,
            **how,
        )

    def picture_features(self, picture: Image.Image) -> Tensor:
        """The picture's tokens (T, D); where the encoders are gone, the vision tower comes alone."""
        if self.vision_tower is None:
            self._load_vision_tower()
        return vision_language.picture_features(loaded(self.vision_tower), self.image_processor, picture)
