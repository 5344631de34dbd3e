"""What is to happen when a run has finished: a push to the Hub, and on a Space its pause.

It is kept in the run folder, the token in memory only: after a restart of the page's server a push needs the
token that `hf auth login` stored, or the person again. Where several servers share a folder of runs, one that
has a token runs the push, and no two of them at once.
"""

import json
import logging
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from dopsd_app.errors import KnownFailure
from dopsd_app.files import replace_file
from dopsd_app.hub.access import AccessError, find_token, this_space
from dopsd_app.hub.account import pause_space
from dopsd_app.hub.publication import Publication, check_health
from dopsd_app.hub.push import PushRunningError
from dopsd_app.hub.push_job import ask_for_push, wait_for_push
from dopsd_app.jobs.job import Job, RunError, find_job
from dopsd_app.jobs.kinds import PUSH
from dopsd_app.jobs.queue import statuses
from dopsd_app.jobs.runs import Run, list_runs

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScheduledPush:
    """The push that was asked for, and what became of it."""

    publication: Publication | None = None
    done: bool = False  # tried: published, or with a reason why not
    reason: str = ""
    job: str = ""  # the id of the push, once it was asked for

    @property
    def open(self) -> bool:
        return self.publication is not None and not self.done


_tokens: dict[str, str] = {}  # by run id, never stored


def read_scheduled_push(run: Run) -> ScheduledPush:
    """The push that was asked for; an empty one, unless somebody did."""
    try:
        fields = json.loads(_file(run).read_bytes())
        if "push" in fields:  # as earlier versions wrote it
            asked = {key: fields.pop(key) for key in ("name", "private", "pause")}
            fields["publication"] = asked if fields.pop("push") else None
        asked = fields.pop("publication")
        return ScheduledPush(None if asked is None else Publication.from_fields(asked), **fields)
    except FileNotFoundError:
        return ScheduledPush()
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:  # a bad disk, or a hand
        why = f": {error}" if isinstance(error, KnownFailure) else "."
        reason = f"when_finished.json cannot be read, so nothing was done{why} Say again what is to happen."
        return ScheduledPush(done=True, reason=reason)


def schedule_push(run: Run, publication: Publication | None, token: str | None) -> None:
    """Asks for a push and, on a Space, for its pause after that; replaces an earlier one. None: for nothing.

    `token` is the sign-in of a Space; elsewhere it is the one that `hf auth login` stored.
    """
    if publication and publication.pause and this_space() is None:
        raise KnownFailure("This is not a Space: there is nothing to pause.")
    if publication:
        check_health(run, publication)
        _tokens[run.id] = find_token("", token)  # raises now, not in the night, where there is none
    else:
        _tokens.pop(run.id, None)
    replace_file(_file(run), json.dumps(asdict(ScheduledPush(publication))))


def waits_for_sign_in(run: Run, scheduled: ScheduledPush) -> bool:
    """Whether it could run now if this process had a token; another server may have one."""
    return scheduled.open and run.status.state == "finished" and _find_token(run) is None


def run_scheduled_pushes(runs_dir: Path) -> None:
    """Does what was asked for with every run that has finished since, where a token is at hand."""
    for run in list_runs(runs_dir):
        try:
            waits = read_scheduled_push(run).open and run.status.state == "finished"
            if waits and (token := _find_token(run)):
                _run_pending(run, token)
        except FileNotFoundError:  # deleted in the middle of it
            continue
        except Exception:  # one run's trouble must not end the others' pushes
            logger.exception("The scheduled push of %s could not be run", run.id)


def _run_pending(run: Run, token: str) -> None:
    """Runs what was scheduled, unless another process is at it or has done it."""
    try:
        lock = FileLock(run.path / ".scheduled_push.lock").acquire(timeout=0)
    except Timeout:
        return
    with lock:
        scheduled = read_scheduled_push(run)
        publication = scheduled.publication
        if not scheduled.open or publication is None:
            return
        try:
            job = _find_or_start_push(run, scheduled, publication, token)
        except PushRunningError:  # somebody publishes it by hand: then it is this one's turn
            return
        except KnownFailure as error:
            replace_file(_file(run), json.dumps(asdict(replace(scheduled, done=True, reason=str(error)))))
            return
        # Another one came meanwhile: it runs when this push has ended.
        if read_scheduled_push(run) != scheduled:
            return
        scheduled = replace(scheduled, job=job.id)
        replace_file(_file(run), json.dumps(asdict(scheduled)))
        ended = _wait_and_pause(run, scheduled, publication.pause, job, token)
        if read_scheduled_push(run) == scheduled:  # else another one came meanwhile: its turn is next
            replace_file(_file(run), json.dumps(asdict(ended)))
            _tokens.pop(run.id, None)


def _file(run: Run) -> Path:
    return run.path / "when_finished.json"


def _find_token(run: Run) -> str | None:
    with suppress(AccessError):
        return _tokens.get(run.id) or find_token("", None)
    return None


def _find_or_start_push(run: Run, scheduled: ScheduledPush, publication: Publication, token: str) -> Job:
    """The push that was asked for before this server was started anew, or a new one."""
    with suppress(RunError):
        job = find_job(run.runs_dir, scheduled.job, PUSH)
        if job.status.state != "interrupted":
            return job
    return ask_for_push(run, publication, token)


def _is_more_to_do(run: Run) -> bool:
    """Whether anything is at work besides, or another run's LoRA waits to be published."""
    busy = any(status.busy for _, status in statuses(run.runs_dir))
    return busy or any(read_scheduled_push(other).open for other in list_runs(run.runs_dir) if other != run)


def _wait_and_pause(run: Run, scheduled: ScheduledPush, pause: bool, job: Job, token: str) -> ScheduledPush:
    try:
        wait_for_push(job)
        if pause:
            if _is_more_to_do(run):
                raise RunError("It was published. Something else is at work, so the Space was not paused.")
            # The sign-in may write to what it created, which the Space is not: its owner can leave a secret.
            pause_space(os.environ.get("PAUSE_TOKEN") or token)
    except (KnownFailure, OSError) as error:
        return replace(scheduled, done=True, reason=str(error))
    except Exception:  # once: the next round would push again, and fail again
        logger.exception("The scheduled push of %s failed", run.id)
        reason = "It failed for a reason that only the server's log tells."
        return replace(scheduled, done=True, reason=reason)
    return replace(scheduled, done=True)
