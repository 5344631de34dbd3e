"""A process that pushes, as the page's server does: one JSON line in for each call, one out for its result.

huggingface_hub reads its environment when it is imported, so that the tests' own process, offline, cannot.
"""

import json
import os
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

from huggingface_hub import close_session
from huggingface_hub.utils import _http

from dopsd_app import hub_client
from dopsd_app.hub import push as hub
from dopsd_app.jobs.runs import Run

# The library waits 1, 2, 4, 8 and 8 seconds between its tries.
_http.time = SimpleNamespace(sleep=lambda seconds: None)


def call(name: str, arguments: dict):
    if name == "silence":  # how long a server may say nothing
        hub_client.READ_SECONDS = arguments["seconds"]
        return close_session()
    if name == "push":
        pictures = [(Path(path), prompt) for path, prompt in arguments.pop("pictures", ())]
        run = Run(Path(arguments.pop("run")))
        return hub.push(run, pictures=pictures, **arguments)
    if name == "who_is":
        return asdict(hub.who_is(**arguments))
    os.environ.pop("SPACE_ID", None)
    os.environ.update(arguments.pop("environment", {}))
    return getattr(hub, name)(**arguments)


if __name__ == "__main__":
    for line in sys.stdin:
        try:
            answer = {"result": call(**json.loads(line))}
        except Exception as error:  # whatever it is, the test is to see it
            answer = {
                "error": str(error),
                "kind": type(error).__name__,
                "trace": traceback.format_exc(),
                "hidden": repr(error.__cause__),
            }
        print(json.dumps(answer), flush=True)
