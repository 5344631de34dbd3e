"""An imitation of NVIDIA's driver library (NVML) at its border: the functions of `pynvml` that ask it.

In this process `install` puts it in their place; a process that is started with `environment` has it from
its first line on (`nvml_first/sitecustomize.py`).
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pynvml

ROOT = Path(__file__).parents[2]
IMITATED = "IMITATED_CARDS"  # in the environment: a list of `card`
UNSUPPORTED = pynvml.NVML_ERROR_NOT_SUPPORTED
MIB = 1024**2


def card(name, memory=None, free=None, uuid=None, busy=None, capability=None, parts=None, lost=False):
    """A card as plain values; memory in MiB. What is None, it does not know; `lost`: it does not answer."""
    return dict(
        name=name,
        memory=memory,
        free=memory if free is None else free,
        uuid=uuid,
        busy=busy,
        capability=capability,
        parts=parts,
        lost=lost,
    )


def environment(*cards, driver="580.65.06"):
    """For a process that is to find these cards."""
    path = os.pathsep.join([str(Path(__file__).parent / "nvml_first"), str(ROOT)])
    return {IMITATED: json.dumps({"cards": cards, "driver": driver}), "PYTHONPATH": path}


def install(setattr, cards, driver="580.65.06", fails=None, calls=None):
    """Puts the imitation in place; `fails` is what initialising raises, `calls` gets an item for each."""

    def imitate(function):
        setattr(pynvml, function.__name__, function)

    def known(value):
        if value is None:
            raise pynvml.NVMLError(UNSUPPORTED)
        return value

    @imitate
    def nvmlInit():
        if calls is not None:
            calls.append("nvmlInit")
        if fails is not None:
            raise pynvml.NVMLError(fails)

    @imitate
    def nvmlShutdown():
        pass

    @imitate
    def nvmlSystemGetDriverVersion():
        return known(driver)

    @imitate
    def nvmlDeviceGetCount():
        return len(cards)

    @imitate
    def nvmlDeviceGetHandleByIndex(index):
        return cards[index]

    @imitate
    def nvmlDeviceGetName(handle):
        return handle["name"]

    @imitate
    def nvmlDeviceGetUUID(handle):
        return known(handle["uuid"])

    @imitate
    def nvmlDeviceGetMemoryInfo(handle):
        if handle["lost"]:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        total, free = known(handle["memory"]) * MIB, handle["free"] * MIB
        return SimpleNamespace(total=total, free=free, used=total - free)

    @imitate
    def nvmlDeviceGetUtilizationRates(handle):
        return SimpleNamespace(gpu=known(handle["busy"]), memory=0)

    @imitate
    def nvmlDeviceGetCudaComputeCapability(handle):
        return tuple(known(handle["capability"]))

    @imitate
    def nvmlDeviceGetMigMode(handle):
        if handle["capability"] is None or tuple(handle["capability"]) < (8, 0):
            raise pynvml.NVMLError(UNSUPPORTED)
        return [int(handle["parts"] is not None)] * 2

    @imitate
    def nvmlDeviceGetMaxMigDeviceCount(handle):
        return 7

    @imitate
    def nvmlDeviceGetMigDeviceHandleByIndex(handle, index):
        if index >= len(handle["parts"]):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return handle["parts"][index]
