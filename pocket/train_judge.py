"""The judge's training: world pictures, most of them worn, some as the autoencoder gives them back.

What learns from worn pictures draws the wear too, and is to be judged by what its pictures show.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor

from dopsd_app.checks.judge.classifier import ATTRIBUTES, WEIGHTS, Judge, load_judge
from pocket.autoencoder import encode_pictures, to_tensor
from pocket.crew import Crew, Training, flatten, run_training, view_parameters
from pocket.data import Dataset
from pocket.judge import truth
from pocket.state import Stage, device
from pocket.wear import wear_at_random

MICRO = 32
TASKS = 2
LEARNING_RATE = 2e-3
FLAWLESS = 0.25  # of the pictures
DECODED = 8  # pictures of a task that went through the autoencoder


@torch.no_grad()
def spoil(pictures: np.ndarray, vae: AutoencoderKL, rng: np.random.Generator) -> Tensor:
    """Pictures (B, 64, 64, 3) as pixels (B, 3, 64, 64): most worn, the first ones then out of latents."""
    pictures = np.stack([p if rng.random() < FLAWLESS else wear_at_random(p, rng) for p in pictures])
    pixels = to_tensor(pictures)
    latents = encode_pictures(vae, pictures[:DECODED], scaled=False)
    noise = torch.from_numpy(rng.standard_normal(latents.shape)).to(latents)
    pixels[:DECODED] = vae.decode(latents + 0.05 * noise).sample.clamp(-1, 1).cpu()
    return pixels


def judge_loss(judge: Judge, dataset: Dataset, step: int, task: int, progress: float) -> tuple[Tensor, dict]:
    rng = np.random.default_rng((6, step, task))
    indices = rng.integers(len(dataset.pool), size=MICRO)
    truths = [truth(dataset.pool.concept(i), dataset.pool.scenes[i]) for i in indices]
    _, logits = judge(spoil(dataset.pool.pictures[indices], dataset.vae, rng).to(device()))
    loss, notes = torch.zeros((), device=device()), {}
    for name in ATTRIBUTES:
        wanted = torch.tensor([t[name] for t in truths], device=device())
        loss = loss + F.cross_entropy(logits[name], wanted)
        notes[name] = (logits[name].argmax(1) == wanted).float().mean().item()
    return loss, notes


def build_judge(state: Path) -> tuple:
    judge, dataset = Judge().to(device()), Dataset(state)
    return judge, partial(judge_loss, judge, dataset)


def train_judge(state: Path, minutes: float, workers: int) -> None:
    """Cross-entropy on all attributes at once; the moving average becomes pocket/judge.safetensors.

    It starts from the shipped judge, which an earlier world taught.
    """
    Dataset(state)  # makes the arrays on disk before the workers open them
    judge = load_judge().to(device())
    training = Training(flatten(judge), LEARNING_RATE)
    stage = Stage(state / "judge.pt", minutes, {"training": training})
    run_training(stage, training, Crew(partial(build_judge, state), training.weights, workers), TASKS, MICRO)
    view_parameters(judge, training.ema)
    save_file(
        {name: weight.half().cpu().contiguous() for name, weight in judge.state_dict().items()}, WEIGHTS
    )
