"""Folders of the known base models at real size, whose weights are nothing but their names and shapes.

The files of weights are as long as they say and take no room on disk: they are read where no number counts,
on the device "meta". Or they are drawn at random, where it is computed with them.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from torch import Tensor
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen3Config, Qwen3Model
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from benchmarks.real_size import (
    CHANNELS,
    DIFFUSERS,
    EYES,
    TEXT,
    TINY,
    TINY_CHANNELS,
    TINY_TRANSFORMER,
    TINY_VISION,
    TRANSFORMERS,
    VISION,
    make_autoencoder,
    make_header,
)
from dopsd_app.models.catalog import find_base_model
from dopsd_app.models.pipeline_folder import EYES_PREFIX

QWEN3_8B = TEXT | {"hidden_size": 4096, "intermediate_size": 12288}
VISION_8B = VISION | {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "out_hidden_size": 4096}
VISION_8B |= {"deepstack_visual_indexes": [8, 16, 24]}
KLEIN = {"attention_head_dim": 128, "guidance_embeds": False}
KLEIN_4B = KLEIN | {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24}
KLEIN_9B = KLEIN | {"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32}

TINY_KLEIN = {"attention_head_dim": 16, "guidance_embeds": False, "num_layers": 1, "num_single_layers": 2}
TINY_KLEIN |= {"num_attention_heads": 2, "timestep_guidance_channels": 32, "axes_dims_rope": (4, 4, 4, 4)}

BASES = {  # transformer, text encoder, vision tower, and the autoencoder's channels
    "z-image-turbo": ({}, TEXT, VISION, CHANNELS),
    "klein-4b": (KLEIN_4B | {"joint_attention_dim": 3 * 2560}, TEXT, VISION, CHANNELS),
    "klein-9b": (KLEIN_9B | {"joint_attention_dim": 3 * 4096}, QWEN3_8B, VISION_8B, CHANNELS),
}
TINY_BASES = {  # to try what computes with them on a processor
    "z-image-turbo": (TINY_TRANSFORMER, TINY, TINY_VISION, TINY_CHANNELS),
    # Its features are taken after 9, 18 and 27 layers.
    "klein-4b": (
        TINY_KLEIN | {"joint_attention_dim": 3 * 32},
        TINY | {"num_hidden_layers": 28},
        TINY_VISION,
        TINY_CHANNELS,
    ),
}


def save_base_like(
    base: str, folder: Path, write: Callable[[Path, dict[str, Tensor]], None], *, tiny: bool = False
) -> None:
    """A folder like the base model's, in bfloat16, with the teacher's eyes; `write` makes each file."""
    transformer_fields, text_fields, vision_fields, channels = (TINY_BASES if tiny else BASES)[base]
    tokenizer = AutoTokenizer.from_pretrained(find_base_model("pocket-turbo").folder / "tokenizer")
    text = Qwen3Config(
        **text_fields,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = Qwen3VLVisionConfig(**vision_fields)
    is_klein = base.startswith("klein")
    with torch.device("meta"):
        vision_tower = Qwen3VLVisionModel(vision)
        text_encoder = Qwen3Model(text)
        if is_klein:
            transformer = Flux2Transformer2DModel(**transformer_fields)
            vae = AutoencoderKLFlux2(block_out_channels=channels)
        else:
            transformer = ZImageTransformer2DModel(**transformer_fields)
            vae = make_autoencoder(channels)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=is_klein)
    parts = scheduler, vae, text_encoder, tokenizer, transformer
    pipeline = Flux2KleinPipeline(*parts, is_distilled=True) if is_klein else ZImagePipeline(*parts)
    pipeline.save_config(folder)
    scheduler.save_pretrained(folder / "scheduler")
    tokenizer.save_pretrained(folder / "tokenizer")
    transformer.save_config(folder / "transformer")
    text.save_pretrained(folder / "text_encoder")
    vae.save_config(folder / "vae")
    vision.save_pretrained(folder / "vision_tower")
    Qwen2VLImageProcessorPil(**EYES).save_pretrained(folder / "vision_tower")
    for part, module, stem, prefix in (
        ("transformer", transformer, DIFFUSERS, ""),
        ("text_encoder", text_encoder, TRANSFORMERS, "model."),
        ("vae", vae, DIFFUSERS, ""),
        ("vision_tower", vision_tower, TRANSFORMERS, EYES_PREFIX),
    ):
        # Counts of batches are whole numbers; all else is bfloat16.
        weights = {
            prefix + name: weight.bfloat16() if weight.is_floating_point() else weight
            for name, weight in module.state_dict().items()
        }
        write(folder / part / f"{stem}.safetensors", weights)


def save_hollow_base(base: str, folder: Path) -> None:
    """A folder like the base model's without any numbers."""
    save_base_like(base, folder, write_hollow)


def write_hollow(path: Path, weights: dict[str, Tensor]) -> None:
    """A safetensors file with these names, types and shapes, and a hole for the numbers."""
    header = make_header(weights)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + sum(weight.nbytes for weight in weights.values()))
