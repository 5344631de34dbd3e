"""Stage 1: the autoencoder, on crops (they are cheap) and at last on whole pictures."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from pocket.crew import Crew, Training, flatten, run_training, view_parameters
from pocket.models import build_autoencoder
from pocket.pool import SIDE, Pool
from pocket.state import Stage, device

MICRO = 16  # crops per task
TASKS = 4  # per optimizer step
CROP = 32  # pixels
WHOLE_FROM = 0.85  # fraction of the time after which whole pictures are shown, four crops' worth each
KL_WEIGHT = 1e-6
LEARNING_RATE = 2e-3


def to_tensor(pictures: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(pixels: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [-1, 1] to (B, H, W, 3) uint8."""
    return ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def draw_crops(pool: Pool, step: int, task: int, progress: float) -> Tensor:
    """A batch of crops, mostly from the middle where the creatures are; at last fewer, whole pictures."""
    rng = np.random.default_rng((1, step, task))
    if progress > WHOLE_FROM:
        return to_tensor(pool.pictures[np.sort(rng.integers(len(pool), size=MICRO // 4))])
    pictures = pool.pictures[np.sort(rng.integers(len(pool), size=MICRO))]
    corners = rng.integers(0, SIDE - CROP + 1, (2, MICRO, 2)).mean(0).astype(int)
    return to_tensor(
        np.stack([p[y : y + CROP, x : x + CROP] for p, (y, x) in zip(pictures, corners, strict=True)])
    )


def autoencoder_loss(
    vae: AutoencoderKL, pool: Pool, step: int, task: int, progress: float
) -> tuple[Tensor, dict]:
    """Absolute and squared error, with just enough KL to keep the latents in bounds."""
    torch.manual_seed(step * 64 + task)
    pixels = draw_crops(pool, step, task, progress).to(device())
    posterior = vae.encode(pixels).latent_dist
    error = vae.decode(posterior.sample()).sample - pixels
    loss = error.abs().mean() + 2 * error.square().mean() + KL_WEIGHT * posterior.kl().mean()
    return loss, {"decibel": -10 * torch.log10(error.square().mean() / 4).item()}


def build_worker(state: Path) -> tuple:
    vae = build_autoencoder().to(device())
    return vae, partial(autoencoder_loss, vae, Pool(state / "pool"))


def train_autoencoder(state: Path, minutes: float, workers: int) -> None:
    """Pixels in, pixels out; the moving average is kept."""
    torch.manual_seed(1)
    vae = build_autoencoder().to(device())
    training = Training(flatten(vae), LEARNING_RATE, weight_decay=0.0)
    stage = Stage(state / "autoencoder.pt", minutes, {"training": training})
    crew = Crew(partial(build_worker, state), training.weights, workers)
    run_training(stage, training, crew, TASKS, MICRO)
    view_parameters(vae, training.ema)
    set_latent_statistics(vae, Pool(state / "pool"))
    vae.save_pretrained(state / "vae")


@torch.no_grad()
def set_latent_statistics(vae: AutoencoderKL, pool: Pool) -> None:
    """Make (latents - shift_factor) * scaling_factor about zero and one over the world's pictures."""
    latents = encode_pictures(vae, np.asarray(pool.pictures[:: len(pool) // 1024]), scaled=False)
    vae.register_to_config(
        shift_factor=round(latents.mean().item(), 4), scaling_factor=round(1 / latents.std().item(), 4)
    )


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, pictures: np.ndarray, scaled: bool = True) -> Tensor:
    """(N, 64, 64, 3) uint8 to latents (N, 8, 16, 16): the transformer's, or unscaled."""
    batches = [
        vae.encode(to_tensor(part).to(vae.device)).latent_dist.mode()
        for part in np.array_split(pictures, -(-len(pictures) // 128))
    ]
    latents = torch.cat(batches)
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor if scaled else latents


@torch.no_grad()
def decode_latents(vae: AutoencoderKL, latents: Tensor) -> np.ndarray:
    """Latents (N, 8, 16, 16) as the transformer knows them to (N, 64, 64, 3) uint8."""
    latents = latents.float() / vae.config.scaling_factor + vae.config.shift_factor
    return np.concatenate([to_pictures(vae.decode(part).sample) for part in latents.split(128)])
