"""The folder of a pipeline as diffusers saves it: what belongs into it, and what one lacks."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dopsd_app.models.architecture import Architecture, BaseModelError, Licence
from dopsd_app.models.architectures import ARCHITECTURES

INDEX = "model_index.json"  # the pipeline's class and its parts
SCHEDULER = "scheduler/scheduler_config.json"
README = "README.md"  # says the licence
USUAL_PARTS = ("transformer", "text_encoder", "vae")  # named where nothing tells which ones there should be
# The weights that a part is loaded from: never others of the same part, such as `model.fp16.safetensors`.
WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(-\d{5}-of-\d{5})?\.safetensors")
WEIGHTS_INDEX = re.compile(r"(diffusion_pytorch_model|model)\.safetensors\.index\.json")
ELSEWHERE = "elsewhere.json"  # in a part's folder: the files of its weights, where they lie in other ones
EYES_PREFIX = "model.visual."  # of the tensors that see, in a vision-language model
HEAD_PREFIX = "lm_head."  # of those that write text, in a language model: a text encoder is read without
LONGEST_HEADER = 100_000_000  # bytes, of a safetensors file: the format's own limit
SMALL = (".json", ".txt", ".jinja")  # configurations and tokenizers


@dataclass(frozen=True)
class Pipeline:
    """What a model_index.json tells."""

    architecture: Architecture
    parts: tuple[str, ...]  # the folders beside it, those without weights too


def read_pipeline(index: Path, name: str) -> Pipeline:
    """A pipeline by its model_index.json, and its scheduler's configuration where that lies beside it.

    Raises `BaseModelError` for one of a kind that is not known here, and for one that takes dozens of steps.
    """
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        kind = content.get("_class_name")
    except (ValueError, AttributeError) as error:
        raise BaseModelError(f"The {INDEX} of `{name}` is damaged. Fetch the model again.") from error
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        known = ", ".join(architecture.family for architecture in ARCHITECTURES.values())
        raise BaseModelError(
            f"`{name}` is a {kind}, which cannot be trained here. Take {known}, or a model made from one of"
            " them."
        )
    architecture = ARCHITECTURES[kind]
    if sign := architecture.undistilled(content, _read_scheduler(index.parent)):
        raise BaseModelError(
            f"`{name}` was not made to draw in a few steps: {sign}. Such a model takes dozens, and the"
            f" training here is that of the few. Take {architecture.family}, or a model made from it."
        )
    parts = tuple(part for part, value in content.items() if isinstance(value, list))
    if odd := [part for part in parts if not re.fullmatch("[A-Za-z0-9_]+", part)]:
        raise BaseModelError(f"`{name}` has a part {odd[0][:50]!r}, which is no name of one.")
    if missing := [part for part in architecture.parts if part not in parts]:
        raise BaseModelError(f"`{name}` has no {', '.join(missing)}: it is no whole pipeline.")
    return Pipeline(architecture, parts)


def _read_scheduler(folder: Path) -> dict:
    """What is said of a pipeline's scheduler; nothing where it cannot be read: whoever loads it says why."""
    try:
        fields = json.loads((folder / SCHEDULER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}


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
        there = [part for part in USUAL_PARTS if not (folder / part).is_dir()]
        also = f", nor {', '.join(there)}" if there else ""
        raise BaseModelError(
            f"The folder `{name}` is no base model: it has no {INDEX}{also}. Give one that diffusers saved."
        )
    pipeline = read_pipeline(folder / INDEX, name)
    lacking = [
        missing
        for part in pipeline.parts
        for missing in _lacking(folder / part, part, part in pipeline.architecture.parts)
    ]
    if lacking:
        raise BaseModelError(f"The base model `{name}` is incomplete: it lacks {', '.join(lacking)}.")


def _lacking(folder: Path, part: str, has_weights: bool) -> Iterator[str]:
    files = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not files:
        yield part
        return
    if part == "tokenizer":
        # With some of them alone it loads all the same, and knows no words.
        words = {"tokenizer.json"} if "tokenizer.json" in files else {"vocab.json", "merges.txt"}
        yield from (f"{part}/{file}" for file in sorted({"tokenizer_config.json", *words} - files))
    if not has_weights:
        return
    if "config.json" not in files:
        yield f"{part}/config.json"
    wanted = weight_files(folder)
    if not wanted:
        yield f"{part}/*.safetensors"
    for file in wanted:
        if not file.is_file():
            yield f"{part}/{file.name}"
        elif not is_whole(file):
            yield f"{part}/{file.name} (which is damaged)"


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a part's weights, whether they are there or not."""
    if (folder / ELSEWHERE).is_file():
        return read_elsewhere(folder)
    files = [path.name for path in folder.iterdir()]
    for index in filter(WEIGHTS_INDEX.fullmatch, files):
        return [folder / file for file in sorted(set(read_weight_map(folder / index).values()))]
    return [folder / file for file in sorted(filter(WEIGHTS.fullmatch, files))]


def read_elsewhere(folder: Path) -> list[Path]:
    """The files of a part's weights that lie in other folders."""
    try:
        return [Path(file) for file in json.loads((folder / ELSEWHERE).read_bytes())]
    except (OSError, ValueError, TypeError) as error:
        raise BaseModelError(f"{folder.name}/{ELSEWHERE} is damaged: fetch the model again.") from error


def read_weight_map(index: Path) -> dict[str, str]:
    """Which file holds each tensor, by an index of weights; raises `BaseModelError`."""
    try:
        weights = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not all(isinstance(file, str) for file in weights.values()):
            raise TypeError("a file's name is no text")
        return weights
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseModelError(
            f"{index.parent.name}/{index.name} is damaged: delete it, and fetch the model again."
        ) from error


def is_whole(file: Path) -> bool:
    """Whether a file is there and, if it holds weights, as long as its header says."""
    if not file.is_file() or file.suffix != ".safetensors":
        return file.is_file()
    try:
        header, data = read_header(file)
        ends = (facts["data_offsets"][1] for name, facts in header.items() if name != "__metadata__")
        return file.stat().st_size == data + max(ends, default=0)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def read_header(file: Path) -> tuple[dict, int]:
    """The header of a safetensors file, and where its data begins; ValueError for what is none."""
    # Not by `safe_open`: that imports numpy, and every command reads what the built-in base's files tell.
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        return json.loads(opened.read(min(length, LONGEST_HEADER))), 8 + length


def read_licence(folder: Path) -> Licence:
    """The licence that the README of a repository says; empty where there is none, or it says none."""
    import yaml

    try:
        text = (folder / README).read_text(encoding="utf-8")
        front = re.match(r"---\s*\n(.*?)\n---\s*\n", text, re.DOTALL)
        data = yaml.safe_load(front[1]) if front else {}
    except (OSError, ValueError, yaml.YAMLError):
        return Licence()
    keys = ("license", "license_name", "license_link")
    fields = {key: data.get(key) for key in keys} if isinstance(data, dict) else {}
    id, name, link = (value if isinstance(value := fields.get(key), str) else "" for key in keys)
    return Licence(id if re.fullmatch("[a-z0-9][a-z0-9.+-]*", id) else "", name or id, link)
