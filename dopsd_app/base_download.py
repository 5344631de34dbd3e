"""Base models from the Hub: what one holds, and fetching what is missing here. No torch here."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dopsd_app.catalog import (
    QWEN3_VL,
    check_base_model,
    find_base_model,
    find_repository,
    has_pipeline,
    is_fetched,
    recall_sizes,
    remember_sizes,
)
from dopsd_app.download import Order, check_disk, fetch, missing_bytes, whole_files
from dopsd_app.events import DownloadProgress
from dopsd_app.eyes import find_eyes, order_eyes
from dopsd_app.hub_client import reading_errors, reading_token
from dopsd_app.pipeline_folder import (
    INDEX,
    README,
    WEIGHTS,
    WITH_WEIGHTS,
    BaseModelError,
    choose_files,
    read_parts,
)
from dopsd_app.repository import Listing, RemoteFile, link_files, list_files
from dopsd_app.sizes import make_sizes

EYES_PARAMETERS = 415_347_712  # of Qwen3-VL-4B's vision tower and mergers
EYES_PATCH = {"patch_size": 16, "merge_size": 2}


@dataclass(frozen=True)
class Offer:
    """What the Hub has of a base model that is not here, or not all of it."""

    size: int  # bytes of all that is needed, the teacher's eyes included
    missing: int  # bytes that are still to come
    folder: Path  # whose disk takes most of them


def fetch_base_model(name: str, revision: str = "") -> Iterator[DownloadProgress]:
    """Fetches what a base model still lacks on this computer; nothing happens where all is there.

    Raises `HubError` or `BaseModelError` with one sentence; what came is kept, and the next call goes on.
    """
    if not needs_fetching(name, revision):
        return
    yield from fetch(lambda: order_base_model(name, revision), find_repository(name) or "The teacher's eyes")
    find_base_model(name, revision)


def needs_fetching(name: str, revision: str = "") -> bool:
    """Whether something has to come from the Hub; `BaseModelError` for a folder that is no base model."""
    check_base_model(name)
    return not is_fetched(name, revision)


def order_base_model(name: str, revision: str = "") -> list[Order]:
    """What is to be fetched of a base model, as the Hub has it now; raises `HubError` or `BaseModelError`."""
    orders = []
    repository = find_repository(name)
    if repository and not has_pipeline(name, revision):
        listing = list_files(repository, revision)
        files = _needed(listing, revision)
        _remember(listing, files)
        orders.append(whole_files(listing, revision, files))
    if find_eyes(QWEN3_VL) is None:
        orders.append(order_eyes(list_files(QWEN3_VL)))
    return orders


def ask_hub(name: str, revision: str = "") -> Offer:
    """What the Hub has of a base model, after a look whether it can be used and fits on the disk.

    Raises `HubError` or `BaseModelError`. What it tells of the model is remembered: `find_facts` finds it.
    """
    targets = [target for order in order_base_model(name, revision) for target in order.targets]
    missing = missing_bytes(targets)
    check_disk(targets, find_repository(name) or "The teacher's eyes")
    folder = max(missing, key=missing.get, default=Path())
    return Offer(sum(target.size for target in targets), sum(missing.values()), folder)


def _needed(listing: Listing, revision: str) -> list[RemoteFile]:
    """The files that the pipeline is loaded from; `BaseModelError` for a repository that is none."""
    paths = {file.path for file in listing.files}
    if INDEX not in paths:
        raise BaseModelError(f"{listing.repository} is no pipeline of diffusers: it has no {INDEX}.")
    folder = link_files(listing.repository, revision, sorted(paths & {INDEX, README}))
    parts = read_parts(folder / INDEX, listing.repository)
    chosen = set(choose_files(paths, parts))
    for part in set(parts) & set(WITH_WEIGHTS):
        if not any(path.startswith(f"{part}/") and path.endswith(".safetensors") for path in chosen):
            raise BaseModelError(
                f"{listing.repository} has no safetensors file for its {part}. Only that format is read."
            )
    return [file for file in listing.files if file.path in chosen]


def _remember(listing: Listing, files: list[RemoteFile]) -> None:
    """Keeps how large the model is, by its configurations and the headers of its weights."""
    if recall_sizes(listing.repository, listing.commit):
        return
    configurations = [f"{part}/config.json" for part in ("transformer", "vae")]
    folder = link_files(listing.repository, listing.commit, configurations)
    transformer, decoder = (json.loads((folder / path).read_bytes()) for path in configurations)
    weights = [file.path for file in files if WEIGHTS.fullmatch(file.path.rpartition("/")[2])]
    with ThreadPoolExecutor(max_workers=len(weights)) as pool:
        counts = dict(zip(weights, pool.map(lambda path: _count(listing, path), weights), strict=True))

    def parameters(part: str) -> int:
        return sum(count for path, count in counts.items() if path.startswith(f"{part}/"))

    try:
        sizes = make_sizes(
            transformer=transformer,
            decoder=decoder,
            eyes=EYES_PATCH,
            parameters=parameters("transformer"),
            encoder_parameters=parameters("text_encoder") + EYES_PARAMETERS,
            decoder_parameters=parameters("vae"),
            stored_bytes=sum(file.size for file in files),
        )
    except KeyError as error:
        raise BaseModelError(f"{listing.repository} has a configuration that lacks {error}.") from error
    remember_sizes(listing.repository, listing.commit, sizes)


def _count(listing: Listing, path: str) -> int:
    """Numbers in a file of weights on the Hub, by its header."""
    from huggingface_hub import HfApi

    with reading_errors(listing.repository):
        header = HfApi(token=reading_token()).parse_safetensors_file_metadata(
            listing.repository, path, revision=listing.commit
        )
    return sum(header.parameter_count.values())
