"""The parts of the built-in base: real diffusers and transformers classes, only small."""

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3Model, Qwen3VLConfig, Qwen3VLModel

from pocket.tokens import IMAGE

LATENT_CHANNELS = 8
TEXT_WIDTH = 192
TEXT_LAYERS = 5  # the last one is never read: Z-Image takes the features before it
PATCH, MERGE = 8, 2  # pixels, patches


def build_autoencoder() -> AutoencoderKL:
    """Four pixels per latent step and 8 channels: 64x64 becomes 8x16x16, and fine patterns survive."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=16,
        sample_size=64,
        mid_block_add_attention=False,  # crops and whole pictures then see the same function
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def build_transformer() -> ZImageTransformer2DModel:
    """Velocity predictor: 64 picture tokens beside 32 or 64 context tokens."""
    transformer = ZImageTransformer2DModel(
        in_channels=LATENT_CHANNELS,
        dim=192,
        n_layers=6,
        n_refiner_layers=1,
        n_heads=6,
        n_kv_heads=6,
        cap_feat_dim=TEXT_WIDTH,
        axes_dims=[8, 12, 12],
        axes_lens=[1024, 64, 64],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token.data, std=0.02)  # some versions leave it uninitialised
    return transformer


def text_settings(tokenizer: PreTrainedTokenizerBase) -> dict:
    """What the student's Qwen3 and the language half of the teacher's Qwen3-VL have in common."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 512,
        "num_hidden_layers": TEXT_LAYERS,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 32,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
        "pad_token_id": tokenizer.pad_token_id,
    }


def build_text_encoder(tokenizer: PreTrainedTokenizerBase) -> Qwen3Model:
    config = Qwen3Config(
        **text_settings(tokenizer), rope_parameters={"rope_type": "default", "rope_theta": 1e6}
    )
    return Qwen3Model(config)


def build_encoder(tokenizer: PreTrainedTokenizerBase) -> Qwen3VLModel:
    """The encoder in training: the text encoder is its `language_model`, the vision tower its `visual`."""
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    vision = {
        "depth": 3,
        "hidden_size": 160,
        "intermediate_size": 480,
        "num_heads": 5,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "out_hidden_size": TEXT_WIDTH,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    config = Qwen3VLConfig(
        text_config=text_settings(tokenizer) | {"rope_parameters": rope},
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    return Qwen3VLModel(config)


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Z-Image-Turbo's: shift 3, so four steps visit 1, .9, .75 and .5."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0, use_dynamic_shifting=False)
