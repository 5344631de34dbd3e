"""Facts about base models, and where they lie. No torch here."""

import json
from dataclasses import dataclass
from pathlib import Path

from dopsd_app.events import KnownFailure

SUPPORTED_PIPELINES = ("ZImagePipeline",)  # as a folder's model_index.json names them
ASSETS = Path(__file__).parent.parent / "assets"


class BaseModelError(KnownFailure):
    """A base model that is not there or cannot be used; the message says which and what to do."""


@dataclass(frozen=True)
class BaseModelFacts:
    """What a person should know before choosing a base model."""

    label: str
    description: str
    licence: str  # as the Hub's card metadata spells it
    resolutions: tuple[int, int]  # pixels: the least and the greatest that it can draw
    folder: Path  # a diffusers pipeline folder, with the teacher's vision_tower beside its parts


CATALOG = {
    "pocket-turbo": BaseModelFacts(
        label="pocket-turbo (built in)",
        description="Draws 64 x 64 creatures in 4 steps. A demonstration: trains in minutes without a GPU.",
        licence="apache-2.0",
        resolutions=(64, 64),
        folder=ASSETS / "pocket-turbo",
    ),
}


def find_base_model(name: str) -> Path:
    """Folder of a base model, given by its catalog name or by the path of a diffusers folder.

    Raises `BaseModelError` when there is none, or when it is another kind of model or incomplete.
    """
    folder = CATALOG[name].folder if name in CATALOG else Path(name)
    if not (folder / "model_index.json").is_file():
        raise BaseModelError(
            f"There is no base model `{name}`. Give one of {', '.join(CATALOG)}, or the path of a diffusers"
            " folder (it holds a model_index.json)."
        )
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise BaseModelError(
            f"The model_index.json of `{name}` is damaged. Fetch the model again."
        ) from error
    if (kind := index.get("_class_name")) not in SUPPORTED_PIPELINES:
        raise BaseModelError(f"`{name}` is a {kind}. Supported: {', '.join(SUPPORTED_PIPELINES)}.")
    parts = [part for part, value in index.items() if isinstance(value, list)] + ["vision_tower"]
    if missing := [part for part in parts if not (folder / part).is_dir()]:
        raise BaseModelError(f"The base model `{name}` is incomplete: it lacks {', '.join(missing)}.")
    return folder


def check_resolution(name: str, resolution: int) -> None:
    """Raises `BaseModelError` for a resolution that a base model of the catalog cannot draw."""
    if name not in CATALOG:
        return
    least, greatest = CATALOG[name].resolutions
    if not least <= resolution <= greatest:
        allowed = f"{least}" if least == greatest else f"between {least} and {greatest}"
        raise BaseModelError(f"`resolution` must be {allowed} for {name}, got {resolution}.")
