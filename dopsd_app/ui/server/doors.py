"""The doors of the page's server: which requests come in, for whom, and in what shape."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass

import orjson
from authlib.common.errors import AuthlibBaseError
from gradio_client.utils import is_file_obj_with_meta
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dopsd_app.hub.access import this_space
from dopsd_app.ui.server.guard import in_one_line, unreadable_calls
from dopsd_app.ui.server.sessions import Sessions, is_owner, may
from dopsd_app.ui.server.streams import SESSION_OF_CALL
from dopsd_app.ui.server.uploads import whole_files

logger = logging.getLogger(__name__)
MAX_BODY = 4_000_000  # bytes: a call may carry the captions of all pictures

EVERYBODY = "everybody"
SESSION = "session"  # who has begun what is named: nobody else may read, use or end it
OWNER = "owner"


@dataclass(frozen=True)
class Door:
    """Routes of Gradio's that are alike; who may ask is checked on a Space only."""

    method: str  # HEAD goes where GET does
    path: str  # a regular expression for all of it
    who: str
    body: str = ""  # "call": a JSON object; "files": multipart


# What the page, gradio_client and the commands of "Use via API" ask for. Gradio has more: recordings, deep
# links, functions of components, streams, proxies, an editor, monitoring. Nothing here uses them, some write
# to the disk or tell about other people, and so none of them is there.
DOORS = (
    # What a browser builds the page from: the same for all.
    Door("GET", r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json", EVERYBODY),
    Door("GET", r"/(static|assets|svelte)/.{1,200}", EVERYBODY),
    Door("GET", r"/gradio_api/(info/?|openapi\.json|theme\.css|app_id/?|startup-events)", EVERYBODY),
    # The sign-in of a Space.
    Door("GET", r"/login/huggingface|/login/callback|/logout", EVERYBODY),
    # Calls of functions, which check themselves who calls, and their answers.
    Door("POST", r"/gradio_api/run/[^/]+/?", SESSION, "call"),
    Door("POST", r"/gradio_api/(?P<later>queue/join|call/(v2/)?[^/]+/?)", SESSION, "call"),
    Door("POST", r"/gradio_api/(cancel|reset/?)", SESSION, "call"),
    Door("GET", r"/gradio_api/queue/data", SESSION),
    Door("GET", r"/gradio_api/heartbeat/(?P<named>[^/]+)", SESSION),
    Door("GET", r"/gradio_api/call/(v2/)?[^/]+/(?P<named>[^/]+)", SESSION),
    # Files, in and out.
    Door("POST", r"/gradio_api/upload", OWNER, "files"),
    Door("GET", r"/gradio_api/upload_progress", OWNER),
    Door("GET", r"/gradio_api/file[=/].+", OWNER),
    Door("GET", r"/pictures/.{1,500}", OWNER),
)


def find_door(method: str, path: str) -> tuple[Door, dict] | None:
    """The door that a request comes to, with what the path names; None where there is none."""
    method = "GET" if method == "HEAD" else method
    for door in DOORS:
        if door.method == method and (match := re.fullmatch(door.path, path, re.DOTALL)):
            return door, match.groupdict()
    return None


class Doors:
    """Middleware that refuses what comes to no door, to another's, or in no shape that can be read."""

    def __init__(self, app: ASGIApp):
        self.app = app
        self.sessions = Sessions()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        try:
            door, receive, admitted_send = await self._admit(scope, receive, send)
        except HTTPException as refusal:
            await PlainTextResponse(refusal.detail, refusal.status_code)(scope, receive, send)
        else:
            await self._pass(door, scope, receive, admitted_send)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> tuple[Door, Receive, Send]:
        """The request as it may go on; an HTTPException refuses it."""
        # A websocket, too, comes to no door.
        found = find_door(scope.get("method", ""), scope["path"].removeprefix(scope.get("root_path", "")))
        if not found:
            raise HTTPException(404, "There is no such page.")
        door, named = found
        request, on_space = HTTPConnection(scope), this_space() is not None
        if door.body == "call":
            call, receive = await read_call(request, receive)
            scope[SESSION_OF_CALL] = call.get("session_hash")
            send = await self._admit_call(request, call, named, send) if on_space else send
        elif on_space and door.who != EVERYBODY:
            name = named.get("named") or request.query_params.get("session_hash", "")
            if (door.who == OWNER or self.sessions.owned(name)) and not await is_owner(request):
                raise HTTPException(403, "Only the owner of this Space may ask for this.")
        if request.url.path == "/":
            scope["query_string"] = b""  # Gradio would look for other pages and deep links: there are none
        if door.body == "files":
            receive = whole_files(receive, request.headers.get("content-type", ""))
        return door, receive, send

    async def _admit_call(self, request: HTTPConnection, call: dict, named: dict, send: Send) -> Send:
        session, later = call.get("session_hash"), bool(named.get("later"))
        owner = await is_owner(request)
        if not owner:
            if self.sessions.owned(session) or self.sessions.owned(call.get("event_id")):
                raise HTTPException(403, "This session is the Space's owner's.")
            by_body = isinstance(token := call.get("oauth_token"), str) and await may(token)
            if by_body and later:
                # The answer is fetched by another request, which has no body to say who asks.
                raise HTTPException(403, "Send the token in a header too: `Authorization: Bearer hf_...`.")
            # Gradio fetches a file that is given by its address before any function can check who calls.
            if not by_body and has_file(call):
                raise HTTPException(403, "Only the owner of this Space may send files.")

        def remember(name: object) -> None:
            if owner:
                self.sessions.own(name)
            else:
                self.sessions.visit(name, request.app.state_holder)

        remember(session)
        # An event without a session is one of its own.
        return _with_event_id(send, remember) if later and (owner or session is None) else send

    async def _pass(self, door: Door, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands a request on; one that Gradio cannot read gets a 400 and one line in the log."""
        started, unreadable = False, []

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            if unreadable and message["type"] == "http.response.start":
                message = {**message, "status": 400}
            await send(message)

        token = unreadable_calls.set(unreadable)
        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            # Gradio itself catches, logs and answers what fails in a function that was called. An answer that
            # has begun ends where nobody waits for that session any more, and the Hub may send back somebody
            # who did not want to sign in.
            senseless = (HTTPException, AuthlibBaseError, *((Exception,) if door.body == "call" else ()))
            if not isinstance(error.__cause__ or error, senseless) or isinstance(error, OSError):
                raise
            logger.warning("A request to %s made no sense: %s", scope["path"][:100], in_one_line(error))
            if started:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                await PlainTextResponse("This request makes no sense here.", 400)(scope, receive, send)
        finally:
            unreadable_calls.reset(token)


async def read_call(request: HTTPConnection, receive: Receive) -> tuple[dict, Receive]:
    """A call's JSON object, and a `receive` that gives it again; an HTTPException says what is wrong."""
    if not request.headers.get("content-type", "").startswith("application/json"):
        raise HTTPException(400, "A call must be JSON.")
    body = bytearray()
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"A call may have {MAX_BODY} bytes at most.")
    try:
        # Strict: neither NaN nor half characters, which Gradio could not send back, nor endless nesting.
        call = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise HTTPException(400, "This is no JSON.") from error
    if not isinstance(call, dict):
        raise HTTPException(400, "A call must be a JSON object.")
    whole = [{"type": "http.request", "body": bytes(body), "more_body": False}]

    async def again() -> Message:
        return whole.pop() if whole else await receive()

    return call, again


def has_file(call: dict) -> bool:
    """Whether anything in a call is marked as a file."""
    left: list = [call]
    while left:
        value = left.pop()
        if is_file_obj_with_meta(value):
            return True
        left.extend(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
    return False


def _with_event_id(send: Send, remember: Callable[[object], None]) -> Send:
    """`send` that remembers the event which a call's answer names before anybody can know of it."""

    async def remembering(message: Message) -> None:
        if message["type"] == "http.response.body" and message.get("body", b"").startswith(b'{"event_id"'):
            remember(orjson.loads(message["body"])["event_id"])
        await send(message)

    return remembering
