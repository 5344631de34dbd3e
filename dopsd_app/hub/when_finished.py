"""What is to happen when a run has finished: a push to the Hub, and on a Space its pause.

The wish lies in the run folder, the token in memory only: after a restart of the page's server a push needs
the token that `hf auth login` stored, or the person again.
"""

import json
import logging
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dopsd_app.errors import KnownFailure
from dopsd_app.files import replace_file
from dopsd_app.hub import push as hub
from dopsd_app.hub.access import find_token, this_space
from dopsd_app.hub.card_pictures import card_pictures
from dopsd_app.jobs.job import RunError
from dopsd_app.jobs.runs import Run, list_runs

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wish:
    """What was asked for, and what became of it."""

    push: bool = False
    name: str = ""
    private: bool = True
    pause: bool = False  # the Space that we run on, so that it costs nothing
    done: bool = False  # tried: published, or with a reason why not
    reason: str = ""


_tokens: dict[str, str] = {}  # by run id, never stored


def read_wish(run: Run) -> Wish:
    """What was asked for; nothing, unless somebody did."""
    try:
        return Wish(**json.loads(_file(run).read_bytes()))
    except FileNotFoundError:
        return Wish()
    except (ValueError, TypeError):  # a bad disk, or a hand
        reason = "when_finished.json cannot be read, so nothing was done. Say again what is to happen."
        return Wish(push=True, done=True, reason=reason)


def make_wish(run: Run, *, push: bool, name: str, private: bool, pause: bool, token: str | None) -> None:
    """Asks for a push and, on a Space, for its pause after that; replaces an earlier wish."""
    if pause and not push:
        raise KnownFailure(
            "A pause empties the Space's disk, so it comes only after a push. Choose that too."
        )
    if pause and this_space() is None:
        raise KnownFailure("This is not a Space: there is nothing to pause.")
    if push:
        hub.check_name(name)
        _tokens[run.id] = find_token("", token)  # a missing one is told now, not in the night
    else:
        _tokens.pop(run.id, None)
    replace_file(_file(run), json.dumps(asdict(Wish(push, name, private, pause))))


def fulfil_wishes(runs_dir: Path) -> None:
    """Does what was asked for with every run that has finished since."""
    for run in list_runs(runs_dir):
        try:
            wish = read_wish(run)
            if wish.push and not wish.done and run.status.state == "finished":
                fulfilled = _fulfil(run, wish)
                if read_wish(run) == wish:  # else another one came meanwhile: its turn is next
                    replace_file(_file(run), json.dumps(asdict(fulfilled)))
        except FileNotFoundError:  # deleted in the middle of it
            continue


def _file(run: Run) -> Path:
    return run.path / "when_finished.json"


def _fulfil(run: Run, wish: Wish) -> Wish:
    try:
        token = _tokens.pop(run.id, None) or find_token("", None)
        pictures = card_pictures(run)
        hub.push(run, token=token, name=wish.name, private=wish.private, pictures=pictures)
        if wish.pause:
            if any(other.status.busy for other in list_runs(run.runs_dir)):
                raise RunError("It was published. Another run is at work, so the Space was not paused.")
            # The sign-in may write to what it created, which the Space is not: its owner can leave a secret.
            hub.pause_space(os.environ.get("PAUSE_TOKEN") or token)
    except (KnownFailure, OSError) as error:
        return replace(wish, done=True, reason=str(error))
    except Exception:  # once: the next round would push again, and fail again
        logger.exception("The wish for %s failed", run.id)
        return replace(wish, done=True, reason="It failed for a reason that only the server's log tells.")
    return replace(wish, done=True)
