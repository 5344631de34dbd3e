"""Z-Image-Turbo, and every model of its architecture: the built-in base included.

What is known of them without loading stands in `z_image_facts`, which needs no torch.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models import AutoencoderKL, ZImageTransformer2DModel
from diffusers.pipelines.z_image.pipeline_z_image import ZImagePipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor

from dopsd_app.models import qwen, vision_language
from dopsd_app.models.architecture import BaseModelError, Role
from dopsd_app.models.blocks import Run
from dopsd_app.models.catalog import BaseModelPaths
from dopsd_app.models.memory_plan import MemoryPlan
from dopsd_app.models.phases import LoadedInPhases
from dopsd_app.models.protocol import Conditioning, Pictures, loaded
from dopsd_app.models.z_image_facts import Z_IMAGE, ZImageSizes
from dopsd_app.models.z_image_halves import forward_in_halves

STUDENT_TOKENS = 512  # the pipeline's max_sequence_length
TEACHER_TOKENS = 1024  # as in the released code, whose pictures take up to 578 of them
CAPTION_ROOM = TEACHER_TOKENS - 578  # that a larger picture leaves as well


class ZImage(LoadedInPhases):
    """Z-Image-Turbo's pipeline with the teacher's eyes, Qwen3-VL's vision tower."""

    architecture = Z_IMAGE
    transformer_class, autoencoder_class = ZImageTransformer2DModel, AutoencoderKL
    lora_targets = (
        r"(layers|noise_refiner|context_refiner)\.\d+\."
        r"(attention\.(to_q|to_k|to_v|to_out\.0)|feed_forward\.(w1|w2|w3))"
    )

    # The first two work on the picture and on the caption alone.
    block_lists = ("noise_refiner", "context_refiner", "layers")

    def __init__(
        self,
        place: BaseModelPaths,
        device: torch.device,
        dtype: torch.dtype,
        *,
        sizes: ZImageSizes,
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
        self.conditioning_version = (
            "z-image 3: picture, unstretched, caption; hidden_states[-2]; the text encoder's rotary base;"
            f" a picture of {self.context_area} pixels"
        )
        self.vae_scale_factor = 2 ** (len(self.vae_config["block_out_channels"]) - 1)
        self.picture_multiple = sizes.side_multiple

    def encode(self, pictures: Pictures, caption: str, role: Role) -> Conditioning:
        """Features (L, D), `hidden_states[-2]`, of one user message: for the teacher, its picture is in it.

        Raises `BaseModelError` for a caption of which something would be cut off, for student or teacher.
        """
        return self._encode_student(caption) if role == "student" else self._encode_teacher(pictures, caption)

    @torch.no_grad()
    def _encode_student(self, caption: str) -> Conditioning:
        """As `encode_prompt` gives them."""
        token_ids = self._token_ids(caption)[:, :STUDENT_TOKENS].to(self.device)
        output = loaded(self.text_encoder)(input_ids=token_ids, output_hidden_states=True)
        features = output.hidden_states[-2]
        return Conditioning(features[0])

    def _encode_teacher(self, pictures: Pictures, caption: str) -> Conditioning:
        """The picture first, then the caption; image tokens stay in."""
        inputs = vision_language.read_picture(self.image_processor, pictures.training_picture)
        placeholder = vision_language.picture_text(self.image_processor, inputs.image_grid_thw[0])
        token_ids = self._token_ids(placeholder + caption)
        taken = token_ids.shape[1] - self._token_ids(caption).shape[1]  # by the picture
        room = min(STUDENT_TOKENS, max(TEACHER_TOKENS - taken, CAPTION_ROOM))
        if token_ids.shape[1] - taken > room:
            raise BaseModelError(
                f"The caption “{caption[:60]} ...” is too long: it takes {token_ids.shape[1] - taken} tokens,"
                f" and {room} can be read. Shorten it."
            )
        encoder = loaded(self.teacher_encoder)
        return Conditioning(vision_language.hidden_states_of(encoder, inputs, token_ids)[-2][0])

    def _token_ids(self, content: str) -> Tensor:
        tokenizer = loaded(self.tokenizer)
        return qwen.token_ids(tokenizer, qwen.message(tokenizer, content, thinking=True))

    @torch.no_grad()
    def encode_picture(self, picture: Image.Image) -> Tensor:
        """Latents (C, h, w) of an RGB picture, in float32: the mean of the autoencoder's posterior."""
        pixels = VaeImageProcessor().pil_to_numpy(picture)  # (1, H, W, 3), 0..1
        pixels = torch.from_numpy(2 * pixels - 1).permute(0, 3, 1, 2).to(self.device, torch.float32)
        with self._autoencoder() as vae:
            latents = vae.encode(pixels).latent_dist.mode()[0]
        return (latents - vae.config["shift_factor"]) * vae.config["scaling_factor"]

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of the latents of a picture of height x width pixels."""
        return (
            self.vae_config["latent_channels"],
            height // self.vae_scale_factor,
            width // self.vae_scale_factor,
        )

    def sigmas(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        """The scheduler's sigmas for the pipeline's grid; Z-Image's shift does not depend on the size."""
        made = FlowMatchEulerDiscreteScheduler.from_config(self.scheduler.config)
        scheduler = cast(FlowMatchEulerDiscreteScheduler, made)
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / num_inference_steps, num_inference_steps).tolist())
        # Its annotation counts what they were before.
        return cast(Tensor, scheduler.sigmas)

    def predict_velocity(self, latents: Tensor, sigma: Tensor, conditionings: list[Conditioning]) -> Tensor:
        """Z-Image counts time from noise to picture and predicts picture - noise: both are flipped here."""
        images = list(latents.to(self.dtype).unsqueeze(2))  # B x (C, 1, h, w)
        texts = [conditioning.prompt_embeds for conditioning in conditionings]  # B x (L, D)
        # Without waiting for what a card still computes.
        time = (1 - sigma).to(self.device, non_blocking=True).expand(len(images))
        velocities = loaded(self.transformer)(images, time, texts, return_dict=False)[0]
        return -torch.stack(velocities).squeeze(2).float()

    def in_halves(self, block: Any, attend: Run, feed: Run) -> Callable[..., Tensor]:
        """The forward of a block of any of the three lists, in its attention and its feed-forward half."""
        return partial(forward_in_halves, block, attend, feed)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of latents (B, C, h, w)."""
        with self._decoder() as vae:
            latents = latents.to(self.device) / vae.config["scaling_factor"] + vae.config["shift_factor"]
            decoded = vae.decode(latents, return_dict=False)[0]
        pictures = VaeImageProcessor().postprocess(decoded, output_type="pil")
        # Of the kinds that it can return, the one that was asked for.
        return cast(list[Image.Image], pictures)

    def make_pipeline(self) -> ZImagePipeline:
        """The official pipeline around the loaded parts; parts that are not loaded are None."""
        # Its annotations do not tell that it takes None.
        parts: dict[str, Any] = {
            "vae": self.vae,
            "text_encoder": self.text_encoder,
            "tokenizer": self.tokenizer,
            "transformer": self.transformer,
        }
        return ZImagePipeline(scheduler=self.scheduler, **parts)

    def draw(self, pipeline: ZImagePipeline, conditioning: Conditioning, **options) -> Image.Image:
        """A picture by the official pipeline, of what the student sees."""
        embeds = [conditioning.prompt_embeds]
        with self._decoder():
            return pipeline(prompt_embeds=embeds, guidance_scale=Z_IMAGE.guidance, **options).images[0]

    def official_features(self, caption: str) -> Tensor:
        """Features (L, D) of a caption as the pipeline's `encode_prompt` makes them."""
        features, _ = self.make_pipeline().encode_prompt(
            [caption], device=self.device, do_classifier_free_guidance=False
        )
        return features[0]

    def official_latents(
        self,
        conditioning: Conditioning,
        noise: Tensor,
        num_inference_steps: int,
        references: Sequence[Image.Image] = (),
    ) -> list[Tensor]:
        """Latents (1, C, h, w) after each step of the pipeline; its transformer sees no references."""
        visited: list[Tensor] = []

        def keep(_pipeline, _index, _timestep, values):
            visited.append(values["latents"].clone())
            return {}

        pipeline = self.make_pipeline()
        pipeline.set_progress_bar_config(disable=True)
        height, width = (side * self.vae_scale_factor for side in noise.shape[2:])
        # A pipeline computes where its autoencoder lies.
        with self._autoencoder():
            pipeline(
                prompt_embeds=[conditioning.prompt_embeds],
                guidance_scale=Z_IMAGE.guidance,
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
        """Features (L, D) that the teacher's encoder makes of a caption alone."""
        token_ids = self._token_ids(caption)[:, :STUDENT_TOKENS].to(self.device)
        return loaded(self.teacher_encoder)(input_ids=token_ids, output_hidden_states=True).hidden_states[-2][
            0
        ]
