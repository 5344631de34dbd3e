"""Facts about base models, and where they lie on this computer.

A base model is given by its name in the catalog, by a repository on the Hub (`owner/name`), or as a folder
that diffusers saved.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from dopsd_app.models.eyes import find_eyes
from dopsd_app.models.hub_record import recall
from dopsd_app.models.pipeline_folder import INDEX, BaseModelError, Licence, check_pipeline, read_licence
from dopsd_app.models.repository import find_snapshot, find_snapshots, is_repository
from dopsd_app.models.sizes import DAMAGED, Z_IMAGE_TURBO, Sizes, read_sizes

ASSETS = Path(__file__).parents[2] / "assets"
APACHE = Licence("apache-2.0", "Apache 2.0", "https://www.apache.org/licenses/LICENSE-2.0")
LONGEST_NAME = 1000  # characters; no system finds longer paths
QWEN3_VL = "Qwen/Qwen3-VL-4B-Instruct"  # its eyes were made for the text encoder Qwen3-4B
POCKET_CONTEXT = (64**2, 64**2)  # pixels of the picture that its teacher sees


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
    licence: Licence
    resolutions: tuple[int, int] | None  # pixels: the least and the greatest that it can draw, where known
    sizes: Sizes
    neutral_prompts: tuple[str, ...] = NEUTRAL_PROMPTS  # of what nobody trains: they should not change
    has_judge: bool = False  # whether there is a judge of its pictures; others are seen by their vision tower


@dataclass(frozen=True)
class Place:
    """Where all of a base model lies on this computer."""

    folder: Path  # the pipeline, as diffusers saves it
    vision_tower: Path  # the teacher's eyes: a vision tower alone, or with more of its model
    commit: str = ""  # of the repository on the Hub, where it is from there


def _pocket_turbo() -> BaseModelFacts:
    folder = ASSETS / "pocket-turbo"
    return BaseModelFacts(
        label="pocket-turbo (built in)",
        description="Draws 64 x 64 creatures in 4 steps. A demonstration: trains in minutes without a GPU.",
        repository="",
        licence=APACHE,
        resolutions=(64, 64),
        sizes=replace(read_sizes(folder, folder / "vision_tower"), context_area=POCKET_CONTEXT),
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
        licence=APACHE,
        resolutions=(256, 1536),
        sizes=Z_IMAGE_TURBO,
    )


CATALOG = {"pocket-turbo": _pocket_turbo(), "z-image-turbo": _z_image_turbo()}


def catalog_name(name: str) -> str | None:
    """The name in the catalog of a base model, which may be given by its repository; None for others."""
    if name in CATALOG:
        return name
    return next((known for known, facts in CATALOG.items() if facts.repository == name), None)


def read_name(text: str) -> str:
    """The name of a base model in what a person wrote: it may be its address on the Hub, or its label."""
    text = text.strip()
    if found := re.fullmatch(r"https?://[^/]+/([^/\s]+/[^/\s?#]+?)(/tree/[^/]+)?/?", text):
        return found[1]
    labels = {facts.label.lower(): name for name, facts in CATALOG.items()}
    return labels.get(text.lower(), text)


def full_name(name: str) -> str:
    """The name under which a base model is found from any folder: a path becomes absolute."""
    if name in CATALOG or is_repository(name):
        return name
    return str(Path(name).absolute())


def find_repository(name: str) -> str:
    """The repository on the Hub that a base model comes from; "" for the built-in one and for a folder."""
    if name in CATALOG:
        return CATALOG[name].repository
    return name if is_repository(name) else ""


# --- on this computer


def find_base_model(name: str, revision: str = "") -> Place:
    """Where a base model lies, all of it; `revision` is a repository's branch, tag or commit.

    Raises `BaseModelError` for one that has still to be fetched (`is_fetched` asks for that), for a folder
    that is none, and for another kind of model.
    """
    folder = _find_pipeline(name, revision)
    eyes = _find_eyes(folder)
    if eyes is None:
        raise BaseModelError(f"The teacher's eyes for {name} are not on this computer yet: fetch them.")
    return Place(folder, eyes, folder.name if find_repository(name) else "")


def _find_eyes(folder: Path) -> Path | None:
    own = folder / "vision_tower"  # the built-in one has it, and a person's own folder may
    return own if own.is_dir() else find_eyes(QWEN3_VL)


def _find_pipeline(name: str, revision: str) -> Path:
    if name in CATALOG and not CATALOG[name].repository:
        return ASSETS / name
    repository = find_repository(name)
    if not repository:
        return _own_folder(name)
    problem = BaseModelError(f"{repository} is not on this computer yet: fetch it.")
    for number, folder in enumerate(find_snapshots(repository, INDEX, revision)):
        try:
            _check_snapshot(folder, repository)
            return folder
        except BaseModelError as error:
            problem = problem if number else error
    raise problem


def _check_snapshot(folder: Path, repository: str) -> None:
    """Raises `BaseModelError` where a repository's folder lacks something, of all that the Hub told of it."""
    check_pipeline(folder, repository)
    record = recall(repository, folder.name)
    for path, size in record.files.items() if record else ():
        file = folder / path
        if not file.is_file() or file.stat().st_size != size:
            raise BaseModelError(f"The base model `{repository}` is incomplete: it lacks {path}.")


def has_own_eyes(name: str) -> bool:
    """Whether a base model in a folder has the teacher's eyes beside its parts."""
    return not find_repository(name) and (_own_folder(name) / "vision_tower").is_dir()


def has_pipeline(name: str, revision: str = "") -> bool:
    """Whether all of a base model but perhaps the teacher's eyes is on this computer."""
    try:
        _find_pipeline(name, revision)
    except BaseModelError:
        return False
    return True


def check_base_model(name: str) -> None:
    """Raises `BaseModelError` for a folder that is no base model; what the Hub has is asked for elsewhere."""
    if name not in CATALOG and not is_repository(name):
        _own_folder(name)


def is_fetched(name: str, revision: str = "") -> bool:
    """Whether all of a base model is on this computer."""
    try:
        find_base_model(name, revision)
    except BaseModelError:
        return False
    return True


def _own_folder(name: str) -> Path:
    """A folder that a person gave, which must be a whole pipeline."""
    folder = Path(name)
    if len(name) > LONGEST_NAME or not folder.exists():
        name = name if len(name) <= LONGEST_NAME else f"{name[:50]}..."
        raise BaseModelError(
            f"There is no base model `{name}`. Give one of {', '.join(CATALOG)}, a repository on the Hub"
            f" (owner/name), or the path of a diffusers folder (it holds a {INDEX})."
        )
    check_pipeline(folder, name)
    return folder


# --- facts


def find_facts(name: str, revision: str = "") -> BaseModelFacts:
    """Facts about a base model, with the sizes that its files tell, here or on the Hub.

    Raises `BaseModelError` for what is no base model or is damaged, and for a repository that the Hub was
    not asked about yet (`base_download.ask_hub`).
    """
    if known := catalog_name(name):
        facts = CATALOG[known]
        return replace(facts, sizes=_sizes(name, revision) or facts.sizes) if facts.repository else facts
    sizes = _sizes(name, revision)
    if sizes is None:
        raise BaseModelError(f"Nothing is known of {name} here yet: the Hub has to be asked first.")
    repository = find_repository(name)
    licence = find_licence(name, revision)
    whose = f"The repository {repository} on the Hub." if repository else "A folder of your own."
    return BaseModelFacts(
        label=repository or Path(name).name,
        description=f"{whose} Its licence holds for your LoRA too.",
        repository=repository,
        licence=licence,
        resolutions=None,
        sizes=sizes,
    )


def is_known(name: str, revision: str = "") -> bool:
    """Whether there is anything to tell of a base model without asking the Hub."""
    try:
        find_facts(name, revision)
    except BaseModelError:
        return False
    return True


def find_licence(name: str, revision: str = "") -> Licence:
    """The licence of a base model, by the catalog or by its own README; empty where nobody says it here."""
    if known := catalog_name(name):
        return CATALOG[known].licence
    repository = find_repository(name)
    folder = find_snapshot(repository, INDEX, revision) if repository else Path(name)
    return read_licence(folder) if folder else Licence()


def _sizes(name: str, revision: str) -> Sizes | None:
    """The sizes of a base model by its files; None where there are none here, and the Hub told none."""
    repository = find_repository(name)
    if repository and not has_pipeline(name, revision):
        folder = find_snapshot(repository, INDEX, revision)
        record = recall(repository, folder.name) if folder else None
        return record.sizes if record else None
    folder = _find_pipeline(name, revision)
    try:
        sizes = read_sizes(folder, _find_eyes(folder))
    except DAMAGED as error:
        raise BaseModelError(f"The base model `{name}` is damaged: {error}. Fetch it again.") from error
    copied = next((known for known in CATALOG.values() if known.sizes.parameters == sizes.parameters), None)
    return replace(sizes, context_area=copied.sizes.context_area) if copied else sizes


def kind_of(name: str, revision: str = "") -> str:
    """The model of the catalog that a base model is or is made from, told by its size; else the name.

    What cannot be read is not told here: `find_base_model` says why.
    """
    if known := catalog_name(name):
        return known
    try:
        parameters = find_facts(name, revision).sizes.parameters
    except BaseModelError:
        return name
    return next((known for known, facts in CATALOG.items() if facts.sizes.parameters == parameters), name)


def check_resolution(name: str, resolution: int) -> None:
    """Raises `BaseModelError` for a resolution that a base model of the catalog cannot draw."""
    if (known := catalog_name(name)) is None:
        return
    least, greatest = CATALOG[known].resolutions
    if not least <= resolution <= greatest:
        allowed = f"{least}" if least == greatest else f"between {least} and {greatest}"
        raise BaseModelError(f"`resolution` must be {allowed} for {name}, got {resolution}.")
