"""Repositories that are laid out as the real ones on the Hub are, with tiny random weights.

Names, configurations, number types and shards are those of Tongyi-MAI/Z-Image-Turbo, of
black-forest-labs/FLUX.2-klein-4B and of Qwen/Qwen3-VL-4B-Instruct; only the sizes are not.
"""

import json
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, Flux2Transformer2DModel, ZImageTransformer2DModel
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import Qwen3Config, Qwen3Model, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

Weights = dict[str, torch.Tensor]
DIFFUSERS_VERSION = "0.36.0.dev0"
TRANSFORMER = {
    "all_f_patch_size": [1],
    "all_patch_size": [2],
    "axes_dims": [8, 12, 12],
    "axes_lens": [1536, 512, 512],
    "cap_feat_dim": 32,
    "dim": 64,
    "in_channels": 16,
    "n_heads": 2,
    "n_kv_heads": 2,
    "n_layers": 2,
    "n_refiner_layers": 2,
    "norm_eps": 1e-05,
    "qk_norm": True,
    "rope_theta": 256.0,
    "t_scale": 1000.0,
}
VAE = {
    "act_fn": "silu",
    "block_out_channels": [8, 8, 16, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 16,
    "latents_mean": None,
    "latents_std": None,
    "layers_per_block": 2,
    "mid_block_add_attention": True,
    "norm_num_groups": 8,
    "out_channels": 3,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}
SCHEDULER = {"num_train_timesteps": 1000, "use_dynamic_shifting": False, "shift": 3.0}
PIPELINE = {
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen3Model"],
    "tokenizer": ["transformers", "Qwen2Tokenizer"],
    "transformer": ["diffusers", "ZImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}

KLEIN_TRANSFORMER = {
    "attention_head_dim": 32,
    "axes_dims_rope": [8, 8, 8, 8],
    "eps": 1e-06,
    "guidance_embeds": False,
    "in_channels": 128,
    "joint_attention_dim": 96,
    "mlp_ratio": 3.0,
    "num_attention_heads": 2,
    "num_layers": 2,
    "num_single_layers": 2,
    "out_channels": None,
    "patch_size": 1,
    "rope_theta": 2000,
    "timestep_guidance_channels": 256,
}
KLEIN_VAE = {
    "act_fn": "silu",
    "batch_norm_eps": 0.0001,
    "batch_norm_momentum": 0.1,
    "block_out_channels": [32, 32, 32, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 32,
    "layers_per_block": 2,
    "mid_block_add_attention": True,
    "norm_num_groups": 32,
    "out_channels": 3,
    "patch_size": [2, 2],
    "sample_size": 1024,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}
KLEIN_SCHEDULER = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "time_shift_type": "exponential",
    "use_dynamic_shifting": True,
}
KLEIN_PIPELINE = {
    "is_distilled": True,
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen3ForCausalLM"],
    "tokenizer": ["transformers", "Qwen2TokenizerFast"],
    "transformer": ["diffusers", "Flux2Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKLFlux2"],
}

# Of the language models: the base's text encoder, and the one in Qwen3-VL.
TEXT = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 5,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": True,
    "use_cache": True,
    "vocab_size": 512,
}
VISION = {
    "deepstack_visual_indexes": [0, 1],
    "depth": 3,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 16,
    "in_channels": 3,
    "initializer_range": 0.02,
    "intermediate_size": 32,
    "model_type": "qwen3_vl",
    "num_heads": 2,
    "num_position_embeddings": 2304,
    "out_hidden_size": 32,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
PREPROCESSOR = {
    "size": {"longest_edge": 16777216, "shortest_edge": 65536},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
}
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# They have an identity of their own too, but are not special: Qwen3's are the marks of thoughts.
ADDED_TOKENS = ("<think>", "</think>")
MERGES = (("Ġ", "t"), ("h", "e"), ("Ġ", "a"), ("Ġt", "he"), ("i", "n"))
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
GIT_ATTRIBUTES = "".join(
    f"{pattern} filter=lfs diff=lfs merge=lfs -text\n"
    for pattern in ("*.bin", "*.png", "*.safetensors", "*.webp", "tokenizer.json")
)
LICENCE = {"license": "apache-2.0"}
OTHER_LICENCE = {
    "license": "other",
    "license_name": "my-licence",
    "license_link": "https://example.org/licence",
    "base_model": "Tongyi-MAI/Z-Image-Turbo",
}


# --- repositories


def save_z_image_repository(folder: Path, *, seed: int = 0, fine_tune: bool = False) -> None:
    """Tongyi-MAI/Z-Image-Turbo, or somebody's fine-tune of it.

    The latter has another licence and one bfloat16 file as its transformer; text encoder and autoencoder
    are the same bytes, as they are in real ones.
    """
    card = {"pipeline_tag": "text-to-image", "library_name": "diffusers"}
    _save_front(folder, (OTHER_LICENCE if fine_tune else LICENCE) | card)
    (folder / "assets").mkdir()
    Image.new("RGB", (64, 48), (200, 30, 90)).save(folder / "assets" / "some.png")
    _save_json(folder / "model_index.json", _diffusers_config("ZImagePipeline", PIPELINE))
    scheduler = _diffusers_config("FlowMatchEulerDiscreteScheduler", SCHEDULER)
    _save_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    tokenizer = make_tokenizer()
    save_tokenizer(folder / "tokenizer", tokenizer)
    _save_text_encoder(folder / "text_encoder", tokenizer, seed)
    _save_json(folder / "vae" / "config.json", _diffusers_config("AutoencoderKL", VAE))
    vae = random_weights(lambda: AutoencoderKL(**VAE), torch.bfloat16, seed + 1)
    save_shards(folder / "vae", "diffusion_pytorch_model", vae, 1)
    _save_transformer(folder / "transformer", seed, fine_tune)
    if fine_tune:
        (folder / "text_encoder" / "pytorch_model.bin").write_bytes(b"a pickle that nobody should open")


def save_klein_repository(folder: Path, *, seed: int = 0) -> None:
    """black-forest-labs/FLUX.2-klein-4B: its transformer lies in the root once more, for other programs."""
    card = {"pipeline_tag": "image-to-image", "library_name": "diffusers"}
    _save_front(folder, LICENCE | card)
    _save_json(folder / "model_index.json", _diffusers_config("Flux2KleinPipeline", KLEIN_PIPELINE))
    scheduler = _diffusers_config("FlowMatchEulerDiscreteScheduler", KLEIN_SCHEDULER)
    _save_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    tokenizer = make_tokenizer()
    save_tokenizer(folder / "tokenizer", tokenizer)
    _save_text_encoder(folder / "text_encoder", tokenizer, seed, layers=28, shards=2)
    _save_json(folder / "vae" / "config.json", _diffusers_config("AutoencoderKLFlux2", KLEIN_VAE))
    vae = random_weights(lambda: AutoencoderKLFlux2(**KLEIN_VAE), torch.bfloat16, seed + 1)
    vae["bn.running_var"] = vae["bn.running_var"].abs() + 1
    save_shards(folder / "vae", "diffusion_pytorch_model", vae, 1)
    config = _diffusers_config("Flux2Transformer2DModel", KLEIN_TRANSFORMER)
    _save_json(folder / "transformer" / "config.json", config)
    weights = random_weights(lambda: Flux2Transformer2DModel(**KLEIN_TRANSFORMER), torch.bfloat16, seed + 2)
    save_shards(folder / "transformer", "diffusion_pytorch_model", weights, 1)
    save_shards(folder, "flux-2-klein-4b", weights, 1)


def save_qwen_vl_repository(folder: Path, *, seed: int = 0) -> None:
    """Qwen/Qwen3-VL-4B-Instruct: the vision tower's weights lie in both shards, among the others."""
    tokenizer = make_tokenizer()
    _save_front(folder, LICENCE | {"pipeline_tag": "image-text-to-text", "library_name": "transformers"})
    save_tokenizer(folder, tokenizer)
    _save_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    _save_json(folder / "config.json", _qwen_vl_config(tokenizer))
    _save_json(folder / "generation_config.json", _generation_config(tokenizer))
    pictures = {"image_processor_type": "Qwen2VLImageProcessorFast"}
    _save_json(folder / "preprocessor_config.json", PREPROCESSOR | pictures)
    videos = {
        "size": {"longest_edge": 25165824, "shortest_edge": 4096},
        "video_processor_type": "Qwen3VLVideoProcessor",
    }
    _save_json(folder / "video_preprocessor_config.json", PREPROCESSOR | videos)
    # Read from the file, since the class changes the dictionaries that it is given.
    config = Qwen3VLConfig.from_pretrained(folder)
    weights = random_weights(lambda: Qwen3VLForConditionalGeneration(config), torch.bfloat16, seed + 3)
    del weights["lm_head.weight"]  # the embedding's
    save_shards(folder, "model", _mix(weights, "model.visual."), 2)


def _save_text_encoder(
    folder: Path, tokenizer: Tokenizer, seed: int, layers: int = TEXT["num_hidden_layers"], shards: int = 3
) -> None:
    config = TEXT | {
        "num_hidden_layers": layers,
        "architectures": ["Qwen3ForCausalLM"],
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "max_position_embeddings": 40960,
        "max_window_layers": 5,
        "model_type": "qwen3",
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "use_sliding_window": False,
    }
    _save_json(folder / "config.json", config)
    _save_json(folder / "generation_config.json", _generation_config(tokenizer))
    weights = random_weights(lambda: Qwen3Model(Qwen3Config(**config)), torch.bfloat16, seed)
    save_shards(folder, "model", {f"model.{name}": weight for name, weight in weights.items()}, shards)


def _save_transformer(folder: Path, seed: int, fine_tune: bool) -> None:
    def draw(dtype: torch.dtype, its_seed: int) -> Weights:
        return random_weights(lambda: ZImageTransformer2DModel(**TRANSFORMER), dtype, its_seed)

    _save_json(folder / "config.json", _diffusers_config("ZImageTransformer2DModel", TRANSFORMER))
    if fine_tune:
        save_shards(folder, "diffusion_pytorch_model", draw(torch.bfloat16, seed + 4), 1)
        # Other numbers than those of the right file: who reads it would see that.
        save_shards(folder, "diffusion_pytorch_model.fp16", draw(torch.float16, seed + 5), 1)
    else:
        save_shards(folder, "diffusion_pytorch_model", draw(torch.float32, seed + 2), 3)


# --- configurations


def _diffusers_config(class_name: str, settings: dict) -> dict:
    return {"_class_name": class_name, "_diffusers_version": DIFFUSERS_VERSION, **settings}


def _generation_config(tokenizer: Tokenizer) -> dict:
    padding = tokenizer.token_to_id("<|endoftext|>")
    return {
        "bos_token_id": padding,
        "do_sample": True,
        "eos_token_id": [tokenizer.token_to_id("<|im_end|>"), padding],
        "pad_token_id": padding,
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
    }


def _qwen_vl_config(tokenizer: Tokenizer) -> dict:
    text = TEXT | {
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "dtype": "bfloat16",
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "max_position_embeddings": 262144,
        "model_type": "qwen3_vl_text",
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [6, 5, 5], "rope_type": "default"},
        "rope_theta": 5000000,
    }
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
        "model_type": "qwen3_vl",
        "text_config": text,
        "tie_word_embeddings": True,
        "transformers_version": "4.57.0.dev0",
        "video_token_id": tokenizer.token_to_id("<|video_pad|>"),
        "vision_config": VISION,
        "vision_end_token_id": tokenizer.token_to_id("<|vision_end|>"),
        "vision_start_token_id": tokenizer.token_to_id("<|vision_start|>"),
    }


def _save_front(folder: Path, card: dict[str, str]) -> None:
    """What git and a visitor want of a repository."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitattributes").write_text(GIT_ATTRIBUTES)
    front = "".join(f"{name}: {value}\n" for name, value in card.items())
    (folder / "README.md").write_text(f"---\n{front}---\n# A model with tiny random weights\n")


def _save_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# --- the tokenizer


def make_tokenizer() -> Tokenizer:
    """A token for each byte and for a few words, then Qwen3's special tokens, as in the real one."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(MERGES)))
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ADDED_TOKENS])
    return tokenizer


def save_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """merges.txt, tokenizer.json, tokenizer_config.json with the chat template, and vocab.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    _save_json(folder / "vocab.json", json.loads(tokenizer.to_str())["model"]["vocab"])
    merges = "".join(f"{first} {second}\n" for first, second in MERGES)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    added = {
        str(tokenizer.token_to_id(token)): {"content": token, **flags, "special": token in SPECIAL_TOKENS}
        for token in SPECIAL_TOKENS + ADDED_TOKENS
    }
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    _save_json(folder / "tokenizer_config.json", config)


# --- weights


def random_weights(make: Callable[[], torch.nn.Module], dtype: torch.dtype, seed: int) -> Weights:
    """Numbers for a module that is not even made; a norm's are near 1, so that activations stay finite."""
    with torch.device("meta"):
        made = make().state_dict()
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, weight in made.items():
        middle = 1.0 if weight.ndim == 1 and name.endswith("weight") else 0.0
        drawn = middle + 0.02 * torch.randn(weight.shape, generator=generator)
        weights[name] = drawn.to(dtype if weight.is_floating_point() else weight.dtype)
    return weights


def save_shards(folder: Path, stem: str, weights: Weights, number: int) -> None:
    """Weights in so many files of about equal size, in their order, and an index where there are several."""
    folder.mkdir(parents=True, exist_ok=True)
    if number == 1:
        return save_file(weights, folder / f"{stem}.safetensors", metadata={"format": "pt"})
    total = sum(weight.nbytes for weight in weights.values())
    shards: list[Weights] = [{} for _ in range(number)]
    before = 0
    for name, weight in weights.items():
        shards[before * number // total][name] = weight
        before += weight.nbytes
    names = [f"{stem}-{place:05}-of-{number:05}.safetensors" for place in range(1, number + 1)]
    for name, shard in zip(names, shards, strict=True):
        _save_in_order(folder / name, shard)
    places = {weight: name for name, shard in zip(names, shards, strict=True) for weight in shard}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    _save_json(folder / f"{stem}.safetensors.index.json", index)


def _save_in_order(path: Path, weights: Weights) -> None:
    """A safetensors file whose data lie in the order given: the library's own writer sorts them by name."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    names = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
    for name, weight in weights.items():
        start, end = end, end + weight.nbytes
        entry = {"dtype": names[weight.dtype], "shape": list(weight.shape), "data_offsets": [start, end]}
        header[name] = entry
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for weight in weights.values():
            file.write(weight.contiguous().view(torch.uint8).numpy().tobytes())


def _mix(weights: Weights, prefix: str) -> Weights:
    """Those whose names begin so spread evenly among the others, each pair of them side by side."""
    chosen = [name for name in weights if name.startswith(prefix)]
    others = [name for name in weights if not name.startswith(prefix)]
    pairs = [chosen[place : place + 2] for place in range(0, len(chosen), 2)]
    many = -(-len(others) // len(pairs))
    runs = [others[place : place + many] for place in range(0, len(others), many)]
    order = [name for pair, run in zip_longest(pairs, runs, fillvalue=[]) for name in [*run, *pair]]
    return {name: weights[name] for name in order}
