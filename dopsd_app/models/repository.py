"""What lies in a repository on the Hub, and which of its files are on this computer.

Files lie in the Hub's own cache (`HF_HOME`), where other programs find them, and we theirs.
"""

import glob
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dopsd_app.files import replace_file
from dopsd_app.hub_errors import reading_errors, reading_token

ASK_SECONDS = 10  # of silence, when the Hub is asked for a list


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository."""

    path: str
    size: int  # bytes
    sha256: str  # of a large one, by which the cache names it too; "" for one that git itself keeps
    git_name: str = ""  # of one that git itself keeps: the sha1 of its length and its bytes

    @property
    def digest(self) -> str:
        """What the Hub says of its bytes: 64 digits of sha256, or 40 of git's name."""
        return self.sha256 or self.git_name


@dataclass(frozen=True)
class Listing:
    """A repository at one commit."""

    repository: str
    commit: str
    files: tuple[RemoteFile, ...]


def is_repository(name: str) -> bool:
    """Whether a name can be a repository's, `owner/name`; a folder of this name goes first."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
        return name.count("/") == 1 and not Path(name).exists()
    except (HFValidationError, OSError):  # OSError: longer than any name of a file
        return False


def list_files(repository: str, revision: str = "") -> Listing:
    """What the Hub has at a revision (a branch, a tag or a commit; "": main); raises `HubError`."""
    from huggingface_hub import HfApi

    with reading_errors(repository):
        api = HfApi(token=reading_token())
        info = api.model_info(repository, revision=revision or None, files_metadata=True, timeout=ASK_SECONDS)
        files = (
            RemoteFile(
                file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else "", file.blob_id or ""
            )
            for file in info.siblings or ()
        )
        assert info.sha is not None  # as only where other facts alone are asked for
        return Listing(repository, info.sha, tuple(file for file in files if _is_plain(file)))


def _is_plain(file: RemoteFile) -> bool:
    """Whether a file may be written where its names say: what is no Hub could name other places."""
    inside = not PurePosixPath(file.path).is_absolute() and ".." not in re.split(r"[\\/]", file.path)
    return inside and bool(re.fullmatch("[0-9a-f]{64}|", file.sha256))


def find_snapshots(repository: str, file: str, revision: str = "") -> list[Path]:
    """The folders in the Hub's cache that have this file of a repository, the best first.

    A folder's name is the commit; other files of it may be missing. Without a revision that is asked for,
    older commits are as good: another program may have made a newer one known and fetched little of it.
    """
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file, revision=revision or None)
    folders = [Path(found).parents[file.count("/")]] if isinstance(found, str) else []
    if revision:
        return folders
    known = (cache_folder(repository) / "snapshots").glob(f"*/{file}")
    others = sorted(
        {path.parents[file.count("/")] for path in known} - set(folders), key=_changed, reverse=True
    )
    return folders + others


def find_snapshot(repository: str, file: str, revision: str = "") -> Path | None:
    """The first of `find_snapshots`; None where there is none."""
    return next(iter(find_snapshots(repository, file, revision)), None)


def _changed(path: Path) -> float:
    return path.stat().st_mtime


def cache_folder(repository: str) -> Path:
    """The folder of a repository in the Hub's cache, named as its documentation says."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def assets_folder(kind: str, repository: str) -> Path:
    """Where we keep what we made of a repository: a folder of the Hub's cache that is meant for that."""
    from huggingface_hub import constants

    return Path(constants.HF_ASSETS_CACHE) / "dopsd" / kind / repository.replace("/", "--")


def keep_revision(repository: str, revision: str, commit: str) -> None:
    """Keeps which commit a branch or tag was, as the client does: so it is found without network."""
    from huggingface_hub import constants

    if (revision := revision or constants.DEFAULT_REVISION) == commit:
        return
    file = cache_folder(repository) / "refs" / revision
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, commit)


def link_files(repository: str, commit: str, paths: list[str]) -> Path:
    """Has the Hub's client put these files into its cache's folder of the commit, which is returned.

    What lies in the cache already, under its content's name, is only linked; small files are fetched.
    """
    from huggingface_hub import logging, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    logging.set_verbosity_error()  # whatever matters raises an exception
    with reading_errors(repository):
        folder = snapshot_download(
            repository,
            revision=commit,
            allow_patterns=[*map(glob.escape, paths)],
            token=reading_token(),
        )
        return Path(folder)
