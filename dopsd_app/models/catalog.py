"""Facts about base models, and where they lie on this computer.

A base model is given by its name in the catalog, by a repository on the Hub (`owner/name`), or as a folder
that diffusers saved.
"""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

from dopsd_app.models.architecture import (
    Architecture,
    BaseModelError,
    BaseModelFacts,
    Eyes,
    Licence,
    Sizes,
)
from dopsd_app.models.eyes import find_eyes
from dopsd_app.models.hub_record import recall
from dopsd_app.models.klein_facts import KLEIN_4B, KLEIN_9B
from dopsd_app.models.pipeline_folder import INDEX, check_pipeline, read_licence, read_pipeline
from dopsd_app.models.pocket_facts import POCKET_TURBO
from dopsd_app.models.repository import find_snapshot, find_snapshots, is_repository
from dopsd_app.models.single_file import is_single_file, read_single_file
from dopsd_app.models.sizes import DAMAGED, read_sizes
from dopsd_app.models.z_image_facts import Z_IMAGE_TURBO

ASSETS = Path(__file__).parents[2] / "assets"
LONGEST_NAME = 1000  # characters; no system finds longer paths
CATALOG = {
    "pocket-turbo": POCKET_TURBO,
    "z-image-turbo": Z_IMAGE_TURBO,
    "flux2-klein-4b": KLEIN_4B,
    "flux2-klein-9b": KLEIN_9B,
}
# Known models that take dozens of steps, in lower case, and what of the catalog to take in their place. The
# Hub would tell it of most, but some are gated: nobody is to accept their terms in vain.
UNDISTILLED = {
    "tongyi-mai/z-image": "z-image-turbo",
    "tongyi-mai/z-image-base": "z-image-turbo",
    "tongyi-mai/z-image-edit": "z-image-turbo",
    "tongyi-mai/z-image-omni-base": "z-image-turbo",
    "black-forest-labs/flux.2-klein-base-4b": "flux2-klein-4b",
    "black-forest-labs/flux.2-klein-base-9b": "flux2-klein-9b",
    "black-forest-labs/flux.2-dev": "flux2-klein-4b",
}


@dataclass(frozen=True)
class BaseModelPaths:
    """Where all of a base model lies on this computer."""

    folder: Path  # the pipeline, as diffusers saves it
    vision_tower: Path | None  # the teacher's eyes: alone, or with more of their model; None: it has none
    commit: str = ""  # of the repository on the Hub, where it is from there


@dataclass(frozen=True)
class Lacking:
    """What of a base model is still to be fetched."""

    what: str  # for the person
    size: int | None  # bytes at the most, for some of it may be here; None where the Hub was not asked yet


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


def published_as(name: str) -> str:
    """The repository from which others load a base model; "" for the built-in one and for a folder.

    Of a single file it is that of the model which it is, or is made from.
    """
    if is_single_file(name):
        return CATALOG[read_single_file(name).original.model].repository
    return find_repository(name)


def public_name(name: str) -> str:
    """A base model's name without the folders of this computer, also of one that is not here any more."""
    if name in CATALOG or find_repository(name):
        return name
    return re.split(r"[\\/]", name.rstrip("\\/"))[-1]


# --- on this computer


def find_base_model(name: str, revision: str = "", context: str = "auto") -> BaseModelPaths:
    """Where a base model lies, with all that it takes for a teacher context.

    `revision` is a repository's branch, tag or commit.

    Raises `BaseModelError` for one that has still to be fetched (`is_fetched` asks for that), for a folder
    that is none, and for another kind of model.
    """
    folder = _find_pipeline(name, revision)
    architecture = _architecture_of(folder, name)
    eyes = _find_eyes(folder, architecture, context)
    if eyes is None and _eyes_of(folder, architecture, context):
        raise BaseModelError(f"The teacher's eyes for {name} are not on this computer yet: fetch them.")
    return BaseModelPaths(folder, eyes, folder.name if find_repository(name) else "")


def _architecture_of(folder: Path, name: str) -> Architecture:
    return read_pipeline(folder / INDEX, name).architecture


def _eyes_of(folder: Path, architecture: Architecture, context: str) -> Eyes | None:
    """The eyes that a pipeline's folder needs for a teacher context; None where it needs none."""
    try:
        fields = json.loads((folder / "text_encoder" / "config.json").read_text(encoding="utf-8"))
        width = fields.get("hidden_size", 0)
    except (OSError, ValueError, AttributeError):  # whoever loads it says what is wrong
        width = 0
    return architecture.eyes_for(context, width)


def _find_eyes(folder: Path, architecture: Architecture, context: str) -> Path | None:
    eyes = _eyes_of(folder, architecture, context)
    if eyes is None:
        return None
    own = folder / "vision_tower"  # the built-in one has it, and a person's own folder may
    return own if own.is_dir() else find_eyes(eyes.repository)


def _find_pipeline(name: str, revision: str) -> Path:
    if name in CATALOG and not CATALOG[name].repository:
        return ASSETS / name
    if is_single_file(name):
        return _single_folder(name)
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


def _single_folder(name: str) -> Path:
    """The folder that was put together around a file of weights."""
    folder = read_single_file(name).folder
    if not (folder / INDEX).is_file():
        raise BaseModelError(
            f"{Path(name).name} needs small files from the Hub, which are not here: fetch them."
        )
    check_pipeline(folder, Path(name).name)
    return folder


def _check_snapshot(folder: Path, repository: str) -> None:
    """Raises `BaseModelError` where a repository's folder lacks something, of all that the Hub lists."""
    check_pipeline(folder, repository)
    record = recall(repository, folder.name)
    for path, size in record.files.items() if record else ():
        file = folder / path
        if not file.is_file() or file.stat().st_size != size:
            raise BaseModelError(f"The base model `{repository}` is incomplete: it lacks {path}.")


def find_pipeline(name: str, revision: str = "") -> Path | None:
    """The folder of a base model that is here but perhaps for the teacher's eyes; None for any other."""
    try:
        return _find_pipeline(name, revision)
    except BaseModelError:
        return None


def missing_eyes(folder: Path, context: str) -> str:
    """The repository from which a pipeline's folder still needs the teacher's eyes; "" where it has all."""
    architecture = _architecture_of(folder, folder.name)
    eyes = _eyes_of(folder, architecture, context)
    return "" if eyes is None or _find_eyes(folder, architecture, context) else eyes.repository


def check_base_model(name: str) -> None:
    """Raises `BaseModelError` for a folder that is no base model, and for a known model of many steps.

    What else the Hub has is asked for elsewhere.
    """
    _check_distilled(name)
    if is_single_file(name):
        read_single_file(name)
    elif name not in CATALOG and not is_repository(name):
        _own_folder(name)


def _check_distilled(name: str) -> None:
    if instead := UNDISTILLED.get(name.lower()):
        raise BaseModelError(
            f"{name} was not made to draw in a few steps, and the training here is that of the few. Take"
            f" {instead}."
        )


def is_fetched(name: str, revision: str = "", context: str = "auto") -> bool:
    """Whether all of a base model is on this computer that it takes for a teacher context."""
    try:
        find_base_model(name, revision, context)
    except BaseModelError:
        return False
    return True


def what_lacks(name: str, revision: str, context: str, facts: BaseModelFacts, sizes: Sizes) -> Lacking | None:
    """What is still to be fetched of a base model for a teacher context; None where all of it is here.

    `sizes` are those of this context.
    """
    if is_fetched(name, revision, context):
        return None
    pipeline = find_pipeline(name, revision)
    if pipeline is None and is_single_file(name):
        return Lacking(facts.label, None)  # most of it lies here: the Hub tells of the rest
    folder = pipeline or find_snapshot(find_repository(name), INDEX, revision)
    eyes = _eyes_of(folder, facts.architecture, context) if folder else None
    if pipeline:
        return Lacking("the teacher's eyes", eyes.stored_bytes if eyes else None)
    there = eyes.stored_bytes if eyes and find_eyes(eyes.repository) else 0
    return Lacking(facts.label, sizes.stored_bytes - there if sizes.stored_bytes else None)


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
        measured = _measure(name, revision) if facts.repository else None
        return replace(facts, sizes=measured[1]) if measured else facts
    if is_single_file(name):
        return _single_facts(name)
    _check_distilled(name)
    measured = _measure(name, revision)
    if measured is None:
        raise BaseModelError(f"Nothing is known of {name} here yet: the Hub has to be asked first.")
    architecture, sizes = measured
    repository = find_repository(name)
    licence = find_licence(name, revision)
    copied = _model_of_size(architecture, sizes)
    whose = f"The repository {repository} on the Hub." if repository else "A folder of your own."
    return BaseModelFacts(
        label=repository or Path(name).name,
        description=f"{whose} Its licence holds for your LoRA too.",
        repository=repository,
        licence=licence,
        resolutions=None,
        architecture=architecture,
        sizes=sizes,
        comfyui=bool(copied) and CATALOG[copied].comfyui,
        known_as=CATALOG[copied].known_as if copied else "",
        kohya_name=CATALOG[copied].kohya_name if copied else "",
    )


def _single_facts(name: str) -> BaseModelFacts:
    """Those of the model of the catalog whose transformer a file is, or is made from."""
    single = read_single_file(name)
    known = CATALOG[single.original.model]
    measured = _measure(name, "") if (single.folder / INDEX).is_file() else None
    used = ", ".join(file.name for file in single.parts.values())
    return replace(
        known,
        label=Path(name).name,
        description=f"{known.label} of your own files, used where they lie: {used}. The rest is the Hub's.",
        sizes=measured[1] if measured else known.sizes,
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
    if is_single_file(name):
        return CATALOG[read_single_file(name).original.model].licence
    repository = find_repository(name)
    folder = find_snapshot(repository, INDEX, revision) if repository else Path(name)
    licence = read_licence(folder) if folder else Licence()
    if repository and re.fullmatch(r"[\w.-]+", licence.link):  # a file of that repository
        return replace(licence, link=f"https://huggingface.co/{repository}/blob/main/{licence.link}")
    return licence


def _measure(name: str, revision: str) -> tuple[Architecture, Sizes] | None:
    """What a base model's files tell; None where there are none here, and the Hub was not asked."""
    repository = find_repository(name)
    if repository and find_pipeline(name, revision) is None:
        folder = find_snapshot(repository, INDEX, revision)
        if folder is None:
            return None
        _architecture_of(folder, repository)  # the Hub was asked, and its answer may have been refused
        record = recall(repository, folder.name)
        return (record.architecture, record.sizes) if record else None
    folder = _find_pipeline(name, revision)
    architecture = _architecture_of(folder, name)
    eyes = _find_eyes(folder, architecture, "auto")
    try:
        sizes = read_sizes(architecture, folder, eyes)
    except DAMAGED as error:
        raise BaseModelError(f"The base model `{name}` is damaged: {error}. Fetch it again.") from error
    copied = _model_of_size(architecture, sizes)
    return architecture, sizes.as_known(CATALOG[copied].sizes) if copied else sizes


def _model_of_size(architecture: Architecture, sizes: Sizes) -> str | None:
    """The model of the catalog that is of this kind and size."""
    kind = (architecture, sizes.parameters)
    return next(
        (name for name, known in CATALOG.items() if (known.architecture, known.sizes.parameters) == kind),
        None,
    )


def model_family(name: str, revision: str = "") -> str:
    """The model of the catalog that a base model is or is made from, known by its size; else the name.

    What cannot be read is not reported here: `find_base_model` says why.
    """
    if known := catalog_name(name):
        return known
    try:
        facts = find_facts(name, revision)
    except BaseModelError:
        return name
    return _model_of_size(facts.architecture, facts.sizes) or name


def check_resolution(name: str, resolution: int) -> None:
    """Raises `BaseModelError` for a resolution that a base model of the catalog cannot draw."""
    known = catalog_name(name)
    bounds = CATALOG[known].resolutions if known else None
    if bounds is None:
        return
    least, greatest = bounds
    if not least <= resolution <= greatest:
        allowed = f"{least}" if least == greatest else f"between {least} and {greatest}"
        raise BaseModelError(f"`resolution` must be {allowed} for {name}, got {resolution}.")


def check_sources(name: str, revision: str, sources: int) -> None:
    """Raises `BaseModelError` for pictures to start from where a base model is known not to edit."""
    if sources and is_known(name, revision):
        find_facts(name, revision).architecture.check_sources(sources, name)


def check_context(name: str, revision: str, context: str) -> None:
    """Raises `BaseModelError` for a teacher context that a base model does not have, where it is known."""
    if is_known(name, revision):
        find_facts(name, revision).architecture.choose_context(context)
