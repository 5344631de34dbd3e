"""A forked worker is what a started one is, but for the seconds that its imports take."""

import json
import os
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
OWN = {  # what each process makes up for itself
    "diffusers.utils.hub_utils.SESSION_ID",
    "transformers.utils.hub.SESSION_ID",
    "torch.distributed._composable.contract.REGISTRY_KEY",
    "torch.distributed._composable.contract.STATE_KEY",
}


def begin(way, tmp_path, module, *arguments):
    environment = {
        "PATH": os.environ["PATH"],
        "OMP_NUM_THREADS": "1",
        "PYTHONUTF8": "1",
        "PYTHONUNBUFFERED": "1",
        "HOME": str(tmp_path),
        "HF_HOME": str(tmp_path / "home"),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HUB_OFFLINE": "0",
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


def test_it_has_all_that_a_process_has_which_was_started_with_its_command(tmp_path):
    told = []
    for way in (forks.Forked, subprocess.Popen):
        file = tmp_path / "told.json"
        process = begin(way, tmp_path, "tests.support.fork_probe", str(file), "-")
        with process.stdin as pipe:
            pipe.write(b"hf_secret")
        assert process.wait(forks.PATIENCE) == 7
        told.append(json.loads(file.read_text()))
        assert (tmp_path / "output.txt").read_text() == "printed\n"
        constants = told[-1]["constants"]
        assert constants["huggingface_hub.constants.ENDPOINT"] == "'http://127.0.0.1:9'"
        # Folders that other libraries derived from the environment when they were imported do not count.
        told[-1]["constants"] = {
            name: value
            for name, value in constants.items()
            if name not in OWN and (name.startswith(("dopsd_app.", "huggingface_hub.")) or "/" not in value)
        }
    forked, started = told
    assert forked["read"] == "hf_secret"
    pairs = (set(one["constants"].items()) for one in told)
    assert set.symmetric_difference(*pairs) == set()
    assert forked == started


def test_it_can_be_killed_and_is_gone_then(tmp_path):
    process = begin(forks.Forked, tmp_path, "tests.support.fork_probe", str(tmp_path / "told.json"))
    assert process.poll() is None
    assert psutil.Process(process.pid).cmdline()[1:3] == ["-m", "tests.support.fork_probe"]
    with process.stdin:  # for which it waits
        process.kill()
        assert process.wait(forks.PATIENCE) == -signal.SIGKILL
    wait_for(lambda: process_started(process.pid) is None)
