"""What a training step asks of processor and card besides the kernels: host time, and operations.

Host time is that of a step of a model as deep as Z-Image-Turbo and so narrow that its kernels take next to
nothing, on one thread: by the product; by PEFT's own layers, which are switched between student and teacher
one by one; and by the released loop, which does the same and keeps the graphs of all states for one backward
pass (arXiv 2605.05204). Operations are those of the simulated steps (simulated.json), against the floor of
one pass of the teacher, one of the student and one way back for each state.

    python -m benchmarks.speed
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from benchmarks.record import RESULTS, save_result
from dopsd_app.config import TrainConfig
from dopsd_app.method.adapters import adapter_weights
from dopsd_app.method.encode import EncodedExample
from dopsd_app.method.losses import distillation_loss
from dopsd_app.method.objectives import make_objective
from dopsd_app.method.objectives.protocol import Material
from dopsd_app.method.randomness import draw_noise
from dopsd_app.method.rollout import RolloutStep, training_sigmas
from dopsd_app.method.step import optimizer_step, prepare
from dopsd_app.models.lean_layers import keep_less
from dopsd_app.models.memory_plan import ALL, MemoryPlan
from dopsd_app.models.protocol import BaseModel, Conditioning
from dopsd_app.models.z_image import ZImage

STEPS, WARM_UP = 15, 3
SIDE, CAPTION, SEEN = 64, 8, 24  # pixels; tokens of a caption, and with what the teacher sees
WIDTH = {"dim": 32, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 16, "axes_dims": [4, 6, 6]}
CPU = torch.device("cpu")


def make_base(memory_plan: MemoryPlan, lean: bool) -> ZImage:
    """A narrow transformer with all of Z-Image-Turbo's blocks, in the product's class, alone."""
    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(n_layers=30, **WIDTH).eval().requires_grad_(False)
    for weight in transformer.parameters():
        weight.data.normal_(std=0.02) if weight.ndim > 1 else weight.data.fill_(1.0)
    if lean:
        keep_less(transformer, CPU)
    base_model = ZImage.__new__(ZImage)
    base_model.device, base_model.dtype, base_model.memory_plan = CPU, torch.float32, memory_plan
    base_model.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    base_model.vae_config = {"latent_channels": 16}
    base_model.vae_scale_factor, base_model.picture_multiple = 8, 16
    base_model.transformer = transformer
    return base_model


def make_config() -> TrainConfig:
    return TrainConfig(
        resolution=SIDE, rank=4, batch_size=1, rollout_steps=4, num_inference_steps=8, optimizer="adamw"
    )


def product_step(memory_plan: MemoryPlan) -> Callable[[int], object]:
    """The product's own optimizer step."""
    base_model, config = make_base(memory_plan, lean=True), make_config()
    examples = (make_example(),)
    optimizer = prepare(base_model, config)
    objective = make_objective(base_model, config, Material(examples, (), ()))
    return lambda step: optimizer_step(base_model, config, examples, objective, optimizer, step)


def plain_step(
    base_model: BaseModel, config: TrainConfig, example: EncodedExample, graphs_kept: bool
) -> Callable[[int], object]:
    """The same by PEFT's layers, which are switched one by one, and weight after weight for the teacher."""
    optimizer = prepare(base_model, config)
    transformer = base_model.transformer
    for layer in transformer.modules():
        if isinstance(layer, LoraLayer):
            del layer.forward
    students, teachers = (adapter_weights(transformer, name) for name in ("student", "teacher"))
    sigmas = training_sigmas(base_model, config, (example.height, example.width))
    shape = base_model.latent_shape(example.height, example.width)

    def velocity(adapter: str, latents: Tensor, sigma: Tensor, seen: Conditioning) -> Tensor:
        transformer.set_adapter(adapter)
        return base_model.predict_velocity(latents, sigma, [seen])

    def step(number: int) -> None:
        latents, losses = draw_noise(shape, 0, number, 0)[None].to(base_model.device), []
        for sigma, sigma_next in pairwise(sigmas):
            with torch.no_grad():
                of_teacher = velocity("teacher", latents, sigma, example.teacher[0])
            of_student = velocity("student", latents, sigma, example.student[0])
            state = RolloutStep(sigma, latents, of_student, of_teacher)
            losses.append(distillation_loss(state).sum() / (len(sigmas) - 1))
            if not graphs_kept:
                losses[-1].backward()
                losses[-1].item()
            latents = latents + (sigma_next - sigma) * of_student.detach()
        if graphs_kept:
            torch.stack(losses).sum().backward()
        torch.nn.utils.clip_grad_norm_(students.values(), config.max_grad_norm).item()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for name, weight in teachers.items():
                weight.lerp_(students[name], 1 - config.ema_decay)

    return step


def make_example() -> EncodedExample:
    captions = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(length, 16, generator=captions) for length in (CAPTION, SEEN))
    return EncodedExample((Conditioning(student),), (Conditioning(teacher),), SIDE, SIDE)


def measure() -> dict[str, float]:
    """Milliseconds of one thread's own time for a step of each, in turns, the median."""
    everything = MemoryPlan(recomputed_blocks=ALL)

    def plain(graphs_kept: bool) -> Callable[[int], object]:
        return plain_step(make_base(MemoryPlan(), lean=False), make_config(), make_example(), graphs_kept)

    steps = {
        "product": product_step(MemoryPlan()),
        "product, all recomputed": product_step(everything),
        "PEFT's layers": plain(graphs_kept=False),
        "released loop": plain(graphs_kept=True),
    }
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(1, WARM_UP + STEPS + 1):
        for name, step in steps.items():
            started = time.thread_time()
            step(number)
            taken[name].append(1000 * (time.thread_time() - started))
    return {name: round(statistics.median(all_of[WARM_UP:]), 1) for name, all_of in taken.items()}


def operations() -> list[dict]:
    """Of each simulated plan, the operations of a step in units of its floor."""
    rows = json.loads((RESULTS / "simulated.json").read_text(encoding="utf-8"))["rows"]
    found = []
    for row in rows:
        floor = sum(row["floor_work"].values())
        found.append(
            {name: row[name] for name in ("base", "resolution", "memory_plan")}
            | {"times_the_floor": round(sum(row["step_work"].values()) / floor, 3)}
        )
    return found


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    torch.set_num_threads(1)
    host = measure()
    print(host)
    save_result("speed", {"host_ms_per_step": host})


if __name__ == "__main__":
    main()
