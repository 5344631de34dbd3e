"""What a run costs by arithmetic: floating-point work, memory and disk."""

from dataclasses import dataclass

from dopsd_app.config import OBJECTIVES, TrainConfig
from dopsd_app.jobs.manifest import MAX_CHECKPOINTS, RESUMABLE
from dopsd_app.models.architecture import Sizes

CAPTIONS = 2  # of a picture
PICTURE_FILE = 10_000_000  # bytes of a photograph as PNG, scaled down as a draft keeps it
PREVIEW_FILE = 200_000  # bytes

ENCODING = 1.03  # of the encoders' weights: with what they keep of caption and picture, measured on a card
NF4 = 0.516  # bytes of a weight, with its share of the scales, as bitsandbytes packs a real matrix

# Python with torch and diffusers: five runs of the built-in base took from 17 % less to 18 % more than is
# reckoned with it. On a card: CUDA's context with cuBLAS, as measured (benchmarks/results/real_size.json).
PROGRAM_ON_CPU, PROGRAM_ON_GPU = 600_000_000, 690_000_000
ERROR = 0.15  # of a memory estimate: only what could not fit even so is refused
# GB of 2^30 bytes of cards that compute in bfloat16; their drivers tell up to a fiftieth less.
CARDS = (4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 80, 96, 141)


@dataclass(frozen=True)
class Memory:
    """Bytes on the device that trains, at the most, in the phases of a run."""

    encoding: int  # while captions and pictures are encoded
    training: int
    drawing: int  # while a preview is drawn

    @property
    def peak(self) -> int:
        return max(self.encoding, self.training, self.drawing)


def step_work(config: TrainConfig, sizes: Sizes) -> float:
    """Floating-point operations of one optimizer step.

    The objective's teacher passes and student passes; for each of the student's, its recompute under
    checkpointing, and the backward pass through frozen weights: once the linear layers and 2.5 times the
    attention.
    """
    teacher = sum(sizes.work(sizes.teacher_tokens(config.resolution, config.teacher_context)))
    linear, attention = sizes.work(sizes.student_tokens(config.resolution))
    student = (linear + attention) * (2 if config.gradient_checkpointing else 1)
    backward = linear + 2.5 * attention
    of_student, of_teacher = config.passes
    return config.batch_size * (of_teacher * teacher + of_student * (student + backward))


def picture_work(config: TrainConfig, sizes: Sizes) -> float:
    """Floating-point operations of one picture that is drawn at the native steps, and decoded."""
    pass_work = sum(sizes.work(sizes.student_tokens(config.resolution)))
    return config.num_inference_steps * pass_work + sizes.decoding_work(config.resolution)


def preview_work(config: TrainConfig, sizes: Sizes, prompts: int) -> float:
    """Floating-point operations of one preview: prompts at the native steps, and all pictures decoded."""
    decoded = 2 * config.rollout_steps * OBJECTIVES[config.objective].shows_rollout  # of the roll-out
    return prompts * picture_work(config, sizes) + decoded * sizes.decoding_work(config.resolution)


def memory(config: TrainConfig, sizes: Sizes, on_gpu: bool) -> Memory:
    """Bytes at the most in each phase, the program included."""
    number = 2 if config.precision == "bfloat16" or (config.precision == "auto" and on_gpu) else 4
    program = program_bytes(on_gpu)
    resting = program + _weights(config, sizes, number) + _adapters(config, sizes)
    encoders = int(ENCODING * number * sizes.encoder_parameters)
    return Memory(
        encoding=program + encoders + sizes.encoding_bytes(config.resolution, config.teacher_context),
        training=resting + _activations(config, sizes, number),
        drawing=resting + sizes.decoding_bytes(config.resolution),
    )


def program_bytes(on_gpu: bool) -> int:
    """What the program itself takes on the device that trains."""
    return PROGRAM_ON_GPU if on_gpu else PROGRAM_ON_CPU


def least_gpu_memory(sizes: Sizes) -> int:
    """Bytes that a card must have with all that saves memory; 0 where training needs no card."""
    if not sizes.needs_card:
        return 0
    config = TrainConfig(quantization="nf4", optimizer="adamw8bit", rank=16, resolution=512, micro_batch=1)
    return memory(config, sizes, on_gpu=True).peak


def least_card(sizes: Sizes) -> int:
    """The smallest card, in GB of 2^30 bytes, on which training surely fits; 0 where it needs none."""
    surely = least_gpu_memory(sizes) * (1 + ERROR) / 2**30
    return next(card for card in CARDS if 0.98 * card >= surely) if surely else 0


def _weights(config: TrainConfig, sizes: Sizes, number: int) -> int:
    """Transformer, and autoencoder in float32."""
    linear = NF4 if config.quantization == "nf4" else number
    transformer = sizes.linear_parameters * linear + (sizes.parameters - sizes.linear_parameters) * number
    return int(transformer + 4 * sizes.decoder_parameters)


def _adapters(config: TrainConfig, sizes: Sizes) -> int:
    """Student, its gradient, two moments, and an EMA teacher, in float32; 8-bit moments take 1 byte each."""
    moments = 2 if config.optimizer == "adamw8bit" else 8
    return sizes.lora_parameters(config.rank) * (4 + 4 + moments + (4 if config.has_ema_teacher else 0))


def _activations(config: TrainConfig, sizes: Sizes, number: int) -> int:
    """Of the student's pass and its way back; the teacher keeps nothing, and needs less than that."""
    tokens = sizes.student_tokens(config.resolution)
    pictures = config.micro_batch * OBJECTIVES[config.objective].together
    return int(pictures * sizes.activation_bytes(tokens, number, config.gradient_checkpointing))


def disk(config: TrainConfig, sizes: Sizes, pictures: int, sources: int = 0) -> int:
    """Bytes of a whole run folder and its share of the cache, with one checkpoint more while it is saved."""
    student = 4 * sizes.lora_parameters(config.rank)
    optimizer = student // 2 if config.optimizer == "adamw8bit" else 2 * student
    teacher = student if config.has_ema_teacher else 0
    saved = config.steps // config.checkpoint_every + 1
    previews = 2 * (config.steps // config.preview_every) if config.preview_every else 0
    conditioning = sizes.conditioning_bytes(config.resolution, config.teacher_context)
    return int(
        min(saved, MAX_CHECKPOINTS + 1 + bool(config.preview_every)) * student  # LoRAs; an old one, if best
        + min(saved, RESUMABLE + 1) * (student + teacher + optimizer)
        + student  # the LoRA file of the end
        + pictures * ((1 + sources) * PICTURE_FILE + CAPTIONS * conditioning)
        + previews * PREVIEW_FILE
    )
