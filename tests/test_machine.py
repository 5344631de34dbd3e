import os
import subprocess
import sys
import threading
import time

import psutil
import pynvml
import pytest

from dopsd_app import gpus, processor
from dopsd_app.files import free_disk
from dopsd_app.gpus import Gpu
from dopsd_app.planning import machine
from dopsd_app.planning.machine import read_machine
from tests.support import nvml
from tests.support.waiting import wait_for

GIB = 1024**3
MIB = 1024**2
RTX_4070 = nvml.card("NVIDIA GeForce RTX 4070", 12282, 11000, "GPU-8f", 35, (8, 9))
A100 = nvml.card("NVIDIA A100-SXM4-40GB", 40960, 512, "GPU-1c", None, (8, 0))
RTX_4070_READ = Gpu("NVIDIA GeForce RTX 4070", 12282 * MIB, 11000 * MIB, "GPU-8f", 0.35, (8, 9), 580)
A100_READ = Gpu("NVIDIA A100-SXM4-40GB", 40960 * MIB, 512 * MIB, "GPU-1c", 0.0, (8, 0), 580)
DIVIDED = nvml.card(
    "NVIDIA H100",
    81559,
    uuid="GPU-h1",
    capability=(9, 0),
    parts=[
        nvml.card("NVIDIA H100 MIG 3g.40gb", 40320, 40000, "MIG-a", capability=(9, 0)),
        nvml.card("NVIDIA H100 MIG 1g.10gb", 9984, 9900, "MIG-b", capability=(9, 0)),
    ],
)


@pytest.fixture
def driver(monkeypatch):
    """Puts an imitation of the driver's library in place, and forgets what the last one said."""
    for name in ("CUDA_VISIBLE_DEVICES", gpus.CARDS):
        monkeypatch.delenv(name, raising=False)

    def tell(*cards, **options):
        gpus._cards.cache_clear()
        nvml.install(monkeypatch.setattr, cards, **options)

    yield tell
    gpus._cards.cache_clear()


@pytest.fixture
def limits(tmp_path, monkeypatch):
    """Sets the limits of a container, in bytes."""
    monkeypatch.setattr(machine, "CGROUP", tmp_path)

    def write(most, used, cached=0):
        (tmp_path / "memory.max").write_text(f"{most}\n")
        (tmp_path / "memory.current").write_text(f"{used}\n")
        (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\nslab 7\n")

    return write


def test_cards_are_what_the_driver_says_the_largest_first(driver):
    driver(RTX_4070, A100)
    assert read_machine().gpus == (A100_READ, RTX_4070_READ)


def test_the_answer_is_remembered_for_a_moment(driver):
    driver(RTX_4070, calls=(calls := []))
    for _ in range(3):
        read_machine()
    assert 1 <= len(calls) <= 2  # a moment may end between two of them


@pytest.mark.parametrize(
    "error",
    [
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    ],
)
def test_a_driver_that_tells_nothing_means_no_card(driver, error):
    driver(RTX_4070, fails=error)
    assert read_machine().gpus == ()


def test_a_card_that_fails_is_left_out(driver):
    driver(nvml.card("NVIDIA GeForce RTX 3060", 12288, lost=True), A100)
    assert read_machine().gpus == (A100_READ,)


def test_a_driver_that_hangs_means_no_card_after_a_while(driver, monkeypatch):
    driver(A100)
    hangs = threading.Event()
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: hangs.wait(60) and 1)
    monkeypatch.setattr(gpus, "PATIENCE", 0.1)
    begun = time.monotonic()
    assert read_machine().gpus == ()
    assert time.monotonic() - begun < 10
    hangs.set()
    monkeypatch.setattr(gpus, "PATIENCE", 10)

    def read_anew():  # nothing, until the thread that hung has ended
        gpus._cards.cache_clear()
        return read_machine().gpus

    assert wait_for(read_anew) == (A100_READ,)


def test_a_card_without_memory_of_its_own_has_the_computer_s(driver, limits):
    limits(900 * MIB, 800 * MIB, cached=300 * MIB)  # what there is for a process here
    driver(nvml.card("NVIDIA GB10", None, uuid="GPU-2", busy=0, capability=(12, 1)))
    [gpu] = read_machine().gpus
    assert (gpu.name, gpu.shares_memory, gpu.capability) == ("NVIDIA GB10", True, (12, 1))
    assert (gpu.memory, gpu.free_memory) == (900 * MIB, 400 * MIB)


def test_what_a_card_does_not_tell_is_not_known(driver):
    driver(nvml.card("Orin (nvgpu)"), driver=None)
    [gpu] = read_machine().gpus
    assert (gpu.uuid, gpu.busy, gpu.capability, gpu.driver) == ("", 0.0, None, 0)


def test_an_old_driver_that_lacks_a_question_still_tells_its_card(driver, monkeypatch):
    driver(nvml.card("GeForce GTX 1080", 8119, 8000, "GPU-2", 0, (6, 1)), driver="470.256.02")

    def unknown(handle):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetCudaComputeCapability", unknown)
    [gpu] = read_machine().gpus
    assert (gpu.name, gpu.capability, gpu.driver) == ("GeForce GTX 1080", None, 470)


def test_a_divided_card_is_its_parts(driver):
    driver(DIVIDED)
    large, small = read_machine().gpus
    assert (large.name, large.memory, large.uuid) == ("NVIDIA H100 MIG 3g.40gb", 40320 * MIB, "MIG-a")
    assert (small.name, small.free_memory, small.capability) == (
        "NVIDIA H100 MIG 1g.10gb",
        9900 * MIB,
        (9, 0),
    )


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("1", ["GPU-1c"]),
        ("1,0", ["GPU-1c", "GPU-8f"]),
        ("0, 1", ["GPU-8f", "GPU-1c"]),
        ("", []),
        ("-1", []),
        ("1,-1,0", ["GPU-1c"]),  # CUDA stops at what it cannot read
        ("0,5,1", ["GPU-8f"]),
        ("NoDevFiles", []),
        ("GPU-1", ["GPU-1c"]),
        ("GPU-7", []),
        ("GPU-8f,GPU-1c", ["GPU-8f", "GPU-1c"]),
        ("0,1,0", []),  # CUDA refuses what stands twice
        ("0,GPU-8f", []),
        ("MIG-b", ["MIG-b"]),
        ("MIG-b,MIG-a", ["MIG-b"]),  # a process sees one part alone
        ("2", ["MIG-a"]),
        ("0,2", ["MIG-a"]),  # and then no whole card
        ("MIG-c", []),
    ],
)
def test_only_the_cards_that_cuda_may_use_count(driver, monkeypatch, visible, expected):
    driver(RTX_4070, A100, DIVIDED)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.uuid for gpu in read_machine().gpus] == expected


@pytest.mark.parametrize(
    ("cards", "order"),
    [
        (
            (
                nvml.card("GTX 1060", 6144, 6000, "GPU-1", 0, (6, 1)),
                nvml.card("RTX 3090", 24576, 24000, "GPU-2", 0, (8, 6)),
            ),
            ["GPU-2", "GPU-1"],
        ),
        # The larger one computes no bfloat16.
        (
            (
                nvml.card("TITAN RTX", 24576, 24000, "GPU-2", 0, (7, 5)),
                nvml.card("RTX 3060", 12288, 12000, "GPU-1", 0, (8, 6)),
            ),
            ["GPU-1", "GPU-2"],
        ),
        ((nvml.card("RTX 3060", 12288, 12000, "GPU-1", 0, (8, 6)),), ["GPU-1"]),
    ],
)
def test_of_several_cards_a_process_settles_on_one_and_knows_the_others(driver, monkeypatch, cards, order):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    driver(*cards)
    gpus.settle_on_a_card()
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == (order[0] if len(cards) > 1 else None)
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert [gpu.uuid for gpu in gpus.list_gpus()] == order[:1]
    assert [gpu.uuid for gpu in read_machine().gpus] == order
    os.environ |= gpus.on_card(order[-1])  # a worker of its own
    gpus.settle_on_a_card()
    assert [gpu.uuid for gpu in gpus.list_gpus()] == order[-1:]
    assert [gpu.uuid for gpu in read_machine().gpus] == order[::-1]
    del os.environ[gpus.CARDS]
    os.environ["CUDA_VISIBLE_DEVICES"] = "0"  # a person's own choice
    gpus.settle_on_a_card()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert len(read_machine().gpus) == 1


def test_each_process_of_a_launcher_has_a_card_of_its_own(driver, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    driver(RTX_4070, A100)
    own = []
    for rank in range(3):
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        os.environ |= {"WORLD_SIZE": "3", "LOCAL_RANK": str(rank)}
        gpus.settle_on_own_card()
        own.append([gpu.uuid for gpu in gpus.list_gpus()])
    assert own == [["GPU-1c"], ["GPU-8f"], []]


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
