"""Stage 3: eyes for pictures as people have them. A worn picture is to be read as if it were flawless.

Only the vision tower learns, and what it says of flawless pictures stays: parent and student keep their
context.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pocket.crew import Crew, Training, flatten, run_training
from pocket.data import Dataset
from pocket.joint import to_device
from pocket.measure import load_parent
from pocket.network import Network, to_patches
from pocket.state import Stage, autocast, device
from pocket.wear import wear_at_random

MICRO = 32
TASKS = 2  # per optimizer step
LEARNING_RATE = 5e-4
FLAWLESS = 0.25  # of the pictures


def vision_loss(
    original: Network, network: Network, dataset: Dataset, step: int, task: int, progress: float, size: int
) -> tuple[Tensor, dict]:
    """Squared distance of worn pictures' features from the original's of flawless ones, in deviations."""
    rng = np.random.default_rng((6, step, task))
    batch = dataset.draw(rng, size, with_picture=True)
    worn = torch.stack(
        [
            picture if rng.random() < FLAWLESS else torch.from_numpy(wear_at_random(picture.numpy(), rng))
            for picture in batch.pictures
        ]
    ).to(device())
    batch = to_device(batch)
    with autocast():
        with torch.no_grad():
            wanted = original.encode(batch.tokens, batch.patches).float()
        features = network.encode(batch.tokens, to_patches(worn)).float()
    loss = ((features - wanted) / wanted.std((0, 1))).square().mean()
    return loss, {"features": loss.item()}


def build_vision(state: Path, size: int) -> tuple:
    dataset = Dataset(state)
    original = load_parent(dataset.tokenizer, state, eyes="joint").to(device()).requires_grad_(False)
    network = load_parent(dataset.tokenizer, state, eyes="joint").to(device()).requires_grad_(False)
    network.encoder.visual.requires_grad_(True)
    return network.encoder.visual, partial(vision_loss, original, network, dataset, size=size)


def train_vision(state: Path, minutes: float, workers: int) -> None:
    """Starts from the joint training's vision tower."""
    visual = load_parent(Dataset(state).tokenizer, state, eyes="joint").to(device()).encoder.visual
    training = Training(flatten(visual), LEARNING_RATE, weight_decay=0.0, module=visual)
    stage = Stage(state / "vision.pt", minutes, {"training": training})
    crew = Crew(partial(build_vision, state, MICRO), training.weights, workers)
    run_training(stage, training, crew, TASKS, MICRO)
