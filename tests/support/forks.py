"""Processes without the seconds in which libraries are imported: one process has imported them, and forks.

There is one such process for each kind: for workers, for the page's servers, and for the processes in which
pytest-xdist runs tests. `fork_server.py` is started by the first who needs it, serves all tests of a session
and the servers that they start, and ends with the session. A process that it forks has the command,
environment, folder, signals and files that were asked for, as if it had been started by its command:
`test_forks.py` compares.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

from filelock import FileLock

from dopsd_app import gpus
from dopsd_app.jobs import launcher
from tests.support.waiting import wait_for

PLACE = "FORK_SERVER"  # in the environment: a folder of sockets, whose name is the session's process number
WORKERS, PAGES, TESTERS = "workers", "pages", "testers"  # kinds, and names of sockets
SERVER, TESTER = "tests.support.fork_server", "tests.support.tester"
WORKER, PAGE = "dopsd_app.jobs.worker", "tests.support.page_process"
KINDS = {WORKER: WORKERS, SERVER: WORKERS, PAGE: PAGES, TESTER: TESTERS}  # who forks a module's process
ROOT = Path(__file__).parents[2]
LARGEST = 1_000_000  # bytes of a message
POLL_SECONDS = 0.02
PATIENCE = 120  # seconds that anything may take: cores may be shared


class Forked:
    """A process that was forked for a command, with what its owners use of `subprocess.Popen`."""

    def __init__(
        self,
        command,
        *,
        stdin,
        stdout,
        stderr=None,
        cwd=ROOT,
        env=None,
        creationflags=0,
        start_new_session=False,
    ):
        assert not creationflags
        self.returncode = self.stdin = self.stdout = None
        asked = {
            "module": command[2],
            "arguments": list(command[3:]),
            "folder": str(cwd),
            "environment": dict(os.environ if env is None else env),
            "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
            "new_session": start_new_session,
        }
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.connect(str(server(KINDS.get(command[2], WORKERS))))
        theirs = [self._source(stdin), self._sink(stdout)]
        error = theirs[1] if stderr == subprocess.STDOUT else 2
        socket.send_fds(self._connection, [json.dumps(asked).encode()], [*theirs, error])
        for file in theirs:
            os.close(file)
        self.pid = self._answer()["pid"]
        self._connection.setblocking(False)
        self._reading = threading.Lock()

    def _source(self, stdin):
        if stdin == subprocess.DEVNULL:
            return os.open(os.devnull, os.O_RDONLY)
        theirs, mine = os.pipe()
        self.stdin = os.fdopen(mine, "wb")
        return theirs

    def _sink(self, stdout):
        if stdout != subprocess.PIPE:
            return os.dup(stdout.fileno())
        mine, theirs = os.pipe()
        self.stdout = os.fdopen(mine, "rb")
        return theirs

    def poll(self):
        with self._reading:  # the end is told once: of two threads that ask, one would find nothing
            if self.returncode is None:
                try:
                    self.returncode = self._answer()["returncode"]
                    self._connection.close()
                except BlockingIOError:
                    pass
            return self.returncode

    def wait(self, timeout=None):
        until = time.monotonic() + timeout if timeout is not None else float("inf")
        while self.poll() is None:
            if time.monotonic() >= until:
                raise subprocess.TimeoutExpired(WORKER, timeout)
            time.sleep(POLL_SECONDS)
        return self.returncode

    def _answer(self):
        answer = self._connection.recv(LARGEST)
        assert answer, "".join(file.read_text() for file in Path(os.environ[PLACE]).glob("*.txt"))
        return json.loads(answer)

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def server(kind: str) -> Path:
    """Where the fork server of this kind listens; the first who asks starts it."""
    place = Path(os.environ[PLACE]) / kind
    place.parent.mkdir(exist_ok=True)
    output = place.with_suffix(".txt")
    with FileLock(place.with_suffix(".lock")):
        if not place.exists():
            process = _start_server(kind, output)
            wait_for(lambda: place.exists() or process.poll() is not None, PATIENCE)
            assert place.exists(), output.read_text()
            KEPT.append(process)
    return place


def _start_server(kind: str, output: Path):
    environment = {name: value for name, value in os.environ.items() if name not in launcher.SECRETS}
    # With room for the commands of its children, and for their environments.
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": "", "ROOM": " " * 65536}
    command = [sys.executable, "-m", SERVER, kind, " " * 4096]
    # The one for testers has what the one for workers has, and more.
    way = Forked if kind == TESTERS else subprocess.Popen
    with output.open("wb") as file:
        return way(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


KEPT: list = []  # or the end of a server would be asked for when it is forgotten


def end() -> None:
    """Ends the fork servers that this process has started: first those that others have forked."""
    for process in reversed(KEPT):
        process.kill()
        process.wait()


def can_fork() -> bool:
    """Within tests alone: benchmarks start processes as a person does. What has touched a card cannot."""
    return PLACE in os.environ and not gpus.list_gpus()


def start(command, **options):
    """In place of `subprocess.Popen`: a real worker is forked, everything else is started."""
    forked = tuple(command[:3]) == (sys.executable, "-m", WORKER) and can_fork()
    return (Forked if forked else subprocess.Popen)(command, **options)


def fork_workers() -> None:
    """From now on the launcher of this process starts real workers so."""
    launcher.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": start})


def fork_testers() -> None:
    """From now on pytest-xdist, which asks execnet for them, starts its processes so."""
    from execnet import gateway_io

    class ForkedIO(gateway_io.Popen2IOMaster):
        def __init__(self, args, execmodel):
            self.popen = Forked([sys.executable, "-m", TESTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            gateway_io.Popen2IO.__init__(self, self.popen.stdin, self.popen.stdout, execmodel=execmodel)

    gateway_io.Popen2IOMaster = ForkedIO
