"""A whole run on a base of Z-Image-Turbo's size, with random weights, within the memory of a consumer card.

Nothing is downloaded: memory and speed do not depend on what the weights are. The folder is laid out as the
repository on the Hub is (float32, in three files), with the teacher's eyes beside it. The run is the
product's own: encoding, training, previews with health, the LoRA, its check.

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
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from huggingface_hub import split_torch_state_dict_into_shards
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen3Config, Qwen3Model, Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from benchmarks.record import RESULTS, hardware, save_result
from dopsd_app.config import load_preset, make_config
from dopsd_app.data.pictures import read_examples
from dopsd_app.gpus import settle_on_a_card
from dopsd_app.jobs.events import (
    CheckpointSaved,
    Event,
    HealthMeasured,
    LoraChecked,
    MemoryPlanned,
    PreviewSaved,
    Resumed,
    StepDone,
    Warned,
)
from dopsd_app.jobs.runs import create_run
from dopsd_app.models.catalog import find_base_model, find_facts
from dopsd_app.models.pipeline_folder import EYES_PREFIX
from dopsd_app.planning.cost import step_work
from dopsd_app.planning.memory import Budget, within
from dopsd_app.progress import PhaseProgress
from dopsd_app.train import train, use_repeatable_kernels

GIB = 1024**3
RESULT = RESULTS / "real_size.json"
PRESET = "z-image-subject"
EXAMPLE = Path("assets/examples/zorp")
WARM_UP, STEPS = 1, 5
PREVIEW = 3  # steps between two of them
TEXT = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32}
TEXT |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936}
VISION = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "patch_size": 16}
VISION |= {"out_hidden_size": 2560, "num_position_embeddings": 2304, "deepstack_visual_indexes": [5, 11, 17]}
CHANNELS = (128, 256, 512, 512)
SHARDS = {"transformer": "10GB", "text_encoder": "4GB"}  # at the most: three files each, as on the Hub
EYES = {  # as Qwen3-VL's own folder says; the product has other bounds (`CONTEXT_AREA`)
    "size": {"shortest_edge": 65536, "longest_edge": 16777216},
    "patch_size": 16,
    "merge_size": 2,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}
TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5, "num_attention_heads": 2}
TINY |= {"num_key_value_heads": 1, "head_dim": 32, "vocab_size": 8192}
TINY_VISION = VISION | {"depth": 3, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2}
TINY_VISION |= {"out_hidden_size": 32, "deepstack_visual_indexes": [0, 1]}
TINY_TRANSFORMER = {"dim": 64, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 32}
TINY_TRANSFORMER |= {"axes_dims": [8, 12, 12]}
TINY_CHANNELS = (32, 32, 32, 32)
TINY_SHARDS = {"transformer": "1200KB", "text_encoder": "60KB"}
DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"  # as each calls its files
ONE_FILE = "10GB"
TYPES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.int64: "I64"}  # as safetensors calls them


# --- the base


def save_base(folder: Path, tiny: bool) -> None:
    """A folder like Z-Image-Turbo's, with the teacher's eyes as the product cuts them out; all is random."""
    tokenizer = AutoTokenizer.from_pretrained(find_base_model("pocket-turbo").folder / "tokenizer")
    text = Qwen3Config(
        **(TINY if tiny else TEXT),
        architectures=["Qwen3ForCausalLM"],  # it was saved with its head, hence "model." before each name
        dtype="bfloat16",
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    # Copies, since the class writes into what it is given.
    qwen_fields = {
        "text_config": dict(TINY if tiny else TEXT),
        "vision_config": dict(TINY_VISION if tiny else VISION),
    }
    seeing = Qwen3VLConfig(**qwen_fields)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    with torch.device("meta"):  # no numbers yet: `save_weights` draws them
        transformer = ZImageTransformer2DModel(**(TINY_TRANSFORMER if tiny else {}))
        text_encoder = Qwen3Model(text)
        vae = make_autoencoder(TINY_CHANNELS if tiny else CHANNELS)
        vision_tower = Qwen3VLVisionModel(seeing.vision_config)

    ZImagePipeline(scheduler, vae, text_encoder, tokenizer, transformer).save_config(folder)
    scheduler.save_pretrained(folder / "scheduler")
    tokenizer.save_pretrained(folder / "tokenizer")
    transformer.save_config(folder / "transformer")
    text.save_pretrained(folder / "text_encoder")
    vae.save_config(folder / "vae")
    seeing.save_pretrained(folder / "vision_tower")
    Qwen2VLImageProcessorPil(**EYES).save_pretrained(folder / "vision_tower")

    shards = TINY_SHARDS if tiny else SHARDS
    for part, module, dtype, stem, prefix in (
        ("transformer", transformer, torch.float32, DIFFUSERS, ""),
        ("text_encoder", text_encoder, torch.bfloat16, TRANSFORMERS, "model."),
        ("vae", vae, torch.bfloat16, DIFFUSERS, ""),
        ("vision_tower", vision_tower, torch.bfloat16, TRANSFORMERS, EYES_PREFIX),
    ):
        weights = {prefix + name: weight.to(dtype) for name, weight in module.state_dict().items()}
        save_weights(folder / part, stem, weights, shards.get(part, ONE_FILE))


def make_autoencoder(channels: tuple[int, ...]) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=channels,
        layers_per_block=2,
        latent_channels=16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def save_weights(folder: Path, stem: str, weights: dict[str, Tensor], largest: str) -> None:
    """Random numbers for weights without any, in files of at most `largest`, with an index if several."""
    pattern = f"{stem}{{suffix}}.safetensors"
    split = split_torch_state_dict_into_shards(weights, filename_pattern=pattern, max_shard_size=largest)
    for file, names in split.filename_to_tensors.items():
        draw_file(folder / file, {name: weights[name] for name in names})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2))


def draw_file(path: Path, weights: dict[str, Tensor]) -> None:
    """A safetensors file like `weights`, which have no numbers; memory never holds more than one tensor.

    The library's own writer wants all of a file's tensors at once: up to 10 GB.
    """
    with path.open("wb") as file:
        file.write(make_header(weights))
        for name, weight in weights.items():
            file.write(draw(name, weight).cpu().flatten().view(torch.uint8).numpy())


def make_header(weights: dict[str, Tensor]) -> bytes:
    """What a safetensors file of these names, types and shapes begins with."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, weight in weights.items():
        start, end = end, end + weight.nbytes
        shape = list(weight.shape)
        header[name] = {"dtype": TYPES[weight.dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def draw(name: str, weight: Tensor) -> Tensor:
    """Numbers for a weight, made where it is fast; scales of norms are 1, so that activations stay finite."""
    drawn = torch.empty_like(weight, device="cuda" if torch.cuda.is_available() else "cpu")
    if weight.ndim > 1:
        return drawn.normal_(std=0.02)
    return drawn.fill_(0.0 if name.endswith("bias") else 1.0)


# --- a run


def run_case(folder: Path, card: float, resolution: int, quantization: str) -> dict:
    """The whole run within a card's memory, phase by phase. GB are 2^30 bytes, as cards are sold."""
    use_repeatable_kernels()
    cuda = torch.cuda.is_available()
    changed = {"resolution": resolution, "quantization": quantization, "steps": WARM_UP + STEPS}
    changed |= {"memory_limit": card} if cuda else {}
    changed |= {"base_model": str(folder), "preview_every": PREVIEW, "checkpoint_every": PREVIEW}
    config = make_config(load_preset(PRESET).settings | changed)
    sizes = find_facts(config.base_model).sizes
    fitted = within(config, sizes, Budget(int(card * GIB), psutil.virtual_memory().available, cuda))
    row = {"card_gb": card, "resolution": resolution, "quantization": quantization}
    row |= {"stored_as": stored_as(folder), "stored_gb": to_gb(sizes.stored_bytes)}
    row |= {"parameters": sizes.parameters, "steps": STEPS, "warm_up_steps": WARM_UP, "hardware": hardware()}
    row["memory_plan"] = fitted.plan.to_fields()
    row["reckoned_gb"] = {
        name: to_gb(getattr(fitted.memory, name)) for name in ("encoding", "training", "drawing")
    }
    row["reckoned_tflop_per_step"] = round(step_work(config, sizes, fitted.plan) / 1e12, 1)
    if cuda:
        row["context_gb"] = to_gb(limit_memory(card * GIB))
    with tempfile.TemporaryDirectory() as place:
        pictures = enlarge(EXAMPLE, Path(place) / "pictures", resolution)
        dataset = read_examples(pictures, minimum_side=config.minimum_side)
        row |= measure(train(create_run(Path(place) / "runs", config, dataset)))
    if cuda:
        row["context_afterwards_gb"] = to_gb(read_context())  # with kernels that were loaded on the way
    row["computers_own_memory_gb"] = to_gb(read_resident())
    return row


def stored_as(folder: Path) -> str:
    """The type of the numbers on disk that the transformer is read from: of a kept folder, what it holds."""
    with safe_open(min((folder / "transformer").glob("*.safetensors")), framework="pt") as file:
        return str(file.get_tensor(next(iter(file.keys()))).dtype).removeprefix("torch.")


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


def enlarge(example: Path, folder: Path, resolution: int, most: int | None = None) -> Path:
    """An example's first pictures, as large as they are wanted, with their captions; all, if not so many."""
    folder.mkdir()
    for path in sorted(example.glob("[0-9]*.png"))[:most]:
        with Image.open(path) as picture:
            picture.resize((resolution, resolution), Image.Resampling.LANCZOS).save(folder / path.name)
        shutil.copy(path.with_suffix(".txt"), folder)
    return folder


def measure(events: Iterator[Event]) -> dict:
    """What each phase of a run took at the most, and each step."""
    phases, seconds, steps, reserved = defaultdict(int), defaultdict(float), [], defaultdict(int)
    resident = {}
    found = {"check": "", "warnings": []}  # a preview that did not fit is a warning
    started = time.perf_counter()
    for event in _until_out_of_memory(events, found):
        phase = _phase(event)
        phases[phase] = max(phases[phase], _peak())
        seconds[phase] += time.perf_counter() - started
        resident[phase] = read_resident()
        if isinstance(event, StepDone):
            steps.append(event)
        if isinstance(event, Warned):
            found["warnings"].append(event.message)
        if isinstance(event, LoraChecked):
            found["check"] = event.summary
        if torch.cuda.is_available():
            reserved[phase] = max(reserved[phase], torch.cuda.max_memory_reserved())
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
    return {
        # Of loading, only what is there at its end: `train` begins to count anew there.
        "allocated_gb": {phase: to_gb(peak) for phase, peak in phases.items()},
        # With what torch keeps for later, as far as the card has room.
        "reserved_gb": to_gb(max(reserved.values(), default=0)),
        "reserved_until_gb": {phase: to_gb(peak) for phase, peak in reserved.items()},
        # The computer's own, from the program's start to the phase's end: it never falls.
        "resident_until_gb": {phase: to_gb(peak) for phase, peak in resident.items()},
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
        case Resumed() | MemoryPlanned():
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


def read_resident() -> int:
    """Bytes of the computer's memory that this process had at the most until now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def to_gb(size: float) -> float:
    return round(size / GIB, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", required=True, metavar="GB:RESOLUTION:QUANTIZATION")
    parser.add_argument("--folder", type=Path, help="where the base is kept for the next call")
    parser.add_argument("--tiny", action="store_true", help="a tiny base, to try this script on a CPU")
    arguments = parser.parse_args()
    # For the processes that are started from here: card and allocator as the product has them.
    settle_on_a_card()
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
    case = ("card_gb", "resolution", "quantization", "stored_as")
    rows = json.loads(RESULT.read_text(encoding="utf-8"))["rows"]
    first = {"stored_as": "bfloat16"}  # what the first rows do not say
    return [other for other in rows if any((first | other)[name] != row[name] for name in case)]


if __name__ == "__main__":
    main()
