"""The Hugging Face Hub: whose a token is, how a LoRA gets there.

A token is only ever an argument: it gets into no file, no log and no message. huggingface_hub takes longer to
import than all else that the light commands need, so it is imported where it is used.
"""

import hashlib
import json
import os
import re
import shutil
import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from dopsd_app.config import TrainConfig
from dopsd_app.errors import KnownFailure
from dopsd_app.files import replace_file
from dopsd_app.hub.model_card import Picture, base_name, make_card, picture_name
from dopsd_app.hub_client import HubError, check_token, hub_errors, status_sentence
from dopsd_app.jobs.lora_file import check_intact, find_lora
from dopsd_app.jobs.runs import LORA_FILE, Run, RunError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

MAX_PICTURES = 5
LONGEST_SIDE = 1024  # pixels, of a published picture
KEPT = "The LoRA file is kept here, and pushing again works."


# --- accounts and names


@dataclass(frozen=True)
class Account:
    """Whom a token belongs to, as the Hub says."""

    name: str
    organisations: dict[str, str]  # by name, the account's role: "read", "contributor", "write" or "admin"
    token_role: str  # "read", "write" or "fineGrained"; empty for a token that signing in gave

    @property
    def may_write(self) -> bool:
        """Whether the token may write at all; where a fine-grained one may, only trying tells."""
        return self.token_role != "read"

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Under which names it can put a model, its own first."""
        return (self.name, *(name for name, role in self.organisations.items() if role != "read"))


def who_is(token: str | None) -> Account:
    """The account behind a token; raises `HubError` when the Hub knows none, or cannot be asked."""
    from huggingface_hub import HfApi

    token = check_token(token)
    with hub_errors("your account", token):
        answer = HfApi(token=token).whoami()
        return Account(
            name=answer["name"],
            organisations={org["name"]: org.get("roleInOrg") or "" for org in answer.get("orgs", ())},
            token_role=answer.get("auth", {}).get("accessToken", {}).get("role", ""),
        )


def pause_space(token: str | None) -> None:
    """Pauses the Space that we run on: this process ends, and nothing more is billed."""
    from huggingface_hub import HfApi

    if not (space := os.environ.get("SPACE_ID")):
        raise HubError("This is not a Space: there is nothing to pause.")
    token = check_token(token)
    with hub_errors(f"the Space {space}", token):
        HfApi(token=token).pause_space(space)


def check_name(name: str) -> None:
    """Raises `HubError` unless this can be a model's name on the Hub: `name`, or `owner/name`."""
    if name.count("/") > 1:
        raise HubError(f"`{name}` has too many slashes: write a name, or owner/name.")
    for part in name.split("/"):
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,96}", part):
            fault = "use 1 to 96 letters (a to z), digits, dots, dashes and underscores"
        elif part[0] in ".-" or part[-1] in ".-":
            fault = "begin and end with a letter or a digit"
        elif "--" in part or ".." in part:
            fault = "write no two dashes or dots in a row"
        elif part.endswith(".git"):
            fault = "leave out the ending .git"
        else:
            continue
        raise HubError(f"`{part[:100]}` cannot be a name on the Hub: {fault}.")


def suggest_name(config: TrainConfig) -> str:
    """A name for the LoRA's repository, from what the person called it."""
    for text in (config.name, config.trigger_word, "my"):
        ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
        if name := re.sub("[^A-Za-z0-9]+", "-", ascii_text).strip("-")[:80].strip("-"):
            break
    return name if name.lower().endswith("lora") else f"{name}-lora"


def _own_repository(account: Account, name: str) -> str:
    """The full name to push to; refused here where it is known that the Hub would refuse."""
    check_name(name)
    owner, _, short = name.rpartition("/")
    if not account.may_write:
        raise HubError("This token may only read: make one on the Hub that may write, and use that.")
    names = {known.casefold(): known for known in (account.name, *account.organisations)}
    known = names.get((owner or account.name).casefold())
    if known is None:
        raise HubError(f"{account.name} is not a member of {owner}: push under your own name.")
    if known not in account.namespaces:
        raise HubError(f"{account.name} may only read in {known}: push under your own name.")
    return f"{known}/{short}"


# --- the push


def push(
    run: Run,
    *,
    token: str | None,
    name: str,
    private: bool = True,
    pictures: Sequence[Picture] = (),
    with_captions: bool = False,
    checkpoint: int | None = None,
) -> str:
    """Publishes a run's LoRA with a model card and returns its link; `name` may begin with an `owner/`.

    `pictures` are up to 5 generated ones; training pictures are never published, and captions only if asked
    for. `checkpoint` is the step of one that is pushed instead of the finished LoRA. Raises `HubError`;
    pushing again then begins anew.
    """
    try:
        lora_file = find_lora(run, checkpoint)
        check_intact(run, lora_file)
    except RunError as error:
        raise HubError(str(error)) from None
    try:
        token = check_token(token)
        with FileLock(run.path / ".publish.lock").acquire(timeout=0):
            repo = _own_repository(who_is(token), name)
            with _staged(run, repo, pictures, with_captions, lora_file) as folder:
                link = _upload(run, folder, repo, private, token)
    except Timeout:
        raise HubError(f"{run.id} is being pushed already: wait for that.") from None
    except KnownFailure as error:
        _log(run, f"push failed: {error} {getattr(error, 'detail', '')}".rstrip())
        raise HubError(f"{error} {KEPT}") from None
    facts = {"link": link, "repo": repo, "private": private, "time": round(time.time())}
    replace_file(_published_file(run), json.dumps(facts))
    _log(run, f"pushed to {link} ({'private' if private else 'public'})")
    return link


def published(run: Run) -> dict | None:
    """Where the run's LoRA was pushed to last: link, repo, private and time (seconds since 1970)."""
    with suppress(FileNotFoundError, ValueError):
        return json.loads(_published_file(run).read_text(encoding="utf-8"))
    return None


def _published_file(run: Run) -> Path:
    return run.path / "published.json"


def _log(run: Run, text: str) -> None:
    with suppress(OSError), run.log_file.open("a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


@contextmanager
def _staged(
    run: Run, repo: str, pictures: Sequence[Picture], with_captions: bool, lora_file: Path
) -> Iterator[Path]:
    """A folder with exactly what is to be on the Hub, for the time of the push."""
    folder = run.path / ".publish"
    shutil.rmtree(folder, ignore_errors=True)  # of a push that was killed
    try:
        try:
            card = make_card(
                run, repo_id=repo, pictures=pictures, with_captions=with_captions, lora_file=lora_file
            )
            card.save(folder / "README.md")
            _link_or_copy(lora_file, folder / LORA_FILE)
            _save_pictures(run, pictures, folder)
            settings = json.dumps(_published_settings(run.config, with_captions), indent=2)
            (folder / "training_config.json").write_text(settings, encoding="utf-8")
        except OSError as error:
            raise HubError(f"What is to be pushed could not be prepared: {error}.") from None
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(source, target)


def _save_pictures(run: Run, pictures: Sequence[Picture], folder: Path) -> None:
    """Writes the pixels of generated pictures, and nothing else that their files hold."""
    from PIL import Image

    from dopsd_app.data.pictures import load_picture

    if len(pictures) > MAX_PICTURES:
        raise HubError(f"At most {MAX_PICTURES} pictures can be published, got {len(pictures)}.")
    (folder / "images").mkdir()
    for number, (path, _) in enumerate(pictures, start=1):
        if path.resolve().is_relative_to(run.dataset.resolve()):
            raise HubError(f"{path.name} is a training picture: these are never published.")
        picture = load_picture(path)
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
        picture.save(folder / picture_name(number), "WEBP", quality=90)


def _published_settings(config: TrainConfig, with_captions: bool) -> dict:
    """The settings without folders of this computer, and without prompts if captions are not asked for."""
    settings = asdict(config) | {"base_model": base_name(config)}
    return settings if with_captions else settings | {"preview_prompts": ()}


def _upload(run: Run, folder: Path, repo: str, private: bool, token: str) -> str:
    """Creates the repository where there is none, uploads the folder and looks whether the LoRA arrived."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi(token=token)  # in every call: never the token of this computer, or of a Space's owner
    lora = folder / LORA_FILE
    with hub_errors(repo, token):
        with suppress(KeyError):  # the answer "it is there already" need not have the link that is looked for
            api.create_repo(repo, private=private, exist_ok=True)
        try:
            before = api.model_info(repo, files_metadata=True)
        except RepositoryNotFoundError:  # it exists, but is nothing that this account can see
            raise HubError(status_sentence(409, repo, {})) from None
        _refuse_another(run, before, repo, private, lora)
        old_pictures = any(file.rfilename.startswith("images/") for file in before.siblings)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message="LoRA trained with D-OPSD",
            delete_patterns="images/*" if old_pictures else None,  # a picture left out now is to be gone
        )
        if not _has_lora(api.model_info(repo, files_metadata=True), lora):
            raise HubError(f"The Hub took the push, but does not show the LoRA file in {repo}: try again.")
        return f"{api.endpoint}/{repo}"


def _refuse_another(run: Run, info: "ModelInfo", repo: str, private: bool, lora: Path) -> None:
    """Refuses a repository of another visibility than asked for, and one that holds something else."""
    if info.private != private:
        is_so, asked = ("private", "public") if info.private else ("public", "private")
        raise HubError(
            f"{repo} is there already and is {is_so}, not {asked}: choose another name, push it as {is_so},"
            " or change it in its settings on the Hub."
        )
    if (published(run) or {}).get("repo") == repo:
        return
    files = {file.rfilename for file in info.siblings if not file.rfilename.startswith("images/")}
    others = files - {"README.md", "training_config.json", ".gitattributes", LORA_FILE}
    if others or (LORA_FILE in files and not _has_lora(info, lora)):
        raise HubError(status_sentence(409, repo, {}))


def _has_lora(info: "ModelInfo", lora: Path) -> bool:
    """Whether the repository holds exactly this LoRA file."""
    with lora.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    found = {file.rfilename: file.lfs for file in info.siblings}.get(LORA_FILE)
    return found is not None and found.sha256 == digest
