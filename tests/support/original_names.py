"""Transformers' weights under the names of their original releases, in which ComfyUI keeps them.

Written as facts from ComfyUI's key maps (as in `comfyui.py`), not by turning diffusers' conversion around.
"""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file

Weights = dict[str, torch.Tensor]


def read_part(folder: Path) -> Weights:
    """All weights of a part, of whichever files its own are."""
    files = sorted(folder.glob("diffusion_pytorch_model*.safetensors")) or sorted(
        folder.glob("model*.safetensors")
    )
    return {name: weight for file in files for name, weight in load_file(file).items()}


def z_image_as_released(weights: Weights) -> Weights:
    """Z-Image: queries, keys and values are one matrix."""
    released, rest = {}, dict(weights)
    for name in [name for name in weights if name.endswith("attention.to_q.weight")]:
        stem = name.removesuffix("to_q.weight")
        released[f"{stem}qkv.weight"] = torch.cat([rest.pop(f"{stem}to_{x}.weight") for x in "qkv"])
    for name, weight in rest.items():
        name = name.replace("attention.to_out.0", "attention.out")
        name = re.sub(r"attention\.norm_([qk])", r"attention.\1_norm", name)
        released[re.sub(r"^all_(x_embedder|final_layer)\.2-1\.", r"\1.", name)] = weight
    return released


DOUBLE = {
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
}
SINGLE = {
    "attn.to_qkv_mlp_proj": "linear1",
    "attn.to_out": "linear2",
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
}
AROUND = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "proj_out": "final_layer.linear",
}


def klein_as_released(weights: Weights) -> Weights:
    """FLUX.2 klein: the last norm's shift stands before its scale, and norms have a scale for a weight."""
    released, rest = {}, dict(weights)
    for name in [name for name in weights if name.endswith(("attn.to_q.weight", "attn.add_q_proj.weight"))]:
        block = name.split(".")[1]
        if name.endswith("to_q.weight"):
            names, stream = [name.replace("to_q", f"to_{x}") for x in "qkv"], "img"
        else:
            names, stream = [name.replace("add_q", f"add_{x}") for x in "qkv"], "txt"
        released[f"double_blocks.{block}.{stream}_attn.qkv.weight"] = torch.cat([rest.pop(x) for x in names])
    scale, shift = rest.pop("norm_out.linear.weight").chunk(2)
    released["final_layer.adaLN_modulation.1.weight"] = torch.cat([shift, scale])
    for name, weight in rest.items():
        stem = name.removesuffix(".weight")
        if match := re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", stem):
            stem = f"double_blocks.{match[1]}.{DOUBLE[match[2]]}"
        elif match := re.fullmatch(r"single_transformer_blocks\.(\d+)\.(.+)", stem):
            stem = f"single_blocks.{match[1]}.{SINGLE[match[2]]}"
        else:
            stem = AROUND[stem]
        released[f"{stem}.{'scale' if stem.endswith('_norm') else 'weight'}"] = weight
    return released


def autoencoder_as_released(weights: Weights) -> Weights:
    """Z-Image's autoencoder, which is FLUX.1's: the decoder's blocks count backwards, attention is 1 x 1."""
    levels = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("decoder.up_blocks."))
    released = {}
    for name, weight in weights.items():
        name = re.sub(
            r"up_blocks\.(\d+)\.resnets", lambda match: f"up.{levels - 1 - int(match[1])}.block", name
        )
        name = re.sub(
            r"up_blocks\.(\d+)\.upsamplers\.0",
            lambda match: f"up.{levels - 1 - int(match[1])}.upsample",
            name,
        )
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
        if "mid_block.attentions.0" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            name = re.sub(r"\.to_([qkv])\.", r".\1.", name).replace(".to_out.0.", ".proj_out.")
            weight = weight[..., None, None] if weight.ndim == 2 else weight
        released[name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")] = weight
    return released
