"""Training on several cores: processes of one thread each take micro-batches and share one vector of weights.

On two cores this is faster than two threads in one process (the matrices are small), and a busy machine slows
it gracefully: whoever has time takes the next micro-batch. On CUDA the crew is the process itself.
"""

import os
import re
import threading
from collections.abc import Callable

import numpy as np
import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn

from pocket.state import Stage, warm_then_cool

EMA_DECAY = 0.995
BLOCK = re.compile(r"(blocks|layers|refiner)\.\d+\.")


def view_parameters(module: nn.Module, weights: Tensor, gradient: Tensor | None = None) -> None:
    """Make every parameter (and its gradient) a view into one flat vector."""
    offset = 0
    for parameter in module.parameters():
        part = slice(offset, offset + parameter.numel())
        parameter.data = weights[part].view_as(parameter)
        if gradient is not None:
            parameter.grad = gradient[part].view_as(parameter)
        offset += parameter.numel()


def flatten(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def leave_with_parent() -> None:
    """End this worker when the process that started it is gone, however that ended."""
    multiprocessing.parent_process().join()
    os._exit(1)


def work(build: Callable, weights: Tensor, gradient: Tensor, tasks, results) -> None:
    """One worker: build the loss once, then add the gradients of task after task."""
    torch.set_num_threads(1)
    threading.Thread(target=leave_with_parent, daemon=True).start()
    network, loss_of = build()
    view_parameters(network, weights, gradient)
    while (task := tasks.get()) is not None:
        loss, notes = loss_of(*task)
        loss.backward()
        results.put(notes)


class Crew:
    """Computes gradients: `build()` gives a network and a function from a task to (loss, notes).

    `weights` is the flat vector that all workers read; the caller steps it between two calls.
    """

    def __init__(self, build: Callable, weights: Tensor, workers: int):
        self.weights = weights
        if weights.is_cuda:
            workers = 0
        count = max(workers, 1)
        self.gradients = [torch.zeros_like(weights) for _ in range(count)]
        self.processes = []
        if workers == 0:
            network, self.loss_of = build()
            view_parameters(network, weights, self.gradients[0])
            return
        context = multiprocessing.get_context("spawn")
        self.tasks, self.results = context.SimpleQueue(), context.SimpleQueue()
        for vector in (weights, *self.gradients):
            vector.share_memory_()
        for gradient in self.gradients:
            arguments = (build, weights, gradient, self.tasks, self.results)
            self.processes.append(context.Process(target=work, args=arguments, daemon=True))
            self.processes[-1].start()

    def gradient_of(self, tasks: list[tuple]) -> tuple[Tensor, list[dict]]:
        """The mean gradient over the tasks, and what each of them noted."""
        for gradient in self.gradients:
            gradient.zero_()
        if self.processes:
            for task in tasks:
                self.tasks.put(task)
            notes = [self.results.get() for _ in tasks]
        else:
            notes = []
            for task in tasks:
                loss, note = self.loss_of(*task)
                loss.backward()
                notes.append(note)
        for gradient in self.gradients[1:]:
            self.gradients[0].add_(gradient)
        return self.gradients[0].div_(len(tasks)), notes

    def close(self) -> None:
        for _ in self.processes:
            self.tasks.put(None)
        for process in self.processes:
            process.join()


class BatchedMuon(torch.optim.Muon):
    """Muon, with matrices of one shape orthogonalized together and in float32.

    On a CPU that is more than twice as fast as one by one in bfloat16, which made a third of a step's time.
    """

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                by_shape.setdefault(parameter.shape, []).append(parameter)
            for parameters in by_shape.values():
                self._step_alike(parameters, group)

    def _step_alike(self, parameters: list[Tensor], group: dict) -> None:
        updates = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            momentum = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
            updates.append(parameter.grad.lerp(momentum, group["momentum"]))
        rows, columns = parameters[0].shape
        length = group["lr"] * 0.2 * max(rows, columns) ** 0.5  # root mean square of AdamW's steps
        directions = orthogonalize(torch.stack(updates), group["ns_coefficients"], group["ns_steps"])
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=length)


def orthogonalize(matrices: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """Newton-Schulz iterations towards the nearest orthogonal matrices; (N, rows, columns)."""
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalize(matrices.mT, coefficients, steps).mT
    a, b, c = coefficients
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Training:
    """Flat weights with an exponential moving average, stepped by a crew's gradients.

    The matrices inside the blocks are stepped by Muon where `module`, whose flat weights these are, is given;
    all others by AdamW.
    """

    def __init__(
        self,
        weights: Tensor,
        learning_rate: float,
        weight_decay: float = 0.01,
        module: nn.Module | None = None,
    ):
        self.weights = weights
        self.ema = weights.clone()
        self.learning_rate = learning_rate
        matrices, others = split_parameters(weights, module)
        self.optimizers = [
            torch.optim.AdamW(others, learning_rate, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True)
        ]
        if matrices:
            self.optimizers.append(BatchedMuon(matrices, learning_rate, weight_decay=weight_decay))

    def state_dict(self) -> dict:
        return {
            "weights": self.weights,
            "ema": self.ema,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def load_state_dict(self, state: dict) -> None:
        self.weights.copy_(state["weights"])
        self.ema.copy_(state["ema"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def update(self, gradient: Tensor, progress: float, step: int) -> None:
        gradient.mul_((1.0 / gradient.norm()).clamp(max=1.0))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * warm_then_cool(progress)
                for parameter in group["params"]:
                    parameter.grad = gradient.as_strided(
                        parameter.shape, parameter.stride(), parameter.storage_offset()
                    )
            optimizer.step()
        self.ema.lerp_(self.weights, 1 - min(EMA_DECAY, (1 + step) / (10 + step)))


def split_parameters(weights: Tensor, module: nn.Module | None) -> tuple[list[Tensor], list[Tensor]]:
    """Views of the flat weights: the matrices inside the module's blocks, and all others."""
    if module is None:
        return [], [torch.nn.Parameter(weights)]
    matrices, others, offset = [], [], 0
    for name, parameter in module.named_parameters():
        part = weights[offset : offset + parameter.numel()].view(parameter.shape)
        is_inside = parameter.ndim == 2 and BLOCK.search(name) and "adaLN" not in name
        (matrices if is_inside else others).append(torch.nn.Parameter(part))
        offset += parameter.numel()
    return matrices, others


def run_training(stage: Stage, training: Training, crew: Crew, tasks: int, size: int) -> None:
    """Steps until the time is up, with a line of mean losses every 50."""
    history: dict[str, list[float]] = {}
    for step in stage.steps(tasks * size):
        gradient, notes = crew.gradient_of([(step, task, stage.progress) for task in range(tasks)])
        training.update(gradient, stage.progress, step)
        for note in notes:
            for key, value in note.items():
                history.setdefault(key, []).append(value)
        if step % 50 == 49:
            means = "  ".join(f"{key} {np.mean(values):.4f}" for key, values in history.items())
            print(f"{stage.path.stem} {step + 1}  {stage.seconds:.0f} s  {means}", flush=True)
            history.clear()
    crew.close()
