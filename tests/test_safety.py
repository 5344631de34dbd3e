"""What the page's server never gives away, never takes in, and never lets become HTML."""

import http.client
import io
import json
import os
import random
import re
import shutil
import socket
import struct
import tempfile
import zlib
from contextlib import closing
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import gradio as gr
import pytest
from PIL import PngImagePlugin

from dopsd_app.checks.verdict import CheckRow, judge_rows, save_check
from dopsd_app.data.drafts import read_draft
from dopsd_app.data.uploads import add_pictures
from dopsd_app.files import replace_file
from dopsd_app.hub.access import Space
from dopsd_app.hub.publication import Publication
from dopsd_app.hub.scheduled_push import schedule_push
from dopsd_app.jobs.drawing import Drawing
from dopsd_app.jobs.events import LoraChecked, Warned, append_event
from dopsd_app.jobs.job import JOBS_FOLDER, create_job, write_status
from dopsd_app.jobs.kinds import CHECK_TEACHER
from dopsd_app.jobs.runs import LORA_FILE, Run
from dopsd_app.ui import launch_options, publish, visitors, words
from dopsd_app.ui.base_facts import base_facts
from dopsd_app.ui.page import add_page
from dopsd_app.ui.server.lora_copies import drop_copies, lora_copy
from tests.support.checkpoint_files import leave_checkpoint
from tests.support.imitation_hub import ImitationHub
from tests.support.layout import lay_out
from tests.support.page_server import ROOT, PageServer, all_bytes, leave_draft, leave_run, wait_for
from tests.support.pictures import make_picture

pytestmark = pytest.mark.process

MARK = "marked5Gw71q"
UPLOAD = {"_type": "gradio.FileData"}
REFUSED = (400, 403, 404, 405, 422)


def used_server(folder: Path, environment: dict[str, str]) -> PageServer:
    """A server with a run and a draft, on a computer whose person is signed in to the Hub."""
    server = PageServer(folder, environment)
    server.run = leave_run(server, f"{MARK} of a run")
    server.draft = leave_draft(server, f"{MARK} of a draft")
    (folder / "home").mkdir()
    (folder / "home" / "token").write_text(f"hf_{MARK}")
    (folder / "link").symlink_to(server.runs)
    return server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The usual one: its runs and drafts lie in the folder where it was started."""
    folder = tmp_path_factory.mktemp("page")
    with used_server(folder, {"DOPSD_TRUSTED_HOSTS": "studio.lan"}) as server:
        yield server


@pytest.fixture(scope="module")
def other_server(tmp_path_factory):
    """One whose runs and drafts lie in the temporary folder, which Gradio trusts most."""
    folder = tmp_path_factory.mktemp("other")
    places = {"DOPSD_RUNS": str(folder / "tmp/runs"), "DOPSD_DRAFTS": str(folder / "tmp/drafts")}
    with used_server(folder, places) as server:
        yield server


@pytest.fixture(scope="module")
def call(server):
    return server.client()


class RawRequests:
    """GET without any of the repairs that good clients make to an address."""

    def __init__(self, server: PageServer):
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)

    def __enter__(self) -> "RawRequests":
        return self

    def __exit__(self, *_) -> None:
        self.connection.close()

    def get(self, address: str) -> tuple[int, bytes]:
        self.connection.putrequest("GET", address, skip_accept_encoding=True)
        self.connection.endheaders()
        with self.connection.getresponse() as answer:
            return answer.status, answer.read()


# --- files


def addresses(server: PageServer, file: Path):
    """Ways to ask for a file."""
    cache = server.temporary / "gradio"
    served = next(path.parent for path in cache.rglob("*.webp"))
    up = "/".join([".."] * (len(served.parts) - 1))
    plain = str(file)
    forms = [
        plain,
        f"file://{plain}",
        f"{served}/{up}{plain}",
        f"{cache}/{up}{plain}",
        plain.replace("/", "\\"),
        plain.replace("/", "//"),
        f"{file.parent}/./{file.name}",
        f"{plain}%00.webp",
    ]
    if server.folder in file.parents:  # from the folder where the server was started
        relative = str(file.relative_to(server.folder))
        forms += [relative, f"./{relative}", f"../{server.folder.name}/{relative}"]
    for form in forms:
        yield f"/gradio_api/file={quote(form, safe='/%:')}"
    for form in (plain, f"{served}/{up}{plain}"):
        yield f"/gradio_api/file={quote(form, safe='')}"
        yield f"/gradio_api/file={quote(quote(form, safe=''), safe='')}"
    for prefix in ("/file=", "/gradio_api/file/", "/file/", "/static/", "/assets/", "/svelte/"):
        yield prefix + plain
        yield f"{prefix}{up}{plain}"
    yield f"/gradio_api/proxy=file://{plain}"
    yield f"/gradio_api/custom_component/x/client/component/{up}{plain}"
    yield f"/gradio_api/stream/x/y/1{plain}"


@pytest.mark.parametrize("which", ["server", "other_server"])
def test_no_file_of_runs_drafts_or_the_computer_can_be_fetched(which, request):
    server = request.getfixturevalue(which)
    for endpoint in ("download_lora", "show_pictures"):  # so that there are files that can be fetched
        server.client()(endpoint, server.run.id)
    own = [file for folder in (server.runs, server.drafts) for file in folder.rglob("*") if file.is_file()]
    kinds = {}  # one of each kind is enough
    for file in own:
        kinds.setdefault(
            (file.parent.name.rstrip("0123456789abcdef-"), file.suffix, file.name.strip("0123456789")), file
        )
    linked = server.folder / "link" / server.run.id
    others = [Path("/etc/passwd"), ROOT / "app.py", server.folder / "home" / "token", server.output]
    others += [linked / "config.json", linked / LORA_FILE, server.runs / f"{JOBS_FOLDER}/../.start.lock"]
    needed = {"config.json", "status.json", "events.jsonl", "log.txt", "draft.json", LORA_FILE, "resume.pt"}
    assert needed <= {file.name for file in kinds.values()}
    with RawRequests(server) as raw:
        for file in [*kinds.values(), *others]:
            content = file.read_bytes()
            for address in addresses(server, file):
                status, answer = raw.get(address)
                assert status in REFUSED or content not in answer, address


def test_what_is_handed_out_is_a_copy_in_the_cache(server):
    outputs = [
        server.event(function_number(server, name), [server.run.id, *step])["data"][0]
        for name, step in (("download_lora", [0]), ("show_pictures", []))
    ]
    paths = [outputs[0]["path"], *(shown["picture"]["path"] for shown in outputs[1]["samples"])]
    for path, original in zip(paths, [LORA_FILE, "previews/samples-1.webp"], strict=False):
        assert (server.temporary / "gradio").resolve() in Path(path).parents
        assert server.run.id not in path
        answer = server.get(f"/gradio_api/file={path}")
        assert answer.content == (server.run.path / original).read_bytes()
    assert Path(paths[0]).samefile(server.run.lora_file)  # a link: half a gigabyte is not written again


def function_number(server, name: str) -> int:
    return next(d["id"] for d in server.config()["dependencies"] if d["api_name"] == name)


def upload(server, *files: tuple[str, bytes]) -> list[str]:
    answer = server.http.post(f"{server.url}/gradio_api/upload", files=[("files", file) for file in files])
    assert answer.status_code == 200, answer.text
    return answer.json()


def png(mark: str, seed: int = 0) -> bytes:
    """A picture whose file says more than its pixels."""
    content, notes = io.BytesIO(), PngImagePlugin.PngInfo()
    notes.add_text("where", mark)
    make_picture(seed, 64, 64).save(content, format="PNG", pnginfo=notes)
    return content.getvalue()


@pytest.mark.parametrize("way", ["endpoint", "page"])
def test_an_upload_is_gone_when_it_came_into_a_draft(server, call, way):
    draft = call("begin_draft")["id"]
    files = [("a.png", png(f"{MARK}-{way}")), ("a.txt", f"{MARK}-{way}".encode()), ("b.png", b"no picture")]
    paths = upload(server, *files)
    for path, (_, content) in zip(paths, files, strict=True):
        assert server.get(f"/gradio_api/file={path}").content == content
    given = [{"path": path, "meta": UPLOAD} for path in paths]
    if way == "endpoint":
        added = server.event(function_number(server, "add_pictures"), [draft, given])["data"][0]
        assert len(added["pictures"]) == 1 and "cannot be read" in added["refused"][0]
    else:
        server.event(server.numbers("upload")[0], [{"id": draft, "keys": []}, given, None, []])
    shown = call("show_draft", draft)["pictures"]
    assert [(item["name"], item["caption"]) for item in shown] == [("a.png", f"{MARK}-{way}")]
    for path in paths:
        assert server.get(f"/gradio_api/file={path}").status_code == 403
    assert f"{MARK}-{way}".encode() not in all_bytes(server.temporary / "gradio")
    assert b"where" not in all_bytes(server.drafts / draft / "pictures")


def test_paths_that_a_client_makes_up_are_not_read(server, call):
    draft = call("begin_draft")["id"]
    before = all_bytes(server.runs, server.drafts)
    cache = server.temporary / "gradio"
    picture = server.run.dataset / "01.png"
    number, page = function_number(server, "add_pictures"), server.numbers("upload")[0]
    with ImitationHub() as elsewhere:
        for path in (
            str(picture),
            f"{cache}/../../{picture.relative_to(server.folder)}",
            f"{cache}/..{picture}",
            str(picture.relative_to(server.folder)),
            "/etc/passwd",
            f"file://{picture}",
            f"{elsewhere.url}/picture.png",
            "",
            None,
            7,
            {"path": str(picture)},
        ):
            for file in (
                {"path": path},
                {"path": path, "meta": UPLOAD},
                {"path": path, "meta": {**UPLOAD, "more": 1}},
                {"path": path, "meta": {"_type": "gradio.filedata"}},
                {"path": "x", "url": path, "meta": UPLOAD},
            ):
                output = server.event(number, [draft, [file]])
                assert "data" not in output, file
                assert "log tells" not in output["error"], file
                server.event(page, [{"id": draft, "keys": []}, [file], None, []])
        assert elsewhere.requests == []
    assert all_bytes(server.runs, server.drafts) == before
    assert picture.exists() and Path("/etc/passwd").exists()


def test_names_that_a_client_makes_up_lead_nowhere(server):
    outside = server.folder / "outside"
    outside.mkdir()
    for name in ("config.json", "draft.json", "status.json"):
        (outside / name).write_text((server.run.path / "config.json").read_text())
    asked = (server.runs / JOBS_FOLDER).glob("2*/job.json").__next__()
    (outside / "job.json").write_text(asked.read_text())
    make_picture(1).save(outside / "lora.png")
    (outside / "preset.toml").write_text('label = "x"\ndescription = "y"\nsteps = 3\n')
    before = all_bytes(server.runs, server.drafts, outside)
    up = f"../../../{server.folder.name}/outside" if server.runs.parent != server.folder else "../outside"
    names = [up, str(outside), f"{server.run.id}/../{up}", "..", JOBS_FOLDER, "\0"]
    whole = {"run_id": server.run.id, "draft_id": server.draft.id}
    by_type = {"string": "x", "integer": 1, "number": 1.0, "boolean": False, "object": {}, "array": []}
    aims = ("run_id", "draft_id", "drawing_id", "picture")
    numbers = {dependency["api_name"]: dependency["id"] for dependency in server.config()["dependencies"]}

    def refused(endpoint: str, *values) -> str:
        return server.event(numbers[endpoint], values)["error"]

    endpoints = server.get("/gradio_api/info").json()["named_endpoints"]
    for name in names:
        for endpoint, facts in endpoints.items():
            kinds = {p["parameter_name"]: p["type"]["type"] for p in facts["parameters"]}
            for aim in kinds.keys() & set(aims):
                values = {parameter: by_type[kind] for parameter, kind in kinds.items()} | whole
                told = refused(endpoint[1:], *({**values, aim: name}[parameter] for parameter in kinds))
                assert "log tells" not in told and MARK not in told, (endpoint, name)
        for preset in (f"{name}/preset", f"../{name}/preset"):
            assert "There is no preset" in refused("change_settings", server.draft.id, {"preset": preset})
        assert "is not kept any more" in refused("keep_for_card", server.run.id, name, 0, 1)
        assert "There is no example" in refused("load_example", name)
    assert all_bytes(server.runs, server.drafts, outside) == before
    assert "outside" not in json.dumps(server.enter(5, up))


# --- hosts and other pages


def ask(server, method, path, host, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.putrequest(method, path, skip_host=True)
    for name, value in ({"Host": host} if host is not None else {}).items():
        connection.putheader(name, value)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    with closing(connection):
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read()


WAYS = (
    ("GET", "/"),
    ("GET", "/config"),
    ("GET", "/gradio_api/info"),
    ("POST", "/gradio_api/queue/join"),
    ("GET", "/gradio_api/queue/data?session_hash=x"),
    ("POST", "/gradio_api/call/show_draft"),
    ("POST", "/gradio_api/run/predict"),
    ("POST", "/gradio_api/upload"),
    ("GET", "/gradio_api/heartbeat/x"),
    ("GET", "/theme.css"),
)


@pytest.mark.parametrize(("method", "path"), WAYS)
def test_under_a_foreign_name_nothing_is_answered(server, method, path):
    port = server.port
    for host in ("evil.example", f"evil.example:{port}", "localhost.evil.example", "127.0.0.1.nip.io", ""):
        assert ask(server, method, path, host) == (400, b"Invalid host header"), host
    assert ask(server, method, path, "evil.example", X_Forwarded_Host="localhost")[0] == 400
    assert ask(server, method, path, None)[0] == 400
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13"}
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    assert ask(server, "GET", path, "evil.example", **upgrade, Sec_WebSocket_Key=key)[0] in (400, 403)


def test_under_the_names_of_this_computer_and_added_ones_the_page_is_there(server):
    for host in (
        "localhost",
        f"LOCALHOST:{server.port}",
        f"127.0.0.1:{server.port}",
        "[::1]",
        "studio.lan:80",
    ):
        assert ask(server, "GET", "/config", host)[0] == 200, host


def test_another_sites_page_can_start_nothing(server, call):
    number, known = function_number(server, "begin_draft"), len(call("list_all_drafts"))
    body = json.dumps({"data": [], "fn_index": number, "session_hash": "x"})
    for kind in ("text/plain", "multipart/form-data", "application/json"):
        for path in ("queue/join", "run/predict", "call/begin_draft", "call/v2/begin_draft", "upload"):
            headers = {"Origin": "http://evil.example", "Content-Type": kind}
            answer = server.http.post(f"{server.url}/gradio_api/{path}", content=body, headers=headers)
            assert answer.status_code == 403, (kind, path)
            # A browser that names no origin does not send JSON for another site without asking first.
            if kind != "application/json":
                answer = server.http.post(
                    f"{server.url}/gradio_api/{path}", content=body, headers={"Content-Type": kind}
                )
                assert answer.status_code in (400, 422), (kind, path)
    asked = server.http.options(
        f"{server.url}/gradio_api/queue/join",
        headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"},
    )
    assert "access-control-allow-origin" not in asked.headers
    assert len(call("list_all_drafts")) == known


@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/info", "/nothing"])
def test_no_other_site_may_show_the_page_in_a_frame(server, path):
    headers = server.get(path).headers
    assert headers["content-security-policy"] == "frame-ancestors 'self'"
    assert headers["x-frame-options"] == "SAMEORIGIN"


# --- what comes in


def in_parts(*parts: tuple[str, bytes], end: bool = True) -> bytes:
    """A multipart body; each part is the rest of its Content-Disposition, and its content."""
    bodies = [
        b"--cut\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + content + b"\r\n"
        for head, content in parts
    ]
    return b"".join(bodies) + (b"--cut--\r\n" if end else b"")


MULTIPART = {"Content-Type": "multipart/form-data; boundary=cut"}
GOOD = ('name="files"; filename="a.txt"', b"a")
CLOSED = (
    *("process_recording", "component_server", "component_server/", "stream/x", "stream/x/close"),
    *("vibe-edit", "vibe-code", "undo-vibe-edit", "run-history/connect", "profiling/clear", "api/predict"),
    *("upload/", "reset/x", "mcp/messages"),
)


def test_only_the_upload_takes_files(server):
    before = all_bytes(server.temporary)
    for path in CLOSED:
        address = f"{server.url}/gradio_api/{path}"
        for body in (in_parts(GOOD), in_parts(('name="video"; filename="a.mp4"', b"a"), end=False)):
            assert server.http.post(address, content=body, headers=MULTIPART).status_code == 404, path
        assert server.http.post(address, json={"data": []}).status_code == 404, path
    for path in ("queue/join", "run/predict", "call/show_draft", "call/v2/show_draft", "cancel", "reset"):
        answer = server.http.post(
            f"{server.url}/gradio_api/{path}", content=in_parts(GOOD), headers=MULTIPART
        )
        assert answer.status_code == 400, path
    assert all_bytes(server.temporary) == before
    for path in (
        "deep_link?session_hash=x",
        "queue/status",
        "token",
        "user",
        "proxy=http://x/",
        "dev/reload",
    ):
        assert server.get(f"/gradio_api/{path}").status_code == 404, path


BROKEN = {
    "no end": in_parts(GOOD, end=False),
    "no part": b"",
    "another field": in_parts(GOOD, ('name="x"; filename="a.txt"', b"a")),
    "a text": in_parts(GOOD, ('name="files"', b"a")),
    "no name": in_parts(GOOD, ('name="files"; filename=".."', b"a")),
    "no head": in_parts(GOOD).replace(b"Content-Disposition", b"X"),
    "no multipart": b"\0" * 100,
    "a long head": in_parts((f'name="files"; filename="{"a" * 20_000}"', b"a")),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_upload_is_refused_and_leaves_nothing(server, fault):
    before = files_below(server.temporary)
    for query in ("", "?upload_id=one"):
        answer = server.http.post(
            f"{server.url}/gradio_api/upload{query}", content=BROKEN[fault], headers=MULTIPART
        )
        assert answer.status_code == 400
    assert files_below(server.temporary) == before


@pytest.mark.parametrize("path", ["upload", "upload?upload_id=two", "process_recording", "queue/join"])
def test_a_cut_connection_leaves_nothing(server, path):
    before = files_below(server.temporary)
    part = in_parts((GOOD[0], bytes(300_000)), end=False)
    head = f"POST /gradio_api/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n"
    head += f"Content-Type: {MULTIPART['Content-Type']}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + part)
        if path.startswith("upload"):  # it is written as it comes
            wait_for(lambda: files_below(server.temporary) - before, "the first part of the file")
    wait_for(lambda: files_below(server.temporary) == before, "the end of it")


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


SENSELESS = (
    *(b"", b"{", b"[]", b"null", b'"x"', b"\xff", b"[" * 100_000, b'{"data": [NaN]}', b"{}"),
    *(b'{"data": 3, "fn_index": "x", "session_hash": 7, "event_id": []}', b'{"data": ["\\ud800"]}'),
    *(b'{"data": [], "fn_index": 99999, "session_hash": "x"}', b" " * 5_000_000),
    b'{"data": [], "fn_index": 99999999999999999999999, "session_hash": "x"}',
)
CALLS = ("queue/join", "run/predict", "call/nothing", "call/v2/nothing", "call/v2/show_draft", "run/nothing")


def test_what_makes_no_sense_is_refused_and_leaves_no_trace_in_the_log(server):
    told = len(server.output.read_text())
    asked = 0

    def refused(answer):
        nonlocal asked
        asked += 1
        assert 400 <= answer.status_code < 500, (answer.request.url, answer.request.content[:80], answer.text)

    for path in CALLS:
        for body in SENSELESS:
            headers = {"Content-Type": "application/json"}
            refused(server.http.post(f"{server.url}/gradio_api/{path}", content=body, headers=headers))
    number = function_number(server, "show_draft")
    for data in ([], [{"path": "/etc/passwd", "meta": UPLOAD}]):
        refused(
            server.http.post(f"{server.url}/gradio_api/run/predict", json={"data": data, "fn_index": number})
        )
        told_person = server.event(number, data)["error"]
        assert told_person == "The server cannot use what was sent. Reload the page and try again."
        asked += 1
    # Nothing tells which button was pressed.
    assert server.event(function_number(server, "remove"), [None])["error"] == told_person
    for path in ("/assets/" + "a" * 4000, "/gradio_api/file=" + "a" * 4000, "/gradio_api/queue/data"):
        refused(server.get(path))
    boundary = {"Content-Type": f"multipart/form-data; boundary={'z' * 300}"}
    refused(server.http.post(f"{server.url}/gradio_api/upload", content=b"x", headers=boundary))
    assert server.get("/?page=none&deep_link=x").status_code == 200
    for path in ("queue/data?session_hash=nobodys", "call/show_draft/nobodys"):
        assert "error" in server.get(f"/gradio_api/{path}").text
    lines = server.output.read_text()[told:]
    assert "Traceback" not in lines and lines.count("\n") <= asked + 2, lines


def test_a_file_above_the_limit_is_refused_by_the_server(server, tmp_path):
    with (tmp_path / "large.zip").open("wb+") as large:
        large.truncate(1024**3 + 1)  # it takes no place on the disk
        answer = server.http.post(f"{server.url}/gradio_api/upload", files={"files": large})
    assert answer.status_code == 413


def bomb(width: int, height: int) -> bytes:
    """A small PNG file of very many black pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_too_many_pictures_bombs_and_hostile_names_are_refused_by_name(server, call):
    draft = call("begin_draft")["id"]
    add = function_number(server, "add_pictures")

    def added(*files):
        given = [{"path": path, "meta": UPLOAD} for path in upload(server, *files)]
        return server.event(add, [draft, given])["data"][0]

    told = added(
        ("bomb.png", bomb(30_000, 30_000)), ("page.html", b"<script>"), ("../../up.png", png("x", 999))
    )
    assert "bomb.png has more than 89 million pixels" in "".join(told["refused"])
    assert "page.html is neither a picture nor a caption file" in "".join(told["refused"])
    assert [item["name"] for item in told["pictures"]] == ["up.png"]
    told = added(*((f"{number}.png", png("x", number)) for number in range(200)))
    assert len(told["pictures"]) == 200
    [refused] = told["refused"]
    assert refused.startswith(
        "200 pictures are the most of a draft: of the 200 that came, 1 was left out (199.png)"
    )


# --- what goes out


def test_the_page_is_served_without_history_tracking_or_open_folders():
    options = launch_options()
    assert options["run_history"] is False and options["show_error"] is False
    assert options["enable_monitoring"] is False and options["max_file_size"] == "1gb"
    assert options["state_session_capacity"] <= 100  # of a megabyte each
    assert "allowed_paths" not in options and "share" not in options and "auth" not in options


def test_what_the_browser_builds_the_page_from_holds_nothing_of_a_persons(server):
    config = server.config()
    assert config["analytics_enabled"] is False
    for path in ("/", "/config", "/gradio_api/info", "/gradio_api/openapi.json"):
        text = server.get(path).text
        for secret in (MARK, server.run.id, server.draft.id, str(server.folder), str(Path.home()), str(ROOT)):
            assert secret not in text, (path, secret)
    assert server.get("/runs").status_code == 404
    assert server.get("/gradio_api/run-history/records").status_code == 404


# --- HTML of hostile texts


class Balanced(HTMLParser):
    """Accepts the tags and attributes that the page writes, closed in their order, and nothing else."""

    ATTRIBUTES: ClassVar[set[str]] = {
        *(
            "class",
            "role",
            "href",
            "target",
            "rel",
            "src",
            "alt",
            "width",
            "height",
            "value",
            "max",
            "tabindex",
        ),
        *(
            "aria-label",
            "aria-live",
            "style",
            "id",
            "loading",
            "decoding",
            "data-group",
            "scope",
            "colspan",
            "title",
            "open",
            "type",
            "hidden",
            "data-about",
            "data-across",
            "data-down",
            "data-key",
            "data-value",
            "download",
            "data-caption",
        ),
    }
    TAGS: ClassVar[set[str]] = {
        *(
            "p",
            "div",
            "span",
            "b",
            "code",
            "a",
            "h2",
            "h3",
            "small",
            "dl",
            "dt",
            "dd",
            "figure",
            "figcaption",
        ),
        *("progress", "img", "br", "summary", "details", "ul", "ol", "li"),
        *(
            "section",
            "header",
            "h4",
            "strong",
            "svg",
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
            "button",
            "input",
            "label",
        ),
    }

    def __init__(self, html: str):
        super().__init__()
        self.open = []
        self.feed(html)
        self.close()
        assert not self.open, html

    def handle_starttag(self, tag, attributes):
        assert tag in self.TAGS, tag
        for name, value in attributes:
            assert name in self.ATTRIBUTES, name
            if name in ("href", "src"):
                assert re.match(
                    r"https://|pictures/(drafts|jobs|runs|checks)/[\w./%-]+\?side=(\d+|whole)&v=[0-9a-f]+$",
                    value,
                ), value
        if tag not in ("img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_comment(self, content):
        raise AssertionError(content)

    handle_decl = handle_pi = unknown_decl = handle_comment


PIECES = (
    "<zz-1 onzz='1'>",
    "\" onzz=1 '",
    "'onzz=1 ",
    "</p></span></div></b>",
    "<!-- ",
    "<![CDATA[",
    "<?zz ",
    "&lt;zz&gt;&#60;zz&#62;",
    "<script>zz</script>",
    "javascript:zz",
    "https://x/'><zz>",
    "--> ]]> ",
    "<zz ",
    "\n",
    "zorp",
)


@pytest.fixture
def page_of(tmp_path, monkeypatch):
    """A function that tells the HTML of all steps for a draft and a run whose texts all are the given one."""
    places = {"DOPSD_RUNS": str(tmp_path / "runs"), "DOPSD_DRAFTS": str(tmp_path / "drafts")}
    for name, value in places.items() | {("HF_TOKEN", "hf_x")}:
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    server = PageServer(tmp_path / "page", places)
    run, draft = leave_run(server, "zorp"), leave_draft(server, "zorp")
    make_picture(3, 40, 40).save(tmp_path / "small.png")  # so that there is a problem to tell
    draft = add_pictures(draft, [tmp_path / "small.png"]).draft
    schedule_push(run, Publication("x"), token=None)
    checked = tmp_path / "checked"
    checked.mkdir()
    asked = {"config": {}, "folder": str(checked)}
    drawing = Drawing(create_job(run.runs_dir, CHECK_TEACHER, asked).path)
    replace_file(draft.path / "check", json.dumps({"drawing": drawing.id, "of": "what was there before"}))
    for who in ("crop", "student", "teacher"):
        make_picture(1).save(drawing.path / f"0_{who}.webp")
    page = lay_out(add_page)

    def change(file: Path, **changes) -> None:
        replace_file(file, json.dumps(json.loads(file.read_bytes()) | changes))

    def html(text: str) -> list[str]:
        change(run.path / "config.json", trigger_word=text, preview_prompts=[text], base_model=text)
        change(run.path / "card" / "01.json", prompt=text)
        change(run.path / "when_finished.json", reason=text)
        replace_file(run.path / "published.json", json.dumps({"link": f"https://hub/{text}"}))
        append_event(run.events_file, Warned(2, text))
        append_event(run.events_file, LoraChecked(2, False, text))
        write_status(run, reason=text)
        state = json.loads((draft.path / "draft.json").read_bytes())
        items = [item | {"name": text, "caption": text, "remarks": [text]} for item in state["items"]]
        settings = {"trigger_word": text, "name": text, "optimizer": text}
        change(draft.path / "draft.json", items=items, settings=settings, waiting={"x": [text, text]})
        replace_file(checked / "01.txt", f"a {text}")
        write_status(drawing, state="failed", reason=text)
        save_check(replace(judge_rows((CheckRow(0, 1, 0),), ""), sentence=text), drawing.path)
        space = Space(id=text, owner=text, zero_gpu=False, sign_in=False)
        now = read_draft(draft.path)
        filled = {
            **page.pictures.show(now),
            **page.plan.show(now),
            **page.teacher.show(now),
            **page.train.show(run.id),
            **page.trying.show(run.id),
            **page.publishing.show(run.id),
        }
        values = [value for component, value in filled.items() if isinstance(component, gr.HTML)]
        return [
            *(told(value) for value in values),
            base_facts("z-image-turbo", text, "", ask=False),
            publish.link(f"https://hub/{text}"),
            visitors.welcome(space, ""),
            visitors.welcome(space, text),
            words.text(text),
            words.lines([text], "note"),
            words.image(run.path / "card" / "01.png", text),
        ]

    return html


def told(update) -> str:
    """The HTML of an update: the text itself, or a component's; of plain values the browser makes text."""
    held = update.get("value") if isinstance(update, dict) else getattr(update, "value", update)
    return held if isinstance(held, str) else ""


def test_no_text_becomes_html(page_of):
    shown = page_of("zorp <zz>")
    assert sum("&lt;zz&gt;" in html for html in shown) > 15  # it is looked at where texts are shown
    for html in shown:
        Balanced(html)
    draw = random.Random(0)
    for _ in range(25):
        text = "".join(draw.choice(PIECES) for _ in range(draw.randint(1, 5)))
        for html in page_of(f"z{text}"):
            Balanced(html)


def test_what_a_person_is_told_has_no_tags(server, call):
    told = call.refused("change_settings", server.draft.id, {"<img src=http://evil.example>": 1})
    assert "img src=http://evil.example" in told and not set(told) & {"<", ">"}


def test_a_deleted_runs_lora_is_not_offered_any_more(tmp_path):
    copies = []
    for name in ("20261121-100000-mine-aa", "20261121-100000-mine-bb"):
        run = Run(tmp_path / name)
        run.path.mkdir()
        run.lora_file.write_bytes(name.encode())
        copies.append(Path(lora_copy(run, run.lora_file, "mine.safetensors")))
    assert [copy.read_bytes()[-2:] for copy in copies] == [b"aa", b"bb"]
    drop_copies(Run(tmp_path / "20261121-100000-mine-aa"))
    assert [copy.exists() for copy in copies] == [False, True]


def test_a_lora_is_offered_without_writing_it_again(tmp_path):
    run = Run(tmp_path / "20261121-100000-mine-cc")
    folder = leave_checkpoint(run, 4)
    run.lora_file.write_bytes(b"final")
    for file in (run.lora_file, folder / "lora.safetensors"):
        copy = Path(lora_copy(run, file, "mine.safetensors"))
        assert copy.name == "mine.safetensors"
        assert copy.samefile(file) or copy.stat().st_dev != file.stat().st_dev  # a link, where that can be
    drop_copies(run)
    assert not copy.exists() and run.lora_file.exists()


def test_a_copy_of_what_is_gone_or_was_called_otherwise_takes_no_room(tmp_path):
    run = Run(tmp_path / "20261121-100000-mine-dd")
    first, second = (leave_checkpoint(run, step) / "lora.safetensors" for step in (4, 8))
    copies = [Path(lora_copy(run, file, "mine.safetensors")) for file in (first, second)]
    assert all(copy.exists() for copy in copies)
    shutil.rmtree(first.parent)
    os.utime(second, ns=(1, 1))  # it was trained anew
    again = Path(lora_copy(run, second, "mine.safetensors"))
    renamed = Path(lora_copy(run, second, "yours.safetensors"))
    assert [copy.exists() for copy in (*copies, again, renamed)] == [False, False, False, True]
    drop_copies(run)
