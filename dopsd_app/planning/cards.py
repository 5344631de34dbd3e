"""What cards and processors compute, from data sheets and what training reaches of them."""

import re

from dopsd_app.planning.machine import Machine

# Dense bfloat16 with float32 accumulation, 10^12 operations per second, from NVIDIA's architecture papers
# and data sheets. The longest name that fits counts.
DATA_SHEET = {
    "RTX 3050": 18,
    "RTX 3060": 26,
    "RTX 3060 Ti": 32,
    "RTX 3070": 41,
    "RTX 3080": 60,
    "RTX 3090": 71,
    "RTX 4060": 30,
    "RTX 4060 Ti": 44,
    "RTX 4070": 58,
    "RTX 4070 SUPER": 71,
    "RTX 4070 Ti": 80,
    "RTX 4080": 98,
    "RTX 4090": 165,
    "RTX 5060": 39,
    "RTX 5060 Ti": 47,
    "RTX 5070": 62,
    "RTX 5070 Ti": 88,
    "RTX 5080": 113,
    "RTX 5090": 210,
    "A10": 125,
    "A100": 312,
    "L4": 121,
    "L40S": 362,
    "H100": 756,
    "H200": 989,
}
UNKNOWN_CARD = 50  # a middling one
# Share of the data sheet that training reaches. Published steps of fine-tuning imply 0.23 (L40S, SimpleTuner)
# to 0.4 (a 12 GB card, ai-toolkit): an estimate from here can be wrong by a factor of two.
REACHED = 0.3
CPU_CORE = 2.3e10  # operations per second and core: benchmarks/results/first_run.json, on 2 cores
USEFUL_CORES = 4  # a small model's operators are too short to be shared out over more
# How many times as long a step takes with weights that are unpacked in every pass.
WEIGHTS_SLOWER = {"none": 1.0, "int8": 1.15, "nf4": 1.2}
COPYING = 1e10  # bytes per second from pinned memory to a card, over 8 lanes of PCIe 4.0


def operations_per_second(machine: Machine, on_gpu: bool) -> float:
    """What training reaches here, without having measured it."""
    if on_gpu:
        return peak_operations(machine.gpus[0].name) * 1e12 * REACHED
    return CPU_CORE * min(machine.cores, USEFUL_CORES)


def peak_operations(card: str) -> float:
    """Operations per second of a card, in 10^12, by the longest of our names in its own."""
    found = [known for known in DATA_SHEET if re.search(rf"\b{re.escape(known)}\b", card, re.IGNORECASE)]
    return DATA_SHEET[max(found, key=len)] if found else UNKNOWN_CARD
