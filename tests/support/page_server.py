"""The page's server as a process of its own, and what a client without manners can ask of it over HTTP."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

import httpx
import psutil
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from dopsd_app.data.drafts import Draft, set_caption, set_settings
from dopsd_app.data.pictures import read_examples
from dopsd_app.data.uploads import load_example
from dopsd_app.hub.card_pictures import keep_picture
from dopsd_app.jobs.card import Holder
from dopsd_app.jobs.drawing import Drawing, PictureRequest
from dopsd_app.jobs.events import PreviewSaved, StepDone, append_event
from dopsd_app.jobs.job import create_job, write_status
from dopsd_app.jobs.kinds import DRAW
from dopsd_app.jobs.launcher import is_process
from dopsd_app.jobs.runs import Run, create_run
from tests.support import forks
from tests.support.checkpoint_files import leave_checkpoint
from tests.support.finished_run import finish, pocket_config
from tests.support.pictures import make_picture

ROOT = Path(__file__).parents[2]
PATIENCE = 120  # seconds that anything may take: cores may be shared
FOREIGN = ("HF_", "SPACE", "OAUTH_", "OPENID_", "DOPSD_", "GRADIO_", "HUGGING_FACE_", "SYSTEM")


class PageServer:
    """`python app.py` in an empty folder, whose HOME, caches and temporary files lie there too.

    It and its workers are forked (`forks.py`), or started as anybody's are.
    """

    def __init__(self, folder: Path, environment: dict[str, str] | None = None, forked: bool = True):
        self.folder, self.forked = folder, forked and forks.can_fork()
        self.output = folder / "output.txt"
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True)
        self.downloads = folder / "downloads"
        self.port = free_port()
        self.process: subprocess.Popen | forks.Forked | None = None
        self.clients: list[Client] = []
        self.http = httpx.Client(timeout=PATIENCE, verify=False, trust_env=False)
        self._config: dict = {}
        self._sessions: dict = defaultdict(lambda: secrets.token_hex(5))
        self._modules = folder / "modules.json"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)},
            "GRADIO_SERVER_PORT": str(self.port),
            "TMPDIR": str(self.temporary),
            "HOME": str(folder / "home"),
            "HF_HOME": str(folder / "home"),
            "XDG_CACHE_HOME": str(folder / "cache"),  # no other test's worker is in the way
            "TOLD_MODULES": str(self._modules),
            **(environment or {}),
        }
        self.runs = Path(self.environment.get("DOPSD_RUNS", folder / "runs"))
        self.drafts = Path(self.environment.get("DOPSD_DRAFTS", folder / "drafts"))

    def __enter__(self) -> "PageServer":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.http.close()
        self.kill()
        for client in self.clients:
            client.close()
        for process in psutil.process_iter():  # the workers that it started, by the folder that they work for
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if any(str(self.runs) in part for part in process.cmdline()):
                    process.kill()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Comes back when it answers; after `kill` on the same port again."""
        script = ["-m", forks.PAGE] if self.forked else [str(ROOT / "tests/support/page_process.py")]
        with self.output.open("ab") as output:
            self.process = (forks.Forked if self.forked else subprocess.Popen)(
                [sys.executable, *script],
                cwd=self.folder,
                env={
                    name: value
                    for name, value in self.environment.items()
                    if self.forked or name not in (forks.PLACE, "TORCHDYNAMO_DISABLE")
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        wait_for(self._answers, "the page")

    def kill(self) -> None:
        """Ends it as a crash would; its workers go on."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def _answers(self) -> bool:
        assert self.process.poll() is None, f"The server ended:\n{self.output.read_text()}"
        with suppress(httpx.TransportError):
            return self.get("/config").status_code == 200
        return False

    def client(self, token: str | None = None) -> "Endpoints":
        """The endpoints, as gradio_client calls them."""
        client = Client(
            self.url, token or False, oauth_token=token, verbose=False, download_files=self.downloads
        )
        self.clients.append(client)
        return Endpoints(client)

    def modules(self) -> set[str]:
        """The names of all that the server has imported."""
        self._modules.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        wait_for(self._modules.exists, "the names of the modules")
        return set(json.loads(self._modules.read_text()))

    def card_holder(self) -> Holder | None:
        """Who computes for this server, which has a card of its own."""
        for file in (self.folder / "cache").rglob("*.json"):
            holder = Holder(**json.loads(file.read_text()))
            if is_process(holder.pid, holder.pid_started):
                return holder
        return None

    def config(self) -> dict:
        """What the browser gets to build the page from; the same from one start to the next."""
        self._config = self._config or self.get("/config").json()
        return self._config

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.http.get(self.url + path, headers=headers)

    def numbers(self, elem_id: str) -> list[int]:
        """The numbers of the functions that an event of this component calls."""
        config = self.config()
        ids = [c["id"] for c in config["components"] if c["props"].get("elem_id") == elem_id]
        assert len(ids) == 1, elem_id
        return [d["id"] for d in config["dependencies"] if ids[0] in [target for target, _ in d["targets"]]]

    @property
    def entrance(self) -> int:
        """The number of the function that fills the page when it is opened."""
        loads = [
            d for d in self.config()["dependencies"] if d["targets"][:1] and d["targets"][0][1] == "load"
        ]
        return max(loads, key=lambda dependency: len(dependency["outputs"]))["id"]

    def enter(self, step: int = 0, run: str = "", **who) -> dict:
        """Opens the page as a browser that remembers this place; `who` as for `event`."""
        return self.event(self.entrance, [step, run], **who)

    def shown(self, output: dict, elem_id: str, number: int | None = None):
        """What the output of a function, or of the entrance, holds for this component."""
        config = self.config()
        ids = [c["id"] for c in config["components"] if c["props"].get("elem_id") == elem_id]
        number = self.entrance if number is None else number
        [outputs] = [d["outputs"] for d in config["dependencies"] if d["id"] == number]
        return output["data"][outputs.index(ids[0])]

    def event(
        self,
        number: int,
        data: list,
        token: str | None = None,
        *,
        session: str = "",
        cookie: str = "",
        headers: dict[str, str] | None = None,
    ) -> dict:
        """Calls a function of the page by its number through the queue, as its own script would: the output.

        `error` in it is what the person is told. A session is a tab: what it has open lives in the server.
        """
        # One for each who asks, if nothing else is said: Gradio takes a tenth of a second to make another.
        session = session or self._sessions[token, cookie]
        body = {"data": data, "fn_index": number, "session_hash": session, "oauth_token": token}
        # The answer is fetched without a body: on a Space, the header says there who asks.
        headers = (headers or {}) | ({"Cookie": f"session={cookie}"} if cookie else {})
        headers |= {"Authorization": f"Bearer {token}"} if token else {}
        queue = f"{self.url}/gradio_api/queue"
        joined = self.http.post(f"{queue}/join", json=body, headers=headers)
        assert joined.status_code == 200, joined.text
        params = {"session_hash": session}
        with self.http.stream("GET", f"{queue}/data", params=params, headers=headers) as answer:
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line[5:])
                    if message["msg"] == "process_completed":
                        return message["output"]
        raise AssertionError("The queue gave no answer.")

    def direct(self, number: int, data: list, token: str | None = None) -> dict:
        """The same past the queue, as the page calls what is quick."""
        body = {"data": data, "fn_index": number, "oauth_token": token}
        return self.http.post(f"{self.url}/gradio_api/run/predict", json=body).json()


class Endpoints:
    """The page's endpoints by name, through gradio_client: `call("show_run", run)`."""

    used: ClassVar[set[str]] = set()

    def __init__(self, client: Client):
        self.client = client

    def __call__(self, name: str, *values):
        self.used.add(name)
        return self.client.predict(*values, api_name=f"/{name}")

    def refused(self, name: str, *values) -> str:
        """What the person is told when it does not work."""
        with pytest.raises(AppError) as caught:
            self(name, *values)
        return str(caught.value)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition, what: str):
    """The first true value of `condition()`."""
    until = time.monotonic() + PATIENCE
    while True:
        asked = time.monotonic()
        if value := condition():
            return value
        now = time.monotonic()
        assert now < until, f"Waited {PATIENCE} seconds in vain for {what}."
        time.sleep(max(0.05, 5 * (now - asked)))  # what is waited for needs the processor more than this


def all_bytes(*folders: Path) -> bytes:
    """All files below these folders, one after another."""
    found = []
    for folder in folders:
        for file in folder.rglob("*"):
            with suppress(FileNotFoundError):  # just being replaced
                if file.is_file():
                    found.append(file.read_bytes())
    return b"\n".join(found)


# --- what lies in the folders of a server that was used


def leave_run(server: PageServer, words: str) -> Run:
    """A finished run with a file of each kind; `words` are its captions, and every text in it."""
    pictures = server.temporary.parent / "mine"
    if not pictures.exists():
        pictures.mkdir()
        for number in range(4):
            make_picture(number, 64, 64).save(pictures / f"{number}.png")
            (pictures / f"{number}.txt").write_text(words)
    config = pocket_config(steps=2, name="left", trigger_word=words, preview_prompts=[words])
    run = finish(create_run(server.runs, config, read_examples(pictures, minimum_side=64)))
    for step in (1, 2):
        append_event(
            run.events_file, StepDone(step=step, loss=0.5, seconds=1.0, peak_memory=0, grad_norm=1.0)
        )
        files = [f"previews/{name}-{step}.webp" for name in ("samples", "student", "teacher")]
        for file in files:
            make_picture(step, 128, 64).save(run.path / file)
        append_event(run.events_file, PreviewSaved(step, "samples", (files[0],), (words,)))
        append_event(run.events_file, PreviewSaved(step, "rollout", tuple(files[1:])))
    leave_checkpoint(run, 2)
    run.log_file.write_text(f"began with {words}\n")
    drawing = Drawing(create_job(server.runs, DRAW, asdict(PictureRequest(run.id, (words,), (0,)))).path)
    for column in range(2):
        make_picture(9, 64, 64).save(drawing.cell(0, column))
    write_status(drawing, state="finished")
    keep_picture(run, drawing.id)
    write_status(run, state="finished", step=2)
    return run


def leave_draft(server: PageServer, words: str) -> Draft:
    """A draft that could be started; `words` are its trigger word and its first caption."""
    draft = load_example(server.drafts, "zorp")
    draft = set_settings(draft, trigger_word=words)
    return set_caption(draft, draft.items[0].key, words)
