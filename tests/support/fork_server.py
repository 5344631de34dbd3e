"""The process that forks others: see `forks.py`. It ends with the session's process."""

import ctypes
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil

import dopsd_app
from dopsd_app.jobs.kinds import KINDS
from dopsd_app.models.architectures import ARCHITECTURES
from tests.support import forks
from tests.support.environment import follow_environment

SECONDS = 1.0  # between looks whether anybody needs it still
# What the libraries themselves import only when it is asked for.
CLASSES = {
    "diffusers": (
        "AutoencoderKL",
        "FlowMatchEulerDiscreteScheduler",
        "ZImagePipeline",
        "ZImageTransformer2DModel",
    ),
    "transformers": ("AutoTokenizer", "Qwen2VLImageProcessorPil", "Qwen3Model"),
}


def import_what_workers_need() -> None:
    functions = [kind.function for kind in KINDS.values()]
    for place in (*functions, *(architecture.base_model for architecture in ARCHITECTURES.values())):
        importlib.import_module(place.partition(":")[0])
    for library, names in CLASSES.items():
        for name in names:
            getattr(importlib.import_module(library), name)


def import_what_pages_need() -> None:
    importlib.import_module("dopsd_app.ui")


def import_what_tests_need() -> None:
    """All of the product, and what only tests use."""
    for module in pkgutil.walk_packages(dopsd_app.__path__, "dopsd_app."):
        if module.name != "dopsd_app.__main__":
            importlib.import_module(module.name)
    for name in ("page_server", "browser", "tiny_models", "real_layout"):
        importlib.import_module(f"tests.support.{name}")


IMPORTS = {
    forks.WORKERS: import_what_workers_need,
    forks.PAGES: import_what_pages_need,
    forks.TESTERS: import_what_tests_need,
}


def serve(listening: socket.socket, owner: int) -> dict:
    """Forks for whoever asks, until the owner is gone; returns in each child alone, with what it is to be."""
    awake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    clients: dict[int, socket.socket] = {}  # by the number of the process that was forked for them
    while psutil.pid_exists(owner):
        ready, _, _ = select.select([listening, awake], [], [], SECONDS)
        if awake in ready:
            os.read(awake, 4096)
            tell_ends(clients)
        if listening not in ready:
            continue
        client, _ = listening.accept()
        message, files, _, _ = socket.recv_fds(client, forks.LARGEST, 3)
        assert len(os.listdir("/proc/self/task")) == 1, "What has threads cannot fork."
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for connection in (listening, *clients.values()):
                connection.close()
            os.close(awake), os.close(waker)
            return json.loads(message) | {"files": files, "client": client}
        for file in files:
            os.close(file)
        clients[pid] = client
    sys.exit()


def tell_ends(clients: dict[int, socket.socket]) -> None:
    """Tells clients the exit codes of processes that have ended."""
    for pid, client in list(clients.items()):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with suppress(BrokenPipeError):  # the client is gone
                client.send(json.dumps({"returncode": os.waitstatus_to_exitcode(status)}).encode())
            clients.pop(pid).close()


def become(asked: dict) -> None:
    """Gives this process all that one started with `subprocess.Popen` has, and tells that it is there."""
    if asked["new_session"]:
        os.setsid()
    os.chdir(asked["folder"])
    for number, file in enumerate(asked["files"]):
        os.dup2(file, number)
        os.close(file)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, encoding="utf-8", closefd=False) for n in (1, 2))
    os.environ.clear()
    os.environ.update(asked["environment"])
    tempfile.tempdir = None
    follow_environment()
    sys.argv = [asked["module"], *asked["arguments"]]
    sys.path[:1] = [asked["folder"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    show("arg", [sys.executable, "-m", *sys.argv])
    show("env", [f"{name}={value}" for name, value in os.environ.items()])
    signal.pthread_sigmask(signal.SIG_SETMASK, asked["blocked"])
    with asked["client"] as client:
        client.send(json.dumps({"pid": os.getpid()}).encode())


def show(area: str, texts: list[str]) -> None:
    """Writes what the system tells of this process, its command ("arg") or its environment ("env")."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    first = {"arg": 45, "env": 47}[area]  # of these fields, which begin with the third of proc(5)
    start, end = int(fields[first]), int(fields[first + 1])
    content = "".join(f"{text}\0" for text in texts).encode()
    assert len(content) <= end - start, f"There is no room to show {area}."
    ctypes.memmove(start, content.ljust(end - start, b"\0"), end - start)


if __name__ == "__main__":
    kind = sys.argv[1]
    place = Path(os.environ[forks.PLACE]) / kind
    IMPORTS[kind]()
    gc.collect()
    gc.freeze()
    forks.fork_workers()  # a worker starts the next
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(str(place.with_suffix(".new")))
    listening.listen(100)
    place.with_suffix(".new").rename(place)
    asked = serve(listening, owner=int(place.parent.name))
    become(asked)
    module = asked["module"]
    sys.modules.pop(module, None)  # it is to be the main one, and nobody has it yet
    runpy.run_module(module, run_name="__main__", alter_sys=True)
