"""A base model that stays loaded, with the prompts that it has encoded and the LoRA that it has."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load

from dopsd_app.config import TrainConfig
from dopsd_app.data.crops import nearest_bucket
from dopsd_app.errors import KnownFailure
from dopsd_app.models.load import load_base_model
from dopsd_app.models.memory_plan import NOTHING_SAVED, MemoryPlan
from dopsd_app.models.protocol import NO_PICTURES, BaseModel, Conditioning, Pipeline, loaded

MAX_ENCODED_PROMPTS = 64  # encoded prompts to keep: some megabytes each on a real base
DRAWING_ROOM = 6 * 2**30  # bytes: activations at 1024 x 1024 pixels, most of them the autoencoder's


class LoadedModel:
    """Loads each part of a base model when it is first needed, and keeps it for the next picture."""

    def __init__(self, config: TrainConfig, memory_plan: MemoryPlan = NOTHING_SAVED, *, teaches: bool = True):
        self.base, self.seen = _base_of(config), _seen_by_teacher(config) if teaches else None
        self.base_model: BaseModel = load_base_model(config, memory_plan, teaches=teaches)
        self.on_card = self.base_model.device.type == "cuda"
        self.encoded: dict[str, Conditioning] = {}
        self.encoders = False  # whether they are loaded
        self.encoder_bytes = 0  # on the card
        self.pipeline: Pipeline | None = None  # around the loaded transformer
        self.loaded_lora: tuple[Path, int] | None = None  # its file, and when that was written

    def matches(self, config: TrainConfig, *, teaches: bool) -> bool:
        """Whether this configuration has the same base model, in the same precision and place.

        For one that teaches, what the teacher sees must be the same too; others draw the same without.
        """
        return self.base == _base_of(config) and (not teaches or self.seen == _seen_by_teacher(config))

    def load_encoders(self) -> None:
        """Loads the encoders where they are not; the transformer makes room for them where it must."""
        if self.encoders:
            return
        if self.pipeline and not self._has_room_for_encoders():
            self.drop_transformer()
        before = torch.cuda.memory_allocated(self.base_model.device) if self.on_card else 0
        self.base_model.load_encoders()
        self.encoders = True
        if self.on_card:
            self.encoder_bytes = torch.cuda.memory_allocated(self.base_model.device) - before

    def load_transformer(self) -> None:
        """Loads transformer and autoencoder where they are not."""
        if self.pipeline:
            return
        if self.on_card:
            # They go first, so that no card that can train is too small to draw. Where the memory that is
            # free afterwards holds them too, the next new prompt brings them back, and they stay.
            self.free_encoders()
        self.base_model.load_transformer()
        self.pipeline = self.base_model.make_pipeline()
        self.pipeline.set_progress_bar_config(disable=True)

    def free_encoders(self) -> None:
        """Gives the encoders' memory back."""
        self.base_model.free_encoders()
        self.encoders = False

    def drop_transformer(self) -> None:
        """Gives the transformer's memory back, and the LoRA's."""
        self.pipeline = self.loaded_lora = None
        self.base_model.free_transformer()

    def _has_room_for_encoders(self) -> bool:
        if not self.on_card:
            return True
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(self.base_model.device)[0]
        return free > self.encoder_bytes + DRAWING_ROOM

    def encode(self, prompts: Sequence[str]) -> list[Conditioning]:
        """The conditioning of each prompt; those that were encoded before are remembered.

        Without pictures to start from: those change no features, and `draw` hands them to the pipeline.
        """
        if new := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.encoded]:
            self.load_encoders()
            for prompt in new:
                self.encoded[prompt] = self.base_model.encode(NO_PICTURES, prompt, "student")
        conditionings = [self.encoded[prompt] for prompt in prompts]
        for prompt in list(self.encoded)[:-MAX_ENCODED_PROMPTS]:
            del self.encoded[prompt]
        return conditionings

    def has_lora(self, lora: Path) -> bool:
        """Whether this very LoRA file is loaded already."""
        return self.loaded_lora == (lora, lora.stat().st_mtime_ns)

    def load_lora(self, lora: Path, strength: float) -> None:
        """Loads a LoRA file, if it is another one, and sets its strength; `KnownFailure` where it is none."""
        if not self.has_lora(lora):
            self.unload_lora()
            version = (lora, lora.stat().st_mtime_ns)
            try:
                # Read whole, not mapped: while it is loaded, the run can be deleted, on Windows too.
                weights = load(lora.read_bytes())
            except SafetensorError as error:
                raise KnownFailure(f"{lora.name} cannot be read as a LoRA file: {error}.") from error
            loaded(self.pipeline).load_lora_weights(weights, adapter_name="lora")
            self.loaded_lora = version
        loaded(self.pipeline).set_adapters("lora", strength)

    def unload_lora(self) -> None:
        """The bare base again."""
        if self.loaded_lora:
            loaded(self.pipeline).unload_lora_weights()
            self.loaded_lora = None

    def draw(
        self,
        conditioning: Conditioning,
        config: TrainConfig,
        seed: int,
        with_lora: bool = True,
        sources: Sequence[Image.Image] = (),
    ) -> Image.Image:
        """A picture by the official pipeline, at the native step count.

        It is square, or as large as the first of the `sources`, the pictures to start from.
        """
        height, width = nearest_bucket(1, 1, config.resolution, self.base_model.picture_multiple)
        if sources:
            width, height = sources[0].size
        if not with_lora:
            loaded(self.pipeline).disable_lora()
        try:
            return self.base_model.draw(
                self.pipeline,
                conditioning,
                height=height,
                width=width,
                num_inference_steps=config.num_inference_steps,
                generator=torch.Generator().manual_seed(seed),  # on the CPU: the same on every machine
                **({"image": list(sources)} if sources else {}),
            )
        finally:
            if not with_lora:
                loaded(self.pipeline).enable_lora()


def _base_of(config: TrainConfig) -> tuple:
    return (
        config.base_model,
        config.revision,
        config.precision,
        config.quantization,
        config.device,
    )


def _seen_by_teacher(config: TrainConfig) -> tuple:
    return config.teacher_context, config.teacher_picture_minimum, config.teacher_picture_maximum
