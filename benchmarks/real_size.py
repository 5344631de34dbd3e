"""A whole run on a base of Z-Image-Turbo's size, with random weights, within the memory of a consumer card.

Nothing is downloaded: memory and speed do not depend on what the weights are. The folder has every part of
the real one, and the run is the product's own: encoding, training, previews with health, the LoRA, its check.

    python -m benchmarks.real_size --cases 12:512:nf4 16:512:none   # card's GB : resolution : quantization
"""

import argparse
import json
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from PIL import Image
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen3Config, Qwen3Model
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from benchmarks.record import RESULTS, hardware, save_result
from dopsd_app.catalog import find_base_model, find_facts
from dopsd_app.config import load_preset, make_config
from dopsd_app.cost import memory, step_work
from dopsd_app.events import (
    CheckpointSaved,
    Event,
    HealthMeasured,
    LoraChecked,
    PhaseProgress,
    PreviewSaved,
    Resumed,
    StepDone,
    Warned,
)
from dopsd_app.pictures import read_examples
from dopsd_app.runs import create_run
from dopsd_app.train import train, use_repeatable_kernels

GIB = 1024**3
RESULT = RESULTS / "real_size.json"
PRESET = "z-image-subject"
EXAMPLE = Path("assets/examples/zorp")
STEPS, PREVIEW = 6, 3  # the first step warms up
TEXT = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32}
TEXT |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936}
VISION = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "patch_size": 16}
VISION |= {"out_hidden_size": 2560, "num_position_embeddings": 2304, "deepstack_visual_indexes": [5, 11, 17]}
CHANNELS = (128, 256, 512, 512)
TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5, "num_attention_heads": 2}
TINY |= {"num_key_value_heads": 1, "head_dim": 32, "vocab_size": 8192}
TINY_VISION = VISION | {"depth": 3, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2}
TINY_VISION |= {"out_hidden_size": 32, "deepstack_visual_indexes": [0, 1]}
TINY_TRANSFORMER = {"dim": 64, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 32}
TINY_TRANSFORMER |= {"axes_dims": [8, 12, 12]}
TINY_CHANNELS = (32, 32, 32, 32)


# --- the base


def save_base(folder: Path, tiny: bool) -> None:
    """A folder like Z-Image-Turbo's, with a vision tower; every number in it is random."""
    tokenizer = AutoTokenizer.from_pretrained(find_base_model("pocket-turbo").folder / "tokenizer")
    text = Qwen3Config(
        **(TINY if tiny else TEXT),
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        pad_token_id=tokenizer.pad_token_id,
    )
    autoencoder = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": TINY_CHANNELS if tiny else CHANNELS,
        "layers_per_block": 2,
        "latent_channels": 16,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    pipeline = ZImagePipeline(
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        random_part(lambda: AutoencoderKL(**autoencoder)),
        random_part(lambda: Qwen3Model(text)),
        tokenizer,
        random_part(lambda: ZImageTransformer2DModel(**(TINY_TRANSFORMER if tiny else {}))),
    )
    pipeline.save_pretrained(folder)
    vision = Qwen3VLVisionConfig(**(TINY_VISION if tiny else VISION))
    random_part(lambda: Qwen3VLVisionModel(vision)).save_pretrained(folder / "vision_tower")
    processor = Qwen2VLImageProcessorPil(patch_size=16, min_pixels=512**2, max_pixels=768**2)
    processor.save_pretrained(folder / "vision_tower")


def random_part(make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """A part that is drawn where it is fast; scales of norms are 1, so that activations stay finite."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device("meta"):
        part = make()
    part = part.to(torch.bfloat16).to_empty(device=device)
    for name, parameter in part.named_parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.02)
        else:
            parameter.data.fill_(0.0 if name.endswith("bias") else 1.0)
    return part


# --- a run


def run_case(folder: Path, card: float, resolution: int, quantization: str) -> dict:
    """The whole run within a card's memory, phase by phase. GB are 2^30 bytes, as cards are sold."""
    use_repeatable_kernels()
    cuda = torch.cuda.is_available()
    changed = {"resolution": resolution, "quantization": quantization, "steps": STEPS}
    changed |= {"base_model": str(folder), "preview_every": PREVIEW, "checkpoint_every": PREVIEW}
    config = make_config(load_preset(PRESET).settings | changed)
    sizes = find_facts(config.base_model).sizes
    reckoned = memory(config, sizes, on_gpu=cuda)
    row = {"card_gb": card, "resolution": resolution, "quantization": quantization, "hardware": hardware()}
    row["reckoned_gb"] = {name: _gb(getattr(reckoned, name)) for name in ("encoding", "training", "drawing")}
    row["reckoned_tflop_per_step"] = round(step_work(config, sizes) / 1e12, 1)
    if cuda:
        row["context_gb"] = _gb(limit_memory(card * GIB))
    with tempfile.TemporaryDirectory() as place:
        pictures = enlarge(EXAMPLE, Path(place) / "pictures", resolution)
        dataset = read_examples(pictures, minimum_side=config.minimum_side)
        row |= measure(train(create_run(Path(place) / "runs", config, dataset)))
    if cuda:
        row["context_afterwards_gb"] = _gb(read_context())  # with kernels that were loaded on the way
    row["computers_own_memory_gb"] = _gb(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return row


def limit_memory(card: float) -> int:
    """Leaves this process what a card of so many bytes has beside CUDA's own context; returns the latter."""
    torch.zeros(1, device="cuda") @ torch.zeros(1, device="cuda")  # loads cuBLAS too
    context, total = read_context(), torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((card - context) / total)
    return context


def read_context() -> int:
    """Bytes of the card that are taken, but not by torch's tensors: nothing else may use it meanwhile."""
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved()


def enlarge(example: Path, folder: Path, resolution: int) -> Path:
    """An example's pictures, as large as they are wanted, with their captions."""
    folder.mkdir()
    for path in example.glob("[0-9]*.png"):
        with Image.open(path) as picture:
            picture.resize((resolution, resolution), Image.Resampling.LANCZOS).save(folder / path.name)
        shutil.copy(path.with_suffix(".txt"), folder)
    return folder


def measure(events: Iterator[Event]) -> dict:
    """What each phase of a run took at the most, and each step."""
    phases, seconds, steps, reserved = defaultdict(int), defaultdict(float), [], 0
    found = {"check": "", "warnings": []}  # a preview that did not fit is a warning
    started = time.perf_counter()
    for event in _until_out_of_memory(events, found):
        phase = _phase(event)
        phases[phase] = max(phases[phase], _peak())
        seconds[phase] += time.perf_counter() - started
        if isinstance(event, StepDone):
            steps.append(event)
        if isinstance(event, Warned):
            found["warnings"].append(event.message)
        if isinstance(event, LoraChecked):
            found["check"] = event.summary
        if torch.cuda.is_available():
            reserved = max(reserved, torch.cuda.max_memory_reserved())
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
    return {
        # Of loading, only what is there at its end: `train` begins to count anew there.
        "allocated_gb": {phase: _gb(peak) for phase, peak in phases.items()},
        "reserved_gb": _gb(reserved),  # with what torch keeps for later, as far as the card has room
        "seconds": {phase: round(taken, 1) for phase, taken in seconds.items()},
        "seconds_per_step": [round(step.seconds, 3) for step in steps],
        "losses": [step.loss for step in steps],
        **found,
    }


def _until_out_of_memory(events: Iterator[Event], found: dict) -> Iterator[Event]:
    try:
        yield from events
    except torch.OutOfMemoryError as error:
        found["out_of_memory"] = str(error).partition(". GPU")[0]


def _phase(event: Event) -> str:
    """What was done before an event."""
    match event:
        case PhaseProgress(phase=phase):
            return phase
        case Resumed():
            return "loading"
        case StepDone():
            return "training"
        case PreviewSaved() | HealthMeasured():
            return "drawing"
        case CheckpointSaved():
            return "saving"
        case _:
            return "checking"


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def _gb(size: float) -> float:
    return round(size / GIB, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", required=True, metavar="GB:RESOLUTION:QUANTIZATION")
    parser.add_argument("--folder", type=Path, help="where the base is kept for the next call")
    parser.add_argument("--tiny", action="store_true", help="a tiny base, to try this script on a CPU")
    arguments = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as place:
        folder = arguments.folder or Path(place) / "base"
        if not folder.exists():
            with spawn.Pool(1) as pool:
                pool.apply(save_base, (folder, arguments.tiny))
        for case in arguments.cases:
            card, resolution, quantization = case.split(":")
            with spawn.Pool(1) as pool:  # a process for each: none finds what another left on the card
                row = pool.apply(run_case, (folder, float(card), int(resolution), quantization))
            print(row, flush=True)
            if not arguments.tiny:
                save_result("real_size", {"rows": [*other_rows(row), row]})


def other_rows(row: dict) -> list[dict]:
    """What was measured before, of other cases."""
    if not RESULT.exists():
        return []
    case = ("card_gb", "resolution", "quantization")
    rows = json.loads(RESULT.read_text(encoding="utf-8"))["rows"]
    return [other for other in rows if any(other[name] != row[name] for name in case)]


if __name__ == "__main__":
    main()
