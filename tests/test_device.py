"""Where a worker computes: as the plan says, and in words where torch itself finds that it cannot."""

from dataclasses import replace

import pytest
import torch

from dopsd_app.config import TrainConfig, load_preset, make_config
from dopsd_app.gpus import Gpu
from dopsd_app.models import load
from dopsd_app.models.architecture import BaseModelError
from dopsd_app.models.load import choose_device
from dopsd_app.torch_build import KERNELS, VERSION, TorchBuild
from dopsd_app.train import train

POCKET = make_config(load_preset("pocket").settings)
Z_IMAGE = TrainConfig(base_model="z-image-turbo")
CUDA_13 = TorchBuild(VERSION, "13.0", KERNELS["x86_64"]["13.0"])


@pytest.fixture
def computer(monkeypatch):
    """Sets what driver and torch say of a card, or that there is none."""

    def say(capability=None, *, told=None, reachable=True, kernels=CUDA_13.kernels, build=CUDA_13):
        gpus = () if capability is None else (Gpu("a card", 2**34, 2**34, capability=told or capability),)
        monkeypatch.setattr(load, "list_gpus", lambda: gpus)
        monkeypatch.setattr(load, "installed_torch", lambda: build)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: reachable and capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(kernels))
        monkeypatch.setattr(torch, "__version__", f"{build.version}+cu130")
        monkeypatch.setattr(torch.version, "cuda", build.cuda or None)

    return say


def test_a_card_that_can_is_taken_unless_the_processor_is_asked_for(computer):
    computer((8, 9))
    assert (
        choose_device(POCKET)
        == choose_device(Z_IMAGE)
        == choose_device(replace(POCKET, device="cuda"))
        == "cuda"
    )
    assert choose_device(replace(POCKET, device="cpu")) == "cpu"


def test_without_a_card_the_processor_computes(computer):
    computer()
    assert choose_device(POCKET) == "cpu"
    with pytest.raises(BaseModelError, match="PyTorch finds no CUDA card here"):
        choose_device(replace(POCKET, device="cuda"))


def test_without_bfloat16_the_built_in_base_is_trained_on_the_processor_and_no_other(computer):
    computer((7, 5))
    assert choose_device(POCKET) == "cpu"
    assert choose_device(replace(POCKET, precision="float32")) == "cuda"
    with pytest.raises(BaseModelError, match="cannot compute in bfloat16"):
        choose_device(Z_IMAGE)
    with pytest.raises(BaseModelError, match="cannot compute in bfloat16"):
        choose_device(replace(POCKET, device="cuda"))


def test_what_the_driver_did_not_tell_torch_tells_before_the_first_kernel(computer):
    computer((7, 5), told=(8, 9))
    with pytest.raises(BaseModelError, match="cannot compute in bfloat16"):
        choose_device(POCKET)
    own_build = TorchBuild("2.14.0", "13.0")  # whose kernels the plan does not know
    computer((12, 0), kernels=("sm_80", "sm_90"), build=own_build)
    with pytest.raises(BaseModelError, match="holds no code for the a card"):
        choose_device(POCKET)
    computer((12, 0), kernels=("sm_80", "compute_90"), build=own_build)
    assert choose_device(POCKET) == "cuda"


def test_a_card_that_torch_cannot_reach_is_not_passed_over_in_silence(computer):
    computer((8, 9), reachable=False)
    with pytest.raises(BaseModelError, match="torch cannot reach it"):
        choose_device(POCKET)


def test_a_run_that_cannot_compute_here_fetches_nothing(computer, new_run, monkeypatch):
    computer((7, 5))
    monkeypatch.setattr(
        "dopsd_app.check_base.fetch_base_model", lambda *_: pytest.fail("it was to be fetched")
    )
    with pytest.raises(BaseModelError, match="cannot compute in bfloat16"):
        list(train(new_run(Z_IMAGE)))
