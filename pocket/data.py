"""Batches of the later stages: target latents, caption tokens, pictures of the same creature as context."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dopsd_app.checks.judge.world import Concept, Scene
from pocket.autoencoder import encode_pictures
from pocket.captions import draw_caption
from pocket.network import to_patches
from pocket.pool import Pool
from pocket.state import device
from pocket.tokens import message_tokens

SHIPPED = Path(__file__).parent.parent / "assets" / "pocket-turbo"
OTHER_VIEW = 0.8  # how often the context is another view of the creature than the target
SHORT = 0.15  # how often a batch with pictures holds captions so short that the context pads to 32


@dataclass
class Batch:
    latents: Tensor  # (B, 8, 16, 16), the clean targets
    tokens: Tensor  # (B, L), L a multiple of 32
    lengths: Tensor  # (B,), all in (L - 32, L]
    pictures: Tensor | None  # (B, 64, 64, 3), the context's
    concepts: Tensor  # (B, 6), what they show

    @property
    def patches(self) -> Tensor | None:
        """The context's pictures as the vision tower takes them, (B, 64, 384)."""
        return None if self.pictures is None else to_patches(self.pictures)


class Dataset:
    """The pool with its latents, which are encoded when first needed and then kept on disk."""

    def __init__(self, state: Path):
        self.pool = Pool(state / "pool")
        self.tokenizer = AutoTokenizer.from_pretrained(state / "tokenizer")
        self.vae = AutoencoderKL.from_pretrained(state / "vae").eval().to(device())
        shape = (len(self.pool), 8, 16, 16)
        self.latents = open_array(state / "latents.npy", np.float16, shape)
        self.encoded = open_array(state / "encoded.npy", np.bool_, shape[:1])

    def latents_of(self, indices: np.ndarray) -> Tensor:
        missing = indices[~self.encoded[indices]]
        if len(missing):
            latents = encode_pictures(self.vae, self.pool.pictures[missing])
            self.latents[missing] = latents.cpu().numpy().astype(np.float16)
            self.encoded[missing] = True
        return torch.from_numpy(self.latents[indices]).float()

    def draw(self, rng: np.random.Generator, size: int, with_picture: bool) -> Batch:
        """A batch whose contexts all pad to one length; captions are redrawn until they fit it."""
        padded = 64 if with_picture and rng.random() >= SHORT else 32
        numbers = rng.integers(len(self.pool) // self.pool.views, size=size)
        views = rng.integers(self.pool.views, size=size)
        targets = numbers * self.pool.views + views
        others = (views + rng.integers(1, self.pool.views, size=size)) % self.pool.views
        shown = numbers * self.pool.views + np.where(rng.random(size) < OTHER_VIEW, others, views)
        concepts = [self.pool.concepts[number] for number in numbers]
        rows = [
            self.caption_tokens(c, self.pool.scenes[t], rng, with_picture, padded)
            for c, t in zip(concepts, targets, strict=True)
        ]
        tokens, lengths = pad_rows(rows, self.tokenizer, padded)
        pictures = torch.from_numpy(self.pool.pictures[shown]) if with_picture else None
        return Batch(
            latents=self.latents_of(targets),
            tokens=tokens,
            lengths=lengths,
            pictures=pictures,
            concepts=torch.tensor([attributes(concept) for concept in concepts]),
        )

    def caption_tokens(
        self, concept: Concept, scene: Scene, rng: np.random.Generator, with_picture: bool, padded: int
    ) -> list[int]:
        """One drawn caption's message, of a length that pads to `padded`."""
        while True:
            row = message_tokens(self.tokenizer, draw_caption(concept, scene, rng), with_picture)
            if padded - 32 < len(row) <= padded:
                return row


def bring_shipped(state: Path) -> None:
    """Tokenizer and autoencoder, where their stages were not run here: what the shipped parent knows."""
    for part in ("tokenizer", "vae"):
        if not (state / part).exists():
            shutil.copytree(SHIPPED / part, state / part)


def attributes(concept: Concept) -> list[int]:
    return [concept.outline, concept.body, concept.second, concept.pattern, concept.frequency, concept.eyes]


def pad_rows(rows: list[list[int]], tokenizer: PreTrainedTokenizerBase, padded: int) -> tuple[Tensor, Tensor]:
    """Token ids (B, padded), padded on the right, and their lengths (B,)."""
    tokens = torch.full((len(rows), padded), tokenizer.pad_token_id)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = torch.tensor(row)
    return tokens, torch.tensor([len(row) for row in rows])


def open_array(path: Path, dtype, shape: tuple) -> np.ndarray:
    """A zeroed array on disk that several processes may write."""
    if not path.exists():
        np.lib.format.open_memmap(path, "w+", dtype, shape).flush()
    return np.load(path, mmap_mode="r+")
