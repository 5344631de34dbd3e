"""The draft.json of a draft: read, changed and replaced under a lock, for several tabs may write it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from dopsd_app.errors import KnownFailure
from dopsd_app.files import replace_file, retry


class DraftError(KnownFailure):
    """Something that cannot be done with a draft as it stands."""


def read_state(folder: Path) -> dict:
    """What the draft.json of a draft's folder holds."""
    try:
        return json.loads(retry((folder / "draft.json").read_bytes))
    except FileNotFoundError as error:
        raise DraftError("This draft is no longer there. Begin a new one.") from error
    except ValueError as error:
        raise DraftError("The draft.json of this draft is damaged. Begin a new one.") from error


@contextmanager
def changing(folder: Path) -> Iterator[dict]:
    """The state to change in place; what is new is written at the end, unless an exception comes between."""
    with draft_lock(folder.parent):
        state = read_state(folder)
        before = json.dumps(state)
        yield state
        if (after := json.dumps(state)) != before:  # or looking at a draft would make it the current one
            replace_file(folder / "draft.json", after)


def draft_lock(drafts_dir: Path) -> FileLock:
    """Held for moments. One for all drafts: a lock inside a draft would bring a deleted folder back."""
    return FileLock(drafts_dir / ".lock", timeout=60)
