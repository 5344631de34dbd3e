"""Memory and seconds of the real training loop on a transformer of Z-Image-Turbo's size, with random weights.

No weights are downloaded: memory and speed do not depend on their values. The encoders are left out: they are
gone before training begins.

    python -m benchmarks.real_size --resolution 512 1024
"""

import argparse
import gc
import json
import tempfile
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel

from benchmarks.record import save_result
from dopsd_app.base_models import BaseModel, Conditioning
from dopsd_app.base_models.z_image import ZImage
from dopsd_app.config import TrainConfig
from dopsd_app.encode import EncodedExample
from dopsd_app.memory import quantize_nf4
from dopsd_app.train import optimizer_step, prepare

CAPTION_TOKENS = 64
TINY = {"dim": 64, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "axes_dims": [8, 12, 12]}


def build(config: TrainConfig, folder: Path, size: dict) -> BaseModel:
    """A Z-Image whose transformer has random weights and whose other parts are only configurations."""
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    (folder / "vae").mkdir()
    vae = {"_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512], "latent_channels": 16}
    (folder / "vae" / "config.json").write_text(json.dumps(vae))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    base_model = ZImage(folder, device, dtype)
    with torch.device("meta"):
        transformer = ZImageTransformer2DModel(**size)
    transformer = transformer.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    for parameter in transformer.parameters():
        parameter.data.normal_(std=0.02)
    if config.quantization == "nf4":
        quantize_nf4(transformer, base_model.lora_targets, dtype, device)
    base_model.transformer = transformer
    return base_model


def make_example(base_model: BaseModel, resolution: int) -> EncodedExample:
    """Random conditionings of the lengths that a caption, and a caption with a picture, come to."""
    picture_tokens = min(max((resolution // 32) ** 2, 256), 576)
    width = base_model.transformer.config.cap_feat_dim
    student, teacher = (
        Conditioning(torch.randn(length, width, device=base_model.device, dtype=base_model.dtype))
        for length in (CAPTION_TOKENS, CAPTION_TOKENS + picture_tokens)
    )
    return EncodedExample((student,), (teacher,), resolution, resolution)


def measure(config: TrainConfig, size: dict) -> dict:
    """Peak memory in bytes and seconds of each optimizer step; the first step warms up."""
    with tempfile.TemporaryDirectory() as folder:
        base_model = build(config, Path(folder), size)
    example = make_example(base_model, config.resolution)
    optimizer = prepare(base_model, config)
    steps = [
        optimizer_step(base_model, config, (example,), optimizer, step) for step in range(1, config.steps + 1)
    ]
    cuda = base_model.device.type == "cuda"
    return {
        "resolution": config.resolution,
        "quantization": config.quantization,
        "gradient_checkpointing": config.gradient_checkpointing,
        "parameters": sum(parameter.numel() for parameter in base_model.transformer.parameters()),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved() if cuda else 0,
        "seconds_per_step": [round(step.seconds, 3) for step in steps],
        "losses": [step.loss for step in steps],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--resolution", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--quantization", nargs="+", default=["none", "nf4"])
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument(
        "--card-gb", type=float, help="allow this process no more memory than such a card has"
    )
    parser.add_argument("--tiny", action="store_true", help="a tiny transformer, to try this script on a CPU")
    arguments = parser.parse_args()
    if arguments.card_gb:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(arguments.card_gb * 1024**3 / total)
    rows = []
    for quantization in arguments.quantization:
        for resolution in arguments.resolution:
            config = TrainConfig(
                rank=arguments.rank,
                steps=arguments.steps,
                batch_size=1,
                resolution=resolution,
                quantization=quantization,
            )
            if torch.cuda.is_available():
                gc.collect()  # checkpointing makes the last transformer part of a cycle
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            rows.append(measure(config, TINY if arguments.tiny else {}))
            print(rows[-1], flush=True)
    if not arguments.tiny:
        limit = {"card_gb": arguments.card_gb}
        print(f"Saved {save_result('real_size', {'rank': arguments.rank, **limit, 'rows': rows}).name}")


if __name__ == "__main__":
    main()
