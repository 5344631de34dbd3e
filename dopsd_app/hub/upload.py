"""The upload of a folder with a LoRA to a repository on the Hub, which may lose its answer on the way."""

import hashlib
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dopsd_app.hub.client import pushing_errors
from dopsd_app.hub_errors import HubError, status_sentence
from dopsd_app.jobs.runs import LORA_FILE
from dopsd_app.progress import PhaseProgress

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.hf_api import ModelInfo

UPLOAD_STEPS = 2  # the repository is there, the LoRA file is sent; what is left is the commit
VERIFY_DELAYS = (0.0, 2.0, 5.0)  # seconds before each request for what was committed

Digests = dict[str, set[str]]  # by a file's place in the repository, what the Hub may call its content


def upload(
    folder: Path,
    repo: str,
    *,
    private: bool,
    ours: bool,
    token: str,
    message: str,
    progress: Iterator[PhaseProgress],
) -> Generator[PhaseProgress, None, str]:
    """Creates the repository where there is none, uploads the folder and verifies that it arrived.

    `ours` says that it was pushed to before, so that it may hold another LoRA. UPLOAD_STEPS of `progress` are
    yielded, and one for each picture. Returns the link; raises `HubError`.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(token=token)  # in every call: never the token of this computer, or of a Space's owner
    with pushing_errors(repo, token):
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        additions = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in paths]
        digests = {addition.path_in_repo: _digests(addition) for addition in additions}
        before = _created(api, repo, private)
        _check_visibility(before, repo, private)
        if not ours:
            _refuse_another(before, repo, digests[LORA_FILE])
        yield next(progress)
        for addition in additions:
            if addition.path_in_repo == LORA_FILE or addition.path_in_repo.startswith("images/"):
                api.preupload_lfs_files(repo, [addition])
                yield next(progress)
    # A picture left out now is to be gone.
    deletions = [CommitOperationDelete(path) for path in _pictures_in(before) if path not in digests]
    _commit(api, token, repo, [*additions, *deletions], message, digests)
    return f"{api.endpoint}/{repo}"


def _created(api: "HfApi", repo: str, private: bool) -> "ModelInfo":
    """What is in the repository, which is there from now on."""
    from huggingface_hub.errors import RepositoryNotFoundError

    with suppress(KeyError):  # the answer "it is there already" need not have the link that is looked for
        api.create_repo(repo, private=private, exist_ok=True)
    try:
        return api.model_info(repo, files_metadata=True)
    except RepositoryNotFoundError:  # it exists, but is nothing that this account can see
        raise HubError(status_sentence(409, repo, {})) from None


def _commit(api: "HfApi", token: str, repo: str, operations: list, message: str, digests: Digests) -> None:
    """Makes a commit of what was uploaded, and verifies that it is there: also where its answer was lost."""

    def is_all_there(info: "ModelInfo") -> bool:
        return _holds(info, digests) and set(_pictures_in(info)) <= digests.keys()

    def has_lora(info: "ModelInfo") -> bool:
        return _holds(info, {LORA_FILE: digests[LORA_FILE]})

    try:
        with pushing_errors(repo, token):
            api.create_commit(repo, operations, commit_message=message)
    except HubError as error:
        there = error.transient and _verify(api, token, repo, is_all_there)
        if there is None:
            error.args = (f"{error} It may have arrived all the same: see {api.endpoint}/{repo}.",)
        if not there:
            raise
    else:
        if _verify(api, token, repo, has_lora) is False:
            raise HubError(f"The Hub took the push, but does not show the LoRA file in {repo}: try again.")


def _verify(api: "HfApi", token: str, repo: str, holds: Callable[["ModelInfo"], bool]) -> bool | None:
    """Whether the repository holds what it should, soon; None where the Hub does not say."""
    found = None
    for seconds in VERIFY_DELAYS:
        time.sleep(seconds)
        with suppress(HubError), pushing_errors(repo, token):
            if found := holds(api.model_info(repo, files_metadata=True)):
                break
    return found


def _check_visibility(info: "ModelInfo", repo: str, private: bool) -> None:
    """Refuses a repository of another visibility than asked for."""
    if info.private != private:
        is_so, asked = ("private", "public") if info.private else ("public", "private")
        raise HubError(
            f"{repo} is there already and is {is_so}, not {asked}: choose another name, push it as {is_so},"
            " or change it in its settings on the Hub."
        )


def _refuse_another(info: "ModelInfo", repo: str, lora: set[str]) -> None:
    """Refuses a repository that holds something else."""
    files = {file.rfilename for file in info.siblings or ()} - set(_pictures_in(info))
    others = files - {"README.md", "training_config.json", ".gitattributes", LORA_FILE}
    if others or (LORA_FILE in files and not _holds(info, {LORA_FILE: lora})):
        raise HubError(status_sentence(409, repo, {}))


def _pictures_in(info: "ModelInfo") -> list[str]:
    return [file.rfilename for file in info.siblings or () if file.rfilename.startswith("images/")]


def _holds(info: "ModelInfo", digests: Digests) -> bool:
    """Whether the repository holds exactly these files, whatever else it holds."""
    found = {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id for file in info.siblings or ()}
    return all(found.get(path) in known for path, known in digests.items())


def _digests(addition: "CommitOperationAdd") -> set[str]:
    """What the Hub may call this content: by its sha256 where it takes it for a large file, or as git."""
    sha256 = addition.upload_info.sha256.hex()
    if addition.path_in_repo == LORA_FILE:  # always a large one
        return {sha256}
    with addition.as_file() as file:
        content = file.read()
    return {sha256, hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}
