"""Stage 2: encoder and transformer together, by flow matching; half of the batches see a picture."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer

from pocket.crew import Crew, Training, flatten, run_training
from pocket.data import Batch, Dataset
from pocket.measure import PARENT, load_parent
from pocket.network import Network
from pocket.state import Stage, autocast, device

MICRO = 16  # pictures per task
TASKS = 4  # per optimizer step; the first half sees pictures: what takes longest starts first
LEARNING_RATE = 2e-3
READ_WEIGHT = 0.06  # of naming the seen creature, which teaches the vision tower what matters


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    return shift * sigma / (1 + (shift - 1) * sigma)


def draw_sigma(generator: torch.Generator, size: int) -> Tensor:
    """Mostly from the upper middle, where colours and shapes are decided; some from everywhere."""
    middle = torch.sigmoid(1.2 * torch.randn(size, generator=generator))
    anywhere = torch.rand(size, generator=generator)
    sigma = torch.where(torch.rand(size, generator=generator) < 0.8, middle, anywhere)
    return shift_sigma(sigma, 2.0).clamp(1e-3, 1.0)


def to_device(batch: Batch) -> Batch:
    return Batch(
        **{name: None if value is None else value.to(device()) for name, value in vars(batch).items()}
    )


def joint_loss(
    network: Network, dataset: Dataset, step: int, task: int, progress: float, size: int
) -> tuple[Tensor, dict]:
    """Velocity error of one micro-batch, plus the reader's error where there is a picture."""
    rng, generator = np.random.default_rng((2, step, task)), torch.Generator().manual_seed(step * 64 + task)
    with_picture = task < TASKS // 2
    batch = dataset.draw(rng, size, with_picture)
    noise = torch.randn(batch.latents.shape, generator=generator).to(device())
    sigma = draw_sigma(generator, size).to(device())
    batch = to_device(batch)
    with autocast():
        features = network.encode(batch.tokens, batch.patches)
        level = sigma[:, None, None, None]
        noisy = (1 - level) * batch.latents + level * noise
        velocity = network.velocity(noisy, sigma, features, batch.lengths)
    loss = F.mse_loss(velocity, noise - batch.latents)
    notes = {"picture" if with_picture else "text": loss.item()}
    if with_picture:
        named = [
            F.cross_entropy(logits, truth)
            for logits, truth in zip(network.read(features), batch.concepts.T, strict=True)
        ]
        loss = loss + READ_WEIGHT * sum(named)
        notes["read"] = sum(named).item()
    return loss, notes


def build_joint(state: Path, size: int) -> tuple:
    """What a worker needs: the network and the loss of a task."""
    dataset = Dataset(state)
    network = Network(dataset.tokenizer).to(device())
    network.compile_blocks()
    return network, partial(joint_loss, network, dataset, size=size)


def initial_network(state: Path) -> Network:
    """The shipped parent; without one, random weights: time without influence and every block half open."""
    torch.manual_seed(2)
    tokenizer = AutoTokenizer.from_pretrained(state / "tokenizer")
    if PARENT.exists():
        return load_parent(tokenizer)
    network = Network(tokenizer)
    for block in (*network.transformer.noise_refiner, *network.transformer.layers):
        linear = block.adaLN_modulation[0]
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
        width = network.transformer.dim
        linear.bias.data[width : 2 * width] = linear.bias.data[3 * width :] = 0.5
    torch.nn.init.zeros_(network.transformer.all_final_layer["2-1"].linear.weight)
    return network


def train_joint(state: Path, minutes: float, workers: int) -> None:
    """Flow matching until the minutes are spent; the parent of the few-step model is the moving average."""
    Dataset(state)  # makes the arrays on disk before the workers open them
    size = MICRO if device().type == "cpu" else 4 * MICRO
    network = initial_network(state)
    training = Training(flatten(network).to(device()), LEARNING_RATE, module=network)
    stage = Stage(state / "joint.pt", minutes, {"training": training})
    crew = Crew(partial(build_joint, state, size), training.weights, workers)
    run_training(stage, training, crew, TASKS, size)
