"""FLUX.2 klein, and every model of its architecture.

What is known of them without loading stands in `klein_facts`, which needs no torch.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models import AutoencoderKLFlux2, Flux2Transformer2DModel
from diffusers.models.transformers.transformer_flux2 import Flux2TransformerBlock
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline, compute_empirical_mu
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor
from transformers import (
    BatchEncoding,
)

from dopsd_app.models import qwen, vision_language
from dopsd_app.models.architecture import BY_EYES, BaseModelError, Role
from dopsd_app.models.blocks import Run
from dopsd_app.models.catalog import BaseModelPaths
from dopsd_app.models.klein_facts import CAPTION_TOKENS, KLEIN, SOURCE_AREA, KleinSizes
from dopsd_app.models.klein_halves import double_in_halves, single_in_halves
from dopsd_app.models.memory_plan import MemoryPlan
from dopsd_app.models.phases import LoadedInPhases
from dopsd_app.models.protocol import Conditioning, Pictures, loaded

AFTER = (9, 18, 27)  # layers of the text encoder: their outputs side by side are the features
# Follows the caption where the teacher sees the training picture as a reference, as in the released code.
LIKE_THE_REFERENCE = (
    "Keep the details of the subject, the background and the composition as they are in the reference."
)
# The same of an edit: follows the instruction where the wanted result is the last of the references, or what
# the eyes see, which would otherwise be taken for the picture that is to be changed.
LIKE_THE_LAST = "The last reference is the result that is wanted: change the others into it."
LIKE_THE_SEEN = "The picture is the result that is wanted."


class Klein(LoadedInPhases):
    """FLUX.2 klein's pipeline; its teacher sees the picture as a reference, or by Qwen3-VL's vision tower."""

    architecture = KLEIN
    transformer_class, autoencoder_class = Flux2Transformer2DModel, AutoencoderKLFlux2
    # Not the layers that read the time: no other program finds them in a LoRA.
    lora_targets = (
        r"transformer_blocks\.\d+\."
        r"(attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
        r"|(ff|ff_context)\.(linear_in|linear_out))"
        r"|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"
    )

    block_lists = ("transformer_blocks", "single_transformer_blocks")

    def __init__(
        self,
        place: BaseModelPaths,
        device: torch.device,
        dtype: torch.dtype,
        *,
        sizes: KleinSizes,
        memory_plan: MemoryPlan,
        teacher_context: str,
    ):
        super().__init__(
            place,
            device,
            dtype,
            memory_plan=memory_plan,
            teacher_context=teacher_context,
            context_area=sizes.context_area,
        )
        self.reference_area = sizes.reference_area
        self.conditioning_version = (
            f"klein 3: layers {AFTER} of the padded caption; {LIKE_THE_REFERENCE} {LIKE_THE_LAST}"
            f" {LIKE_THE_SEEN};"
            f" a reference of {self.reference_area}, a picture of {self.context_area} pixels"
        )
        self.picture_multiple = sizes.side_multiple

    @torch.no_grad()
    def encode(self, pictures: Pictures, caption: str, role: Role) -> Conditioning:
        """Features (512, D) of one user message as `encode_prompt` gives them, padding and all.

        The teacher's message holds the picture before the caption, and is as much longer; or it says that the
        teacher is to keep to the reference, and the picture's latents are one. Both have the latents of the
        pictures to start from; the wanted result, which the teacher alone has, comes last.

        Raises `BaseModelError` for a caption of which something would be cut off.
        """
        sources = tuple(self._source(picture) for picture in pictures.sources)
        if role == "student":
            return Conditioning(self._text_features(caption), sources)
        if self.teacher_context == BY_EYES:
            told = f"{caption} {LIKE_THE_SEEN}" if sources else caption
            return Conditioning(self._features_by_eyes(pictures.training_picture, told), sources)
        told = LIKE_THE_LAST if sources else LIKE_THE_REFERENCE
        reference = self._reference(pictures.training_picture)
        return Conditioning(self._text_features(f"{caption} {told}"), (*sources, reference))

    def _text_features(self, content: str) -> Tensor:
        message = self._message(content)
        states = loaded(self.text_encoder)(
            input_ids=message.input_ids.to(self.device),
            attention_mask=message.attention_mask.to(self.device),
            output_hidden_states=True,
        ).hidden_states
        return _side_by_side(states)

    def _features_by_eyes(self, picture: Image.Image, caption: str) -> Tensor:
        inputs = vision_language.read_picture(self.image_processor, picture)
        placeholder = vision_language.picture_text(self.image_processor, inputs.image_grid_thw[0])
        message = self._message(caption, placeholder)
        encoder = loaded(self.teacher_encoder)
        states = vision_language.hidden_states_of(encoder, inputs, message.input_ids, message.attention_mask)
        return _side_by_side(states)

    def _message(self, caption: str, placeholder: str = "") -> BatchEncoding:
        """One message, padded to 512 tokens and as many more as a picture's placeholder takes."""
        tokenizer = loaded(self.tokenizer)
        text = qwen.message(tokenizer, placeholder + caption, thinking=False)
        before = qwen.token_ids(tokenizer, placeholder).shape[1] if placeholder else 0
        taken = qwen.token_ids(tokenizer, text).shape[1] - before
        if taken > CAPTION_TOKENS:
            raise BaseModelError(
                f"The caption “{caption[:60]} ...” is too long: with all that is said around it, it takes"
                f" {taken} tokens, and {CAPTION_TOKENS} can be read. Shorten it."
            )
        length = CAPTION_TOKENS + before
        return tokenizer(text, return_tensors="pt", padding="max_length", max_length=length)

    def _source(self, picture: Image.Image) -> Tensor:
        """Latents (C, h, w) of a picture to start from, as the pipeline takes it: no larger, whole tokens.

        Scaled down to its area, then cut to multiples about the middle, in whole pixels as it counts them.
        """
        self.load_autoencoder()  # it comes with the encoders only where the teacher sees a reference
        area = picture.width * picture.height
        if area > SOURCE_AREA:
            scale = math.sqrt(SOURCE_AREA / area)
            width, height = (int(side * scale) for side in picture.size)
            picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        width, height = (side // self.picture_multiple * self.picture_multiple for side in picture.size)
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        return self.encode_picture(picture.crop((left, top, left + width, top + height)))

    def _reference(self, picture: Image.Image) -> Tensor:
        """Latents (C, h, w) of a picture as the pipeline would take it, within the bounds that are set."""
        least, most = self.reference_area
        area = picture.width * picture.height
        if not least <= area <= most:
            scale = (min(max(area, least), most) / area) ** 0.5
            # Rounded to a multiple before it is cut to one: scaled down to the bound, a square stays whole.
            multiple = self.picture_multiple
            width, height = (max(1, round(side * scale / multiple)) * multiple for side in picture.size)
            picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        return self.encode_picture(picture)

    @torch.no_grad()
    def encode_picture(self, picture: Image.Image) -> Tensor:
        """Latents (C, h, w) of an RGB picture, in float32: the mean of the autoencoder's posterior."""
        pixels = VaeImageProcessor().pil_to_numpy(picture)  # (1, H, W, 3), 0..1
        pixels = torch.from_numpy(2 * pixels - 1).permute(0, 3, 1, 2).to(self.device, torch.float32)
        with self._autoencoder() as vae:
            latents = torch.nn.functional.pixel_unshuffle(vae.encode(pixels).latent_dist.mode(), 2)
        mean, deviation = self._statistics()
        return ((latents - mean) / deviation)[0]

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation (1, C, 1, 1) of latents, as the autoencoder's batch norm has learned them."""
        vae = loaded(self.vae)
        mean, variance = vae.bn.running_mean, vae.bn.running_var
        assert mean is not None and variance is not None  # this class tracks them
        deviation = (variance + vae.config["batch_norm_eps"]).sqrt()
        return mean.view(1, -1, 1, 1).to(self.device), deviation.view(1, -1, 1, 1).to(self.device)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of the latents of a picture of height x width pixels."""
        channels = 4 * self.vae_config["latent_channels"]  # of 2 x 2 of the autoencoder's own
        return channels, height // self.picture_multiple, width // self.picture_multiple

    def sigmas(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        """The scheduler's sigmas for the pipeline's grid, which is shifted by the number of tokens."""
        _, rows, columns = self.latent_shape(height, width)
        made = FlowMatchEulerDiscreteScheduler.from_config(self.scheduler.config)
        scheduler = cast(FlowMatchEulerDiscreteScheduler, made)
        scheduler.set_timesteps(
            sigmas=np.linspace(1, 1 / num_inference_steps, num_inference_steps).tolist(),
            mu=compute_empirical_mu(rows * columns, num_inference_steps),
        )
        # Its annotation counts what they were before.
        return cast(Tensor, scheduler.sigmas)

    def predict_velocity(self, latents: Tensor, sigma: Tensor, conditionings: list[Conditioning]) -> Tensor:
        """What the transformer predicts, which is noise - picture; the tokens of references are cut off."""
        shapes = {
            (each.prompt_embeds.shape, tuple(reference.shape for reference in each.reference_latents))
            for each in conditionings
        }
        # This and what follows: without waiting for what a card still computes.
        sigma = sigma.to(self.device, non_blocking=True).expand(len(latents))
        if len(shapes) > 1:
            # Its attention knows no padding, and one place for the tokens of all.
            each = zip(latents, sigma, conditionings, strict=True)
            return torch.cat([self.predict_velocity(x[None], s[None], [c]) for x, s, c in each])
        texts = torch.stack([conditioning.prompt_embeds for conditioning in conditionings])  # (B, L, D)
        references = [
            torch.stack(group) for group in zip(*(c.reference_latents for c in conditionings), strict=True)
        ]
        tokens = torch.cat([x.to(self.device).flatten(2).mT for x in (latents, *references)], dim=1)
        ids = [_places(10 * number, x) for number, x in enumerate((latents, *references))]
        text_ids = torch.cartesian_prod(*(torch.arange(n) for n in (1, 1, 1, texts.shape[1])))
        velocities = loaded(self.transformer)(
            hidden_states=tokens.to(self.dtype),
            encoder_hidden_states=texts.to(self.dtype),
            timestep=sigma,
            img_ids=torch.cat(ids).to(self.device, non_blocking=True),
            txt_ids=text_ids.to(self.device, non_blocking=True),
            return_dict=False,
        )[0]
        own = velocities[:, : latents[0, 0].numel()]
        return own.mT.unflatten(2, latents.shape[2:]).float()

    def in_halves(self, block: Any, attend: Run, feed: Run) -> Callable:
        """The forward of a block of either list, in its attention and its feed-forward half."""
        is_double = isinstance(block, Flux2TransformerBlock)
        return partial(double_in_halves if is_double else single_in_halves, block, attend, feed)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of latents (B, C, h, w)."""
        mean, deviation = self._statistics()
        return self._decode(torch.nn.functional.pixel_shuffle(latents.to(self.device) * deviation + mean, 2))

    @torch.no_grad()
    def _decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of the autoencoder's own latents."""
        with self._decoder() as vae:
            decoded = vae.decode(latents.float(), return_dict=False)[0]
        pictures = VaeImageProcessor().postprocess(decoded, output_type="pil")
        # Of the kinds that it can return, the one that was asked for.
        return cast(list[Image.Image], pictures)

    def make_pipeline(self) -> Flux2KleinPipeline:
        """The official pipeline around the loaded parts; parts that are not loaded are None."""
        # Its annotations do not tell that it takes None.
        parts: dict[str, Any] = {
            "vae": self.vae,
            "text_encoder": self.text_encoder,
            "tokenizer": self.tokenizer,
            "transformer": self.transformer,
        }
        return Flux2KleinPipeline(scheduler=self.scheduler, is_distilled=True, **parts)

    def draw(self, pipeline: Flux2KleinPipeline, conditioning: Conditioning, **options) -> Image.Image:
        """A picture by the official pipeline, of what the student sees; it encodes `image`s itself."""
        embeds = conditioning.prompt_embeds[None]
        # Decoded here: it would give its own autoencoder, which stays in float32, latents in bfloat16.
        with self._autoencoder():
            latents = pipeline(
                prompt_embeds=embeds, guidance_scale=KLEIN.guidance, output_type="latent", **options
            ).images
        return self._decode(latents)[0]

    def official_features(self, caption: str) -> Tensor:
        """Features (512, D) of a caption as the pipeline's `encode_prompt` makes them."""
        features, _ = self.make_pipeline().encode_prompt([caption], device=self.device)
        return features[0]

    def official_latents(
        self,
        conditioning: Conditioning,
        noise: Tensor,
        num_inference_steps: int,
        references: Sequence[Image.Image] = (),
    ) -> list[Tensor]:
        """Latents (1, C, h, w) after each step of the pipeline."""
        visited: list[Tensor] = []

        def keep(_pipeline, _index, _timestep, values):
            visited.append(values["latents"].mT.unflatten(2, noise.shape[2:]).clone())
            return {}

        pipeline = self.make_pipeline()
        pipeline.set_progress_bar_config(disable=True)
        height, width = (side * self.picture_multiple for side in noise.shape[2:])
        # A pipeline computes where its autoencoder lies.
        with self._autoencoder():
            pipeline(
                image=list(references) or None,
                prompt_embeds=conditioning.prompt_embeds[None],
                guidance_scale=KLEIN.guidance,
                height=height,
                width=width,
                num_inference_steps=num_inference_steps,
                latents=noise.clone(),
                output_type="latent",
                callback_on_step_end=keep,
            )
        return visited

    @torch.no_grad()
    def teacher_text_features(self, caption: str) -> Tensor:
        """Features (512, D) that the teacher's encoder makes of a caption alone."""
        if self.teacher_context != BY_EYES:
            return self._text_features(caption)
        message = self._message(caption)
        states = loaded(self.teacher_encoder)(
            input_ids=message.input_ids.to(self.device),
            attention_mask=message.attention_mask.to(self.device),
            # A text encoder counts its padding as it counts words; this one would not.
            position_ids=torch.arange(CAPTION_TOKENS, device=self.device).expand(3, 1, -1),
            output_hidden_states=True,
        ).hidden_states
        return _side_by_side(states)


def _side_by_side(states: tuple[Tensor, ...]) -> Tensor:
    """Features (L, D) of the hidden states (1, L, D / 3) of a text encoder."""
    return torch.cat([states[layer] for layer in AFTER], dim=-1)[0]


def _places(time: int, latents: Tensor) -> Tensor:
    """Where the tokens of latents (B, C, h, w) stand: (h * w, 4), the time, the row, the column and 0."""
    rows, columns = latents.shape[2:]
    return torch.cartesian_prod(
        torch.tensor([time]), torch.arange(rows), torch.arange(columns), torch.tensor([0])
    )
