"""A process that pushes, as the page's server does: one JSON line in for each call, one out for its result.

huggingface_hub reads its environment when it is imported, so that the tests' own process, offline, cannot.
"""

import json
import os
import shutil
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

from huggingface_hub import close_session
from huggingface_hub.utils import _http

from dopsd_app import hub_errors
from dopsd_app.files import replace_file
from dopsd_app.hub import account, client, push, push_job, scheduled_push, upload
from dopsd_app.hub.publication import Publication
from dopsd_app.jobs.runs import Run

# The library waits 1, 2, 4, 8 and 8 seconds between its tries.
_http.time = SimpleNamespace(sleep=lambda seconds: None)


def publish(run: str, token: str | None, pictures: list = (), **publication) -> str:
    """Pushes with these pictures on the card."""
    *_, published = push.push(_with_card(Run(Path(run)), pictures), Publication(**publication), token)
    return published.link


def steps(run: str, token: str, pictures: list = (), **asked) -> list:
    """What a push tells."""
    run = _with_card(Run(Path(run)), pictures)
    return [asdict(word) for word in push.push(run, Publication(**asked), token)]


def begin(run: str, token: str, **asked) -> None:
    """Asks for a push that is a job."""
    push_job.ask_for_push(Run(Path(run)), Publication(**asked), token)


def cancel(run: str) -> None:
    push_job.cancel_push(Run(Path(run)))


def _with_card(run: Run, pictures: list) -> Run:
    shutil.rmtree(run.path / "card", ignore_errors=True)
    (run.path / "card").mkdir()
    for number, (path, prompt) in enumerate(pictures):
        file = run.path / "card" / f"{number:02}.png"
        replace_file(file.with_suffix(".json"), json.dumps({"prompt": prompt}))
        file.symlink_to(path)
    return run


def schedule(run: str, token: str, **publication) -> None:
    scheduled_push.schedule_push(Run(Path(run)), Publication(**publication), token)


def run_scheduled(run: str, token: str = "") -> None:
    """A round of a server, which is signed in with this token."""
    os.environ["HF_TOKEN"] = token
    scheduled_push.run_scheduled_pushes(Run(Path(run)).runs_dir)


def limits(silence: float, total: float) -> None:
    """For how long a server may say nothing, and may take for all of an answer."""
    hub_errors.READ_SECONDS, client.TOTAL_SECONDS = silence, total
    upload.VERIFY_DELAYS = (0, 0.05)
    close_session()


def who_is(**arguments) -> dict:
    return asdict(account.who_is(**arguments))


def pause_space(token: str, environment: dict | None = None) -> None:
    os.environ.pop("SPACE_ID", None)
    os.environ.update(environment or {})
    account.pause_space(token)


CALLS = (publish, steps, begin, cancel, schedule, run_scheduled, limits, who_is, pause_space)


if __name__ == "__main__":
    for line in sys.stdin:
        try:
            wanted = json.loads(line)
            call = next(call for call in CALLS if call.__name__ == wanted["name"])
            answer = {"result": call(**wanted["arguments"])}
        except Exception as error:  # whatever it is, the test is to see it
            answer = {
                "error": str(error),
                "kind": type(error).__name__,
                "trace": traceback.format_exc(),
                "hidden": repr(error.__cause__),
            }
        print(json.dumps(answer), flush=True)
