"""On a Hugging Face Space: everybody sees what it is, and only its owner sees and does anything else."""

import hashlib
import json
import os
import time
from base64 import b64encode
from types import SimpleNamespace

import itsdangerous
import pytest
from gradio.state_holder import StateHolder

from dopsd_app.jobs.job import write_status
from dopsd_app.jobs.launcher import process_started
from dopsd_app.ui.endpoints import ENDPOINTS
from dopsd_app.ui.server.sessions import Sessions
from tests.support.imitation_hub import ImitationHub
from tests.support.page_server import PageServer, all_bytes, leave_draft, leave_run, wait_for

pytestmark = pytest.mark.process

MARK = "marked8Tz20b"
AMBIENT = f"hf_{MARK}OfTheSpace"  # a secret of the Space, which must never push
PEOPLE = {  # by token: name and role in Makers, who own the Space
    "hf_admin": ("Ann", "admin"),
    "hf_writer": ("Bob", "write"),
    "hf_contributor": ("Cem", "contributor"),
    "hf_reader": ("Dea", "read"),
    "hf_stranger": ("Eve", None),
}
VISITORS = {
    None: "Only Makers, who owns this Space, may do this. Sign in, or duplicate it.",
    "hf_stranger": "This Space belongs to Makers, and only its owner may do this.",
    "hf_reader": "This Space belongs to Makers, and only its owner may do this.",
    "hf_contributor": "This Space belongs to Makers, and only its owner may do this.",
    "hf_unknown": "The Hub could not say who you are. The Hub does not accept this token",
}
SECRET = "a secret of the sign-in"
SPACE = {
    "SYSTEM": "spaces",
    "SPACE_ID": "Makers/trainer",
    "SPACE_AUTHOR_NAME": "Makers",
    "SPACE_HOST": "makers-trainer.hf.space",
    "GRADIO_SERVER_NAME": "0.0.0.0",
    "HF_TOKEN": AMBIENT,
}
SIGN_IN = {
    "OAUTH_CLIENT_ID": "the-space",
    "OAUTH_CLIENT_SECRET": SECRET,
    "OAUTH_SCOPES": "openid profile contribute-repos",
}


@pytest.fixture(scope="module")
def hub():
    with ImitationHub() as hub:
        for token, (name, role) in PEOPLE.items():
            hub.add_account(token, name, {"Makers": role} if role else {})
        hub.add_account(AMBIENT, "ambient", {"Makers": "admin"})
        yield hub


@pytest.fixture(scope="module")
def space(hub, tmp_path_factory):
    """A Space with sign-in, on which its owner has worked."""
    folder = tmp_path_factory.mktemp("space")
    environment = hub.environment(folder / "home") | SPACE | SIGN_IN | {"OPENID_PROVIDER_URL": hub.url}
    server = PageServer(folder, environment)
    server.run = leave_run(server, f"{MARK} of a run")
    server.draft = leave_draft(server, f"{MARK} of a draft")
    with server:
        yield server


def secrets_in(server, answer) -> set[str]:
    """What a visitor may not see of the owner's, as far as it is in an answer."""
    text = answer if isinstance(answer, str) else json.dumps(answer)
    known = {MARK, server.run.id, server.draft.id, str(server.folder), *(i.key for i in server.draft.items)}
    return {secret for secret in known if secret in text}


def harmless_inputs(server) -> list[tuple[SimpleNamespace, list]]:
    """Every function of the page, with values that its components take."""
    config = server.config()
    kinds = {component["id"]: component for component in config["components"]}
    values = {"textbox": "x", "checkbox": False, "number": 1, "slider": 1, "browserstate": {}}
    arguments = {
        "run": server.run.id,
        "run_id": server.run.id,
        "draft": server.draft.id,
        "draft_id": server.draft.id,
    }
    by_type = {"string": "x", "integer": 1, "number": 1.0, "boolean": True, "object": {}, "array": []}
    named = server.get("/gradio_api/info").json()["named_endpoints"]
    found = []
    for dependency in config["dependencies"]:
        function = SimpleNamespace(**dependency)
        if function.api_visibility == "public":
            parameters = named[f"/{function.api_name}"]["parameters"]
            data = [arguments.get(p["parameter_name"], by_type[p["type"]["type"]]) for p in parameters]
        else:
            data = [values.get(kinds[number]["type"]) for number in function.inputs]
        if function.backend_fn:
            found.append((function, data))
    return found


def texts_in(value):
    """All texts in an answer."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts_in(part)


# --- visitors


@pytest.mark.parametrize("token", VISITORS)
def test_a_visitor_gets_the_welcome_and_the_way_to_an_own_space(space, token):
    output = space.enter(5, space.run.id, token=token)
    shown = space.shown(output, "visitor")["value"]
    assert "https://huggingface.co/spaces/Makers/trainer?duplicate=true" in shown
    assert (VISITORS[token] if token else "If that is you, sign in at the top.") in shown
    assert space.shown(output, "work") == {"visible": False, "__type__": "update"}  # the steps
    assert not secrets_in(space, output)


@pytest.mark.parametrize("token", VISITORS)
def test_every_function_refuses_visitors_with_a_sentence_and_no_data(space, token):
    before = all_bytes(space.runs, space.drafts)
    refused = set()
    for function, data in harmless_inputs(space):
        if function.api_visibility != "public" and token not in (None, "hf_stranger"):
            continue  # refused for the same reason
        ask = space.event if function.queue else space.direct
        output = ask(function.id, data, token)
        assert not secrets_in(space, output), function.api_name
        if "error" in output:
            assert output["error"].startswith(VISITORS[token]), function.api_name
            refused.add(function.api_name)
        elif function.id != space.entrance and function.api_name != "_check_login_status":
            # What only opens and shuts, and what is silent: no word comes back but those that were sent.
            assert set(texts_in(output["data"])) <= {"", "update", *texts_in(data)}, function.api_name
    assert {function.__name__ for function in ENDPOINTS} <= refused
    assert all_bytes(space.runs, space.drafts) == before


def test_what_everybody_can_load_holds_nothing_of_the_owners(space):
    for path in ("/", "/config", "/gradio_api/info", "/gradio_api/openapi.json", "/?view=api", "/runs"):
        answer = space.get(path)
        assert not secrets_in(space, answer.text), path
        assert SECRET not in answer.text
    for path in ("/monitoring", "/gradio_api/monitoring", "/monitoring/summary"):
        assert space.get(path).status_code in (403, 404)


def test_a_timers_look_as_a_visitor_stays_silent(space):
    config = space.config()
    ticks = [d for d in config["dependencies"] if d["targets"][:1] and d["targets"][0][1] == "tick"]
    assert len(ticks) >= 2
    for tick in ticks:
        output = space.direct(tick["id"], [None] * len(tick["inputs"]))
        assert "error" not in output
        assert all(value is None or value.get("__type__") == "update" for value in output["data"])


def test_the_sign_in_is_at_the_top(space):
    names = [component["props"].get("elem_id") for component in space.config()["components"]]
    assert "sign-in" in names and "token" in names
    tokens = [c for c in space.config()["components"] if c["props"].get("elem_id") == "token"]
    assert not tokens[0]["props"]["visible"]  # who signed in needs none


def test_a_space_answers_under_the_names_of_its_proxy(space):
    for host, status in (("makers-trainer.hf.space", 200), ("localhost:7860", 200), ("evil.example", 400)):
        assert space.get("/config", Host=host).status_code == status


# --- the owner


@pytest.mark.parametrize("token", ["hf_admin", "hf_writer"])
def test_members_who_may_change_the_space_see_what_is_there(space, token):
    call = space.client(token)
    assert call("show_draft", "")["id"] == space.draft.id
    assert MARK in call("read_log", space.run.id)
    output = space.enter(token=token)
    assert space.shown(output, "visitor")["visible"] is False and space.shown(output, "work")["visible"]
    assert "This Space has no GPU: the built-in base works" in space.shown(output, "limits")


def cookie(token: str) -> str:
    """What the sign-in leaves in a browser."""
    userinfo = {"preferred_username": "Ann", "name": "Ann", "profile": "", "picture": ""}
    info = {"access_token": token, "scope": "", "expires_at": time.time() + 86_400, "userinfo": userinfo}
    signer = itsdangerous.TimestampSigner(hashlib.sha256(f"{SECRET}-v4".encode()).hexdigest())
    return signer.sign(b64encode(json.dumps({"oauth_info": info}).encode())).decode()


def test_a_browser_is_known_by_its_sign_in(space):
    output = space.enter(cookie=cookie("hf_admin"))
    assert space.shown(output, "work")["visible"] is True and MARK in json.dumps(output)
    output = space.enter(cookie=cookie("hf_stranger"))
    assert space.shown(output, "work")["visible"] is False and not secrets_in(space, output)
    forged = cookie("hf_admin")[:-2]
    assert "Only Makers" in space.event(space.numbers("fresh")[0], [], cookie=forged)["error"]


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_sites_page_cannot_use_the_sign_in(space, site):
    headers = {"Origin": "https://evil.example", "Sec-Fetch-Site": site, "Sec-Fetch-Mode": "cors"}
    output = space.enter(cookie=cookie("hf_admin"), headers=headers)
    assert space.shown(output, "work")["visible"] is False and not secrets_in(space, output)
    fresh = space.numbers("fresh")[0]
    assert "Only Makers" in space.event(fresh, [], cookie=cookie("hf_admin"), headers=headers)["error"]
    headers = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
    output = space.enter(cookie=cookie("hf_admin"), headers=headers)
    assert space.shown(output, "work")["visible"] is True


def test_only_the_owner_uploads(space):
    for headers, status in (
        ({}, 403),
        ({"Cookie": f"session={cookie('hf_stranger')}"}, 403),
        ({"Authorization": "Bearer hf_reader"}, 403),
        ({"Cookie": f"session={cookie('hf_admin')}", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Cookie": f"session={cookie('hf_admin')}"}, 200),
        ({"Authorization": "Bearer hf_writer"}, 200),
    ):
        files = {"files": ("a.txt", b"words")}
        answer = space.http.post(f"{space.url}/gradio_api/upload", files=files, headers=headers)
        assert answer.status_code == status, headers


STRANGERS = (
    {},
    {"Cookie": f"session={cookie('hf_stranger')}"},
    {"Authorization": "Bearer hf_reader"},
    {"Cookie": f"session={cookie('hf_admin')}", "Sec-Fetch-Site": "cross-site"},
)
OWNERS = (
    {"Cookie": f"session={cookie('hf_admin')}"},
    {"Authorization": "Bearer hf_writer"},
    {"x-hf-authorization": "Bearer hf_writer"},
)


@pytest.mark.parametrize("owner", OWNERS)
def test_an_owners_session_answers_nobody_else(space, owner):
    api = f"{space.url}/gradio_api"
    session = f"of {next(iter(owner))}"
    body = {"data": [0, ""], "fn_index": space.entrance, "session_hash": session}
    asked = body if "Cookie" in owner else body | {"oauth_token": "hf_writer"}  # as gradio_client sends it
    event = space.http.post(f"{api}/queue/join", json=asked, headers=owner).json()["event_id"]
    cancel = {"session_hash": session, "fn_index": space.entrance, "event_id": event}
    for stranger in STRANGERS:
        for path in (
            f"queue/data?session_hash={session}",
            f"call/show_draft/{event}",
            f"call/v2/x/{event}",
            f"heartbeat/{session}",
        ):
            answer = space.http.get(f"{api}/{path}", headers=stranger)
            assert answer.status_code == 403 and not secrets_in(space, answer.text), path
        for path, asked in (
            ("queue/join", body),
            ("run/predict", body),
            ("call/show_draft", {"data": ["x"], "session_hash": session}),
            ("cancel", cancel),
            ("cancel", cancel | {"session_hash": "x"}),
        ):
            assert space.http.post(f"{api}/{path}", json=asked, headers=stranger).status_code == 403, path
        answer = space.http.get(f"{space.url}/gradio_api/deep_link?session_hash={session}", headers=stranger)
        assert answer.status_code == 404
    told = space.http.get(f"{api}/queue/data", params={"session_hash": session}, headers=owner)
    assert MARK in told.text


def test_an_event_that_is_called_by_name_answers_its_owner_only(space):
    for path, body in (("call", {"data": [""]}), ("call/v2", {"draft_id": ""})):
        address = f"{space.url}/gradio_api/{path}/show_draft"
        event = space.http.post(address, json=body, headers=OWNERS[0]).json()["event_id"]
        for stranger in STRANGERS:
            assert space.http.get(f"{address}/{event}", headers=stranger).status_code == 403
        assert MARK in space.http.get(f"{address}/{event}", headers=OWNERS[1]).text


def test_with_a_token_in_the_body_alone_one_is_told_to_send_a_header(space):
    body = {"data": [""], "oauth_token": "hf_admin"}
    answer = space.http.post(f"{space.url}/gradio_api/call/show_draft", json=body)
    assert (answer.status_code, answer.text) == (
        403,
        "Send the token in a header too: `Authorization: Bearer hf_...`.",
    )


def test_a_visitor_cannot_have_a_file_fetched(space, hub):
    file = {"path": f"{hub.url}/picture.png", "meta": {"_type": "gradio.FileData"}}
    number = next(d["id"] for d in space.config()["dependencies"] if d["api_name"] == "add_pictures")
    for path in ("queue/join", "run/predict"):
        body = {"data": ["x", [{"deep": [file]}]], "fn_index": number, "session_hash": "fetches"}
        answer = space.http.post(f"{space.url}/gradio_api/{path}", json=body)
        assert (answer.status_code, answer.text) == (403, "Only the owner of this Space may send files.")
    assert not hub.asked("picture.png")


def test_a_file_that_the_owner_may_fetch_is_shut_to_others(space):
    number = next(d["id"] for d in space.config()["dependencies"] if d["api_name"] == "download_lora")
    file = space.event(number, [space.run.id, 0], "hf_admin")["data"][0]["path"]
    for stranger in STRANGERS:
        assert space.get(f"/gradio_api/file={file}", **stranger).status_code == 403
    for owner in OWNERS:
        answer = space.get(f"/gradio_api/file={file}", **owner)
        assert answer.content == space.run.lora_file.read_bytes()


def test_only_the_hub_may_show_the_space_in_a_frame(space):
    headers = space.get("/").headers
    assert headers["content-security-policy"] == "frame-ancestors 'self' https://huggingface.co"
    assert "x-frame-options" not in headers


def test_visits_neither_pile_up_nor_push_out_the_owners_session():
    sessions, states = Sessions(), StateHolder()
    for name in ("the owner's", *map(str, range(300))):
        states.session_data[name] = name
        if name == "the owner's":
            sessions.own(name)
        else:
            sessions.visit(name, states)
        sessions.visit(None, states)
    assert list(states.session_data) == ["the owner's", *map(str, range(280, 300))]
    assert sessions.owned("the owner's") and not sessions.owned("299") and not sessions.owned([])


def test_who_signed_in_pushes_with_the_own_token_and_never_with_the_spaces(space, hub):
    link = space.client("hf_writer")("publish_lora", space.run.id, "Makers/zorp", True, False)
    assert link == f"{hub.url}/Makers/zorp"
    for request in hub.requests:
        assert AMBIENT not in request.headers.get("authorization", "")
    tokens = {request.token for request in hub.asked("/commit/|/repos/create|/preupload/")}
    assert tokens == {"hf_writer"}
    told = space.client()
    assert "Only Makers" in told.refused("publish_lora", space.run.id, "Makers/zorp", True, False)


def test_the_space_is_paused_after_the_push_unless_another_run_is_at_work(space, hub):
    call = space.client("hf_admin")
    other = leave_run(space, f"{MARK} of another")
    write_status(other, state="training", pid=os.getpid(), pid_started=process_started(os.getpid()))
    for name, paused, reason in (
        ("Makers/first", [], "It was published. Something else is at work, so the Space was not paused."),
        ("Makers/second", ["Makers/trainer"], ""),
    ):
        call("schedule_push", space.run.id, True, name, True, True)
        wait_for(lambda: call("show_scheduled_push", space.run.id)["done"], "the push")
        scheduled = call("show_scheduled_push", space.run.id)
        assert (hub.paused, scheduled["reason"]) == (paused, reason)
        assert scheduled["published"] == f"{hub.url}/{name}"
        write_status(other, state="stopped")
    (pause,) = hub.asked("POST /api/spaces/Makers/trainer/pause")
    assert pause.token == "hf_admin"


def test_while_the_hub_is_away_who_is_new_gets_a_sentence_and_no_access(space, hub):
    space.client("hf_admin")("show_draft", "")  # so that the Hub was asked about this one
    hub.add_account("hf_late", "Makers")
    hub.stop()
    try:
        told = space.client("hf_late").refused("show_draft", "")
        output = space.enter(token="hf_late")
        assert space.client("hf_admin")("show_draft", "")["id"] == space.draft.id
    finally:
        hub.start()
    assert told.startswith("The Hub could not say who you are. The Hub cannot be reached")
    assert "The Hub could not say who you are" in space.shown(output, "visitor")["value"]
    assert not secrets_in(space, output)
    assert space.client("hf_late")("show_draft", "")["id"] == space.draft.id


def test_tokens_stay_nowhere(space):
    kept = all_bytes(space.folder, space.runs, space.drafts)
    for token in (AMBIENT, SECRET, *PEOPLE):
        assert token.encode() not in kept, token


# --- other Spaces


def test_a_space_of_zero_gpu_says_that_it_is_not_supported_and_what_is(hub, tmp_path):
    environment = hub.environment(tmp_path / "home") | SPACE | {"SPACES_ZERO_GPU": "true"}
    with PageServer(tmp_path / "page", environment) as server:
        assert server.get("/").status_code == 200
        limits = server.shown(server.enter(token="hf_admin"), "limits")
        assert "does not support ZeroGPU" in limits
        assert "CPU hardware" in limits and "GPU of the Space" in limits
        # It has no sign-in either.
        assert "hf_oauth: true" in server.shown(server.enter(), "visitor")["value"]
