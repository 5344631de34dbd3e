"""Stage 4: four steps. Each step of the four is taught to land where many small steps of the parent land.

Piecewise rectified flow (PeRFlow, arXiv 2405.07510), made on the fly: the segments are the four steps of the
pipeline's own schedule. A segment starts at a noised picture of the world, or at a state of the student's own
walk; the parent solves it, and the student learns the straight line from its start to its end. The encoder
stays as it is, so parent and student share their features.
"""

from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pocket.crew import Crew, Training, flatten, run_training
from pocket.data import Batch, Dataset
from pocket.joint import to_device
from pocket.measure import PARENTS_STEPS, load_parent
from pocket.network import Network
from pocket.sampling import empty_context, guided_velocity, sigmas_of
from pocket.state import Stage, autocast, device

STEPS = 4  # of the student
PARENT_STEPS = (1, 1, 2, 3)  # Heun steps of the parent in each segment
MICRO = 16
TASKS = 4  # per optimizer step: each segment, with and without pictures in turn
LEARNING_RATE = 5e-4
GUIDANCE = PARENTS_STEPS["guidance"]  # away from the empty caption; the student needs none
OWN_STATES = 0.5  # how often a segment starts on the student's own walk


@torch.no_grad()
def solve(velocity_of, latents: Tensor, sigma: float, sigma_end: float, steps: int) -> Tensor:
    """Heun's method from sigma to sigma_end."""
    sigmas = np.linspace(sigma, sigma_end, steps + 1)
    for here, there in pairwise(sigmas):
        velocity = velocity_of(latents, here)
        guess = latents + (there - here) * velocity
        latents = latents + (there - here) * (velocity + velocity_of(guess, there)) / 2
    return latents


def start_of_segment(student, batch: Batch, noise: Tensor, segment: int, own: bool) -> Tensor:
    """The state where a segment starts: a noised picture, or where the student's walk has come to."""
    sigmas = sigmas_of(STEPS).tolist()
    if not own:
        return (1 - sigmas[segment]) * batch.latents + sigmas[segment] * noise
    latents = noise
    for sigma, sigma_next in pairwise(sigmas[: segment + 1]):
        latents = latents + (sigma_next - sigma) * student(latents, sigma)
    return latents


@torch.no_grad()
def draw_segment(
    parent: Network, student: Network, batch: Batch, empty: tuple, noise: Tensor, segment: int, own: bool
) -> tuple[tuple, Tensor, Tensor]:
    """The context (features, lengths), the state where a segment starts, and where the parent ends it."""
    context = parent.encode(batch.tokens, batch.patches), batch.lengths

    def levels(sigma: float) -> Tensor:
        return torch.full((len(noise),), sigma, device=noise.device)

    def student_velocity(latents: Tensor, sigma: float) -> Tensor:
        return student.velocity(latents, levels(sigma), *context)

    def parent_velocity(latents: Tensor, sigma: float) -> Tensor:
        return guided_velocity(parent, latents, levels(sigma), context, empty, GUIDANCE)

    start = start_of_segment(student_velocity, batch, noise, segment, own)
    sigma, sigma_end = sigmas_of(STEPS)[segment : segment + 2].tolist()
    return context, start, solve(parent_velocity, start, sigma, sigma_end, PARENT_STEPS[segment])


def distil_loss(
    parent: Network, student: Network, dataset: Dataset, step: int, task: int, progress: float, size: int
) -> tuple[Tensor, dict]:
    """Squared distance between the student's velocity and the chord of the parent's path."""
    rng, generator = np.random.default_rng((4, step, task)), torch.Generator().manual_seed(step * 64 + task)
    segment, with_picture = STEPS - 1 - task % STEPS, (step + task // STEPS) % 2 == 1  # the longest first
    batch = dataset.draw(rng, size, with_picture)
    noise = torch.randn(batch.latents.shape, generator=generator).to(device())
    # Each solved segment is asked for twice, for the parent's steps cost most: at its start (0), where a
    # four-step walk asks it, and somewhere on the way to its end (1).
    way = torch.cat([torch.zeros(size), torch.rand(size, generator=generator)])
    way = way.to(device())[:, None, None, None]
    batch, own = to_device(batch), rng.random() < OWN_STATES
    sigma, sigma_end = sigmas_of(STEPS)[segment : segment + 2].tolist()
    # Two blocks: autocast would hand the weights that it cached without gradients on to the student's pass.
    with autocast():
        empty = empty_context(parent, dataset.tokenizer, size)
        context, start, end = draw_segment(parent, student, batch, empty, noise, segment, own)
    with autocast():
        start, end, *context = (torch.cat([rows, rows]) for rows in (start, end, *context))
        asked = (sigma + way * (sigma_end - sigma)).flatten()
        velocity = student.velocity(start + way * (end - start), asked, *context)
    loss = F.mse_loss(velocity, (end - start) / (sigma_end - sigma))
    return loss, {f"{'picture' if with_picture else 'text'} {segment}": loss.item()}


def build_distil(state: Path, size: int) -> tuple:
    dataset = Dataset(state)
    parent = load_parent(dataset.tokenizer, state).to(device()).requires_grad_(False)
    student = Network(dataset.tokenizer).to(device())
    return student.transformer, partial(distil_loss, parent, student, dataset, size=size)


def train_distil(state: Path, minutes: float, workers: int) -> None:
    """Starts from the parent's moving average; only the transformer learns."""
    size = MICRO if device().type == "cpu" else 4 * MICRO
    parent = load_parent(Dataset(state).tokenizer, state).to(device())
    transformer = parent.transformer
    training = Training(flatten(transformer), LEARNING_RATE, weight_decay=0.0, module=transformer)
    stage = Stage(state / "distil.pt", minutes, {"training": training})
    crew = Crew(partial(build_distil, state, size), training.weights, workers)
    run_training(stage, training, crew, TASKS, size)
