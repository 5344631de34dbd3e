"""The teacher's eyes: Qwen3-VL's vision tower in front of the base model's own Qwen3.

Only the vision tower (with its mergers) comes from Qwen3-VL. The language model is the one that the base
model was trained with, the same tensors: features of
an un-replaced Qwen3-VL are strange to it (arXiv 2605.05204).
"""

import json
import math
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    BatchFeature,
    PreTrainedTokenizerBase,
    Qwen2VLImageProcessorPil,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLModel,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    BaseModelOutputWithDeepstackFeatures,
    Qwen3VLTextRotaryEmbedding,
    Qwen3VLVisionModel,
)

from dopsd_app.models.architecture import BaseModelError
from dopsd_app.models.frozen import load_frozen

# Qwen, in multiples of 32 pixels, would stretch a picture of 720 x 368 by 6.5 %, and the teacher teach that.
MOST_STRETCH = 0.015


def load_vision_tower(folder: Path, dtype: torch.dtype, device: torch.device) -> Qwen3VLVisionModel:
    """The vision tower of a folder that holds it alone, or a whole Qwen3-VL, of which no more is read."""
    try:
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        seeing: dict[str, Any] = fields.get("vision_config", fields)
        # Given here: a configuration from anywhere could name code on the Hub in its place.
        seeing = {**seeing, "attn_implementation": "sdpa"}
        config = Qwen3VLVisionConfig(**seeing)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        message = f"The config.json in {folder} is damaged: delete that folder. ({error})"
        raise BaseModelError(message) from error
    return load_frozen(lambda: Qwen3VLVisionModel(config), folder, dtype, device, prefix="model.visual.")


def join_encoders(
    text_encoder: Qwen3Model, vision_tower: Qwen3VLVisionModel, tokenizer: PreTrainedTokenizerBase
) -> Qwen3VLModel:
    """A Qwen3-VL whose language model is `text_encoder` (the same tensors, its own rotary base).

    Without a picture it gives exactly the text encoder's features. The released code leaves the rotary base
    at Qwen3-VL's 5e6 instead of Qwen3's 1e6, so that even its text features differ from the student's.
    """
    text = text_encoder.config
    if (width := vision_tower.config.out_hidden_size) != text.hidden_size:
        raise BaseModelError(
            f"The teacher's eyes give {width} numbers for each part of a picture, and the text encoder of"
            f" this base model takes {text.hidden_size}: they do not belong together."
        )
    assert text.rope_parameters is not None  # every configuration has them, once it is made
    third = text.head_dim // 2 * 5 // 16  # Qwen3-VL's own split of a head of 128: 24, 20, 20
    text_config = {
        **{key: getattr(text, key) for key in ("vocab_size", "hidden_size", "intermediate_size", "head_dim")},
        **{key: getattr(text, key) for key in ("num_hidden_layers", "num_attention_heads", "rms_norm_eps")},
        **{
            key: getattr(text, key)
            for key in ("num_key_value_heads", "hidden_act", "max_position_embeddings")
        },
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": text.rope_parameters["rope_theta"],
            "mrope_section": [text.head_dim // 2 - 2 * third, third, third],
        },
        "pad_token_id": text.pad_token_id,
    }
    config = Qwen3VLConfig(
        text_config=text_config,
        vision_config=vision_tower.config.to_dict(),
        image_token_id=_token_id(tokenizer, "<|image_pad|>"),
        vision_start_token_id=_token_id(tokenizer, "<|vision_start|>"),
        vision_end_token_id=_token_id(tokenizer, "<|vision_end|>"),
    )
    with torch.device("meta"):  # no second copy of the weights
        encoder = Qwen3VLModel(config)
    encoder.visual = vision_tower
    encoder.language_model.load_state_dict(text_encoder.state_dict(), assign=True)
    # Its frequencies are no weights, so that they are still on "meta".
    rotary = Qwen3VLTextRotaryEmbedding(encoder.language_model.config)
    encoder.language_model.rotary_emb = rotary.to(text_encoder.device)
    return encoder.eval().requires_grad_(False)


def _token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    # Only of several tokens there is a list.
    return cast(int, tokenizer.convert_tokens_to_ids(token))


def load_image_processor(folder: Path, area: tuple[int, int]) -> Qwen2VLImageProcessorPil:
    """What makes patches of a picture, once it is scaled to at least and at most so many pixels.

    The folder's own bounds do not count: Qwen3-VL's let a picture take more tokens than fit, or very few.
    """
    size = {"shortest_edge": area[0], "longest_edge": area[1]}
    return Qwen2VLImageProcessorPil.from_pretrained(folder, size=size)


def read_picture(image_processor: Qwen2VLImageProcessorPil, picture: Image.Image) -> BatchFeature:
    """What the vision tower gets of a picture: the whole of it, and hardly stretched (`seen_size`)."""
    bounds = image_processor.size["shortest_edge"], image_processor.size["longest_edge"]
    side = image_processor.patch_size * image_processor.merge_size
    height, width = seen_size(*picture.size, bounds, side)
    if (height, width) == smart_resize(picture.height, picture.width, side, *bounds):
        return image_processor(picture, return_tensors="pt")
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)  # as the processor itself does
    return image_processor(picture, do_resize=False, return_tensors="pt")


def seen_size(width: int, height: int, area: tuple[int, int], side: int) -> tuple[int, int]:
    """The (height, width) in pixels, multiples of `side`, at which a vision tower sees a picture.

    It is Qwen's own, which keeps near to the area that the picture has, within the bounds of `area`. Where
    that stretches it by more than `MOST_STRETCH`, it is of all sizes the nearest in area that does not, or
    the one that stretches it least.
    """
    usual = smart_resize(height, width, side, *area)
    tokens = usual[0] * usual[1] // side**2
    least, most = min(math.ceil(area[0] / side**2), tokens), max(area[1] // side**2, tokens)
    sizes = [
        (rows, columns)
        for rows in range(1, most + 1)
        for columns in range(math.ceil(least / rows), most // rows + 1)
    ]

    def unfit(size: tuple[int, int]) -> tuple[float, float]:
        rows, columns = size
        stretch = abs(math.log(columns / rows) - math.log(width / height))
        return max(stretch, MOST_STRETCH), abs(math.log(rows * columns / tokens))

    rows, columns = min(sizes, key=unfit)
    return rows * side, columns * side


def picture_text(image_processor: Qwen2VLImageProcessorPil, grid: Tensor) -> str:
    """The placeholder of one picture of `grid` (t, h, w in patches): one image token per merged patch."""
    tokens = int(grid.prod()) // image_processor.merge_size**2
    return "<|vision_start|>" + "<|image_pad|>" * tokens + "<|vision_end|>"


@torch.no_grad()
def hidden_states_of(
    encoder: Qwen3VLModel, inputs: BatchFeature, token_ids: Tensor, attention_mask: Tensor | None = None
) -> tuple[Tensor, ...]:
    """All hidden states (1, L, D) of a message (1, L) that holds the picture's `picture_text`.

    `inputs` is what the image processor made of the picture; the mask is 0 where a message is padded.
    """
    input_ids = token_ids.to(encoder.device)
    grid = inputs.image_grid_thw.to(encoder.device)
    kinds = (input_ids == encoder.config.image_token_id).int()
    # Made without the mask: a text encoder counts its padding as it counts words, and this one would not.
    # Its annotations ask for classes that nobody makes.
    position_ids, _ = cast(Any, encoder).get_rope_index(input_ids, kinds, image_grid_thw=grid)
    return encoder(
        input_ids=input_ids,
        attention_mask=None if attention_mask is None else attention_mask.to(encoder.device),
        position_ids=position_ids,
        pixel_values=inputs.pixel_values.to(encoder.device, encoder.dtype),
        image_grid_thw=grid,
        mm_token_type_ids=kinds,
        output_hidden_states=True,
    ).hidden_states


@torch.no_grad()
def run_vision_tower(
    vision_tower: Qwen3VLVisionModel, image_processor: Qwen2VLImageProcessorPil, picture: Image.Image
) -> BaseModelOutputWithDeepstackFeatures:
    """All that the vision tower makes of a picture; `pooler_output` (tokens, D) is what the encoder gets."""
    inputs = read_picture(image_processor, picture)
    pixels = inputs.pixel_values.to(vision_tower.device, vision_tower.dtype)
    return vision_tower(pixels, inputs.image_grid_thw.to(vision_tower.device))


def picture_features(
    vision_tower: Qwen3VLVisionModel, image_processor: Qwen2VLImageProcessorPil, picture: Image.Image
) -> Tensor:
    """A picture's tokens (tokens, D), in float32."""
    features = run_vision_tower(vision_tower, image_processor, picture).pooler_output
    assert features is not None  # what this model gives to its language model
    return features.float()
