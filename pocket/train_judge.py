"""The judge's training: world pictures as drawn and as the autoencoder gives them back."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from pocket.autoencoder import to_tensor
from pocket.crew import Crew, Training, flatten, run_training, view_parameters
from pocket.data import Dataset
from pocket.judge import ATTRIBUTES, WEIGHTS, Judge, load_judge, truth
from pocket.state import Stage, device

MICRO = 32
TASKS = 2
LEARNING_RATE = 2e-3
DECODED = 8  # pictures of a task that went through the autoencoder


@torch.no_grad()
def draw_pictures(dataset: Dataset, rng: np.random.Generator, indices: np.ndarray) -> Tensor:
    """Pixels (B, 3, 64, 64) from the pool: a quarter decoded, half a little blurred, all a little noisy."""
    pixels = to_tensor(dataset.pool.pictures[indices])
    latents = (
        dataset.latents_of(indices[:DECODED]) / dataset.vae.config.scaling_factor
        + dataset.vae.config.shift_factor
    )
    latents = latents + 0.05 * torch.from_numpy(rng.standard_normal(latents.shape).astype(np.float32))
    pixels[:DECODED] = dataset.vae.decode(latents.to(device())).sample.clamp(-1, 1).cpu()
    blur = torch.from_numpy(rng.uniform(0, 0.6, (len(indices), 1, 1, 1)).astype(np.float32))
    blur *= torch.from_numpy(rng.random((len(indices), 1, 1, 1)) < 0.5)
    pixels = pixels + blur * (F.avg_pool2d(pixels, 3, 1, 1, count_include_pad=False) - pixels)
    return pixels + 0.03 * torch.from_numpy(rng.standard_normal(pixels.shape).astype(np.float32))


def judge_loss(judge: Judge, dataset: Dataset, step: int, task: int, progress: float) -> tuple[Tensor, dict]:
    rng = np.random.default_rng((6, step, task))
    indices = rng.integers(len(dataset.pool), size=MICRO)
    truths = [truth(dataset.pool.concept(i), dataset.pool.scenes[i]) for i in indices]
    _, logits = judge(draw_pictures(dataset, rng, indices).to(device()))
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
    judge = load_judge().to(device())
    training = Training(flatten(judge), LEARNING_RATE)
    stage = Stage(state / "judge.pt", minutes, {"training": training})
    run_training(stage, training, Crew(partial(build_judge, state), training.weights, workers), TASKS, MICRO)
    view_parameters(judge, training.ema)
    save_file(
        {name: weight.half().cpu().contiguous() for name, weight in judge.state_dict().items()}, WEIGHTS
    )
