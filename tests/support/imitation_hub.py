"""An imitation of the Hugging Face Hub on this computer, for the real huggingface_hub to talk to.

It answers what a push and a download ask, with the statuses of the real one, keeps what was uploaded, serves
folders as repositories, notes every request and fails when told to. There is no Xet: large files come from a
CDN by plain HTTP. The process that talks to it needs `environment()` before it imports huggingface_hub.
"""

import base64
import hashlib
import io
import json
import math
import re
import select
import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml

PIECE = 64 * 1024  # bytes of a file that are sent at once
PIECE_SECONDS = 1 / 20  # that a throttled piece takes at the most
DRIP_SECONDS = 0.1  # between two bytes of a header that goes on for ever


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    method: str
    path: str  # without the query
    headers: dict[str, str]  # names in lower case
    body: bytes
    query: dict[str, str]

    @property
    def token(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ")


@dataclass(frozen=True)
class StoredFile:
    """One file of a repository, in memory or on disk."""

    path: str  # in the repository
    source: bytes | Path
    size: int
    digest: str  # sha256 of a large file, git's own name of a small one

    @property
    def large(self) -> bool:
        return _is_large(self.path)

    @property
    def pointer(self) -> bytes:
        """What git holds in place of a large file."""
        version = "version https://git-lfs.github.com/spec/v1"
        return f"{version}\noid sha256:{self.digest}\nsize {self.size}\n".encode()

    @property
    def oid(self) -> str:
        return _git_name(self.pointer) if self.large else self.digest

    def open(self) -> BinaryIO:
        return io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb")


@dataclass
class Repository:
    """A model repository that is pushed to: what is at the tip of `main`."""

    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.safetensors filter=lfs\n"})
    commits: list[str] = field(default_factory=lambda: ["initial commit"])  # their messages
    gated = False

    @property
    def sha(self) -> str:
        return hashlib.sha1("\n".join(self.commits).encode()).hexdigest()

    def stored(self, commit: str) -> dict[str, StoredFile] | None:
        """The files of a commit by path; None where there is no such commit."""
        if commit != self.sha:
            return None
        return {
            path: StoredFile(path, file, len(file), _digest(path, file)) for path, file in self.files.items()
        }


@dataclass
class PublishedRepository:
    """A model repository that is only read: folders on disk, one for each commit."""

    private: bool
    gated: bool
    history: dict[str, dict[str, StoredFile]] = field(default_factory=dict)  # by commit, the oldest first

    @property
    def sha(self) -> str:
        return list(self.history)[-1]

    def add(self, files: dict[str, StoredFile]) -> None:
        names = [*self.history, *(f"{path} {file.digest}" for path, file in files.items())]
        self.history[hashlib.sha1("\n".join(names).encode()).hexdigest()] = files

    def stored(self, commit: str) -> dict[str, StoredFile] | None:
        """The files of a commit by path; None where there is no such commit."""
        return self.history.get(commit)


@dataclass
class Fault:
    """What to do in place of an answer; `late`: after the work is done, so that only the answer is lost."""

    path: str  # regular expression, searched for in "METHOD path"
    how: int | str  # an HTTP status, "hang", "reset" or "drip": a header that goes on for ever
    headers: dict[str, str]
    after: int  # matching requests that pass first
    times: int
    late: bool


@dataclass
class Trouble:
    """What happens to the bodies of files on their way."""

    path: str  # regular expression, searched for in "METHOD path"
    how: str  # "cut" or "stall"
    after: int  # bytes of a body; a body that is not longer does not count
    times: int


@dataclass
class Served:
    """The body of one answer with a file's content, counted while it is being sent."""

    repository: str
    path: str  # in the repository
    start: int  # its first byte's place in the file
    sent: int = 0  # bytes


class Refusal(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None, **more: str):
        super().__init__(message)
        self.status, self.answer = status, {"error": message, **more}
        # Without a body, as in an answer to HEAD, the header is all that a client has.
        told = {"X-Error-Message": ascii(message)[1:-1]} if status >= 400 else {}
        self.headers = told | (headers or {})


@dataclass
class FileAnswer:
    """An answer whose body is a file, or a range of it."""

    repository: str
    file: StoredFile
    headers: dict[str, str]


class ImitationHub:
    """A Hub on loopback: `with ImitationHub() as hub: ... hub.url`."""

    def __init__(self):
        self._ports = [0, 0]  # of the Hub and of the CDN
        self._servers: list[_Server] = []
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
        return f"http://127.0.0.1:{self._ports[0]}"

    @property
    def cdn_url(self) -> str:
        """Where large files come from: another origin, or the client would not take it for a CDN."""
        return f"http://127.0.0.1:{self._ports[1]}"

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
        self._servers = [_Server(("127.0.0.1", port), Handler) for port in self._ports]
        self._ports = [server.server_address[1] for server in self._servers]
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Breaks off all connections, and refuses new ones from now on."""
        self._released.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()
            for connection in server.connections:
                with suppress(OSError):  # closed already
                    connection.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """Forgets everything but the address."""
        self.requests: list[Request] = []
        self.served: list[Served] = []
        self.repositories: dict[str, Repository | PublishedRepository] = {}
        self.accounts: dict[str, dict] = {}  # by token, what whoami answers
        self.paused: list[str] = []
        self._granted: set[tuple[str, str]] = set()  # a token and the repository that it may read
        self._large_files: dict[str, bytes] = {}  # by sha256
        self._linked: dict[str, FileAnswer] = {}  # what the CDN has, by path
        self.mend()

    def add_account(
        self, token: str, name: str, organisations: dict[str, str] | None = None, role: str = "write"
    ) -> None:
        """Makes a token known; `organisations` holds the account's role in each."""
        orgs = [{"type": "org", "name": org, "roleInOrg": its} for org, its in (organisations or {}).items()]
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
        self.accounts[token] = {"type": "user", "id": name, "name": name, "orgs": orgs, "auth": auth}

    def add_model(self, name: str, folder: Path, *, gated: bool = False, private: bool = False) -> str:
        """Publishes a folder's files as a new commit of a repository; returns the commit.

        They are read when they are asked for: the folder has to stay as it is. Who may read is what the
        latest call says.
        """
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {(file := _stored_on_disk(folder, path)).path: file for path in paths}
        with self._lock:
            repository = self.repositories.setdefault(name, PublishedRepository(private, gated))
            repository.private, repository.gated = private, gated
            repository.add(files)
            return repository.sha

    def grant(self, token: str, name: str) -> None:
        """Lets an account read a repository that is gated or private."""
        assert token in self.accounts, "add_account() first"
        self._granted.add((token, name))

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

    def slow(self, path: str, bytes_per_second: float) -> None:
        """Throttles each body of a file whose "METHOD path" matches, also those that are on their way."""
        self._speeds = {**self._speeds, path: bytes_per_second}

    def cut(self, path: str, after_bytes: int, times: int = 1) -> None:
        """Closes the connection after so many bytes of the next bodies of files that match."""
        self._troubles.append(Trouble(path, "cut", after_bytes, times))

    def stall(self, path: str, after_bytes: int, times: int = 1) -> None:
        """Goes silent after so many bytes of the next bodies of files that match."""
        self._troubles.append(Trouble(path, "stall", after_bytes, times))

    def mend(self) -> None:
        """Nothing fails or is slow any more; what is silent already stays so."""
        self.ranges = True  # whether a part of a file can be asked for
        self.longest_range = 1 << 60  # bytes; of a longer one only so many are sent, as HTTP allows
        self._faults: list[Fault] = []
        self._troubles: list[Trouble] = []
        self._speeds: dict[str, float] = {}  # bytes per second by regular expression

    def asked(self, path: str) -> list[Request]:
        """The requests whose "METHOD path" matches."""
        return [request for request in self.requests if _matches(path, request)]

    def fetched(self, path: str) -> int:
        """How many bytes were sent of the files whose "owner/name/path" matches."""
        return sum(
            served.sent for served in self.served if re.search(path, f"{served.repository}/{served.path}")
        )

    def _next_fault(self, request: Request) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if not fault.times or not _matches(fault.path, request):
                    continue
                if fault.after:
                    fault.after -= 1
                    continue
                fault.times -= 1
                return fault
        return None

    def _next_trouble(self, request: Request, length: int) -> Trouble | None:
        """What is to happen to a body of this length."""
        with self._lock:
            for trouble in self._troubles:
                if trouble.times and trouble.after < length and _matches(trouble.path, request):
                    trouble.times -= 1
                    return trouble
        return None

    def _speed(self, request: Request) -> float:
        """Bytes per second with which a body is sent now."""
        speeds = (speed for path, speed in self._speeds.items() if _matches(path, request))
        return min(speeds, default=math.inf)

    # --- what a Hub does

    def answer(self, request: Request) -> dict | list | FileAnswer:
        """The answer to a request, JSON or a file; raises `Refusal`."""
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

    def _belongs(self, request: Request, name: str) -> bool:
        """Whether a repository is the account's own, its organisation's, or it was granted access."""
        account, owner = self._account(request), name.partition("/")[0]
        owners = {account["name"], *(org["name"] for org in account["orgs"])}
        return owner in owners or (request.token, name) in self._granted

    def _repository(self, request: Request, name: str) -> Repository | PublishedRepository:
        """A repository to be read: a public one by everybody, but not with a token that is no account's."""
        repository = self.repositories.get(name)
        known = bool(request.token) and self._belongs(request, name)
        if repository is None or (repository.private and not known):
            # Who is nobody is not told whether a private repository is there.
            status, message = (404, "Repository not found") if request.token else (401, BAD_NAME)
            raise Refusal(status, message, {"X-Error-Code": "RepoNotFound"})
        return repository

    def _own_repository(self, request: Request, name: str) -> Repository:
        """A repository to be written to."""
        self._account(request)
        repository = self._repository(request, name)
        if not self._may_write(request, name.partition("/")[0]):
            raise Refusal(403, "You don't have the required permissions to write to this repository")
        return repository

    def _files(
        self, request: Request, name: str, revision: str
    ) -> tuple[Repository | PublishedRepository, str, dict[str, StoredFile]]:
        """A repository, the commit that a revision means, and that commit's files."""
        repository = self._repository(request, name)
        commit = repository.sha if revision == "main" else revision
        files = repository.stored(commit)
        if files is None:
            raise Refusal(404, f"Invalid rev id: {revision}", {"X-Error-Code": "RevisionNotFound"})
        return repository, commit, files

    def _check_gate(self, request: Request, name: str) -> None:
        if not request.token:
            told = f"Access to model {name} is restricted."
            sign_in = "You must have access to it and be authenticated to access it. Please log in."
            raise Refusal(401, f"{told} {sign_in}", {"X-Error-Code": "GatedRepo"})
        if not self._belongs(request, name):
            told = f"Access to model {name} is restricted and you are not in the authorized list."
            visit = f"Visit https://huggingface.co/{name} to ask for access."
            raise Refusal(403, f"{told} {visit}", {"X-Error-Code": "GatedRepo"})

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

    def info(self, request: Request, name: str, revision: str = "main") -> dict:
        repository, commit, files = self._files(request, name, revision)
        blobs = request.query.get("blobs", "").lower() == "true"
        siblings = [{"rfilename": path, **(_facts(file) if blobs else {})} for path, file in files.items()]
        facts = {
            "id": name,
            "modelId": name,
            "author": name.partition("/")[0],
            "sha": commit,
            "private": repository.private,
            "gated": "auto" if repository.gated else False,
            "disabled": False,
            "siblings": siblings,
        }
        return facts | _card_facts(files)

    def tree(self, request: Request, name: str, revision: str) -> list:
        """The files at the top; of a recursive listing, all, and the folders too."""
        _, _, files = self._files(request, name, revision)
        folders = {str(folder) for path in files for folder in Path(path).parents[:-1]}
        entries = [
            {"type": "directory", "oid": _git_name(path.encode()), "size": 0, "path": path}
            for path in folders
        ]
        entries += [_tree_entry(file) for file in files.values()]
        recursive = request.query.get("recursive", "").lower() == "true"
        shown = [entry for entry in entries if recursive or "/" not in entry["path"]]
        return sorted(shown, key=lambda entry: entry["path"])

    def resolve(self, request: Request, name: str, revision: str, path: str) -> FileAnswer:
        """A small file itself, and where the CDN has a large one."""
        repository, commit, files = self._files(request, name, revision)
        if repository.gated:
            self._check_gate(request, name)
        headers = {"X-Repo-Commit": commit}
        if path not in files:
            raise Refusal(404, "Entry not found", {"X-Error-Code": "EntryNotFound", **headers})
        file = files[path]
        headers |= {"ETag": f'"{file.digest}"', "Accept-Ranges": "bytes"}
        if not file.large:
            return FileAnswer(name, file, headers)
        place = f"/cdn/{name}/{file.digest}/{path}"
        self._linked[place] = FileAnswer(name, file, {"ETag": headers["ETag"], "Accept-Ranges": "bytes"})
        headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(file.size)}
        raise Refusal(302, "Found", {**headers, "Location": self.cdn_url + quote(place)})

    def cdn(self, request: Request, path: str) -> FileAnswer:
        """A large file, to whoever was told its address: it asks for no token."""
        if path not in self._linked:
            raise Refusal(403, "Access Denied")
        return self._linked[path]

    def validate_card(self, request: Request) -> dict:
        text = json.loads(request.body)["content"]
        if _front_matter(text) is None:
            raise Refusal(400, "The metadata of the card cannot be read")
        return {"errors": [], "warnings": []}

    def preupload(self, request: Request, name: str) -> dict:
        self._own_repository(request, name)
        modes = {True: "lfs", False: "regular"}
        paths = [file["path"] for file in json.loads(request.body)["files"]]
        return {
            "files": [
                {"path": path, "uploadMode": modes[_is_large(path)], "shouldIgnore": False} for path in paths
            ]
        }

    def large_files(self, request: Request, name: str) -> dict:
        self._own_repository(request, name)
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
        self._own_repository(request, name)
        if json.loads(request.body)["oid"] not in self._large_files:
            raise Refusal(404, "The object is not there")
        return {}

    def commit(self, request: Request, name: str) -> dict:
        repository = self._own_repository(request, name)
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


BAD_NAME = "Invalid username or password."
NAME, REVISION = "([^/]+/[^/]+?)", "([^/]+)"
ROUTES = (
    ("GET /api/whoami-v2", "whoami"),
    ("POST /api/repos/create", "create"),
    (f"GET /api/models/{NAME}", "info"),
    (f"GET /api/models/{NAME}/revision/{REVISION}", "info"),
    (f"GET /api/models/{NAME}/tree/{REVISION}", "tree"),
    ("(?:GET|HEAD) (/cdn/.+)", "cdn"),
    (f"(?:GET|HEAD) /{NAME}/resolve/{REVISION}/(.+)", "resolve"),
    ("POST /api/validate-yaml", "validate_card"),
    (f"POST /api/models/{NAME}/preupload/main", "preupload"),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", "large_files"),
    ("PUT /storage/([0-9a-f]+)", "store"),
    (rf"POST /{NAME}\.git/info/lfs/verify", "verify"),
    (f"POST /api/models/{NAME}/commit/main", "commit"),
    (f"POST /api/spaces/{NAME}/pause", "pause"),
)


def _matches(pattern: str, request: Request) -> bool:
    return re.search(pattern, f"{request.method} {request.path}") is not None


# --- files


def _is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".webp", ".png", ".bin", "tokenizer.json"))


def _git_name(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _digest(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if _is_large(path) else _git_name(content)


def _stored_on_disk(folder: Path, place: Path) -> StoredFile:
    path, facts = place.relative_to(folder).as_posix(), place.stat()
    return StoredFile(path, place, facts.st_size, _digest_on_disk(place, facts.st_size, facts.st_mtime_ns))


@cache
def _digest_on_disk(place: Path, size: int, changed: int) -> str:
    """Reckoned once for as long as a file's size and time stay."""
    if not _is_large(place.name):
        return _git_name(place.read_bytes())
    with place.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _facts(file: StoredFile) -> dict:
    """A file among a model's siblings."""
    facts = {"size": file.size, "blobId": file.oid}
    if file.large:
        facts["lfs"] = {"sha256": file.digest, "size": file.size, "pointerSize": len(file.pointer)}
    return facts


def _tree_entry(file: StoredFile) -> dict:
    entry = {"type": "file", "oid": file.oid, "size": file.size, "path": file.path}
    if file.large:
        entry["lfs"] = {"oid": file.digest, "size": file.size, "pointerSize": len(file.pointer)}
    return entry


def _front_matter(text: str) -> dict | None:
    """What a card says in YAML; None where that cannot be read."""
    front = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    try:
        read = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError:
        return None
    return read if isinstance(read, dict) else None


def _card_facts(files: dict[str, StoredFile]) -> dict:
    """What the Hub makes of README.md, and the tags."""
    card = {}
    if "README.md" in files:
        with files["README.md"].open() as file:
            card = _front_matter(file.read().decode("utf-8", "replace")) or {}
    tags = [card[name] for name in ("library_name", "pipeline_tag") if name in card]
    tags += ["safetensors"] if any(path.endswith(".safetensors") for path in files) else []
    tags += card.get("tags") or []
    tags += [f"{name}:{card[name]}" for name in ("base_model", "license") if name in card]
    named = {name: card[name] for name in ("library_name", "pipeline_tag") if name in card}
    return {"tags": [*tags, "region:us"], **named, **({"cardData": card} if card else {})}


def _asked_range(asked: str, size: int) -> tuple[int, int] | None:
    """First place and end of the bytes that a Range header asks for; None where it asks for none or for many.

    Raises `Refusal` where the file ends before.
    """
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", asked.strip())
    if found is None or not any(found.groups()):
        return None
    first, last = found.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if start >= size:
        raise Refusal(416, "The range is not satisfiable", {"Content-Range": f"bytes */{size}"})
    return (start, end) if start < end else None


# --- HTTP


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64  # a client that comes with all its threads at once would wait a second

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
        url = urlsplit(self.path)
        request = Request(
            self.command,
            url.path,
            {name.lower(): value for name, value in self.headers.items()},
            self.rfile.read(int(self.headers.get("Content-Length") or 0)),
            {name: values[-1] for name, values in parse_qs(url.query).items()},
        )
        self.imitation.requests.append(request)
        fault = self.imitation._next_fault(request)
        if fault and not fault.late:
            return self._fail(fault)
        try:
            status, headers, answer = 200, {}, self.imitation.answer(request)
            if isinstance(answer, FileAnswer):
                status, headers, start, end = self._part(request, answer)
        except Refusal as refusal:
            status, headers, answer = refusal.status, refusal.headers, refusal.answer
        if fault:
            self._fail(fault)
        elif isinstance(answer, FileAnswer):
            self._send_head(status, headers, end - start)
            if self.command != "HEAD":
                self._send_file(request, answer, start, end)
        else:
            self._send(status, headers, answer)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def _fail(self, fault: Fault) -> None:
        if fault.how == "hang":
            self.imitation._released.wait(60)
            self.close_connection = True
        elif fault.how == "drip":
            with suppress(ConnectionError):  # the client is gone
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                while not self.imitation._released.wait(DRIP_SECONDS):
                    self.wfile.write(b"x")
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
        body = json.dumps(answer, default=str).encode()
        self._send_head(status, {"Content-Type": "application/json", **headers}, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_head(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _part(self, request: Request, answer: FileAnswer) -> tuple[int, dict[str, str], int, int]:
        """Status, headers, first place and end of what is sent of a file."""
        size = answer.file.size
        headers = {"Content-Type": "application/octet-stream", **answer.headers}
        asked = request.headers.get("range") if self.imitation.ranges else None
        part = _asked_range(asked, size) if asked else None
        if part is None:
            return 200, headers, 0, size
        start, end = part
        end = min(end, start + self.imitation.longest_range)
        return 206, {**headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"}, start, end

    def _send_file(self, request: Request, answer: FileAnswer, start: int, end: int) -> None:
        """The bytes of a file, in the pieces that its speed wants, until something is to happen to them."""
        served = Served(answer.repository, answer.file.path, start)
        self.imitation.served.append(served)
        trouble = self.imitation._next_trouble(request, end - start)
        length = trouble.after if trouble else end - start
        try:
            with answer.file.open() as file:
                file.seek(start)
                self._send_pieces(request, file, length, served)
            if trouble and trouble.how == "stall":
                self._wait_until_gone()
        except ConnectionError:
            pass  # the client is gone
        self.close_connection = self.close_connection or served.sent < end - start

    def _send_pieces(self, request: Request, file: BinaryIO, length: int, served: Served) -> None:
        released = self.imitation._released
        while served.sent < length and not released.is_set():
            began, speed = time.monotonic(), self.imitation._speed(request)
            size = max(1, int(min(length - served.sent, PIECE, speed * PIECE_SECONDS)))
            # Counted first: who has read the last byte finds all of them counted.
            served.sent += size
            self.wfile.write(file.read(size))
            if speed < math.inf:
                released.wait(began + size / speed - time.monotonic())

    def _wait_until_gone(self) -> None:
        """Until the client has closed its connection, or the Hub stops."""
        while not self.imitation._released.wait(0.05):
            if select.select([self.connection], [], [], 0)[0] and not self.connection.recv(
                1, socket.MSG_PEEK
            ):
                return

    def log_message(self, *_) -> None:
        pass
