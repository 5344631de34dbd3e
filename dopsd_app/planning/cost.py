"""What a run costs by arithmetic: floating-point work, memory and disk."""

import math
from dataclasses import dataclass

from dopsd_app.config import TrainConfig
from dopsd_app.models.sizes import Sizes

CAPTION_TOKENS = 64  # a caption of two sentences, with its chat template
CAPTIONS = 2  # of a picture
RESUMABLE, KEPT = 2, 10  # checkpoints, as checkpoint.py keeps them; it would import torch
PICTURE_FILE = 10_000_000  # bytes of a photograph as PNG, scaled down as a draft keeps it
PREVIEW_FILE = 200_000  # bytes

# Bytes for each token and each number of its features, counted over PyTorch's allocations in a training step
# of the real classes, of dim 512, in bfloat16 with float32 adapters (95.2 and 14; in float32 91.2 and 16). A
# third is PEFT's float32 copies of what goes into each adapted layer.
# Published: fine-tuning in bfloat16 takes 12.8 GiB with checkpointing, 21.2 without (SimpleTuner). Reckoned
# like this, with adapters in bfloat16 and no teacher: 12.9 and 19.9 at 512 x 512 pixels, 14.4 and 41 at
# 1024 x 1024. Its seconds fit 512 x 512 too: at 1024 x 1024 the card would exceed its data sheet. D-OPSD in
# 16 GiB (the T8 trainer) works at 512, just so at 768, and not at 1024: 15.2, 16.2 and 17.5 GiB here.
SAVED = 95.0  # kept by one block for the backward pass
WORKING = 16.0  # besides, while one block is at work
ENCODING = 1.03  # of the encoders' weights: with what they keep of caption and picture, measured on a card


NF4 = 0.516  # bytes of a weight, with its share of the scales, as bitsandbytes packs a real matrix

# Python with torch and diffusers: five runs of the built-in base took from 17 % less to 18 % more than is
# reckoned with it. On a card: CUDA's context with cuBLAS, as measured (benchmarks/results/real_size.json).
PROGRAM_ON_CPU, PROGRAM_ON_GPU = 600_000_000, 690_000_000
REAL_SIZE = 1e9  # parameters of a transformer: on a CPU, a larger one would train for weeks


@dataclass(frozen=True)
class Memory:
    """Bytes on the device that trains, at the most, in the phases of a run."""

    encoding: int  # while captions and pictures are encoded
    training: int
    drawing: int  # while a preview is drawn

    @property
    def peak(self) -> int:
        return max(self.encoding, self.training, self.drawing)


def picture_tokens(sizes: Sizes, resolution: int) -> int:
    return _padded((resolution / sizes.token_side) ** 2)


def teacher_tokens(sizes: Sizes, resolution: int) -> int:
    """Of caption and picture in the teacher's context."""
    least, most = sizes.context_area
    area = min(max(resolution**2, least), most)
    return _padded(CAPTION_TOKENS + area / sizes.context_side**2)


def _padded(tokens: float) -> int:
    return math.ceil(tokens / 32) * 32  # as the transformer pads each sequence


def forward_work(sizes: Sizes, picture: int, caption: int) -> tuple[float, float]:
    """Floating-point operations of one pass for one picture: in the linear layers, and in attention.

    2 for each weight and token; in attention 4 x dim for each pair of tokens.
    """
    together = picture + caption
    passed = sizes.layers * together + sizes.refiners * together  # blocks x tokens that go through them
    pairs = sizes.layers * together**2 + sizes.refiners * (picture**2 + caption**2)
    return 24.0 * sizes.dim**2 * passed, 4.0 * sizes.dim * pairs


def step_work(config: TrainConfig, sizes: Sizes) -> float:
    """Floating-point operations of one optimizer step.

    Each visited state: a teacher pass; a student pass, and its recompute under checkpointing; the backward
    pass through frozen weights, once the linear layers and 2.5 times the attention.
    """
    picture = picture_tokens(sizes, config.resolution)
    teacher = sum(forward_work(sizes, picture, teacher_tokens(sizes, config.resolution)))
    linear, attention = forward_work(sizes, picture, CAPTION_TOKENS)
    student = (linear + attention) * (2 if config.gradient_checkpointing else 1)
    backward = linear + 2.5 * attention
    return config.batch_size * config.rollout_steps * (teacher + student + backward)


def preview_work(config: TrainConfig, sizes: Sizes, prompts: int) -> float:
    """Floating-point operations of one preview: prompts at the native steps, and all pictures decoded."""
    drawn = prompts * config.num_inference_steps
    pass_work = sum(forward_work(sizes, picture_tokens(sizes, config.resolution), CAPTION_TOKENS))
    decoded = prompts + 2 * config.rollout_steps
    return drawn * pass_work + decoded * decoding_work(config, sizes)


def decoding_work(config: TrainConfig, sizes: Sizes) -> float:
    # Counted: 2.48 TFLOP for a picture of 512 x 512 with 128 channels. Twice, for float32 is slower.
    return 5e12 * (config.resolution / 512) ** 2 * (sizes.decoder_channels / 128) ** 2


def memory(config: TrainConfig, sizes: Sizes, on_gpu: bool) -> Memory:
    """Bytes at the most in each phase, the program included."""
    number = 2 if config.precision == "bfloat16" or (config.precision == "auto" and on_gpu) else 4
    program = PROGRAM_ON_GPU if on_gpu else PROGRAM_ON_CPU
    resting = program + _weights(config, sizes, number) + _adapters(config, sizes)
    return Memory(
        encoding=int(program + ENCODING * number * sizes.encoder_parameters),
        training=resting + _activations(config, sizes, number),
        drawing=resting + _decoding(config, sizes),
    )


def least_gpu_memory(sizes: Sizes) -> int:
    """Bytes that a card must have with all that saves memory; 0 where training needs no card."""
    if sizes.parameters < REAL_SIZE:
        return 0
    config = TrainConfig(quantization="nf4", optimizer="adamw8bit", rank=16, resolution=512, micro_batch=1)
    return memory(config, sizes, on_gpu=True).peak


def _weights(config: TrainConfig, sizes: Sizes, number: int) -> int:
    """Transformer, and autoencoder in float32."""
    linear = NF4 if config.quantization == "nf4" else number
    transformer = sizes.linear_parameters * linear + (sizes.parameters - sizes.linear_parameters) * number
    return int(transformer + 4 * sizes.decoder_parameters)


def _adapters(config: TrainConfig, sizes: Sizes) -> int:
    """Student, its gradient, two moments, and an EMA teacher, in float32; 8-bit moments take 1 byte each."""
    moments = 2 if config.optimizer == "adamw8bit" else 8
    return sizes.lora_parameters(config.rank) * (4 + 4 + moments + (4 if config.teacher == "ema" else 0))


def _activations(config: TrainConfig, sizes: Sizes, number: int) -> int:
    """Of the student's pass and its way back; the teacher keeps nothing, and needs less than that."""
    tokens = picture_tokens(sizes, config.resolution) + CAPTION_TOKENS
    features = config.micro_batch * tokens * sizes.dim
    blocks = sizes.layers + sizes.refiners  # of those, each refines the picture or the caption alone
    kept = blocks * number + SAVED if config.gradient_checkpointing else blocks * SAVED
    return int(features * (kept + WORKING))


def _decoding(config: TrainConfig, sizes: Sizes) -> int:
    """Six feature maps of the picture's size in float32, as counted; cuDNN's own work space comes on top."""
    return 6 * 4 * sizes.decoder_channels * config.resolution**2


def disk(config: TrainConfig, sizes: Sizes, pictures: int) -> int:
    """Bytes of a whole run folder and its share of the cache, with one checkpoint more while it is saved."""
    student = 4 * sizes.lora_parameters(config.rank)
    optimizer = student // 2 if config.optimizer == "adamw8bit" else 2 * student
    teacher = student if config.teacher == "ema" else 0
    saved = config.steps // config.checkpoint_every + 1
    previews = 2 * (config.steps // config.preview_every) if config.preview_every else 0
    contexts = CAPTION_TOKENS + teacher_tokens(sizes, config.resolution)
    return int(
        min(saved, KEPT + 1 + bool(config.preview_every)) * student  # LoRAs; an old one, if it is the best
        + min(saved, RESUMABLE + 1) * (student + teacher + optimizer)
        + student  # the LoRA file of the end
        + pictures * (PICTURE_FILE + CAPTIONS * contexts * sizes.caption_features * 4)
        + previews * PREVIEW_FILE
    )
