"""What a run costs by arithmetic: floating-point work, memory and disk."""

from dopsd_app.checks.health_rules import PROMPTS, SHOWN
from dopsd_app.checks.preview_steps import early_samples, early_steps, preview_steps
from dopsd_app.config import OBJECTIVES, TrainConfig
from dopsd_app.jobs.manifest import MAX_CHECKPOINTS, RESUMABLE
from dopsd_app.models.architecture import Sizes
from dopsd_app.models.memory_plan import MemoryPlan

CAPTIONS = 2  # of a picture
PICTURE_FILE = 10_000_000  # bytes of a photograph as PNG, scaled down as a draft keeps it
SAMPLE_FILE = 300_000  # bytes, of a megapixel
BASE_FILE = 2_000_000  # bytes, of the same as PNG, as the base's are kept
STATE_FILE = 40_000  # bytes, of one picture of a roll-out


def step_work(config: TrainConfig, sizes: Sizes, plan: MemoryPlan) -> float:
    """Floating-point operations of one optimizer step.

    The objective's teacher passes and student passes; for each of the student's, what the plan makes anew,
    and the backward pass through frozen weights: once the linear layers and 2.5 times the attention.
    """
    teacher = sum(sizes.work(sizes.teacher_tokens(config.resolution, config.teacher_context)))
    tokens = sizes.student_tokens(config.resolution)
    linear, attention = sizes.work(tokens)
    kinds = sizes.blocks(tokens)
    blocks = sum(kind.count for kind in kinds)
    again = 1 + (kinds[-1].work_of_halves[plan.inputs_in_ram] if plan.halves else 0)
    student = (linear + attention) * (1 + again * min(plan.recomputed_blocks, blocks) / blocks)
    backward = linear + 2.5 * attention
    of_student, of_teacher = config.passes
    return config.batch_size * (of_teacher * teacher + of_student * (student + backward))


def picture_work(config: TrainConfig, sizes: Sizes) -> float:
    """Floating-point operations of one picture that is drawn at the native steps, and decoded."""
    pass_work = sum(sizes.work(sizes.student_tokens(config.resolution)))
    return config.num_inference_steps * pass_work + sizes.decoding_work(config.resolution)


def preview_work(config: TrainConfig, sizes: Sizes, prompts: int) -> float:
    """Floating-point operations of one preview: prompts at the native steps, and all pictures decoded."""
    return prompts * picture_work(config, sizes) + _states(config) * sizes.decoding_work(config.resolution)


def _states(config: TrainConfig) -> int:
    """The pictures of a roll-out that is shown: each visited state as student and teacher see it."""
    return 2 * config.rollout_steps * OBJECTIVES[config.objective].shows_rollout


def disk(config: TrainConfig, sizes: Sizes, pictures: int, sources: int = 0) -> int:
    """Bytes of a whole run folder and its share of the cache, with one checkpoint more while it is saved."""
    student = 4 * sizes.lora_parameters(config.rank)
    optimizer = student // 2 if config.optimizer == "adamw8bit" else 2 * student
    teacher = student if config.has_ema_teacher else 0
    saved = config.steps // config.checkpoint_every + 1
    whole, early, drawn = (len(steps(config)) for steps in (preview_steps, early_steps, early_samples))
    shown = len(config.preview_prompts) or SHOWN
    samples = shown * (whole + drawn)
    # Those that are shown, or as many as the health is measured by; and as many of what nobody trains.
    bases = max(shown, PROMPTS) + PROMPTS if whole else 0
    states = _states(config) * (whole + early)
    conditioning = sizes.conditioning_bytes(config.resolution, config.teacher_context)
    return int(
        min(saved, MAX_CHECKPOINTS + 1 + bool(config.preview_every)) * student  # LoRAs; an old one, if best
        + min(saved, RESUMABLE + 1) * (student + teacher + optimizer)
        + student  # the LoRA file of the end
        + pictures * ((1 + sources) * PICTURE_FILE + CAPTIONS * conditioning)
        + samples * SAMPLE_FILE
        + bases * BASE_FILE
        + states * STATE_FILE
    )
