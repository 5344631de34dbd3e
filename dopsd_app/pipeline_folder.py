"""The folder of a pipeline as diffusers saves it: what belongs into it, and what one lacks. No torch here."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dopsd_app.events import KnownFailure

SUPPORTED_PIPELINES = ("ZImagePipeline",)
INDEX = "model_index.json"  # the pipeline's class and its parts
README = "README.md"  # says the licence
WITH_WEIGHTS = ("transformer", "text_encoder", "vae")
# The weights that a part is loaded from: never others of the same part, such as `model.fp16.safetensors`.
WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(-\d{5}-of-\d{5})?\.safetensors")
WEIGHTS_INDEX = re.compile(r"(diffusion_pytorch_model|model)\.safetensors\.index\.json")
EYES_PREFIX = "model.visual."  # of the tensors that see, in a vision-language model
SMALL = (".json", ".txt", ".jinja")  # configurations and tokenizers


class BaseModelError(KnownFailure):
    """A base model that is not there or cannot be used; the message says which and what to do."""


@dataclass(frozen=True)
class Licence:
    """A licence as the metadata of a model card spells it; all empty where nobody says it."""

    id: str = ""
    name: str = ""
    link: str = ""


def read_parts(index: Path, name: str) -> list[str]:
    """The parts of a pipeline, by its model_index.json; `BaseModelError` for a pipeline of another kind."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        kind = content.get("_class_name")
    except (ValueError, AttributeError) as error:
        raise BaseModelError(f"The {INDEX} of `{name}` is damaged. Fetch the model again.") from error
    if kind not in SUPPORTED_PIPELINES:
        raise BaseModelError(f"`{name}` is a {kind}. Supported: {', '.join(SUPPORTED_PIPELINES)}.")
    return [part for part, value in content.items() if isinstance(value, list)]


def choose_files(paths: Iterable[str], parts: Iterable[str]) -> list[str]:
    """Those of a repository's files that its pipeline is loaded from, and its README."""
    return [
        path
        for path in paths
        if path in (INDEX, README)
        or (path.count("/") == 1 and path.split("/")[0] in parts and _is_needed(path.split("/")[1]))
    ]


def _is_needed(file: str) -> bool:
    return bool(WEIGHTS.fullmatch(file)) or file.endswith(SMALL)


def check_pipeline(folder: Path, name: str) -> None:
    """Raises `BaseModelError` with all that a folder lacks of a supported pipeline."""
    if not folder.is_dir():
        raise BaseModelError(f"There is no folder {folder}.")
    if not (folder / INDEX).is_file():
        there = [part for part in WITH_WEIGHTS if not (folder / part).is_dir()]
        also = f", nor {', '.join(there)}" if there else ""
        raise BaseModelError(
            f"The folder `{name}` is no base model: it has no {INDEX}{also}. Give one that diffusers saved."
        )
    lacking = [
        missing for part in read_parts(folder / INDEX, name) for missing in _lacking(folder / part, part)
    ]
    if lacking:
        raise BaseModelError(f"The base model `{name}` is incomplete: it lacks {', '.join(lacking)}.")


def _lacking(folder: Path, part: str) -> Iterator[str]:
    files = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not files:
        yield part
    if not files or part not in WITH_WEIGHTS:
        return
    if "config.json" not in files:
        yield f"{part}/config.json"
    wanted = _shards(folder, files)
    if not wanted:
        yield f"{part}/*.safetensors"
    yield from (f"{part}/{file}" for file in sorted(wanted - files))


def _shards(folder: Path, files: set[str]) -> set[str]:
    """The files that hold a part's weights, whether they are there or not."""
    for index in filter(WEIGHTS_INDEX.fullmatch, files):
        try:
            return set(json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise BaseModelError(f"{folder.name}/{index} is damaged. Fetch the model again.") from error
    return set(filter(WEIGHTS.fullmatch, files))


def read_licence(folder: Path) -> Licence:
    """The licence that the README of a repository says; empty where there is none, or it says none."""
    from huggingface_hub import ModelCard

    try:
        data = ModelCard.load(folder / README).data.to_dict()
    except (OSError, ValueError):
        return Licence()
    told = {key: str(data.get(key) or "") for key in ("license", "license_name", "license_link")}
    return Licence(told["license"], told["license_name"] or told["license"], told["license_link"])
