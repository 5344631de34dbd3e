"""What writes captions, on this computer: where it lies, and fetching it from the Hub.

The teacher's eyes of Z-Image and klein are those of the larger one: where they were cut out already, they are
used, and only the language model is fetched.
"""

import json
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from dopsd_app.files import replace_file
from dopsd_app.hub_errors import HubError
from dopsd_app.models.architecture import BaseModelError
from dopsd_app.models.base_download import disk_errors
from dopsd_app.models.captioner_facts import Captioner
from dopsd_app.models.download import (
    Order,
    RangesRefusedError,
    Target,
    fetch,
    whole_files,
)
from dopsd_app.models.eyes import (
    CONFIGURATION,
    SHARD_INDEX,
    VISION_TOWERS_FOLDER,
    cut_out,
    find_eyes,
)
from dopsd_app.models.pipeline_folder import (
    SMALL,
    WEIGHTS,
    WEIGHTS_INDEX,
    is_whole,
    read_weight_map,
    weight_files,
)
from dopsd_app.models.repository import (
    Listing,
    RemoteFile,
    assets_folder,
    find_snapshots,
    link_files,
    list_files,
)
from dopsd_app.progress import DownloadProgress
from dopsd_app.schema import check_folder, claim_folder

LANGUAGE_MODELS_FOLDER = "language_models"  # where cut out ones lie: a folder for each commit
LANGUAGE_PREFIX = "model.language_model."  # of the tensors that write, in a vision-language model
SCHEMA = 1  # of a folder of a cut out language model
CONFIG = CONFIGURATION[0]
NEEDED = (CONFIG, "tokenizer_config.json", "tokenizer.json")


@dataclass(frozen=True)
class CaptionerPaths:
    """Where all of it lies on this computer."""

    folder: Path  # its configuration, its tokenizer and its language model
    eyes: Path  # its vision tower; the same folder, where that holds all


def find_captioner(captioner: Captioner) -> CaptionerPaths | None:
    """Where it lies; None while something of it has still to be fetched.

    Raises `BaseModelError` for what a later version of the program cut out.
    """
    for folder in find_snapshots(captioner.repository, CONFIG):
        if _is_all_there(folder, *CONFIGURATION):
            return CaptionerPaths(folder, folder)
    if eyes := _cut_out_eyes(captioner):
        folder = _language_folder(captioner.repository, eyes.name)
        if folder.is_dir() and _is_all_there(folder):
            check_folder(folder, SCHEMA, f"The folder {folder}", BaseModelError)
            return CaptionerPaths(folder, eyes)
    return None


def _is_all_there(folder: Path, *more: str) -> bool:
    if not all(is_whole(folder / name) for name in (*NEEDED, *more)):
        return False
    try:
        weights = weight_files(folder)
    except BaseModelError:  # an index that is damaged: fetching repairs it
        return False
    return bool(weights) and all(map(is_whole, weights))


def _cut_out_eyes(captioner: Captioner) -> Path | None:
    """The folder of its eyes, where they were cut out for a teacher."""
    eyes = find_eyes(captioner.repository)
    return eyes if eyes and eyes.parent == assets_folder(VISION_TOWERS_FOLDER, captioner.repository) else None


def _language_folder(repository: str, commit: str) -> Path:
    return assets_folder(LANGUAGE_MODELS_FOLDER, repository) / commit


def lacking_bytes(captioner: Captioner) -> int:
    """What is still to be fetched, about and at the most: 0 where all is here. The Hub is not asked."""
    if find_captioner(captioner):
        return 0
    return captioner.stored_bytes - (2 * captioner.eyes if _cut_out_eyes(captioner) else 0)


def fetch_captioner(captioner: Captioner) -> Generator[DownloadProgress]:
    """Fetches what is not here; nothing happens where all of it is.

    Raises `HubError` with one sentence; what came is kept, and the next call goes on.
    """
    if find_captioner(captioner):
        return
    with disk_errors():
        yield from fetch(lambda: [order_captioner(captioner)], captioner.label)
    if not find_captioner(captioner):
        raise HubError(f"{captioner.repository} itself is incomplete: it cannot write captions.")


def order_captioner(captioner: Captioner) -> Order:
    """What is to be fetched, as the Hub has it now; raises `HubError`."""
    if eyes := _cut_out_eyes(captioner):
        try:
            # Of the commit that the eyes are of: what belongs together was trained together.
            return _order_language_model(list_files(captioner.repository, eyes.name))
        except RangesRefusedError:
            pass
    listing = list_files(captioner.repository)
    files = [file for file in listing.files if _is_needed(file)]
    if missing := sorted({*NEEDED, *CONFIGURATION} - {file.path for file in files}):
        raise HubError(f"{captioner.repository} has no {missing[0]}: it cannot write captions.")
    return whole_files(listing, "", files)


def _is_needed(file: RemoteFile) -> bool:
    return bool(WEIGHTS.fullmatch(file.path)) or _is_small(file)


def _is_small(file: RemoteFile) -> bool:
    return "/" not in file.path and file.path.endswith(SMALL)


def _order_language_model(listing: Listing) -> Order:
    """The order for all but the eyes: of each file of weights, the tensors that write."""
    small = [file.path for file in listing.files if _is_small(file)]
    snapshot = link_files(listing.repository, listing.commit, small)
    weights = read_weight_map(snapshot / SHARD_INDEX)
    writing = {name: file for name, file in weights.items() if name.startswith(LANGUAGE_PREFIX)}
    folder = _language_folder(listing.repository, listing.commit)
    targets: list[Target] = []
    for file in listing.files:
        if file.path in writing.values():
            path = folder / file.path
            targets.append(cut_out(listing, [file], path, lambda name: name.startswith(LANGUAGE_PREFIX)))
    claim_folder(folder, SCHEMA, f"The folder {folder}", BaseModelError)
    for name in small:
        if not WEIGHTS_INDEX.fullmatch(name):
            replace_file(folder / name, (snapshot / name).read_bytes())
    replace_file(folder / SHARD_INDEX, json.dumps({"weight_map": writing}))
    return Order(tuple(targets))
