"""Facts about base models, and where they lie. No torch here."""

from dataclasses import dataclass
from pathlib import Path

from dopsd_app.events import KnownFailure

ASSETS = Path(__file__).parent.parent / "assets"


class BaseModelError(KnownFailure):
    """A base model that is not there or cannot be used; the message says which and what to do."""


@dataclass(frozen=True)
class BaseModelFacts:
    """What a person should know before choosing a base model."""

    label: str
    description: str
    licence: str  # as the Hub's card metadata spells it
    folder: Path  # a diffusers pipeline folder, with the teacher's vision_tower beside its parts


CATALOG = {
    "pocket-turbo": BaseModelFacts(
        label="pocket-turbo (built in)",
        description="Draws 64 x 64 creatures in 4 steps. A demonstration: trains in minutes without a GPU.",
        licence="apache-2.0",
        folder=ASSETS / "pocket-turbo",
    ),
}


def find_base_model(name: str) -> Path:
    """Folder of a base model, given by its catalog name or by the path of a diffusers folder.

    Raises `BaseModelError` when there is none.
    """
    folder = CATALOG[name].folder if name in CATALOG else Path(name)
    if not (folder / "model_index.json").is_file():
        raise BaseModelError(
            f"There is no base model `{name}`. Give one of {', '.join(CATALOG)}, or the path of a diffusers"
            " folder (it holds a model_index.json)."
        )
    return folder
