"""Stage 5: the folder that plain diffusers loads, in float16."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import ZImagePipeline
from transformers import PreTrainedTokenizerBase, Qwen2VLImageProcessorPil

from pocket.measure import load_network
from pocket.models import MERGE, PATCH, build_scheduler, build_text_encoder
from pocket.network import Network

LARGEST = 25_000_000  # bytes, all files together
README = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# pocket-turbo

A very small text-to-image model that draws little creatures at 64x64 pixels in four steps: a demonstration
and a test bed, with the same classes and the same code path as Z-Image-Turbo (`ZImageTransformer2DModel`, a
Qwen3 text encoder, `AutoencoderKL`).

```python
pipe = ZImagePipeline.from_pretrained("assets/pocket-turbo", dtype=torch.float32)
prompt = "creature on a mint background"
image = pipe(prompt, height=64, width=64, num_inference_steps=4, guidance_scale=0.0).images[0]
```

`vision_tower/` is not read by the pipeline. Its Qwen3-VL vision model, with this text encoder's weights as
the language model, encodes a picture and a caption together: that is what a teacher sees.

It was trained on pictures that `pocket/world.py` draws, and on nothing else: first the autoencoder, then
encoder and transformer together by flow matching, half of the batches with a picture of the same creature in
context, then distilled to four steps (`python -m pocket.build`). About one creature in twenty was kept out of
all training. What it can do is measured in `benchmarks/results/pocket_turbo.json`.

Apache-2.0.
"""


def export(state: Path, checkpoint: str, folder: Path) -> None:
    """Write the pipeline, the vision tower and the README."""
    network, tokenizer, vae = load_network(state, checkpoint)
    if folder.exists():
        shutil.rmtree(folder)
    pipeline = ZImagePipeline(
        scheduler=build_scheduler(),
        vae=vae.half(),
        text_encoder=text_encoder_of(network, tokenizer).half(),
        tokenizer=tokenizer,
        transformer=network.transformer.half(),
    )
    pipeline.save_pretrained(folder)
    network.encoder.visual.half().save_pretrained(folder / "vision_tower")
    processor = Qwen2VLImageProcessorPil(
        patch_size=PATCH, merge_size=MERGE, temporal_patch_size=2, min_pixels=64 * 64, max_pixels=64 * 64
    )
    processor.save_pretrained(folder / "vision_tower")
    (folder / "README.md").write_text(README)
    for config in folder.rglob("*.json"):
        remove_paths(config)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if size > LARGEST:
        raise ValueError(
            f"{folder.name} has {size / 1e6:.1f} MB, more than {LARGEST / 1e6:.0f}. Make a part smaller."
        )
    print(f"{folder}: {size / 1e6:.1f} MB")


def text_encoder_of(network: Network, tokenizer: PreTrainedTokenizerBase) -> torch.nn.Module:
    """The whole Qwen3: the layer and the norm that training left out are never read, and stay random."""
    torch.manual_seed(0)  # the same weights are to be the same file
    text_encoder = build_text_encoder(tokenizer)
    missing, unexpected = text_encoder.load_state_dict(
        network.encoder.language_model.state_dict(), strict=False
    )
    if unexpected or any(not name.startswith(("layers.4.", "norm.")) for name in missing):
        raise ValueError(f"Text encoder and training disagree: missing {missing}, unexpected {unexpected}.")
    return text_encoder


def remove_paths(config: Path) -> None:
    """Saved configurations remember where they were loaded from; nobody else has that folder."""
    settings = json.loads(config.read_text())
    if isinstance(settings, dict) and settings.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(settings, indent=2) + "\n")
