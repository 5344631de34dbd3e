"""What might make D-OPSD faster: the product's recipe with one thing changed."""

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.concepts import PICTURES, SIDE
from benchmarks.methods import METHODS, Method, Training, students_prompts
from dopsd_app.method import randomness
from dopsd_app.method.adapters import as_base, as_teacher
from dopsd_app.method.losses import distillation_loss
from dopsd_app.method.rollout import RolloutStep
from dopsd_app.models.protocol import Conditioning

RECIPE = "dopsd_ema"  # what every lever is one change away from
STATES, GRID, CONTEXT = range(20, 23)  # purposes of draws
SMALL = 12  # latents a side of 48-pixel pictures


def walk(
    training: Training,
    step: int,
    states: int | None = None,
    subset: int | None = None,
    context: str = "own",
    extrapolation: float = 0.0,
    small_until: int = 0,
) -> Tensor:
    """The product's step with levers.

    `states` of the visited ones are learned from, drawn at random; the others cost a student's pass each.
    `subset` of the native sigmas are walked, the first always. `context` is the teacher's picture: the
    example's "own", one "other" of the concept, or "two" of them, whose velocities are averaged. The
    teacher's velocity is pushed on from the bare base's by `extrapolation`. `small_until`: passes before
    the pictures have their full size.
    """
    base_model, config, drawn = training.base_model, training.config, training.drawn(step)
    sigmas = training.sigmas
    if subset:
        native = base_model.sigmas(config.num_inference_steps, SIDE, SIDE)
        order = torch.randperm(len(native) - 2, generator=randomness.generator(config.seed, GRID, step))
        kept = sorted([0, *(order[: subset - 1] + 1).tolist()])
        sigmas = torch.cat([native[kept], native[-1:]])
    count = len(sigmas) - 1
    chosen = set(range(count))
    if states:
        order = torch.randperm(count, generator=randomness.generator(config.seed, STATES, step))
        chosen = set(order[:states].tolist())
    student = students_prompts(training, drawn)
    teachers = _teachers(training, step, drawn, context)
    latents = training.noise(step, len(drawn))
    if training.passes < small_until:
        latents = latents[..., :SMALL, :SMALL]
    loss = torch.zeros((), device=latents.device)
    for place, (sigma, sigma_next) in enumerate(pairwise(sigmas[: max(chosen) + 2])):
        if place not in chosen:
            with torch.no_grad():
                velocity = base_model.predict_velocity(latents, sigma, student)
            latents = latents + (sigma_next - sigma) * velocity
            continue
        with as_teacher(base_model.transformer):
            seen = [base_model.predict_velocity(latents, sigma, teacher) for teacher in teachers]
        target = torch.stack(seen).mean(0)
        if extrapolation:
            with as_base(base_model.transformer):
                target = target + extrapolation * (
                    target - base_model.predict_velocity(latents, sigma, student)
                )
        velocity = base_model.predict_velocity(latents, sigma, student)
        visited = RolloutStep(sigma, latents, velocity, target)
        loss = loss + distillation_loss(visited, config.loss).mean() / len(chosen)
        latents = latents + (sigma_next - sigma) * velocity.detach()
    return loss


def _teachers(training: Training, step: int, drawn: list[int], context: str) -> list[list[Conditioning]]:
    seen = training.data.seen
    if context == "own":
        return [[seen[index][index] for index in drawn]]
    generator = randomness.generator(training.config.seed, CONTEXT, step)
    orders = [torch.randperm(PICTURES - 1, generator=generator).tolist() for _ in drawn]
    others = [
        [(index + 1 + order[n]) % PICTURES for index, order in zip(drawn, orders, strict=True)]
        for n in (0, 1)
    ]
    return [
        [seen[index][other] for index, other in zip(drawn, row, strict=True)]
        for row in others[: 2 if context == "two" else 1]
    ]


def _lever(**options) -> Method:
    return Method(partial(walk, **options))


SMALL_STEPS = (("batch_size", 1), ("micro_batch", 1))
LEVERS = {
    RECIPE: METHODS[RECIPE],
    "1 of 4 states": _lever(states=1),
    "2 of 4 states": _lever(states=2),
    "K = 1": Method(None, settings=(("rollout_steps", 1),)),
    "K = 2": METHODS["dopsd_fast"],
    "batch 1": Method(None, settings=SMALL_STEPS),
    "learning rate falls, 300 passes": Method(None, falls_until=300),
    "learning rate falls, 600 passes": Method(None, falls_until=600),
    "random 2 of the grid": _lever(subset=2),
    "another picture as context": _lever(context="other"),
    "two other pictures as context": _lever(context="two"),
    "extrapolation 0.5": _lever(extrapolation=0.5),
    "extrapolation 1": _lever(extrapolation=1.0),
    "48 pixels first": _lever(small_until=300),
    "rank 4": Method(None, settings=(("rank", 4),)),
    "rank 64": Method(None, settings=(("rank", 64),)),
    "attention only": Method(None, targets=r".*\.attention\.(to_q|to_k|to_v|to_out\.0)"),
    "decay 0.9": Method(None, settings=(("ema_decay", 0.9),)),
    "decay 0.99": Method(None, settings=(("ema_decay", 0.99),)),
    "velocity loss": Method(None, settings=(("loss", "velocity"),)),
}

# What levers promised, and put together; but for the recipe, they have half of its passes.
FINALS = {
    RECIPE: METHODS[RECIPE],
    "K = 2": LEVERS["K = 2"],
    "batch 1": LEVERS["batch 1"],
    "batch 1, rate falls": Method(None, settings=SMALL_STEPS, falls_until=600),
    "K = 2, batch 1": Method(None, settings=(*SMALL_STEPS, ("rollout_steps", 2))),
    "random 2 of the grid": LEVERS["random 2 of the grid"],
    "random 2 of the grid, batch 1": Method(partial(walk, subset=2), settings=SMALL_STEPS),
}
