"""What tests share. Nothing heavy is imported here: the process that hands tests out needs none of it."""

import gc
import json
import os
import shutil
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
# Nobody's own base models: what is there, and what is not, is each test's affair.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="dopsd-tests-")
# Whoever computes on this machine beside the tests, and one test beside the other: each has its own lock.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="dopsd-tests-cache-")
# Nobody is asked over TLS, and reading the certificates of all authorities takes longer than most answers.
os.environ["SSL_CERT_FILE"] = f"{os.environ['XDG_CACHE_HOME']}/one.pem"
# Many small operators: with a thread per core they spend their time waiting for each other. Set before torch
# is imported, and for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
# Compiling takes longer than what it would make faster, and changes nothing but the time.
os.environ["TORCHDYNAMO_DISABLE"] = "1"
if "FORK_SERVER" not in os.environ:  # of the whole session, whose processes inherit it
    os.environ["FORK_SERVER"] = f"{tempfile.mkdtemp(prefix='dopsd-tests-forks-')}/{os.getpid()}"

import certifi
import pytest

from dopsd_app.config import TrainConfig
from dopsd_app.data.pictures import read_examples
from dopsd_app.jobs import card
from dopsd_app.jobs.runs import create_run
from tests.support import forks
from tests.support.browser import Visit, chromium
from tests.support.changes import changed_since_main
from tests.support.environment import follow_environment
from tests.support.pictures import make_picture

END = "-----END CERTIFICATE-----"
Path(os.environ["SSL_CERT_FILE"]).write_text(certifi.contents().partition(END)[0] + END)
follow_environment()  # where this process was forked with the libraries imported
forks.fork_workers()

BENCHMARKS = (  # the folders that those tests are of, and they themselves
    "assets/pocket-turbo",
    "benchmarks",
    "dopsd_app/checks/judge",
    "pocket",
    "tests/test_health_report.py",
    "tests/test_method_table.py",
    "tests/test_pocket.py",
    "tests/test_real_size.py",
    "tests/test_rounding.py",
)
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


def pytest_collection_modifyitems(config, items):
    """The longest files first: at the end no core waits long for the other. Benchmarks' tests on demand."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))
    # What made the built-in base and what measures the product change seldom, and no person runs them: their
    # tests run where they have changed against main, for a file that is named, and with `-m benchmark`.
    is_asked = config.args_source == config.ArgsSource.ARGS or "benchmark" in config.option.markexpr
    if not is_asked and not changed_since_main(*BENCHMARKS):
        left_out = [item for item in items if item.get_closest_marker("benchmark")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def pytest_collection_finish():
    """All modules are there now, and stay: collecting garbage, as runs do often, leaves them out."""
    gc.collect()
    gc.freeze()


def pytest_configure(config):
    if config.option.numprocesses and forks.can_fork():
        forks.fork_testers()


def pytest_unconfigure():
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        shutil.rmtree(os.environ[name], ignore_errors=True)
    fork_server = Path(os.environ["FORK_SERVER"])
    # Only at the session's end: what one process of tests has started, the others still use. The rest ends by
    # itself when this one is gone.
    if fork_server.name == str(os.getpid()):
        forks.end()
        shutil.rmtree(fork_server.parent, ignore_errors=True)


@pytest.fixture(autouse=True)
def _no_card_is_known(monkeypatch):
    """What one test imitates of cards is not remembered in the next: locks are named after them."""
    monkeypatch.setattr(card, "_known_card", "")
    monkeypatch.setattr(card, "_known_cards", ())


@pytest.fixture(scope="session")
def z_image_folder(tmp_path_factory):
    """A tiny random Z-Image with a vision tower: sides of multiples of 16 pixels, latents of 4 channels."""
    from tests.support.tiny_models import save_z_image

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
        preview_every=0,
        checkpoint_every=2,
        # Four tokens of the eyes; with the base model's own bounds, seeing would take most of the time.
        teacher_picture_minimum=64,
        teacher_picture_maximum=64,
    )


@pytest.fixture
def tiny_z_image(tiny_config):
    """The tiny model, all parts loaded, in float32."""
    from dopsd_app.models.load import load_base_model

    base_model = load_base_model(tiny_config)
    base_model.load_encoders()
    base_model.load_transformer()
    return base_model


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
