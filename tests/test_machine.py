import os

import psutil
import pytest

from dopsd_app import gpus
from dopsd_app.files import free_disk
from dopsd_app.gpus import Gpu
from dopsd_app.planning import machine
from dopsd_app.planning.machine import read_machine, torch_has_cuda

GIB = 1024**3
MIB = 1024**2
TWO_CARDS = "NVIDIA GeForce RTX 4070, 12282, 11000, GPU-8f\\nNVIDIA A100-SXM4-40GB, 40960, 512, GPU-1c\\n"

posix_only = pytest.mark.skipif(os.name == "nt", reason="the imitation is a shell script")
pytestmark = posix_only


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Puts an nvidia-smi on the path that runs these shell lines, and forgets what the last one said."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(script):
        gpus._gpus.cache_clear()
        program = folder / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    yield install
    gpus._gpus.cache_clear()


@pytest.fixture
def limits(tmp_path, monkeypatch):
    """Sets the limits of a container, in bytes."""
    monkeypatch.setattr(machine, "CGROUP", tmp_path)

    def write(most, used, cached=0):
        (tmp_path / "memory.max").write_text(f"{most}\n")
        (tmp_path / "memory.current").write_text(f"{used}\n")
        (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\nslab 7\n")

    return write


def test_cards_are_what_the_driver_says(nvidia_smi):
    nvidia_smi(f"printf '{TWO_CARDS}'")
    assert read_machine().gpus == (
        Gpu("NVIDIA GeForce RTX 4070", 12282 * MIB, 11000 * MIB, "GPU-8f"),
        Gpu("NVIDIA A100-SXM4-40GB", 40960 * MIB, 512 * MIB, "GPU-1c"),
    )


def test_the_driver_is_asked_for_plain_numbers(nvidia_smi, tmp_path):
    nvidia_smi(f'echo "$@" > {tmp_path}/asked')
    read_machine()
    assert (tmp_path / "asked").read_text().split() == [
        "--query-gpu=name,memory.total,memory.free,uuid",
        "--format=csv,noheader,nounits",
    ]


def test_the_answer_is_remembered_for_a_moment(nvidia_smi, tmp_path):
    nvidia_smi(f"echo x >> {tmp_path}/calls")
    for _ in range(3):
        read_machine()
    assert len((tmp_path / "calls").read_text().split()) <= 2  # a moment may end between two of them


@pytest.mark.parametrize(
    "script",
    [
        "echo No devices were found; exit 6",
        "echo 'NVIDIA Thor, [N/A], [N/A], GPU-2'",
        "echo 'Failed to initialize NVML: Driver/library version mismatch'",
        "exec 1>&-",
    ],
)
def test_a_driver_that_tells_nothing_means_no_card(nvidia_smi, script):
    nvidia_smi(script)
    assert read_machine().gpus == ()


def test_no_driver_means_no_card(monkeypatch, tmp_path):
    gpus._gpus.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_machine().gpus == ()


@pytest.mark.parametrize(
    ("visible", "expected"),
    [("1", [1]), ("1,0", [1, 0]), ("", []), ("-1", []), ("0,5,1", [0]), ("GPU-1", [1]), ("GPU-7", [])],
)
def test_only_the_cards_that_cuda_may_use_count(nvidia_smi, monkeypatch, visible, expected):
    nvidia_smi(f"printf '{TWO_CARDS}'")
    cards = read_machine().gpus
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert read_machine().gpus == tuple(cards[index] for index in expected)


def test_the_memory_is_the_computers_where_nothing_limits_it(limits):
    limits("max", 5 * GIB)
    assert read_machine().memory == psutil.virtual_memory().total
    limits(10**18, 5 * GIB)
    assert read_machine().memory == psutil.virtual_memory().total


def test_in_a_container_its_limit_counts_and_what_files_hold_is_free(limits):
    limits(900 * MIB, 800 * MIB, cached=300 * MIB)
    here = read_machine()
    assert here.memory == 900 * MIB
    assert here.free_memory == 400 * MIB  # 900 - 800 + 300


def test_cores_and_disk_are_this_computers(tmp_path):
    assert 1 <= read_machine().cores <= psutil.cpu_count()
    assert free_disk(tmp_path / "not" / "yet") == pytest.approx(
        psutil.disk_usage(str(tmp_path)).free, rel=0.01
    )


def test_torch_is_asked_by_its_files():
    import torch

    assert torch_has_cuda() == (torch.version.cuda is not None)
