"""The page's choice of a card, where there are several, and a plan for that very card."""

from dataclasses import replace

import pytest
from filelock import FileLock

from dopsd_app import gpus
from dopsd_app.config import TrainConfig
from dopsd_app.data.drafts import read_draft
from dopsd_app.data.uploads import load_example
from dopsd_app.jobs import card
from dopsd_app.planning.machine import read_machine
from dopsd_app.planning.plan import make_plan
from dopsd_app.torch_build import KERNELS, VERSION, TorchBuild
from dopsd_app.ui.plan import plan_step
from tests.support import nvml
from tests.support.layout import lay_out

LARGE = nvml.card("NVIDIA A100", 40960, uuid="GPU-large", busy=0, capability=(8, 0))
SMALL = nvml.card("NVIDIA RTX 3060", 12288, uuid="GPU-small", busy=0, capability=(8, 6))
BUSY = nvml.card("NVIDIA RTX 3090", 24576, uuid="GPU-busy", busy=90, capability=(8, 6))
CUDA_13 = TorchBuild(VERSION, "13.0", KERNELS["x86_64"]["13.0"])


@pytest.fixture
def driver(monkeypatch):
    for name in ("CUDA_VISIBLE_DEVICES", gpus.CARDS):
        monkeypatch.delenv(name, raising=False)

    def tell(*cards):
        gpus._cards.cache_clear()
        nvml.install(monkeypatch.setattr, cards)

    yield tell
    gpus._cards.cache_clear()


@pytest.fixture
def draft(tmp_path, monkeypatch):
    monkeypatch.setenv("DOPSD_DRAFTS", str(tmp_path / "drafts"))
    monkeypatch.setenv("DOPSD_RUNS", str(tmp_path / "runs"))
    return load_example(tmp_path / "drafts", "zorp")


def test_the_page_lists_cards_where_there_are_several_and_keeps_the_choice(driver, draft):
    step = lay_out(lambda _: plan_step())
    control = next(control for control in step.controls if control.name == "card")
    control.step = step

    def shown():
        part = step.show(read_draft(draft.path))[control.part]
        return part.visible, [label for label, _ in part.choices], part.value

    driver(LARGE)
    assert shown()[0] is False
    driver(SMALL, LARGE, BUSY)
    with FileLock(card._file("lock", "GPU-small")):  # a job is at work on it
        labels = ["NVIDIA A100, 40.0 GB", "NVIDIA RTX 3090, 24.0 GB, busy", "NVIDIA RTX 3060, 12.0 GB, busy"]
        assert shown() == (True, ["Automatic", *labels], "")
    control.write(step.show(draft)[step.shown], "GPU-small")
    assert read_draft(draft.path).settings["card"] == "GPU-small"
    assert shown()[2] == "GPU-small"
    driver(LARGE)  # it was taken out of the computer
    assert shown() == (True, ["Automatic", "NVIDIA A100, 40.0 GB", "A card that is not here"], "GPU-small")


def test_a_plan_is_made_for_the_chosen_card(driver, real_size_folder, tmp_path):
    driver(SMALL, LARGE)
    machine = replace(read_machine(), torch=CUDA_13)
    config = TrainConfig(base_model=str(real_size_folder))

    def plan(chosen):
        asked = replace(config, card=chosen)
        return make_plan(asked, pictures=5, runs_dir=tmp_path, machine=machine)

    assert [plan(chosen).device for chosen in ("", "GPU-large", "GPU-small")] == [
        "NVIDIA A100",
        "NVIDIA A100",
        "NVIDIA RTX 3060",
    ]
    assert plan("GPU-small").memory_total == 12288 * 1024**2
    gone = plan("GPU-gone")
    assert "The card that `card` names is not here. Choose another one, or leave it empty." in gone.problems
