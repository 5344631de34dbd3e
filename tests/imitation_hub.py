"""An imitation of the Hugging Face Hub on this computer, for the real huggingface_hub to talk to.

It answers what a push asks, with the statuses of the real one, keeps what was uploaded, notes every request
and fails when told to. The process that talks to it needs `environment()` before it imports huggingface_hub.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    method: str
    path: str  # without the query
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def token(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ")


@dataclass
class Repository:
    """A model repository: what is at the tip of `main`."""

    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.safetensors filter=lfs\n"})
    commits: list[str] = field(default_factory=lambda: ["initial commit"])  # their messages

    @property
    def sha(self) -> str:
        return hashlib.sha1("\n".join(self.commits).encode()).hexdigest()


@dataclass
class Fault:
    """What to do in place of an answer; `late`: after the work is done, so that only the answer is lost."""

    path: str  # regular expression, searched for in "METHOD path"
    how: int | str  # an HTTP status, "hang" or "reset"
    headers: dict[str, str]
    after: int  # matching requests that pass first
    times: int
    late: bool


class Refusal(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None, **more: str):
        super().__init__(message)
        self.status, self.headers, self.answer = status, headers or {}, {"error": message, **more}


class ImitationHub:
    """A Hub on loopback: `with ImitationHub() as hub: ... hub.url`."""

    def __init__(self):
        self._port = 0
        self._server = None
        self._released = threading.Event()  # lets go of those who hang
        self._lock = threading.RLock()
        self.reset()

    def __enter__(self) -> "ImitationHub":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def environment(self, home: Path) -> dict[str, str]:
        """The variables of a process that is to take this for the Hub; its token and caches are in `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
        }

    def start(self) -> None:
        """Listens, after `stop` on the same port again."""
        hub = self

        class Handler(_Handler):
            imitation = hub

        self._released.clear()
        self._server = _Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Breaks off all connections, and refuses new ones from now on."""
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in self._server.connections:
            with suppress(OSError):  # closed already
                connection.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """Forgets everything but the address."""
        self.requests: list[Request] = []
        self.repositories: dict[str, Repository] = {}
        self.accounts: dict[str, dict] = {}  # by token, what whoami answers
        self.paused: list[str] = []
        self._large_files: dict[str, bytes] = {}  # by sha256
        self._faults: list[Fault] = []

    def add_account(
        self, token: str, name: str, organisations: dict[str, str] | None = None, role: str = "write"
    ) -> None:
        """Makes a token known; `organisations` holds the account's role in each."""
        orgs = [{"type": "org", "name": org, "roleInOrg": its} for org, its in (organisations or {}).items()]
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
        self.accounts[token] = {"type": "user", "id": name, "name": name, "orgs": orgs, "auth": auth}

    def fail(
        self,
        path: str,
        how: int | str,
        headers: dict[str, str] | None = None,
        *,
        after: int = 0,
        times: int = 1,
        late: bool = False,
    ) -> None:
        """Makes the next requests whose "METHOD path" matches fail; see `Fault`."""
        self._faults.append(Fault(path, how, headers or {}, after, times, late))

    def mend(self) -> None:
        """Nothing fails any more."""
        self._faults = []

    def asked(self, path: str) -> list[Request]:
        """The requests whose "METHOD path" matches."""
        return [request for request in self.requests if re.search(path, f"{request.method} {request.path}")]

    def _next_fault(self, request: Request) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if not fault.times or not re.search(fault.path, f"{request.method} {request.path}"):
                    continue
                if fault.after:
                    fault.after -= 1
                    continue
                fault.times -= 1
                return fault
        return None

    # --- what a Hub does

    def answer(self, request: Request) -> dict:
        """The JSON answer to a request; raises `Refusal`."""
        for pattern, work in ROUTES:
            if found := re.fullmatch(pattern, f"{request.method} {request.path}"):
                with self._lock:
                    return getattr(self, work)(request, *map(unquote, found.groups()))
        raise Refusal(404, "Sorry, we can't find the page you are looking for.")

    def _account(self, request: Request) -> dict:
        if request.token not in self.accounts:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.accounts[request.token]

    def _may_write(self, request: Request, owner: str) -> bool:
        account = self._account(request)
        roles = {org["name"]: org["roleInOrg"] for org in account["orgs"]} | {account["name"]: "admin"}
        return account["auth"]["accessToken"]["role"] != "read" and roles.get(owner, "read") != "read"

    def _repository(self, request: Request, name: str, writing: bool = False) -> Repository:
        repository = self.repositories.get(name)
        may_write = self._may_write(request, name.partition("/")[0])
        if repository is None or (repository.private and not may_write):
            raise Refusal(404, "Repository not found", {"X-Error-Code": "RepoNotFound"})
        if writing and not may_write:
            raise Refusal(403, "You don't have the required permissions to write to this repository")
        return repository

    def whoami(self, request: Request) -> dict:
        return self._account(request)

    def create(self, request: Request) -> dict:
        asked = json.loads(request.body)
        owner = asked.get("organization") or self._account(request)["name"]
        name = f"{owner}/{asked['name']}"
        if not self._may_write(request, owner):
            raise Refusal(403, f"You don't have the rights to create a model under the namespace {owner}")
        if name in self.repositories:
            raise Refusal(409, "You already created this model repo", url=f"{self.url}/{name}")
        self.repositories[name] = Repository(private=asked.get("visibility") == "private")
        return {"url": f"{self.url}/{name}", "name": name, "id": name}

    def info(self, request: Request, name: str) -> dict:
        repository = self._repository(request, name)
        siblings = [{"rfilename": path, **_facts(path, file)} for path, file in repository.files.items()]
        return {"id": name, "private": repository.private, "sha": repository.sha, "siblings": siblings}

    def tree(self, request: Request, name: str) -> list:
        files = self._repository(request, name).files
        return [{"type": "file", "path": path, "oid": "0", "size": len(file)} for path, file in files.items()]

    def validate_card(self, request: Request) -> dict:
        text = json.loads(request.body)["content"]
        front = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        try:
            valid = front is not None and isinstance(yaml.safe_load(front[1]), dict)
        except yaml.YAMLError:
            valid = False
        if not valid:
            raise Refusal(400, "The metadata of the card cannot be read")
        return {"errors": [], "warnings": []}

    def preupload(self, request: Request, name: str) -> dict:
        self._repository(request, name, writing=True)
        modes = {True: "lfs", False: "regular"}
        paths = [file["path"] for file in json.loads(request.body)["files"]]
        return {
            "files": [
                {"path": path, "uploadMode": modes[_is_large(path)], "shouldIgnore": False} for path in paths
            ]
        }

    def large_files(self, request: Request, name: str) -> dict:
        self._repository(request, name, writing=True)
        objects = []
        for wanted in json.loads(request.body)["objects"]:
            actions = {
                "upload": {"href": f"{self.url}/storage/{wanted['oid']}"},
                "verify": {"href": f"{self.url}/{name}.git/info/lfs/verify"},
            }
            known = wanted["oid"] in self._large_files
            objects.append(wanted if known else {**wanted, "actions": actions})
        return {"transfer": "basic", "objects": objects}

    def store(self, request: Request, digest: str) -> dict:
        if hashlib.sha256(request.body).hexdigest() != digest:
            raise Refusal(400, "The checksum does not match")
        self._large_files[digest] = request.body
        return {}

    def verify(self, request: Request, name: str) -> dict:
        self._repository(request, name, writing=True)
        if json.loads(request.body)["oid"] not in self._large_files:
            raise Refusal(404, "The object is not there")
        return {}

    def commit(self, request: Request, name: str) -> dict:
        repository = self._repository(request, name, writing=True)
        files = dict(repository.files)
        for line in request.body.splitlines():
            key, value = (item := json.loads(line))["key"], item["value"]
            if key == "header":
                message = value["summary"]
                if value.get("parentCommit", repository.sha) != repository.sha:
                    raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self._large_files[value["oid"]]
            else:
                del files[value["path"]]
        repository.files = files
        repository.commits.append(message)
        return {"commitOid": repository.sha, "commitUrl": f"{self.url}/{name}/commit/{repository.sha}"}

    def pause(self, request: Request, name: str) -> dict:
        if not self._may_write(request, name.partition("/")[0]):
            raise Refusal(403, "Only the owner of a Space can pause it")
        self.paused.append(name)
        return {"stage": "PAUSED", "hardware": {"current": None, "requested": "cpu-basic"}}


NAME = "([^/]+/[^/]+?)"
ROUTES = (
    ("GET /api/whoami-v2", "whoami"),
    ("POST /api/repos/create", "create"),
    (f"GET /api/models/{NAME}", "info"),
    (f"GET /api/models/{NAME}/tree/main", "tree"),
    ("POST /api/validate-yaml", "validate_card"),
    (f"POST /api/models/{NAME}/preupload/main", "preupload"),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", "large_files"),
    ("PUT /storage/([0-9a-f]+)", "store"),
    (rf"POST /{NAME}\.git/info/lfs/verify", "verify"),
    (f"POST /api/models/{NAME}/commit/main", "commit"),
    (f"POST /api/spaces/{NAME}/pause", "pause"),
)


def _is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".webp"))


def _facts(path: str, content: bytes) -> dict:
    facts = {"size": len(content), "blobId": hashlib.sha1(content).hexdigest()}
    if _is_large(path):
        digest = hashlib.sha256(content).hexdigest()
        facts["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
    return facts


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.connections: list[socket.socket] = []

    def get_request(self):
        connection, address = super().get_request()
        self.connections.append(connection)
        return connection, address


class _Handler(BaseHTTPRequestHandler):
    imitation: ImitationHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes: the second would wait 40 ms

    def handle_any(self) -> None:
        # All of the body is read before any answer: a client that still sends would see the connection break.
        request = Request(
            self.command,
            urlsplit(self.path).path,
            {name.lower(): value for name, value in self.headers.items()},
            self.rfile.read(int(self.headers.get("Content-Length") or 0)),
        )
        self.imitation.requests.append(request)
        fault = self.imitation._next_fault(request)
        if fault and not fault.late:
            return self._fail(fault)
        try:
            status, headers, answer = 200, {}, self.imitation.answer(request)
        except Refusal as refusal:
            status, headers, answer = refusal.status, refusal.headers, refusal.answer
        if fault:
            return self._fail(fault)
        self._send(status, headers, answer)

    do_GET = do_POST = do_PUT = handle_any

    def _fail(self, fault: Fault) -> None:
        if fault.how == "hang":
            self.imitation._released.wait(60)
            self.close_connection = True
        elif fault.how == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        else:
            # A careless server says back what it was sent: that must not get any further.
            said = f"told to fail; authorization was {self.headers.get('Authorization')}"
            self._send(fault.how, fault.headers, {"error": said})

    def _send(self, status: int, headers: dict[str, str], answer) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass
