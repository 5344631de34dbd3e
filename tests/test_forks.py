"""A forked process is what a started one is, but for the seconds that its imports take."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from dopsd_app import gpus
from dopsd_app.jobs.launcher import process_started, signals_blocked
from tests.support import forks
from tests.support.waiting import wait_for

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(bool(gpus.list_gpus()), reason="What has touched a graphics card cannot fork."),
]

ROOT = Path(__file__).parents[1]
PROBE = "tests.support.fork_probe"
# What each process makes up for itself, and what it has read when something asked for it.
OWN = re.compile(r"_KEY$|SESSION_ID$|\bWRITE_TOKEN$|^certifi\.core\._CACERT")


def begin(way, tmp_path, module, *arguments):
    (tmp_path / "temporary").mkdir(exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"],
        "OMP_NUM_THREADS": "1",
        "TORCHDYNAMO_DISABLE": "1",
        "PYTHONUTF8": "1",
        "PYTHONUNBUFFERED": "1",
        "HOME": str(tmp_path),
        "HF_HOME": str(tmp_path / "home"),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HUB_OFFLINE": "0",
        "TMPDIR": str(tmp_path / "temporary"),
        "GRADIO_SERVER_NAME": "0.0.0.0",
        "GRADIO_SERVER_PORT": "9999",
        "OAUTH_CLIENT_ID": "the-space",
        "OAUTH_CLIENT_SECRET": "a secret",
        "OAUTH_SCOPES": "openid",
        "OPENID_PROVIDER_URL": "http://127.0.0.1:9",
        "SPACE_ID": "Makers/trainer",
        "SYSTEM": "spaces",
    }
    with (tmp_path / "output.txt").open("wb") as output, signals_blocked():
        return way(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@pytest.mark.parametrize("kind", [forks.WORKERS, forks.PAGES])
def test_it_has_all_that_a_process_has_which_was_started_with_its_command(tmp_path, monkeypatch, kind):
    monkeypatch.setitem(forks.KINDS, PROBE, kind)
    told = []
    for way in (forks.Forked, subprocess.Popen):
        file = tmp_path / "told.json"
        process = begin(way, tmp_path, PROBE, str(file), kind)
        with process.stdin as pipe:
            pipe.write(b"hf_secret")
        assert process.wait(forks.PATIENCE) == 7
        told.append(json.loads(file.read_text()))
        assert (tmp_path / "output.txt").read_text() == "printed\n"
        constants = told[-1]["constants"]
        assert constants["huggingface_hub.constants.ENDPOINT"] == "'http://127.0.0.1:9'"
        assert kind == forks.WORKERS or constants["gradio.oauth.OAUTH_CLIENT_ID"] == "'the-space'"
        # Folders that other libraries derived from the environment when they were imported do not count.
        told[-1]["constants"] = {
            name: value
            for name, value in constants.items()
            if not OWN.search(name)
            and (
                name.startswith(("dopsd_app.", "gradio.", "gradio_client.", "huggingface_hub."))
                or "/" not in value
            )
        }
    forked, started = told
    assert forked["read"] == "hf_secret"
    pairs = (set(one["constants"].items()) for one in told)
    assert set.symmetric_difference(*pairs) == set()
    assert forked == started


def test_it_can_be_killed_and_is_gone_then(tmp_path):
    process = begin(forks.Forked, tmp_path, PROBE, str(tmp_path / "told.json"), forks.WORKERS)
    assert process.poll() is None
    assert psutil.Process(process.pid).cmdline()[1:3] == ["-m", PROBE]
    with process.stdin:  # for which it waits
        process.kill()
        assert process.wait(forks.PATIENCE) == -signal.SIGKILL
    wait_for(lambda: process_started(process.pid) is None)
