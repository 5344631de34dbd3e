"""What might make D-OPSD faster: the product's recipe with one thing changed."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.concepts import PICTURES, SIDE
from benchmarks.methods import METHODS, Method, Training
from dopsd_app.method.adapters import as_base, as_teacher
from dopsd_app.method.losses import distillation_loss
from dopsd_app.method.objectives.protocol import Batch, Objective
from dopsd_app.method.randomness import draw_noises, generator
from dopsd_app.method.rollout import RolloutStep
from dopsd_app.models.protocol import Conditioning

RECIPE = "dopsd_ema"  # what every lever is one change away from
STATES, GRID, CONTEXT = range(20, 23)  # purposes of draws
SMALL = 12  # latents a side of 48-pixel pictures


class Walk(Objective):
    """The product's roll-out with levers.

    `states` of the visited ones are learned from, drawn at random; the others cost a student's pass each.
    `subset` of the native sigmas are walked, the first always. `context` is the teacher's picture: the
    example's "own", one "other" of the concept, or "two" of them, whose velocities are averaged. The
    teacher's velocity is pushed on from the bare base's by `extrapolation`. `small_until`: passes before
    the pictures have their full size.
    """

    def __init__(
        self,
        training: Training,
        states: int | None = None,
        subset: int | None = None,
        context: str = "own",
        extrapolation: float = 0.0,
        small_until: int = 0,
    ):
        super().__init__(training.base_model, training.config, training.material)
        self.training, self.states, self.subset, self.context = training, states, subset, context
        self.extrapolation, self.small_until = extrapolation, small_until

    def losses(self, batch: Batch, step: int) -> Iterator[Tensor]:
        """The batch is all of the step's: what is drawn for it is drawn for each example in turn."""
        base_model, config = self.base_model, self.config
        sigmas = self._sigmas(step)
        chosen = self._chosen(len(sigmas) - 1, step)
        teachers = self._teachers(step, batch.indices)
        latents = draw_noises(base_model.latent_shape(*batch.size), config.seed, step, batch.positions)
        if self.training.passes < self.small_until:
            latents = latents[..., :SMALL, :SMALL]
        for place, (sigma, sigma_next) in enumerate(pairwise(sigmas[: max(chosen) + 2])):
            if place not in chosen:
                with torch.no_grad():
                    velocity = base_model.predict_velocity(latents, sigma, batch.student)
                latents = latents + (sigma_next - sigma) * velocity
                continue
            target = self._target(latents, sigma, batch.student, teachers)
            velocity = base_model.predict_velocity(latents, sigma, batch.student)
            visited = RolloutStep(sigma, latents, velocity, target)
            yield distillation_loss(visited, config.loss).mean() / len(chosen)
            latents = latents + (sigma_next - sigma) * velocity.detach()

    def _sigmas(self, step: int) -> Tensor:
        if not self.subset:
            return self.base_model.sigmas(self.config.rollout_steps, SIDE, SIDE)
        native = self.base_model.sigmas(self.config.num_inference_steps, SIDE, SIDE)
        order = torch.randperm(len(native) - 2, generator=generator(self.config.seed, GRID, step))
        kept = sorted([0, *(order[: self.subset - 1] + 1).tolist()])
        return torch.cat([native[kept], native[-1:]])

    def _chosen(self, count: int, step: int) -> set[int]:
        order = torch.randperm(count, generator=generator(self.config.seed, STATES, step))
        return set(order[: self.states or count].tolist())

    def _target(
        self, latents: Tensor, sigma: Tensor, student: list[Conditioning], teachers: list[list[Conditioning]]
    ) -> Tensor:
        base_model = self.base_model
        with as_teacher(base_model.transformer):
            velocities = [base_model.predict_velocity(latents, sigma, teacher) for teacher in teachers]
        target = torch.stack(velocities).mean(0)
        if not self.extrapolation:
            return target
        with as_base(base_model.transformer):
            blind = base_model.predict_velocity(latents, sigma, student)
        return target + self.extrapolation * (target - blind)

    def _teachers(self, step: int, drawn: Sequence[int]) -> list[list[Conditioning]]:
        teacher = self.training.data.teacher
        if self.context == "own":
            return [[teacher[index][index] for index in drawn]]
        draws = generator(self.config.seed, CONTEXT, step)
        orders = [torch.randperm(PICTURES - 1, generator=draws).tolist() for _ in drawn]
        others = [
            [(index + 1 + order[n]) % PICTURES for index, order in zip(drawn, orders, strict=True)]
            for n in (0, 1)
        ]
        return [
            [teacher[index][other] for index, other in zip(drawn, row, strict=True)]
            for row in others[: 2 if self.context == "two" else 1]
        ]


def _lever(**options) -> Method:
    return Method(objective=partial(Walk, **options))


SMALL_STEPS = (("batch_size", 1), ("micro_batch", 1))
LEVERS = {
    RECIPE: METHODS[RECIPE],
    "1 of 4 states": _lever(states=1),
    "2 of 4 states": _lever(states=2),
    "K = 1": Method((("rollout_steps", 1),)),
    "K = 2": METHODS["dopsd_fast"],
    "batch 1": Method(SMALL_STEPS),
    "learning rate falls, 300 passes": Method(falls_until=300),
    "learning rate falls, 600 passes": Method(falls_until=600),
    "random 2 of the grid": _lever(subset=2),
    "another picture as context": _lever(context="other"),
    "two other pictures as context": _lever(context="two"),
    "extrapolation 0.5": _lever(extrapolation=0.5),
    "extrapolation 1": _lever(extrapolation=1.0),
    "48 pixels first": _lever(small_until=300),
    "rank 4": Method((("rank", 4),)),
    "rank 64": Method((("rank", 64),)),
    "attention only": Method(targets=r".*\.attention\.(to_q|to_k|to_v|to_out\.0)"),
    "decay 0.9": Method((("ema_decay", 0.9),)),
    "decay 0.99": Method((("ema_decay", 0.99),)),
    "velocity loss": Method((("loss", "velocity"),)),
}

# What levers promised, and put together; but for the recipe, they have half of its passes.
FINALS = {
    RECIPE: METHODS[RECIPE],
    "K = 2": LEVERS["K = 2"],
    "batch 1": LEVERS["batch 1"],
    "batch 1, rate falls": Method(SMALL_STEPS, falls_until=600),
    "K = 2, batch 1": Method((*SMALL_STEPS, ("rollout_steps", 2))),
    "random 2 of the grid": LEVERS["random 2 of the grid"],
    "random 2 of the grid, batch 1": Method(SMALL_STEPS, partial(Walk, subset=2)),
}
