"""What the built-in base can do, seen and counted."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pocket.autoencoder import decode_latents
from pocket.captions import usual_caption
from pocket.crew import view_parameters
from pocket.network import Network
from pocket.sampling import sample, save_grid
from pocket.world import draw, random_concept, random_scene


def load_network(state: Path, checkpoint: str) -> tuple[Network, PreTrainedTokenizerBase, AutoencoderKL]:
    """The moving averages of a stage (joint; distil only replaces the transformer), tokenizer and autoencoder."""
    tokenizer = AutoTokenizer.from_pretrained(state / "tokenizer")
    network = Network(tokenizer).eval()
    view_parameters(network, torch.load(state / "joint.pt", weights_only=True)["training"]["ema"])
    if checkpoint == "distil":
        view_parameters(
            network.transformer, torch.load(state / "distil.pt", weights_only=True)["training"]["ema"]
        )
    return network, tokenizer, AutoencoderKL.from_pretrained(state / "vae").eval()


def save_samples(state: Path, checkpoint: str, count: int = 8) -> None:
    """A sheet of held-out concepts: context, target, then with the picture and from text alone, 4 and 32 steps."""
    network, tokenizer, vae = load_network(state, checkpoint)
    rng = np.random.default_rng(5)
    concepts = [random_concept(rng, held_out=True) for _ in range(count)]
    scenes = [random_scene(rng) for _ in concepts]
    context = np.stack([draw(c, random_scene(rng)) for c in concepts])
    targets = [draw(c, s) for c, s in zip(concepts, scenes, strict=True)]
    captions = [usual_caption(c, s, rng) for c, s in zip(concepts, scenes, strict=True)]
    rows = [*context, *targets]
    for pictures in (context, None):
        for steps, guidance in ((4, 1.0), (32, 1.0)) + (() if pictures is not None else ((32, 2.0),)):
            rows += list(decode_latents(vae, sample(network, tokenizer, captions, pictures, steps, guidance)))
    save_grid(rows, count, state / f"samples_{checkpoint}.png")
    print("\n".join(captions))
