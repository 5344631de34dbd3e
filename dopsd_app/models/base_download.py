"""Base models from the Hub: what one holds, and fetching what is missing here."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dopsd_app.files import is_disk_full
from dopsd_app.hub_errors import HubError, reading_errors, reading_token
from dopsd_app.models.architecture import BaseModelError
from dopsd_app.models.catalog import (
    CATALOG,
    check_base_model,
    find_base_model,
    find_pipeline,
    find_repository,
    is_fetched,
    missing_eyes,
)
from dopsd_app.models.download import Order, check_disk, fetch, in_threads, missing_bytes, whole_files
from dopsd_app.models.eyes import order_eyes
from dopsd_app.models.hub_record import HubRecord, recall, remember
from dopsd_app.models.pipeline_folder import (
    HEAD_PREFIX,
    INDEX,
    README,
    SCHEDULER,
    WEIGHTS,
    WEIGHTS_INDEX,
    Pipeline,
    choose_files,
    read_pipeline,
    read_weight_map,
)
from dopsd_app.models.repository import Listing, RemoteFile, link_files, list_files
from dopsd_app.models.single_file import (
    SingleFile,
    is_needed,
    is_single_file,
    put_together,
    read_single_file,
)
from dopsd_app.models.sizes import DAMAGED, read_configurations, sizes_on_hub
from dopsd_app.progress import DownloadProgress


@dataclass(frozen=True)
class Offer:
    """What the Hub has of a base model that is not here, or not all of it."""

    size: int  # bytes of all that is needed, the teacher's eyes included
    missing: int  # bytes that are still to come
    folder: Path  # whose disk takes most of them


def fetch_base_model(name: str, revision: str = "", context: str = "auto") -> Generator[DownloadProgress]:
    """Fetches what a base model still lacks here for a teacher context; nothing happens where all is there.

    Raises `HubError` or `BaseModelError` with one sentence; what came is kept, and the next call goes on.
    """
    if not needs_fetching(name, revision, context):
        return
    with disk_errors():
        yield from fetch(lambda: order_base_model(name, revision, context), _about(name))
    find_base_model(name, revision, context)


def needs_fetching(name: str, revision: str = "", context: str = "auto") -> bool:
    """Whether something has to come from the Hub; `BaseModelError` for a folder that is no base model."""
    check_base_model(name)
    return not is_fetched(name, revision, context)


def order_base_model(name: str, revision: str = "", context: str = "auto") -> list[Order]:
    """What is to be fetched of a base model, as the Hub has it now; raises `HubError` or `BaseModelError`."""
    check_base_model(name)
    orders = []
    folder = find_pipeline(name, revision)
    if folder is None and is_single_file(name):
        folder, order = _order_the_rest(read_single_file(name))
        orders.append(order)
    if folder is None:
        listing = list_files(find_repository(name), revision)
        folder, pipeline = _read_index(listing)
        files = _needed(listing, pipeline)
        _remember(listing, pipeline, files)
        orders.append(whole_files(listing, revision, files))
    if eyes := missing_eyes(folder, context):
        orders.append(order_eyes(list_files(eyes)))
    return orders


def _order_the_rest(single: SingleFile) -> tuple[Path, Order]:
    """Where its small files are, and the order for all that a file of weights lacks of its model."""
    listing = list_files(CATALOG[single.original.model].repository)
    folder, pipeline = _read_index(listing)
    paths = {file.path for file in listing.files}
    chosen = [path for path in choose_files(paths, pipeline.parts) if is_needed(single, path)]
    files = [file for file in listing.files if file.path in chosen]
    configurations = [path for path in chosen if path.endswith("config.json")]
    link_files(listing.repository, listing.commit, configurations)  # they say which eyes fit
    order = whole_files(listing, "", files)

    def finish() -> None:
        order.finish()
        put_together(single, folder, chosen)

    return folder, Order(order.targets, finish)


def ask_hub(name: str, revision: str = "", context: str = "auto") -> Offer:
    """What the Hub has of a base model, after a look whether it can be used and fits on the disk.

    Raises `HubError` or `BaseModelError`. What it tells of the model is remembered: `find_facts` finds it.
    """
    with disk_errors():
        targets = [target for order in order_base_model(name, revision, context) for target in order.targets]
        check_disk(targets, _about(name))
        missing = missing_bytes(targets)
        folder = max(missing, key=missing.__getitem__, default=Path())
        return Offer(sum(target.size for target in targets), sum(missing.values()), folder)


def ask_for_record(repository: str, commit: str) -> HubRecord:
    """What the Hub says of a repository's files at a commit: as it is remembered, or asked now.

    Raises `HubError` or `BaseModelError`.
    """
    if known := recall(repository, commit):
        return known
    listing = list_files(repository, commit)
    _, pipeline = _read_index(listing)
    _remember(listing, pipeline, _needed(listing, pipeline))
    record = recall(repository, commit)
    assert record is not None  # it was just kept
    return record


def _about(name: str) -> str:
    if is_single_file(name):
        return f"What {Path(name).name} lacks"
    return find_repository(name) or "The teacher's eyes"


@contextmanager
def disk_errors() -> Generator[None]:
    """Turns what a disk does not let us do into a `HubError` that says what would help."""
    from huggingface_hub import constants

    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise HubError("The disk is full. Free some space, then try again.") from error
        raise HubError(
            f"The Hub's cache, {constants.HF_HOME}, cannot be used: {error.strerror or error}. Fix its"
            " permissions, or let the environment variable HF_HOME name another folder."
        ) from error


def _read_index(listing: Listing) -> tuple[Path, Pipeline]:
    """The folder that a repository's files are linked from, and what its model_index.json tells."""
    paths = {file.path for file in listing.files}
    if INDEX not in paths:
        raise BaseModelError(f"{listing.repository} is no pipeline of diffusers: it has no {INDEX}.")
    folder = link_files(listing.repository, listing.commit, sorted(paths & {INDEX, README, SCHEDULER}))
    return folder, read_pipeline(folder / INDEX, listing.repository)


def _needed(listing: Listing, pipeline: Pipeline) -> list[RemoteFile]:
    """The files that the pipeline is loaded from; `BaseModelError` where that is not all there."""
    paths = {file.path for file in listing.files}
    chosen = set(choose_files(paths, pipeline.parts))
    indexes = sorted(path for path in chosen if WEIGHTS_INDEX.fullmatch(path.rpartition("/")[2]))
    folder = link_files(listing.repository, listing.commit, indexes) if indexes else Path()
    for part in pipeline.architecture.parts:
        weights = {path for path in chosen if path.startswith(f"{part}/") and path.endswith(".safetensors")}
        wanted = weights
        for index in indexes:
            if index.startswith(f"{part}/"):
                wanted = {f"{part}/{file}" for file in read_weight_map(folder / index).values()}
        if not wanted:
            raise BaseModelError(
                f"{listing.repository} has no safetensors file for its {part}. Only that format is read."
            )
        if lacking := sorted({*wanted, f"{part}/config.json"} - paths):
            raise BaseModelError(
                f"{listing.repository} itself is incomplete: it lacks {', '.join(lacking[:3])}."
            )
        chosen = (chosen - weights) | wanted
    return [file for file in listing.files if file.path in chosen]


def _remember(listing: Listing, pipeline: Pipeline, files: list[RemoteFile]) -> None:
    """Keeps which files belong to the model, and how large its parts are by the headers of the weights."""
    architecture = pipeline.architecture
    configurations = [f"{part}/config.json" for part in architecture.parts]
    # Also for a model that is known: the text encoder's says which eyes fit it.
    folder = link_files(listing.repository, listing.commit, configurations)
    if recall(listing.repository, listing.commit):
        return
    weights = [file.path for file in files if WEIGHTS.fullmatch(file.path.rpartition("/")[2])]
    counts = dict(zip(weights, in_threads(lambda path: _count(listing, path), weights), strict=True))
    parameters = {
        part: sum(count for path, count in counts.items() if path.startswith(f"{part}/"))
        for part in architecture.parts
    }
    stored = sum(file.size for file in files)
    try:
        sizes = sizes_on_hub(architecture, read_configurations(architecture, folder), parameters, stored)
    except DAMAGED as error:
        message = (
            f"The configuration of {listing.repository} cannot be read, {type(error).__name__}: {error}."
        )
        raise BaseModelError(message) from error
    record = HubRecord(
        {file.path: file.size for file in files},
        {file.path: file.digest for file in files},
        architecture,
        sizes,
    )
    remember(listing.repository, listing.commit, record)


def _count(listing: Listing, path: str) -> int:
    """Numbers in a file of weights on the Hub that are read, by its header."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import SafetensorsParsingError

    with reading_errors(listing.repository):
        try:
            header = HfApi(token=reading_token()).parse_safetensors_file_metadata(
                listing.repository, path, revision=listing.commit
            )
        except SafetensorsParsingError as error:
            raise HubError(f"{path} of {listing.repository} is no safetensors file: {error}") from error
    read = (tensor for name, tensor in header.tensors.items() if not name.startswith(HEAD_PREFIX))
    return sum(tensor.parameter_count for tensor in read)
