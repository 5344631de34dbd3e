"""The teacher's eyes: of a vision-language model on the Hub, only the tensors that see.

Of Qwen3-VL-4B's 8.9 GB these are 0.83: the index says which files hold them, the files' headers where they
lie. They are kept in one file, under their own names, beside the model's configuration.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from dopsd_app.files import replace_file
from dopsd_app.hub_errors import HubError
from dopsd_app.models.architecture import BaseModelError
from dopsd_app.models.download import Order, RangesRefusedError, Source, Target, open_range, whole_files
from dopsd_app.models.pipeline_folder import EYES_PREFIX, LONGEST_HEADER, is_whole, read_weight_map
from dopsd_app.models.repository import Listing, RemoteFile, assets_folder, find_snapshots, link_files
from dopsd_app.schema import check_folder, claim_folder

SHARD_INDEX = "model.safetensors.index.json"
VISION_TOWERS_FOLDER = "vision_towers"  # where cut out eyes lie: a folder for each commit
SCHEMA = 1  # of a folder of cut out eyes
CUT_OUT = "model.safetensors"
DIGEST = (
    f"{CUT_OUT}.sha256"  # beside it: of its bytes as they came, for the Hub knows that of whole files only
)
CONFIGURATION = ("config.json", "preprocessor_config.json")


def find_eyes(repository: str) -> Path | None:
    """The folder with the eyes of this repository: cut out, or the whole of it in the Hub's cache.

    Raises `BaseModelError` for those that a later version of the program cut out.
    """
    folders = assets_folder(VISION_TOWERS_FOLDER, repository).glob("*")
    kept = [folder for folder in folders if _all_there(folder, (CUT_OUT, *CONFIGURATION))]
    if kept:
        newest = max(kept, key=lambda folder: folder.stat().st_mtime)
        check_folder(newest, SCHEMA, f"The folder {newest}", BaseModelError)
        return newest
    whole = find_snapshots(repository, SHARD_INDEX)
    return next((folder for folder in whole if _all_there(folder, (*CONFIGURATION, *_shards(folder)))), None)


def _all_there(folder: Path, names: Iterable[str]) -> bool:
    return all(is_whole(folder / name) for name in names)


def _shards(folder: Path) -> list[str]:
    """The files that hold tensors that see, by the index in a folder."""
    weights = read_weight_map(folder / SHARD_INDEX)
    return sorted({file for name, file in weights.items() if name.startswith(EYES_PREFIX)})


def order_eyes(listing: Listing) -> Order:
    """The order for the eyes of a repository; where the Hub sends no parts of files, for whole ones.

    Reads the index and the headers of the files. Raises `HubError`.
    """
    small = [file.path for file in listing.files if file.path in (SHARD_INDEX, *CONFIGURATION)]
    if missing := sorted({SHARD_INDEX, *CONFIGURATION} - set(small)):
        raise HubError(f"{listing.repository} has no {missing[0]}: it is no vision-language model in parts.")
    folder = link_files(listing.repository, listing.commit, small)
    seeing = _shards(folder)
    files = [file for file in listing.files if file.path in seeing]
    path = assets_folder(VISION_TOWERS_FOLDER, listing.repository) / listing.commit / CUT_OUT
    try:
        target = cut_out(listing, files, path, lambda name: name.startswith(EYES_PREFIX))
    except RangesRefusedError:
        every = [*files, *(file for file in listing.files if file.path in small)]
        return whole_files(listing, "", every)
    # Before the weights, which alone say that all is there.
    claim_folder(target.path.parent, SCHEMA, f"The folder {target.path.parent}", BaseModelError)
    for name in CONFIGURATION:
        replace_file(target.path.parent / name, (folder / name).read_bytes())
    return Order((target,), lambda: _keep_digest(target.path))


def _keep_digest(file: Path) -> None:
    with file.open("rb") as opened:
        replace_file(file.with_name(DIGEST), hashlib.file_digest(opened, "sha256").hexdigest())


def read_digest(folder: Path) -> str:
    """The sha256 of cut out eyes as they came; empty for others, and for those of earlier versions."""
    try:
        return (folder / DIGEST).read_text()
    except OSError:
        return ""


def cut_out(listing: Listing, files: list[RemoteFile], path: Path, wanted: Callable[[str], bool]) -> Target:
    """One file with the tensors that are wanted by their names, of parts of these files.

    Reads their headers. Raises `HubError`, and `RangesRefusedError` where whole files alone are sent.
    """
    header: dict[str, dict] = {"__metadata__": {"of": f"{listing.repository} {listing.commit}"}}
    sources: list[Source] = []
    size = 0
    for file in files:
        url = _url(listing, file)
        for name, facts, start, end in _tensors(url, file, wanted):
            header[name] = {**facts, "data_offsets": [size, size + end - start]}
            size += end - start
            if sources and sources[-1].url == url and sources[-1].end == start:
                sources[-1] = Source(url, sources[-1].start, end)
            else:
                sources.append(Source(url, start, end))
    if not sources:
        raise HubError(f"{listing.repository} has none of the tensors that are wanted: it is another model.")
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
    head = len(text).to_bytes(8, "little") + text
    lock = path.with_name(f"{path.name}.lock")
    return Target(path, lock, len(head) + size, tuple(sources), head=head, whole=False)


def _url(listing: Listing, file: RemoteFile) -> str:
    from huggingface_hub import hf_hub_url

    return hf_hub_url(listing.repository, file.path, revision=listing.commit)


def _tensors(
    url: str, file: RemoteFile, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, dict, int, int]]:
    """Of each wanted tensor, in a file's order: name, type and shape, first byte and the one behind."""
    length = int.from_bytes(_read(url, 0, 8), "little")
    if not 0 < length <= min(LONGEST_HEADER, file.size):
        raise HubError(f"{file.path} on the Hub is no safetensors file.")
    try:
        header = json.loads(_read(url, 8, 8 + length))
        chosen = {name: facts for name, facts in header.items() if wanted(name)}
        for name, facts in sorted(chosen.items(), key=lambda item: item[1]["data_offsets"]):
            start, end = (8 + length + offset for offset in facts["data_offsets"])
            if not 8 + length <= start <= end <= file.size:
                raise ValueError("outside the file")
            yield name, {"dtype": facts["dtype"], "shape": facts["shape"]}, start, end
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, HubError):
            raise
        raise HubError(f"The header of {file.path} on the Hub cannot be read: {error}.") from error


def _read(url: str, start: int, end: int) -> bytes:
    with open_range(url, start, end) as response:
        return response.read()
