"""A base model of the files that ComfyUI's users have: one for each part, used where they lie.

The transformer's file names the model. Text encoder and autoencoder are taken from beside it where they are
there; whatever else it takes comes from the model's repository on the Hub. Together they make a folder as
diffusers saves one, in which a part may say where its weights lie.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dopsd_app.files import replace_file
from dopsd_app.models.architecture import BaseModelError
from dopsd_app.models.pipeline_folder import (
    ELSEWHERE,
    INDEX,
    WEIGHTS,
    WEIGHTS_INDEX,
    is_whole,
    read_header,
)
from dopsd_app.models.repository import assets_folder

FOLDERS = "single_files"  # below which they are put together
WEIGHTS_FOLDERS = (
    "diffusion_models",
    "unet",
    "checkpoints",
)  # of ComfyUI: any of them may have folders in it
READ = ("F64", "F32", "F16", "BF16")
PREFIX = "model.diffusion_model."  # of the names in some of these files


@dataclass(frozen=True)
class Original:
    """How the original release of a model of the catalog names its transformer's weights."""

    model: str  # in the catalog
    tensor: str  # one that no other model has
    width: int  # of it; 0 where it may be any: of several that have it, the last one that is given
    encoder: str  # ComfyUI's file of its text encoder
    autoencoder: str = ""  # and of its autoencoder; "" where diffusers cannot read that, and it is fetched


ORIGINALS = (
    Original("flux2-klein-9b", "double_stream_modulation_img.lin.weight", 4096, "qwen_3_8b.safetensors"),
    Original("flux2-klein-4b", "double_stream_modulation_img.lin.weight", 0, "qwen_3_4b.safetensors"),
    Original(
        "z-image-turbo",
        "noise_refiner.0.attention.qkv.weight",
        0,
        "qwen_3_4b.safetensors",
        "ae.safetensors",
    ),
)


OTHERS = (2304, 6144)  # widths of models with the same tensors: Lumina 2, FLUX.2 dev
# As the files of models are named whose transformers have the same shapes, but take dozens of steps.
UNDISTILLED = re.compile(r"klein[-_]?base|z[-_]?image[-_]?(base|edit|omni|bf16|fp16)", re.IGNORECASE)


@dataclass(frozen=True)
class SingleFile:
    """What a transformer's file tells, and what lies beside it."""

    path: Path
    original: Original
    parts: dict[str, Path]  # part: the file of its weights; the transformer's among them

    @property
    def folder(self) -> Path:
        """Where the whole model is put together."""
        name = hashlib.sha256(json.dumps(sorted(map(str, self.parts.values()))).encode()).hexdigest()[:24]
        return assets_folder(FOLDERS, name)


def is_single_file(name: str) -> bool:
    """Whether a base model is given by a file of weights."""
    return name.endswith(".safetensors") and Path(name).is_file()


def read_single_file(name: str) -> SingleFile:
    """What a file of weights is; `BaseModelError` for one that is no transformer known here or is damaged.

    The file is not read but for its header.
    """
    path = Path(name).absolute()
    tensors = _read_tensors(path)
    shapes = {key.removeprefix(PREFIX): value["shape"] for key, value in tensors.items()}
    original = next((known for known in ORIGINALS if _fits(known, shapes)), None)
    if original is None:
        raise BaseModelError(
            f"{path.name} is no transformer of a model that is known here, as ComfyUI keeps it: of"
            f" {', '.join(known.model for known in ORIGINALS)}."
        )
    if UNDISTILLED.search(path.name):
        raise BaseModelError(
            f"By its name, {path.name} was not made to draw in a few steps, and the training here is that of"
            f" the few. Take the file of {original.model}."
        )
    if odd := sorted({value["dtype"] for value in tensors.values()} - {*READ, "I64"}):
        raise BaseModelError(
            f"{path.name} holds {', '.join(odd)}: numbers of so few bits cannot be trained on. Take the file"
            " of bfloat16, whose name often ends with bf16."
        )
    parts = {"transformer": path}
    for part, file, folders in (
        ("text_encoder", original.encoder, ("text_encoders", "clip")),
        ("vae", original.autoencoder, ("vae",)),
    ):
        if file and (found := _beside(path, file, folders)):
            parts[part] = found
    return SingleFile(path, original, parts)


def _read_tensors(path: Path) -> dict[str, dict]:
    if not is_whole(path):
        raise BaseModelError(f"{path.name} is damaged, or not all of it is here.")
    header, _ = read_header(path)
    return {name: facts for name, facts in header.items() if name != "__metadata__"}


def _fits(known: Original, shapes: dict[str, list[int]]) -> bool:
    shape = shapes.get(known.tensor)
    return shape is not None and shape[-1] not in OTHERS and known.width in (0, shape[-1])


def _beside(path: Path, file: str, folders: Iterable[str]) -> Path | None:
    """A whole file of this name in one of ComfyUI's folders for such a part, beside that of the path."""
    roots = [parent.parent for parent in path.parents if parent.name in WEIGHTS_FOLDERS]
    for root in roots[:1]:
        for folder in folders:
            for found in sorted((root / folder).rglob(file)):
                if is_whole(found) and {x["dtype"] for x in _read_tensors(found).values()} <= {*READ}:
                    return found
    return None


# --- put together


def is_needed(single: SingleFile, path: str) -> bool:
    """Whether a file of the repository is needed: of the parts that lie here, all but the weights."""
    part, _, file = path.rpartition("/")
    return part not in single.parts or not (WEIGHTS.fullmatch(file) or WEIGHTS_INDEX.fullmatch(file))


def put_together(single: SingleFile, snapshot: Path, paths: Iterable[str]) -> None:
    """Makes the folder of the whole model, of what was fetched into the Hub's cache and what lies here."""
    folder = single.folder
    shutil.rmtree(folder, ignore_errors=True)
    weights: dict[str, list[Path]] = {part: [file] for part, file in single.parts.items()}
    for path in sorted(paths, key=lambda path: path == INDEX):  # the index last: it says that all is there
        part, _, file = path.rpartition("/")
        if WEIGHTS.fullmatch(file):
            weights.setdefault(part, []).append(snapshot / path)
        elif not WEIGHTS_INDEX.fullmatch(file):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            if path != INDEX:
                replace_file(folder / path, (snapshot / path).read_bytes())
    for part, files in weights.items():
        replace_file(folder / part / ELSEWHERE, json.dumps([str(file) for file in files]))
    replace_file(folder / INDEX, (snapshot / INDEX).read_bytes())
