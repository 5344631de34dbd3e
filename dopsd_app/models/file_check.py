"""Whether a base model's files hold what the Hub says they do: every byte is read."""

import hashlib
import re
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from dopsd_app.hub_errors import HubError
from dopsd_app.models.architecture import BaseModelError
from dopsd_app.models.base_download import ask_for_record
from dopsd_app.models.catalog import CATALOG, BaseModelPaths, find_repository
from dopsd_app.models.eyes import CUT_OUT, VISION_TOWERS_FOLDER, read_digest
from dopsd_app.models.pipeline_folder import ELSEWHERE, read_elsewhere
from dopsd_app.models.repository import assets_folder
from dopsd_app.progress import PhaseProgress, words_for_count, words_for_disk

PIECE = 1 << 24  # bytes that are read at once
TOLD_SECONDS = 0.5  # between two progresses
HASHING = "hashing"  # the phase; its progress is in bytes


@dataclass(frozen=True)
class KnownFile:
    """A file, and what it should hold."""

    path: Path
    digest: str  # 64 digits of sha256, or 40 of git's name

    def pieces(self) -> Iterator[bytes]:
        """Its bytes."""
        with self.path.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece


def check_files(name: str, place: BaseModelPaths) -> Generator[PhaseProgress, None, str]:
    """Reads all files of a base model of which somebody knows what they should hold; returns what was found.

    Raises `BaseModelError` for those that hold something else. What the Hub sent is then removed, so that
    fetching the model again brings it, and nothing else; a person's own files are left alone.
    """
    try:
        known = list(_known_files(name, place))
    except HubError:  # its words may name a repository that nobody else knows
        return "The Hub could not be asked what the files should hold: they are whole, and were not compared."
    if missing := [file.path for file in known if not file.path.is_file()]:
        raise BaseModelError(f"The model lacks {_list(missing)}. Fetch it again: nothing else comes.")
    total, done, damaged = sum(file.path.stat().st_size for file in known), 0, []
    told = 0.0
    for file in known:
        digest = hashlib.sha256()
        if len(file.digest) == 40:
            digest = hashlib.sha1(b"blob %d\0" % file.path.stat().st_size, usedforsecurity=False)
        try:
            for piece in file.pieces():
                digest.update(piece)
                done += len(piece)
                if time.monotonic() - told > TOLD_SECONDS:
                    told = time.monotonic()
                    yield PhaseProgress(HASHING, done, total)
        except OSError:  # the disk cannot read it any more
            damaged.append(file.path)
            continue
        if digest.hexdigest() != file.digest:
            damaged.append(file.path)
    if damaged:
        raise BaseModelError(_throw_away(damaged))
    own = "" if find_repository(name) else " The others are your own: nobody tells what they should hold."
    if not known and name in CATALOG:
        return "All files are whole: they come with the program."
    if not known:
        return "All files are whole. They are your own: nobody tells what they should hold."
    counted = words_for_count(len(known), "file")
    return f"{counted} of the Hub's read, {words_for_disk(total)}: each holds what the Hub says.{own}"


def _known_files(name: str, place: BaseModelPaths) -> Iterator[KnownFile]:
    if repository := find_repository(name):
        record = ask_for_record(repository, place.commit)
        for path, digest in record.digests.items():
            if digest:
                yield KnownFile(place.folder / path, digest)
    else:
        yield from _linked_files(place.folder)
    if place.vision_tower and _of_the_hub(place.vision_tower) and (digest := read_digest(place.vision_tower)):
        yield KnownFile(place.vision_tower / CUT_OUT, digest)


def _linked_files(folder: Path) -> Iterator[KnownFile]:
    """Those of the weights beside a single file that lie in the Hub's cache, where names are digests."""
    for part in folder.glob(f"*/{ELSEWHERE}"):
        for file in read_elsewhere(part.parent):
            digest = file.resolve().name
            if _of_the_hub(file) and re.fullmatch("[0-9a-f]{64}", digest):
                yield KnownFile(file, digest)


def _of_the_hub(path: Path) -> bool:
    """Whether a file lies where only what the Hub sent is kept, and may go."""
    from huggingface_hub import constants

    resolved = path.resolve()
    ours = (Path(constants.HF_HUB_CACHE), assets_folder(VISION_TOWERS_FOLDER, "").parent)
    return any(resolved.is_relative_to(folder.resolve()) for folder in ours)


def _list(paths: list[Path]) -> str:
    names = ", ".join(f"{path.parent.name}/{path.name}" for path in paths[:3])
    return names + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def _throw_away(damaged: list[Path]) -> str:
    """Removes damaged files that the Hub has; the sentence about them."""
    removed = [path for path in damaged if _of_the_hub(path)]
    for path in removed:
        path.resolve().unlink(missing_ok=True)  # in the cache, the name is a link to it
        path.unlink(missing_ok=True)
    found = f"{_list(damaged)} did not hold what the Hub says: damaged on this disk, or changed by hand."
    if not removed:
        return f"{found} They are files of your own: put them right, or take the model from the Hub."
    went = "It was" if len(removed) == 1 else "They were"
    return f"{found} {went} thrown away. Fetch the model again: nothing else comes."
