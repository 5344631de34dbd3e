"""Facts about base models, and where they lie. No torch here."""

import json
from dataclasses import dataclass
from pathlib import Path

from dopsd_app.cost import least_gpu_memory
from dopsd_app.events import KnownFailure
from dopsd_app.sizes import Z_IMAGE_TURBO, Sizes, read_sizes

SUPPORTED_PIPELINES = ("ZImagePipeline",)  # as a folder's model_index.json names them
ROOT = Path(__file__).parent.parent
ASSETS = ROOT / "assets"
NEEDED_FILES = (".safetensors", ".json", ".jinja", "merges.txt")  # of a repository on the Hub


class BaseModelError(KnownFailure):
    """A base model that is not there or cannot be used; the message says which and what to do."""


NEUTRAL_PROMPTS = (
    "a bowl of fruit on a wooden table",
    "a red bicycle leaning against a brick wall",
    "an elderly man reading in a garden",
    "a mountain lake at sunrise",
)


@dataclass(frozen=True)
class BaseModelFacts:
    """What a person should know before choosing a base model."""

    label: str
    description: str  # what it draws, and what it is good at
    repository: str  # on the Hub; "" for one that comes with the program or was given as a folder
    licence: str  # as the Hub's card metadata spells it; "" where we do not know it
    licence_name: str
    licence_link: str
    resolutions: tuple[int, int] | None  # pixels: the least and the greatest that it can draw, where known
    folder: Path  # a diffusers pipeline folder, with the teacher's vision_tower beside its parts
    sizes: Sizes
    neutral_prompts: tuple[str, ...] = NEUTRAL_PROMPTS  # of what nobody trains: they should not change
    has_judge: bool = False  # whether there is a judge of its pictures; others are seen by their vision tower

    @property
    def gpu_memory(self) -> int:
        """Bytes that a card must have, at least, to train it; 0 where no card is needed. An estimate."""
        return least_gpu_memory(self.sizes)


def _pocket_turbo() -> BaseModelFacts:
    return BaseModelFacts(
        label="pocket-turbo (built in)",
        description="Draws 64 x 64 creatures in 4 steps. A demonstration: trains in minutes without a GPU.",
        repository="",
        licence="apache-2.0",
        licence_name="Apache 2.0",
        licence_link="https://www.apache.org/licenses/LICENSE-2.0",
        resolutions=(64, 64),
        folder=ASSETS / "pocket-turbo",
        sizes=read_sizes(ASSETS / "pocket-turbo"),
        neutral_prompts=(
            "creature on a mint background",
            "a big creature in a meadow scene",
            "creature on the left in front of sea",
            "the creature in a night scene",
        ),
        has_judge=True,
    )


def _z_image_turbo() -> BaseModelFacts:
    return BaseModelFacts(
        label="Z-Image-Turbo",
        description="Photographs, people and lettering in English and Chinese, in 8 steps.",
        repository="Tongyi-MAI/Z-Image-Turbo",
        licence="apache-2.0",
        licence_name="Apache 2.0",
        licence_link="https://www.apache.org/licenses/LICENSE-2.0",
        resolutions=(256, 1536),
        folder=ROOT / "models" / "z-image-turbo",
        sizes=Z_IMAGE_TURBO,
    )


CATALOG = {"pocket-turbo": _pocket_turbo(), "z-image-turbo": _z_image_turbo()}


def find_facts(name: str) -> BaseModelFacts:
    """Facts about a base model of the catalog, or about a diffusers folder: what its files tell.

    Raises `BaseModelError` for a folder that is no base model or is damaged.
    """
    if name in CATALOG:
        return CATALOG[name]
    folder = find_base_model(name)
    try:
        sizes = read_sizes(folder)
    except (OSError, KeyError, ValueError) as error:
        raise BaseModelError(f"The base model `{name}` is damaged: {error}. Fetch it again.") from error
    description = "A folder of your own. Mind the licence of the model in it."
    return BaseModelFacts(
        label=folder.name,
        description=description,
        repository="",
        licence="",
        licence_name="",
        licence_link="",
        resolutions=None,
        folder=folder,
        sizes=sizes,
    )


def kind_of(name: str) -> str:
    """The model of the catalog that a folder holds, told by its size; the name itself where there is none.

    A folder that cannot be read is not told here: `find_base_model` says why.
    """
    if name in CATALOG:
        return name
    try:
        parameters = find_facts(name).sizes.parameters
    except BaseModelError:
        return name
    return next((known for known, facts in CATALOG.items() if facts.sizes.parameters == parameters), name)


def find_base_model(name: str) -> Path:
    """Folder of a base model, given by its catalog name or by the path of a diffusers folder.

    Raises `BaseModelError` when there is none, or when it is another kind of model or incomplete.
    """
    folder = CATALOG[name].folder if name in CATALOG else Path(name)
    if name in CATALOG and CATALOG[name].repository and not folder.exists():
        raise BaseModelError(
            f"{CATALOG[name].label} is not on this computer, and fetching it is not built in yet. Give the"
            " path of its diffusers folder as the base model, with a `vision_tower` folder beside its parts."
        )
    if problem := _problem(name, folder):
        raise BaseModelError(problem)
    return folder


def _problem(name: str, folder: Path) -> str | None:
    """Why a folder cannot be used as a base model; None when it can."""
    if not (folder / "model_index.json").is_file():
        return (
            f"There is no base model `{name}`. Give one of {', '.join(CATALOG)}, or the path of a diffusers"
            " folder (it holds a model_index.json)."
        )
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except ValueError:
        return f"The model_index.json of `{name}` is damaged. Fetch the model again."
    if (kind := index.get("_class_name")) not in SUPPORTED_PIPELINES:
        return f"`{name}` is a {kind}. Supported: {', '.join(SUPPORTED_PIPELINES)}."
    parts = [part for part, value in index.items() if isinstance(value, list)] + ["vision_tower"]
    if missing := [part for part in parts if not (folder / part).is_dir()]:
        return f"The base model `{name}` is incomplete: it lacks {', '.join(missing)}."
    return None


def check_resolution(name: str, resolution: int) -> None:
    """Raises `BaseModelError` for a resolution that a base model of the catalog cannot draw."""
    if name not in CATALOG:
        return
    least, greatest = CATALOG[name].resolutions
    if not least <= resolution <= greatest:
        allowed = f"{least}" if least == greatest else f"between {least} and {greatest}"
        raise BaseModelError(f"`resolution` must be {allowed} for {name}, got {resolution}.")


def download_size(repository: str) -> int | None:
    """Bytes that fetching a repository's weights takes, as the Hub tells; None where it cannot be asked."""
    import httpx2  # slow to import, and nothing else here needs them
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        info = HfApi(token=False).model_info(repository, files_metadata=True, timeout=5)
    except (HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError, ValueError):
        return None
    return sum(file.size or 0 for file in info.siblings or () if file.rfilename.endswith(NEEDED_FILES))
