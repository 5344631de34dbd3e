"""Whether a base model's files hold what the Hub says they do: every byte is read."""

import hashlib
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from dopsd_app.hub_errors import HubError
from dopsd_app.models.architecture import BaseModelError
from dopsd_app.models.base_download import ask_for_record
from dopsd_app.models.catalog import BaseModelPaths, find_repository
from dopsd_app.models.eyes import CUT_OUT, read_digest
from dopsd_app.models.repository import cache_folder
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

    Raises `BaseModelError` for those that hold something else. In the Hub's cache they are removed, so that
    fetching the model again brings them, and nothing else.
    """
    try:
        known = list(_known_files(name, place))
    except HubError as error:
        return f"What its files should hold could not be asked: {error}"
    if not known:
        return "A folder of your own: its files are whole, and nobody tells what they should hold."
    total, done, damaged = sum(file.path.stat().st_size for file in known), 0, []
    told = 0.0
    for file in known:
        digest = hashlib.sha256()
        if len(file.digest) == 40:
            digest = hashlib.sha1(b"blob %d\0" % file.path.stat().st_size, usedforsecurity=False)
        for piece in file.pieces():
            digest.update(piece)
            done += len(piece)
            if time.monotonic() - told > TOLD_SECONDS:
                told = time.monotonic()
                yield PhaseProgress(HASHING, done, total)
        if digest.hexdigest() != file.digest:
            damaged.append(file.path)
    if damaged:
        raise BaseModelError(_throw_away(name, damaged))
    return (
        f"{words_for_count(len(known), 'file')} read, {words_for_disk(total)}: each holds what the Hub says."
    )


def _known_files(name: str, place: BaseModelPaths) -> Iterator[KnownFile]:
    repository = find_repository(name)
    if repository:
        record = ask_for_record(repository, place.commit)
        for path, digest in record.digests.items():
            if digest:
                yield KnownFile(place.folder / path, digest)
    if place.vision_tower and (digest := read_digest(place.vision_tower)):
        yield KnownFile(place.vision_tower / CUT_OUT, digest)


def _throw_away(name: str, damaged: list[Path]) -> str:
    """Removes damaged files where the Hub has them; the sentence about them."""
    repository = find_repository(name)
    ours = cache_folder(repository) if repository else None
    for path in damaged:
        if (ours and ours in path.parents) or path.name == CUT_OUT:
            path.resolve().unlink(missing_ok=True)  # in the cache, the name is a link to it
            path.unlink(missing_ok=True)
    names = ", ".join(f"{path.parent.name}/{path.name}" for path in damaged[:3])
    more = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
    return (
        f"{names}{more} did not hold what the Hub says: damaged on this disk, or changed by hand."
        f" {'It was' if len(damaged) == 1 else 'They were'} thrown away. Fetch the model again: nothing else"
        " comes."
    )
