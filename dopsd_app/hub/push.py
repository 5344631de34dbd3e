"""How a LoRA gets to the Hugging Face Hub.

A token is only ever an argument: it gets into no file, no log and no message. huggingface_hub takes longer to
import than all else that the light commands need, so it is imported where it is used.
"""

import json
import os
import shutil
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from dopsd_app.config import OBJECTIVES, TrainConfig
from dopsd_app.errors import KnownFailure
from dopsd_app.files import read_value, replace_file
from dopsd_app.hub.account import own_repository, who_is
from dopsd_app.hub.card_pictures import MAX_PICTURES, card_pictures
from dopsd_app.hub.model_card import CardPicture, make_card, picture_name
from dopsd_app.hub.publication import Publication, Published, checkpoint_to_publish
from dopsd_app.hub.upload import UPLOAD_STEPS, upload
from dopsd_app.hub_errors import HubError, check_token
from dopsd_app.jobs.job import RunError
from dopsd_app.jobs.lora_file import check_intact, find_lora
from dopsd_app.jobs.runs import LORA_FILE, Run
from dopsd_app.models.catalog import public_name
from dopsd_app.progress import PhaseProgress

LONGEST_SIDE = 1024  # pixels, of a published picture
PUSH_STEPS = 1 + UPLOAD_STEPS + 1  # of a push; each picture is one more, and the last is `Published`
LORA_KEPT = "The LoRA file is kept here, and pushing again works."
DELETED = "The run was deleted during its push, and its LoRA file with it"


class PushRunningError(HubError):
    """Another push of the same run is at work."""


def push(run: Run, publication: Publication, token: str | None) -> Iterator[PhaseProgress | Published]:
    """Publishes a run's LoRA with a model card: tells how far it is, and in the end where it is.

    The card has the generated pictures that were chosen for the run; training pictures are never published,
    and captions only if asked for. Raises `HubError`; pushing again then begins anew.
    """
    pictures = card_pictures(run)
    total = PUSH_STEPS + len(pictures)
    progress = (PhaseProgress("publishing", done, total) for done in count())
    yield next(progress)
    yield Published((yield from _push(run, publication, pictures, token, progress)))


def _push(
    run: Run,
    publication: Publication,
    pictures: Sequence[CardPicture],
    token: str | None,
    progress: Iterator[PhaseProgress],
) -> Generator[PhaseProgress, None, str]:
    private = publication.private
    try:
        lora_file = find_lora(run, checkpoint_to_publish(run, publication))
        check_intact(run, lora_file)
    except RunError as error:
        raise HubError(str(error)) from None
    try:
        token = check_token(token)
        with FileLock(run.path / ".publish.lock").acquire(timeout=0):
            repo = own_repository(who_is(token), publication.name)
            yield next(progress)
            with _staged(run, repo, pictures, publication.with_captions, lora_file) as folder:
                ours = (before := published(run)) is not None and before.repo == repo
                link = yield from upload(
                    folder,
                    repo,
                    private=private,
                    ours=ours,
                    token=token,
                    progress=progress,
                    message=f"LoRA trained with {OBJECTIVES[run.config.objective].name}",
                )
    except Timeout:
        raise PushRunningError(f"{run.id} is being pushed already: wait for that.") from None
    except KnownFailure as error:
        _log(run, f"push failed: {error} {getattr(error, 'detail', '')}".rstrip())
        if not run.path.is_dir():
            raise HubError(f"{DELETED}: see on the Hub whether it arrived there.") from None
        raise HubError(f"{error} {LORA_KEPT}") from None
    facts = Place(link, repo, private, round(time.time()))
    with suppress(FileNotFoundError):  # deleted meanwhile: it is published all the same
        replace_file(_published_file(run), json.dumps(asdict(facts)))
    _log(run, f"pushed to {link} ({'private' if private else 'public'})")
    return link


@dataclass(frozen=True)
class Place:
    """Where a LoRA was pushed to."""

    link: str
    repo: str
    private: bool
    time: int  # seconds since 1970


def published(run: Run) -> Place | None:
    """Where the run's LoRA was pushed to last; None where it was not, or nobody can read where."""
    with suppress(OSError, ValueError):
        return read_value(Place, _published_file(run).read_bytes())
    return None


def _published_file(run: Run) -> Path:
    return run.path / "published.json"


def _log(run: Run, text: str) -> None:
    with suppress(OSError), run.log_file.open("a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


@contextmanager
def _staged(
    run: Run, repo: str, pictures: Sequence[CardPicture], with_captions: bool, lora_file: Path
) -> Generator[Path]:
    """A folder with exactly what is to be on the Hub, for the time of the push."""
    folder = run.path / ".publish"
    shutil.rmtree(folder, ignore_errors=True)  # of a push that was killed
    try:
        try:
            folder.mkdir()
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


def _save_pictures(run: Run, pictures: Sequence[CardPicture], folder: Path) -> None:
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
    """The settings without what is of this computer, and without prompts if captions are not asked for."""
    settings = asdict(config) | {"base_model": public_name(config.base_model), "card": ""}
    return settings if with_captions else settings | {"preview_prompts": ()}
