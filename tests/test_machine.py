import os
import subprocess
import sys
import time

import psutil
import pytest

from dopsd_app import gpus, processor
from dopsd_app.files import free_disk
from dopsd_app.gpus import Gpu
from dopsd_app.planning import machine
from dopsd_app.planning.machine import read_machine

GIB = 1024**3
MIB = 1024**2
TWO_CARDS = (
    "NVIDIA GeForce RTX 4070, 12282, 11000, GPU-8f, 35, 551.23, 8.9\\n"
    "NVIDIA A100-SXM4-40GB, 40960, 512, GPU-1c, [N/A], 580.65.06, 8.0\\n"
)

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
        Gpu("NVIDIA GeForce RTX 4070", 12282 * MIB, 11000 * MIB, "GPU-8f", 0.35, (8, 9), 551),
        Gpu("NVIDIA A100-SXM4-40GB", 40960 * MIB, 512 * MIB, "GPU-1c", 0.0, (8, 0), 580),
    )


def test_the_driver_is_asked_for_plain_numbers(nvidia_smi, tmp_path):
    nvidia_smi(f'echo "$@" > {tmp_path}/asked')
    read_machine()
    assert (tmp_path / "asked").read_text().split() == [
        "--query-gpu=name,memory.total,memory.free,uuid,utilization.gpu,driver_version,compute_cap",
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
        "echo 'NVIDIA GeForce RTX 3060, [GPU is lost], [GPU is lost], GPU-2, 0, 580.65, 8.6'",
        "echo 'Failed to initialize NVML: Driver/library version mismatch'",
        "exec 1>&-",
    ],
)
def test_a_driver_that_tells_nothing_means_no_card(nvidia_smi, script):
    nvidia_smi(script)
    assert read_machine().gpus == ()


@pytest.mark.parametrize("told", ["[N/A]", "[Not Supported]"])
def test_a_card_without_memory_of_its_own_has_the_computer_s(nvidia_smi, limits, told):
    limits(900 * MIB, 800 * MIB, cached=300 * MIB)  # what there is for a process here
    nvidia_smi(f"echo 'NVIDIA GB10, {told}, {told}, GPU-2, 0, 580.95.05, 12.1'")
    [gpu] = read_machine().gpus
    assert (gpu.name, gpu.shares_memory, gpu.capability) == ("NVIDIA GB10", True, (12, 1))
    assert (gpu.memory, gpu.free_memory) == (900 * MIB, 400 * MIB)


def test_what_a_card_does_not_tell_is_not_known(nvidia_smi):
    nvidia_smi("echo 'Orin (nvgpu), [N/A], [N/A], [N/A], [N/A], [N/A], [N/A]'")
    [gpu] = read_machine().gpus
    assert (gpu.uuid, gpu.busy, gpu.capability, gpu.driver) == ("", 0.0, None, 0)


def test_an_old_driver_that_knows_no_compute_capability_still_tells_its_card(nvidia_smi):
    refusal = """echo 'Field "compute_cap" is not a valid field to query.'; exit 2"""
    answer = "echo 'GeForce GTX 1080, 8119, 8000, GPU-2, 0, 470.256.02'"
    nvidia_smi(f"case $1 in *compute_cap*) {refusal};; esac; {answer}")
    [gpu] = read_machine().gpus
    assert (gpu.name, gpu.capability, gpu.driver) == ("GeForce GTX 1080", None, 470)


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


@pytest.mark.parametrize(
    ("cards", "chosen"),
    [
        (
            ("GTX 1060, 6144, 6000, GPU-1, 0, 580.1, 6.1", "RTX 3090, 24576, 24000, GPU-2, 0, 580.1, 8.6"),
            "GPU-2",
        ),
        # The larger one computes no bfloat16.
        (
            ("RTX 3060, 12288, 12000, GPU-1, 0, 580.1, 8.6", "TITAN RTX, 24576, 24000, GPU-2, 0, 580.1, 7.5"),
            "GPU-1",
        ),
        (("RTX 3060, 12288, 12000, GPU-1, 0, 580.1, 8.6",), None),
    ],
)
def test_of_several_cards_a_process_and_its_workers_settle_on_one(nvidia_smi, monkeypatch, cards, chosen):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    nvidia_smi("printf '" + "\\n".join(cards) + "\\n'")
    gpus.settle_on_a_card()
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == chosen
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert [gpu.uuid for gpu in read_machine().gpus] == [chosen or "GPU-1"]
    os.environ["CUDA_VISIBLE_DEVICES"] = "0"  # a person's own choice
    gpus.settle_on_a_card()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


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


# --- how much the processor is wanted


@pytest.fixture
def processor_says(monkeypatch):
    """Sets what psutil tells of a computer with 8 cores, of which we may use 2."""

    def say(percent, average):
        processor._read_load.cache_clear()
        monkeypatch.setattr(psutil, "cpu_percent", lambda interval: percent)
        monkeypatch.setattr(psutil, "getloadavg", lambda: (average, 0.0, 0.0))
        monkeypatch.setattr(psutil, "cpu_count", lambda: 8)
        monkeypatch.setattr(processor, "count_cores", lambda: 2)

    yield say
    processor._read_load.cache_clear()


def test_a_processor_with_room_is_wanted_by_what_is_at_work(processor_says):
    processor_says(25.0, 30.0)  # the average still remembers what has ended
    assert read_machine().load == 0.5  # a quarter of our 2 cores


def test_of_a_full_processor_the_average_tells_how_many_wait(processor_says):
    processor_says(100.0, 24.0)
    assert read_machine().load == 6.0  # our share of what all 8 cores are wanted for
    processor_says(100.0, 0.0)  # Windows, where psutil has just begun to count
    assert read_machine().load == 2.0


def test_what_really_runs_here_is_seen():
    processor._read_load.cache_clear()
    busy = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * psutil.cpu_count())
    ]
    try:
        time.sleep(0.3)  # until they run
        processor._read_load.cache_clear()
        assert read_machine().load >= 0.9 * processor.count_cores()
    finally:
        for process in busy:
            process.kill()
            process.wait()
        processor._read_load.cache_clear()
