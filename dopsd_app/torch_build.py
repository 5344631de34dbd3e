"""Which cards the installed torch can compute on; where it cannot, why, and what would help."""

import functools
import importlib.util
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from dopsd_app.gpus import BFLOAT16, Gpu

VERSION = "2.13.0"  # of the torch that requirements.txt asks for
# Compute capabilities that its wheels hold code for, by processor and CUDA: PYTORCH_RELEASES_CODE_CC of
# torch.cuda, which the plan does not import.
KERNELS = {
    "x86_64": {
        "12.6": ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"),
        "12.9": ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"),
        "13.0": ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"),
        "13.2": ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"),
    },
    "aarch64": {
        "12.6": ("sm_80", "sm_90"),
        "12.9": ("sm_80", "sm_90", "sm_100", "sm_120"),
        "13.0": ("sm_80", "sm_90", "sm_100", "sm_110", "sm_120"),
        "13.2": ("sm_80", "sm_90", "sm_100", "sm_110", "sm_120"),
    },
}
ADVISED = ("13.0", "12.6", "12.9")  # CUDA of the wheels that are advised, the best first
DRIVERS = {"12": 525, "13": 580}  # the oldest driver of each CUDA, as NVIDIA's release notes say
# Chips that share the computer's memory run no other's code, nor others theirs; Thor's had two numbers.
INTEGRATED = {(5, 3), (6, 2), (7, 2), (8, 7), (10, 1)}


@dataclass(frozen=True)
class TorchBuild:
    """What decides which cards a torch can compute on."""

    version: str = ""  # without what stands behind a plus; "" where there is no torch
    cuda: str = ""  # "13.0"; "" for one that was built for processors alone
    kernels: tuple[str, ...] = ()  # "sm_86": compute capabilities that it holds code for; none: not known


@functools.cache
def installed_torch() -> TorchBuild:
    """The installed torch by its files; its own `torch.cuda.get_arch_list` knows the kernels of every one."""
    spec = importlib.util.find_spec("torch")  # finds it without importing it
    file = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    if file is None or not file.is_file():
        return TorchBuild()
    found = dict(re.findall(r"^(__version__|cuda)\b.*?= *'(.+)'", file.read_text(encoding="utf-8"), re.M))
    version, cuda = found.get("__version__", "").partition("+")[0], found.get("cuda", "")
    return TorchBuild(version, cuda, _wheels().get(cuda, ()) if version == VERSION else ())


def why_unusable(gpu: Gpu, torch: TorchBuild, precision: str) -> str:
    """Why nothing can be computed on a card in this precision, and what would help; "" where it can.

    `precision` is that of `TrainConfig`. What the driver does not tell speaks against nothing.
    """
    if precision != "float32" and gpu.capability and gpu.capability < BFLOAT16:
        return (
            f"The {gpu.name} cannot compute in bfloat16, the numbers that base models are trained with: its"
            f" compute capability is {_dotted(gpu.capability)}, and {_dotted(BFLOAT16)} is needed. Use a card"
            " of the RTX 30 series or a newer one, or a Space with such a GPU (an L4, not a T4); the built-in"
            " base model trains on the processor."
        )
    if not torch.cuda:
        return f"The installed torch cannot use the {gpu.name}: it was built without CUDA. {_install(gpu)}"
    if gpu.driver and gpu.driver < (least := DRIVERS.get(torch.cuda.partition(".")[0], 0)):
        return (
            f"The driver of the {gpu.name}, version {gpu.driver}, is too old for the installed torch with"
            f" CUDA {torch.cuda}. Update it to {least} or newer{_or_install(gpu)}."
        )
    if gpu.capability and torch.kernels and not any(runs(code, gpu.capability) for code in torch.kernels):
        return (
            f"The installed torch {torch.version} with CUDA {torch.cuda} holds no code for the {gpu.name}"
            f" (compute capability {_dotted(gpu.capability)}). {_install(gpu)}"
        )
    return ""


def runs(code: str, capability: tuple[int, int]) -> bool:
    """Whether code ("sm_86"), or what is translated for the card ("compute_90"), runs on this capability.

    NVIDIA promises it for later cards of the same generation; what is translated, for all later ones.
    """
    kind, _, number = code.rstrip("af").partition("_")
    made_for = divmod(int(number), 10)
    if kind == "compute":
        return capability >= made_for
    if made_for in INTEGRATED or capability in INTEGRATED:
        return made_for == capability or (made_for, capability) == ((10, 1), (11, 0))
    return made_for[0] == capability[0] and made_for <= capability


def _wheels() -> dict[str, tuple[str, ...]]:
    return KERNELS["aarch64" if platform.machine().lower() in ("aarch64", "arm64") else "x86_64"]


def _command(gpu: Gpu) -> str:
    """What installs a torch that can use the card with its driver; "" where there is none."""
    for cuda in ADVISED:
        fits = not gpu.driver or gpu.driver >= DRIVERS[cuda.partition(".")[0]]
        if fits and (not gpu.capability or any(runs(code, gpu.capability) for code in _wheels()[cuda])):
            name = f"cu{cuda.replace('.', '')}"
            python = f'"{sys.executable}"' if " " in sys.executable else sys.executable
            return (
                f"`{python} -m pip install torch=={VERSION}+{name}"
                f" --index-url https://download.pytorch.org/whl/{name}`"
            )
    return ""


def _install(gpu: Gpu) -> str:
    if command := _command(gpu):
        return f"Install one that can: {command}"
    if gpu.driver and gpu.driver < (newest := max(DRIVERS.values())):
        return f"None can with its driver, version {gpu.driver}: update that first, to {newest} or newer."
    return "None that is offered can: use another card."


def _or_install(gpu: Gpu) -> str:
    command = _command(gpu)
    return f", or install a torch for it: {command}" if command else ""


def _dotted(capability: tuple[int, int]) -> str:
    return "{}.{}".format(*capability)
