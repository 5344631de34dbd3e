"""Workers without the seconds in which torch is imported: one process has imported it, and forks.

`fork_server.py` is started by the first who needs it, serves all tests of a session and the servers that they
start, and ends with the session. A process that it forks has the command, environment, folder, signals and
files that were asked for, as if it had been started by its command: `test_forks.py` compares.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from filelock import FileLock

from dopsd_app import gpus
from dopsd_app.jobs import launcher
from tests.support.waiting import wait_for

PLACE = "FORK_SERVER"  # in the environment: its socket, whose name is the number of the session's process
WORKER = "dopsd_app.jobs.worker"
LARGEST = 1_000_000  # bytes of a message
PATIENCE = 120  # seconds that anything may take: cores may be shared


class Forked:
    """A process that was forked for a command, with what the launcher and tests use of `subprocess.Popen`."""

    def __init__(self, command, *, cwd, env, stdin, stdout, stderr, creationflags=0, start_new_session):
        self.returncode = None
        assert stdin == subprocess.PIPE and stderr == subprocess.STDOUT and not creationflags
        mine, theirs = os.pipe()
        self.stdin = os.fdopen(theirs, "wb")
        asked = {
            "module": command[2],
            "arguments": list(command[3:]),
            "folder": str(cwd),
            "environment": dict(env),
            "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
            "new_session": start_new_session,
        }
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.connect(str(server(env)))
        socket.send_fds(self._connection, [json.dumps(asked).encode()], [mine, stdout.fileno()])
        os.close(mine)
        self.pid = self._answer()["pid"]

    def poll(self):
        return self._ended(0)

    def wait(self, timeout=None):
        if self._ended(timeout) is None:
            raise subprocess.TimeoutExpired(WORKER, timeout)
        return self.returncode

    def _ended(self, timeout):
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                self.returncode = self._answer()["returncode"]
                self._connection.close()
            except (BlockingIOError, TimeoutError):
                pass
        return self.returncode

    def _answer(self):
        answer = self._connection.recv(LARGEST)
        assert answer, Path(os.environ[PLACE]).with_name("output.txt").read_text()
        return json.loads(answer)

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def server(environment: dict[str, str]) -> Path:
    """Where the fork server listens; the first who asks starts it."""
    place = Path(os.environ[PLACE])
    with FileLock(place.with_name("lock")):
        if not place.exists():
            script = Path(__file__).with_name("fork_server.py")
            with place.with_name("output.txt").open("wb") as output:
                process = subprocess.Popen(
                    # With room for the commands of its children, and for their environments.
                    [sys.executable, str(script), str(place), " " * 4096],
                    env=environment | {"OMP_NUM_THREADS": "1", "PYTHONPATH": "", "ROOM": " " * 65536},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            wait_for(lambda: place.exists() or process.poll() is not None)
            assert place.exists(), place.with_name("output.txt").read_text()
            KEPT.append(process)
    return place


KEPT: list[subprocess.Popen] = []  # or its end would be asked for when it is forgotten


def start(command, **options):
    """In place of `subprocess.Popen`: a real worker is forked, everything else is started."""
    # What has touched a graphics card cannot fork.
    forked = tuple(command[:3]) == (sys.executable, "-m", WORKER) and not gpus.list_gpus()
    return (Forked if forked else subprocess.Popen)(command, **options)


def fork_workers() -> None:
    """From now on the launcher of this process starts real workers so."""
    launcher.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": start})
