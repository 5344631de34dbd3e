"""Which cards the installed torch can compute on, and what is said where it cannot."""

import re
from pathlib import Path

import pytest
import torch

from dopsd_app import torch_build
from dopsd_app.gpus import Gpu
from dopsd_app.torch_build import KERNELS, VERSION, TorchBuild, installed_torch, why_unusable

CUDA_13 = TorchBuild(VERSION, "13.0", KERNELS["x86_64"]["13.0"])
CUDA_12 = TorchBuild(VERSION, "12.6", KERNELS["x86_64"]["12.6"])
FOR_PROCESSORS = TorchBuild(VERSION)
NEW_DRIVER = 580


def card(name: str, capability: tuple[int, int] | None, driver: int = NEW_DRIVER) -> Gpu:
    return Gpu(name, 12 * 2**30, 11 * 2**30, capability=capability, driver=driver)


def wheel_in(sentence: str) -> str:
    """The wheel that a sentence's command installs; its version and its index must be of one CUDA."""
    version, index = re.search(r"torch==\S+\+(cu\d+) --index-url \S+/whl/(cu\d+)`", sentence).groups()
    assert version == index
    return version


@pytest.fixture(autouse=True)
def an_ordinary_computer(monkeypatch):
    monkeypatch.setattr(torch_build.platform, "machine", lambda: "x86_64")


def test_the_kernels_are_those_of_the_torch_that_is_asked_for():
    """As torch itself lists them for its own warning."""
    assert f"torch=={VERSION}\n" in Path("requirements.txt").read_text(encoding="utf-8")
    told = {
        machine: {cuda: {f"sm_{number}" for number in of[machine]} for cuda, of in
                  torch.cuda.PYTORCH_RELEASES_CODE_CC.items()}
        for machine in ("x86_64", "aarch64")
    }  # fmt: skip
    assert {
        machine: {cuda: set(of) for cuda, of in all_of.items()} for machine, all_of in KERNELS.items()
    } == told


def test_code_runs_on_the_cards_that_torch_says():
    numbers = [50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121]
    for code in numbers:
        for device in numbers:
            expected = torch.cuda._code_compatible_with_device(device, code)
            assert torch_build.runs(f"sm_{code}", divmod(device, 10)) == expected, (code, device)


def test_code_that_is_still_to_be_translated_runs_on_every_later_card():
    assert torch_build.runs("compute_90", (12, 0)) and torch_build.runs("compute_90", (9, 0))
    assert not torch_build.runs("compute_90", (8, 9))
    assert torch_build.runs("sm_90a", (9, 0)) and not torch_build.runs("sm_90a", (10, 0))


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("NVIDIA GeForce GTX 980", (5, 2)),
        ("NVIDIA GeForce GTX 1080 Ti", (6, 1)),
        ("NVIDIA TITAN V", (7, 0)),
        ("NVIDIA GeForce GTX 1660", (7, 5)),
        ("NVIDIA GeForce RTX 2080 Ti", (7, 5)),
    ],
)
@pytest.mark.parametrize("build", [CUDA_13, CUDA_12, FOR_PROCESSORS])
def test_a_card_without_bfloat16_is_told_whatever_torch_there_is(name, capability, build):
    for precision in ("auto", "bfloat16"):
        told = why_unusable(card(name, capability), build, precision)
        assert name in told and "bfloat16" in told and "RTX 30" in told
        assert "pip install" not in told  # nothing that could be installed would help


def test_such_a_card_may_compute_in_float32_where_torch_has_code_for_it():
    turing, pascal = card("RTX 2080 Ti", (7, 5)), card("GTX 1080", (6, 1))
    assert why_unusable(turing, CUDA_13, "float32") == ""
    assert why_unusable(pascal, CUDA_12, "float32") == ""  # its code for 6.0 runs on 6.1
    told = why_unusable(pascal, CUDA_13, "float32")
    assert "holds no code for the GTX 1080 (compute capability 6.1)" in told
    assert wheel_in(told) == "cu126"


@pytest.mark.parametrize(
    "capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1), None]
)
def test_cards_that_work_are_left_alone(capability):
    assert why_unusable(card("a card", capability), CUDA_13, "auto") == ""


def test_a_torch_that_is_older_than_the_card_is_told_with_what_to_install():
    told = why_unusable(card("NVIDIA GeForce RTX 5070", (12, 0)), CUDA_12, "auto")
    assert "holds no code for the NVIDIA GeForce RTX 5070 (compute capability 12.0)" in told
    assert wheel_in(told) == "cu130"
    # Its driver is too old for CUDA 13, and the code of CUDA 12.6 does not run on it.
    assert wheel_in(why_unusable(card("RTX 5070", (12, 0), driver=570), CUDA_12, "auto")) == "cu129"


def test_a_card_that_no_torch_has_code_for_is_told_without_a_command():
    told = why_unusable(card("Orin", (8, 7)), CUDA_13, "auto")
    assert "holds no code for the Orin" in told and "pip install" not in told


def test_what_is_not_known_is_left_to_the_worker():
    other = TorchBuild("2.14.0", "13.0")  # of which the table says nothing
    assert why_unusable(card("RTX 5070", (12, 0)), other, "auto") == ""
    assert why_unusable(card("a card", None, driver=0), CUDA_13, "auto") == ""


def test_a_torch_for_processors_beside_a_card_is_told_with_what_to_install():
    told = why_unusable(card("NVIDIA GeForce RTX 4070", (8, 9)), FOR_PROCESSORS, "auto")
    assert "The installed torch cannot use the NVIDIA GeForce RTX 4070" in told
    assert wheel_in(told) == "cu130"
    assert wheel_in(why_unusable(card("RTX 4070", (8, 9), driver=551), FOR_PROCESSORS, "auto")) == "cu126"
    told = why_unusable(card("RTX 3070", (8, 6), driver=470), FOR_PROCESSORS, "auto")
    assert "update that first, to 580 or newer" in told and "pip install" not in told


def test_a_driver_that_is_older_than_torch_is_told():
    told = why_unusable(card("RTX 4070", (8, 9), driver=551), CUDA_13, "auto")
    assert "551" in told and "580 or newer" in told
    assert wheel_in(told) == "cu126"
    assert why_unusable(card("RTX 4070", (8, 9), driver=551), CUDA_12, "auto") == ""
    told = why_unusable(card("RTX 3070", (8, 6), driver=470), CUDA_12, "auto")
    assert "525 or newer" in told and "pip install" not in told


def test_torch_is_read_without_importing_it():
    read = installed_torch()
    assert read.version == torch.__version__.partition("+")[0]
    assert read.cuda == (torch.version.cuda or "")


def test_the_command_uses_the_python_that_runs_this(monkeypatch):
    monkeypatch.setattr(torch_build.sys, "executable", "/some where/python")
    told = why_unusable(card("RTX 4070", (8, 9)), FOR_PROCESSORS, "auto")
    assert '`"/some where/python" -m pip install torch==' in told
