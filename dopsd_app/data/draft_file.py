"""The draft.json of a draft: one typed value, changed under a lock, for several tabs may write it."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from dopsd_app.config import DEFAULT_PRESET, SUBJECT, without_gone
from dopsd_app.data.crops import MIDDLE
from dopsd_app.errors import KnownFailure
from dopsd_app.files import make_value, replace_file, retry
from dopsd_app.schema import check_schema, stamp, without_stamp

SCHEMA = 3  # of draft.json; in form 1, pictures have no sources, and in form 2 no crops


class DraftError(KnownFailure):
    """Something that cannot be done with a draft as it stands."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A picture to start from, of a picture of a draft."""

    key: str  # ours: names its files
    name: str  # the person's file name
    size: tuple[int, int]  # width and height in pixels
    remarks: tuple[str, ...] = ()  # what was repaired


@dataclass(frozen=True, kw_only=True)
class Item:
    """One picture of a draft."""

    key: str  # ours: names the picture in every call, and its files
    name: str  # the person's file name; no two of a draft are equal
    stem: str  # what the picture and its caption file share
    size: tuple[int, int]  # width and height in pixels
    pixels: str  # hash of them
    remarks: tuple[str, ...] = ()  # what was repaired
    caption: str = ""  # one caption per line, as typed
    fingerprint: str = ""  # what it looks like, for `near_copies`; earlier versions did not look
    creature: bool = True  # whether the built-in base could learn it; earlier versions did not ask
    sources: tuple[Source, ...] = ()  # of an edit: what it is made from
    focus: tuple[float, float] = MIDDLE  # where the crop lies, as in `crops.crop`


@dataclass(frozen=True, kw_only=True)
class DraftContent:
    """All that a draft's draft.json holds."""

    preset: str = DEFAULT_PRESET
    kind: str = SUBJECT  # of `config.KINDS`
    settings: dict = field(default_factory=dict)  # what differs from the preset, not checked yet
    items: tuple[Item, ...] = ()
    waiting: dict[str, tuple[str, str]] = field(default_factory=dict)  # by stem: file name, caption


def read_content(folder: Path) -> DraftContent:
    """The draft.json of a draft's folder."""
    try:
        stored = json.loads(retry((folder / "draft.json").read_bytes))
        if not isinstance(stored, dict) or "preset" not in stored:  # it was written whole
            raise ValueError("This holds no draft.")
        check_schema(stored, SCHEMA, "This draft", DraftError)
        content = make_value(DraftContent, without_stamp(stored))
    except FileNotFoundError as error:
        raise DraftError("This draft is no longer there. Begin a new one.") from error
    except DraftError:
        raise
    except ValueError as error:
        raise DraftError("The draft.json of this draft is damaged. Begin a new one.") from error
    return dataclasses.replace(content, settings=without_gone(content.settings))


def write_content(folder: Path, content: DraftContent) -> None:
    """Replaces the draft.json of a draft's folder."""
    replace_file(folder / "draft.json", json.dumps(stamp(SCHEMA) | dataclasses.asdict(content)))


def change_content(folder: Path, change: Callable[[DraftContent], DraftContent]) -> DraftContent:
    """Replaces the draft.json by what `change` makes of it, and returns that; nobody writes meanwhile."""
    with draft_lock(folder.parent):
        before = read_content(folder)
        content = change(before)
        if content != before:  # or looking at a draft would make it the current one
            write_content(folder, content)
    return content


def draft_lock(drafts_dir: Path) -> FileLock:
    """Held for moments. One for all drafts: a lock inside a draft would bring a deleted folder back."""
    return FileLock(drafts_dir / ".lock", timeout=60)
