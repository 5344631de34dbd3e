"""What tests share. Nothing heavy is imported here: the process that hands tests out needs none of it."""

import gc
import json
import os
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
# Nobody's own base models: what is there, and what is not, is each test's affair.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="dopsd-tests-")
# Whoever computes on this machine beside the tests, and one test beside the other: each has its own lock.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="dopsd-tests-cache-")
# Many small operators: with a thread per core they spend their time waiting for each other. Set before torch
# is imported, and for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
from browser import Visit, chromium
from PIL import Image

from dopsd_app.config import TrainConfig
from dopsd_app.data.pictures import read_examples
from dopsd_app.jobs.runs import create_run

LONGEST = (
    "test_page_fetch.py",
    "test_page_job.py",
    "test_train.py",
    "test_page_runs.py",
    "test_endpoints.py",
    "test_page.py",
    "test_drawing.py",
    "test_method_table.py",
    "test_method.py",
    "test_space.py",
    "test_safety.py",
)


def pytest_collection_modifyitems(items):
    """The longest files first: at the end no core waits long for the other."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


def pytest_collection_finish():
    """All modules are there now, and stay: collecting garbage, as runs do often, leaves them out."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        shutil.rmtree(os.environ[name], ignore_errors=True)


@pytest.fixture(scope="session")
def z_image_folder(tmp_path_factory):
    """A tiny random Z-Image with a vision tower: sides of multiples of 16 pixels, latents of 4 channels."""
    from tiny_models import save_z_image

    folder = tmp_path_factory.mktemp("tiny-z-image")
    save_z_image(folder)
    return folder


@pytest.fixture
def real_size_folder(tmp_path):
    """What tells the size of a folder like Z-Image-Turbo's: configurations, and weights of a header alone."""
    folder = tmp_path / "z-image"
    parts = {
        "transformer": {"dim": 3840, "n_layers": 30, "n_refiner_layers": 2, "cap_feat_dim": 2560},
        "vae": {"block_out_channels": [128, 256, 512, 512]},
        "text_encoder": {},
        "vision_tower": {},
    }
    numbers = {"transformer": 6_154_908_736, "vae": 83_819_683}
    for part, config in parts.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
        weight = {"dtype": "BF16", "shape": [numbers.get(part, 1)], "data_offsets": [0, 0]}
        header = json.dumps({"weight": weight}).encode()
        (folder / part / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    seen = {"patch_size": 16, "merge_size": 2, "size": {"shortest_edge": 512**2, "longest_edge": 768**2}}
    (folder / "vision_tower" / "preprocessor_config.json").write_text(json.dumps(seen))
    index = {"_class_name": "ZImagePipeline", **{part: ["library", "class"] for part in parts}}
    (folder / "model_index.json").write_text(json.dumps(index))
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
    from dopsd_app.models.load import load_base_model

    base_model = load_base_model(tiny_config)
    base_model.load_encoders()
    base_model.load_transformer()
    return base_model


def make_picture(seed: int, width: int = 32, height: int = 32) -> Image.Image:
    """A picture of coarse random colours."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
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
