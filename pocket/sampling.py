"""Pictures from the network in the making: with or without a picture in context, in few or many steps."""

from itertools import pairwise

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pocket.data import pad_rows
from pocket.models import LATENT_CHANNELS, build_scheduler
from pocket.network import Network, to_patches
from pocket.tokens import message_tokens

BATCH = 64


def sigmas_of(num_inference_steps: int) -> Tensor:
    """The pipeline's own sigmas from 1 to 0, (steps + 1,)."""
    scheduler = build_scheduler()
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_inference_steps, num_inference_steps).tolist())
    return scheduler.sigmas.float()


def guided_velocity(
    network: Network, latents: Tensor, sigma: Tensor, context: tuple, empty: tuple | None, guidance: float
) -> Tensor:
    """The velocity under `context` (features, lengths), guided away from that of the `empty` caption."""
    velocity = network.velocity(latents, sigma, *context)
    if guidance == 1.0 or empty is None:
        return velocity
    away = network.velocity(latents, sigma, *empty)
    return away + guidance * (velocity - away)


def empty_context(network: Network, tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[Tensor, Tensor]:
    tokens, lengths = pad_rows([message_tokens(tokenizer, "")] * size, tokenizer, 32)
    device = network.transformer.x_pad_token.device
    return network.encode(tokens.to(device)), lengths.to(device)


@torch.no_grad()
def sample(
    network: Network,
    tokenizer: PreTrainedTokenizerBase,
    captions: list[str],
    pictures: np.ndarray | None = None,
    num_inference_steps: int = 4,
    guidance: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """Latents (N, 8, 16, 16) after an Euler walk; the encoder sees `pictures` (N, 64, 64, 3) first."""
    device = network.transformer.x_pad_token.device
    rows = [message_tokens(tokenizer, caption, pictures is not None) for caption in captions]
    noise = torch.randn(len(rows), LATENT_CHANNELS, 16, 16, generator=torch.Generator().manual_seed(seed))
    padded = np.array([-(-len(row) // 32) * 32 for row in rows])
    sampled = torch.empty_like(noise)
    sigmas = sigmas_of(num_inference_steps).to(device)
    for length in np.unique(padded):
        for part in np.array_split(np.flatnonzero(padded == length), -(-(padded == length).sum() // BATCH)):
            tokens, lengths = pad_rows([rows[i] for i in part], tokenizer, int(length))
            patches = None if pictures is None else to_patches(torch.from_numpy(pictures[part]).to(device))
            context = network.encode(tokens.to(device), patches), lengths.to(device)
            empty = empty_context(network, tokenizer, len(part)) if guidance != 1.0 else None
            latents = noise[part].to(device)
            for sigma, sigma_next in pairwise(sigmas):
                velocity = guided_velocity(
                    network, latents, sigma.expand(len(part)), context, empty, guidance
                )
                latents = latents + (sigma_next - sigma) * velocity
            sampled[part] = latents.cpu()
    return sampled


def save_grid(pictures: list[np.ndarray], columns: int, path, zoom: int = 2) -> None:
    """A contact sheet of (64, 64, 3) pictures, row by row."""
    rows = [np.concatenate(pictures[i : i + columns], axis=1) for i in range(0, len(pictures), columns)]
    sheet = Image.fromarray(np.concatenate(rows, axis=0))
    sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST).save(path)
