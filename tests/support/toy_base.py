"""A base model in one file, as anybody could add one; run by its path, it is the worker of runs on it.

Everything that can differ differs: its time runs from noise (0) to picture (1), its teacher sees the picture
as latents in the transformer, it has no vision tower, and its autoencoder has a name of its own.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))  # as it is started by its path

import torch
from diffusers import DiffusionPipeline
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import PeftAdapterMixin
from diffusers.loaders.lora_pipeline import ZImageLoraLoaderMixin
from diffusers.loaders.peft import _SET_ADAPTER_SCALE_FN_MAPPING
from diffusers.models.modeling_utils import ModelMixin
from safetensors.torch import save_file
from torch import nn

from dopsd_app.jobs.launcher import launcher
from dopsd_app.models.architecture import (
    CAPTION_TOKENS,
    Architecture,
    BaseModelError,
    Blocks,
    PassTokens,
    Sizes,
    Working,
)
from dopsd_app.models.architectures import register
from dopsd_app.models.frozen import load_frozen
from dopsd_app.models.protocol import Conditioning

SIDE = 8  # pixels of the square that one latent stands for
CHANNELS, DIM = 4, 16


# --- without loading it


@dataclass(frozen=True, kw_only=True)
class ToySizes(Sizes):
    """Of two linear layers of dim x dim."""

    dim: int

    @classmethod
    def of(cls, stored):
        return cls(
            dim=stored.configurations["transformer"]["dim"],
            parameters=stored.parameters["transformer"],
            encoder_parameters=stored.parameters["text_encoder"] + stored.parameters["autoencoder"],
            decoder_parameters=stored.parameters["autoencoder"],
            stored_bytes=stored.stored_bytes,
        )

    side_multiple = SIDE

    def with_teacher_picture(self, context, least, most):
        if least or most:
            raise BaseModelError("The toy's teacher sees the picture as it is.")
        return self

    @property
    def linear_parameters(self):
        return 2 * self.dim**2

    def lora_parameters(self, rank):
        return 4 * self.dim * rank

    def student_tokens(self, resolution):
        return PassTokens((resolution // SIDE) ** 2, CAPTION_TOKENS)

    def teacher_tokens(self, resolution, context):
        picture = (resolution // SIDE) ** 2
        return PassTokens(picture, CAPTION_TOKENS, reference=picture)

    def work(self, tokens):
        return 4.0 * self.dim**2 * (tokens.picture + tokens.reference), 0.0

    def blocks(self, tokens):
        return (
            Blocks(
                count=2,
                parameters=self.dim**2,
                others=self.dim,
                largest=self.dim**2,
                features=self.dim * tokens.picture,
                chunk=self.dim * tokens.picture,
                kept=4.0,
                beside=1.0,
                back=Working(5.0, 5.0),
                passing=Working(4.0, 4.0),
                back_in_halves=(Working(5.0, 5.0), Working(5.0, 5.0)),
                passing_in_halves=Working(4.0, 4.0),
                work_of_halves=(0.0, 0.0),
                inputs_in_halves=1.0,
            ),
        )

    def conditioning_bytes(self, resolution, context):
        return 4 * DIM * 2 * CAPTION_TOKENS + 4 * CHANNELS * (resolution // SIDE) ** 2

    def decoding_work(self, resolution):
        return 2.0 * 3 * CHANNELS * resolution**2

    def decoding_bytes(self, resolution):
        return 4 * 3 * resolution**2


TOY = Architecture(
    pipeline_class="ToyPipeline",
    family="the toy",
    base_model=f"{__name__}:Toy",
    sizes=ToySizes,
    teacher_contexts=("reference",),
    eyes=(),
    guidance=1.0,
    parts=("transformer", "text_encoder", "autoencoder"),
)
register(TOY)


# --- its parts


class ToyTransformer(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Velocity as this model means it, picture - noise, at `time`: 0 for noise, 1 for the picture."""

    @register_to_config
    def __init__(self, dim: int = DIM):
        super().__init__()
        self.latents_in, self.latents_out = nn.Linear(CHANNELS, dim), nn.Linear(dim, CHANNELS)
        self.time_in, self.text_in = nn.Linear(1, dim), nn.Linear(DIM, dim)
        self.blocks = nn.ModuleList(nn.Linear(dim, dim) for _ in range(2))

    def forward(self, latents, time, texts, references):
        told = self.time_in(time[:, None]) + torch.stack([self.text_in(text).mean(0) for text in texts])
        seen = [sum(self.latents_in(x.flatten(1).T).mean(0) for x in pictures) for pictures in references]
        told = told + torch.stack([x + torch.zeros_like(y) for x, y in zip(seen, told, strict=True)])
        hidden = self.latents_in(latents.movedim(1, -1)) + told[:, None, None]
        for block in self.blocks:
            hidden = hidden + block(torch.tanh(hidden))
        return self.latents_out(hidden).movedim(-1, 1)


_SET_ADAPTER_SCALE_FN_MAPPING["ToyTransformer"] = lambda model, weights: weights


class ToyAutoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv2d(3, CHANNELS, SIDE, SIDE)
        self.decoder = nn.ConvTranspose2d(CHANNELS, 3, SIDE, SIDE)


class ToyPipeline(DiffusionPipeline, ZImageLoraLoaderMixin):
    """What a person would draw with: it walks in the model's own time."""

    def __init__(self, transformer, autoencoder):
        super().__init__()
        self.register_modules(transformer=transformer, autoencoder=autoencoder)

    @torch.no_grad()
    def __call__(self, text, height, width, num_inference_steps, guidance_scale, generator):
        assert guidance_scale == TOY.guidance
        latents = torch.randn(1, CHANNELS, height // SIDE, width // SIDE, generator=generator)
        for walked in self.walk(latents, text, (), num_inference_steps):
            latents = walked
        return VaeImageProcessor().postprocess(self.autoencoder.decoder(latents))

    @torch.no_grad()
    def walk(self, latents, text, references, num_inference_steps):
        for step in range(num_inference_steps):
            time = torch.tensor([step / num_inference_steps])
            latents = latents + self.transformer(latents, time, [text], [references]) / num_inference_steps
            yield latents


# --- loaded


class Toy:
    architecture = TOY
    lora_targets = r"blocks\.\d+"
    block_lists = ("blocks",)
    conditioning_version = "toy 1"

    def __init__(self, place, device, dtype, *, sizes, memory_plan, teacher_context):
        if memory_plan.quantization != "none":
            raise BaseModelError("The toy has no 4 bits: set `quantization` to none.")
        self.memory_plan = memory_plan
        self.folder, self.device, self.dtype = place.folder, device, dtype
        self.teacher_context, self.picture_multiple = teacher_context, sizes.side_multiple
        self.text_encoder = self.autoencoder = self.transformer = None

    def _load(self, make, part):
        return load_frozen(make, self.folder / part, self.dtype, self.device)

    def load_encoders(self):
        self.text_encoder = self._load(lambda: nn.Embedding(256, DIM), "text_encoder")
        self.load_autoencoder()

    def free_encoders(self):
        self.text_encoder = None

    def load_autoencoder(self):
        if self.autoencoder is None:
            self.autoencoder = self._load(ToyAutoencoder, "autoencoder")

    def load_transformer(self):
        self.transformer = self._load(ToyTransformer, "transformer")
        self.load_autoencoder()

    def fetch(self, block):
        pass

    def free_transformer(self):
        self.transformer = self.autoencoder = None

    def encode(self, pictures, caption, role):
        text = self.text_encoder(torch.tensor(list(caption.encode()), device=self.device))
        return Conditioning(text, (self.encode_picture(pictures.picture),) if role == "teacher" else ())

    @torch.no_grad()
    def encode_picture(self, picture):
        pixels = torch.from_numpy(2 * VaeImageProcessor().pil_to_numpy(picture) - 1).permute(0, 3, 1, 2)
        return self.autoencoder.encoder(pixels.to(self.device, self.dtype))[0].float()

    def latent_shape(self, height, width):
        return CHANNELS, height // SIDE, width // SIDE

    def sigmas(self, num_inference_steps, height, width):
        return torch.linspace(1, 0, num_inference_steps + 1)

    def predict_velocity(self, latents, sigma, conditionings):
        """Both flipped here: its time is 1 - sigma, and it predicts picture - noise."""
        texts = [conditioning.prompt_embeds for conditioning in conditionings]
        references = [conditioning.reference_latents for conditioning in conditionings]
        time = (1 - sigma).to(self.device).expand(len(latents))
        return -self.transformer(latents, time, texts, references)

    def in_halves(self, block, attend, feed):
        """Its blocks have no halves: each is one part."""
        forward = block.forward
        return lambda hidden: feed(lambda block, hidden: forward(hidden), block, hidden)

    @torch.no_grad()
    def decode(self, latents):
        return VaeImageProcessor().postprocess(self.autoencoder.decoder(latents))

    def make_pipeline(self):
        return ToyPipeline(self.transformer, self.autoencoder)

    def draw(self, pipeline, conditioning, **options):
        return pipeline(conditioning.prompt_embeds, guidance_scale=TOY.guidance, **options)[0]

    def official_features(self, caption):
        return self.text_encoder(torch.tensor(list(caption.encode()), device=self.device))

    def official_latents(self, conditioning, noise, num_inference_steps, references=()):
        latents = tuple(self.encode_picture(picture) for picture in references)
        return list(
            self.make_pipeline().walk(noise, conditioning.prompt_embeds, latents, num_inference_steps)
        )

    def teacher_text_features(self, caption):
        return self.official_features(caption)


# --- as a folder, and as a worker


def save_toy(folder):
    """A folder of random weights, as a pipeline lies on disk."""
    torch.manual_seed(0)
    parts = {
        "transformer": ToyTransformer(),
        "text_encoder": nn.Embedding(256, DIM),
        "autoencoder": ToyAutoencoder(),
    }
    for name, part in parts.items():
        (folder / name).mkdir(parents=True)
        config = {"dim": DIM} if name == "transformer" else {}
        (folder / name / "config.json").write_text(json.dumps(config))
        save_file(part.state_dict(), folder / name / "model.safetensors")
    index = {"_class_name": TOY.pipeline_class} | {
        name: [__name__, type(parts[name]).__name__] for name in parts
    }
    (folder / "model_index.json").write_text(json.dumps(index))


# The next run, too, gets this worker: it knows the toy.
launcher.command = (sys.executable, __file__)

if __name__ == "__main__":
    from dopsd_app.jobs import worker

    sys.exit(worker.main(sys.argv[1:]))
