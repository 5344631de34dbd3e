"""Tiny real parts: a random Z-Image folder of the same classes as the real one, made in code."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
# Many small operators: with a thread per core they spend their time waiting for each other. Set before torch
# is imported, and for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from browser import Visit, chromium
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessorPil, Qwen3Config, Qwen3Model
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from dopsd_app.base_models import load_base_model
from dopsd_app.config import TrainConfig
from dopsd_app.pictures import read_examples
from dopsd_app.runs import create_run

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

LONGEST = ("test_page.py", "test_train.py", "test_page_runs.py", "test_endpoints.py", "test_method.py")


def pytest_collection_modifyitems(items):
    """The longest files first: at the end no core waits long for the other."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and Qwen3's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(SPECIAL_TOKENS + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        padding_side="right",
        chat_template=CHAT_TEMPLATE,
    )


@pytest.fixture(scope="session")
def z_image_folder(tmp_path_factory):
    """A tiny random Z-Image with a vision tower: sides of multiples of 16 pixels, latents of 4 channels."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny-z-image")
    tokenizer = tiny_tokenizer()
    text_encoder = Qwen3Model(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=5,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[4, 6, 6],
        axes_lens=[512, 64, 64],
    )
    for name, parameter in transformer.named_parameters():
        if name.endswith("pad_token"):  # older versions of the class leave them empty: NaN
            torch.nn.init.normal_(parameter)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.5,
        shift_factor=0.1,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    ZImagePipeline(scheduler, vae, text_encoder, tokenizer, transformer).save_pretrained(folder)
    vision_tower = Qwen3VLVisionModel(
        Qwen3VLVisionConfig(
            depth=3,
            hidden_size=16,
            intermediate_size=32,
            num_heads=2,
            patch_size=8,
            out_hidden_size=32,
            num_position_embeddings=64,
            deepstack_visual_indexes=[0, 1],
        )
    )
    vision_tower.save_pretrained(folder / "vision_tower")
    Qwen2VLImageProcessorPil(patch_size=8, min_pixels=32 * 32, max_pixels=64 * 64).save_pretrained(
        folder / "vision_tower"
    )
    return folder


@pytest.fixture
def tiny_config(z_image_folder):
    """Settings of a run on the tiny model: 2 examples per step, K = 2 of 4 inference steps."""
    return TrainConfig(
        base_model=str(z_image_folder),
        steps=4,
        rollout_steps=2,
        num_inference_steps=4,
        batch_size=2,
        rank=4,
        resolution=32,
        optimizer="adamw",
        learning_rate=1e-3,
        gradient_checkpointing=False,
        preview_every=0,
        checkpoint_every=2,
    )


@pytest.fixture
def tiny_z_image(tiny_config):
    """The tiny model, all parts loaded, in float32."""
    base_model = load_base_model(tiny_config)
    base_model.load_encoders()
    base_model.load_transformer()
    return base_model


def make_picture(seed: int, width: int = 32, height: int = 32) -> Image.Image:
    """A picture of coarse random colours."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (4, 4, 3), generator=generator, dtype=torch.uint8).numpy()
    return Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST)


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, width in enumerate((40, 40, 80, 40)):  # two picture shapes
        make_picture(index, width, 40).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"my dog number {index}\nanother caption\n")
    return read_examples(folder, minimum_side=32)


@pytest.fixture
def new_run(tmp_path, dataset):
    return lambda config: create_run(tmp_path / "runs", config, dataset)


@pytest.fixture(scope="module")
def browser():
    """Chromium; for one module, since its event loop would be in the way of other modules' own."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser, server):
    """One person at the page of the module's `server`."""
    visit = Visit(browser, server.url)
    yield visit
    visit.close()
