"""The proof that a LoRA file loads and does what was trained."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from dopsd_app.config import TrainConfig
from dopsd_app.files import replace_file
from dopsd_app.jobs.manifest import hash_file
from dopsd_app.method import randomness
from dopsd_app.method.adapters import as_base, lora_matrices
from dopsd_app.models.protocol import BaseModel, Conditioning, Transformer

MAX_STRENGTH_ERROR = 5e-4
MAX_VELOCITY_ERROR = 1e-4  # where base and LoRA are both float32
MAX_EFFECT_ERROR = 0.05  # elsewhere: of the LoRA's effect, and of its strength, as a bfloat16 base rounds it


@dataclass(frozen=True)
class LoraCheck:
    """What loading the file back showed; `problems` has a sentence for all that is not as it should be."""

    sha256: str = ""  # of the file, so that damage on disk is found later
    loading_error: str = ""  # why it could not be loaded or run at all
    modules: int = 0  # adapted modules after loading
    missing_modules: tuple[str, ...] = ()  # trained, but not there after loading
    zero_modules: tuple[str, ...] = ()  # loaded, but without any effect
    # Loaded delta / trained delta, the least and the greatest over the modules.
    strength: tuple[float, float] = (0.0, 0.0)
    exact: bool = False  # base and LoRA are both float32: equality is asked for
    velocity_error: float = 0.0  # greatest absolute difference to the trained student's velocity
    # Relative to the LoRA's effect on the velocity: what loading did wrong, and what a rounded base makes of
    # any LoRA: a weak one vanishes in the rounding of bfloat16, which is no fault of its file.
    effect_error: float = 0.0
    rounding: float = 0.0

    @property
    def problems(self) -> list[str]:
        if self.loading_error:
            return [f"Loading it back failed: {self.loading_error}"]
        problems = []
        if self.missing_modules:
            problems.append(f"{len(self.missing_modules)} trained modules were not loaded back.")
        if self.zero_modules:
            problems.append(f"{len(self.zero_modules)} modules have no effect.")
        allowed = MAX_STRENGTH_ERROR if self.exact else MAX_EFFECT_ERROR
        if not all(abs(strength - 1) <= allowed for strength in self.strength):
            problems.append(
                f"It loads at a strength of {self.strength[0]:.3f} to {self.strength[1]:.3f}, not 1."
            )
        if self.exact and not self.velocity_error <= MAX_VELOCITY_ERROR:
            problems.append(f"Its predictions differ from the trained ones by {self.velocity_error:.1e}.")
        if not self.exact and not self.effect_error <= MAX_EFFECT_ERROR:
            problems.append(f"Its effect differs from the trained one by {self.effect_error:.1%}.")
        return problems

    @property
    def summary(self) -> str:
        if self.problems:
            return "The LoRA file is kept, but it does not load as it should. " + " ".join(self.problems)
        error = (
            f"predictions equal within {MAX_VELOCITY_ERROR:.0e}"
            if self.exact
            else f"effect equal within {max(self.effect_error, 1e-3):.1%}"
        )
        loaded = f"{self.modules} modules at strength {self.strength[0]:.3f}"
        return f"The LoRA file is good. It loads in diffusers: {loaded}, {error}."

    def save(self, path: Path) -> None:
        """Writes everything, the problems included, as JSON."""
        facts = {"passed": not self.problems, "problems": self.problems, **asdict(self)}
        replace_file(path, json.dumps(facts, indent=2))


def check_lora(
    path: Path,
    base_model: BaseModel,
    config: TrainConfig,
    conditioning: Conditioning,
    height: int,
    width: int,
) -> LoraCheck:
    """Loads the file into the run's own base through the official pipeline and compares it with the student.

    The student is taken off the base for it and does not come back. The velocities are those of one
    noise at the native steps' sigmas, for one conditioning of a picture of height x width pixels.
    """
    transformer = base_model.transformer
    noise = randomness.draw_noise(
        base_model.latent_shape(height, width), config.seed, 0, 0, randomness.PREVIEW
    )[None]
    sigmas = base_model.sigmas(config.num_inference_steps, height, width)[:-1]

    @torch.no_grad()
    def velocities() -> Tensor:
        latents = noise.to(base_model.device)
        return torch.stack([base_model.predict_velocity(latents, sigma, [conditioning]) for sigma in sigmas])

    trained = velocities()
    with as_base(transformer):
        untrained = velocities()
    student = _low_rank_deltas(transformer, "student")
    transformer.delete_adapters(list(transformer.peft_config))
    pipeline = base_model.make_pipeline()
    written = hash_file(path)
    try:
        pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name="check")
        loaded, file = velocities(), _low_rank_deltas(transformer, "check")
        _write_deltas(transformer, "check", student)
        expected = velocities()
        pipeline.unload_lora_weights()
    except Exception as error:  # whatever a loader can raise is what this check is to find
        return LoraCheck(sha256=written, loading_error=f"{type(error).__name__}: {error}")
    shared = file.keys() & student.keys()
    strengths = [_ratio(file[name], student[name]) for name in shared] or [0.0]
    return LoraCheck(
        sha256=written,
        modules=len(file),
        missing_modules=tuple(sorted(student.keys() - file.keys())),
        zero_modules=tuple(sorted(name for name, delta in file.items() if not _inner(delta, delta))),
        strength=(min(strengths), max(strengths)),
        exact=base_model.dtype == torch.float32 and base_model.memory_plan.quantization == "none",
        velocity_error=(loaded - trained).abs().max().item(),
        effect_error=_relative(loaded - expected, expected - untrained),
        rounding=_relative(expected - trained, trained - untrained),
    )


def _relative(error: Tensor, effect: Tensor) -> float:
    """Size of an error in units of the effect; 0 where there is neither."""
    return (error.norm() / effect.norm()).item() if error.any() else 0.0


def _low_rank_deltas(transformer: Transformer, adapter: str) -> dict[str, tuple[Tensor, Tensor]]:
    """By module: A (rank, in) and B (out, rank) with the strength in it, in float32; the delta is B @ A."""
    deltas = {}
    for name, module in transformer.named_modules():
        if isinstance(module, LoraLayer) and adapter in module.lora_A:
            a, b = (weight.detach().float() for weight in lora_matrices(module, adapter))
            deltas[name] = (a.clone(), b * module.scaling[adapter])
    return deltas


@torch.no_grad()
def _write_deltas(transformer: Transformer, adapter: str, deltas: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Puts true deltas into a loaded adapter, in its own precision, at strength 1."""
    for name, module in transformer.named_modules():
        if isinstance(module, LoraLayer) and adapter in module.lora_A and name in deltas:
            for weight, delta in zip(lora_matrices(module, adapter), deltas[name], strict=True):
                weight.copy_(delta)
            module.scaling[adapter] = 1.0


def _ratio(delta: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor]) -> float:
    """How many times `truth` is in `delta`: 1 where they are equal, 0 where there is no truth."""
    size = _inner(truth, truth)
    return _inner(delta, truth) / size if size else 0.0


def _inner(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """Inner product of two deltas, by way of (rank, rank) matrices instead of (out, in) ones."""
    (a, b), (other_a, other_b) = one, other
    return ((b.T @ other_b) * (a @ other_a.T)).sum().item()
