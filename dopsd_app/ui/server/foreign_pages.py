"""What other sites, and a Space's visitors, may not do with this server: the middleware in front of it."""

import anyio
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from dopsd_app.hub.access import AccessError, check_access, this_space


class ForeignPages:
    """Middleware that answers another site's page as one that nobody signed in to, and refuses its requests.

    On a Space, Gradio lets every site ask with the cookies that the browser has for the Space: there they are
    forgotten. Browsers tell who asks; following a link, also back from the sign-in, stays possible. Elsewhere
    nobody signs in, and whoever asks for another site is refused.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request, on_space = HTTPConnection(scope), this_space() is not None
        if "session" in scope and _is_foreign(request):
            scope["session"] = type(scope["session"])()  # an empty one
        if not on_space and _other_origin(request):
            await PlainTextResponse("Another site may not ask this server.", 403)(scope, receive, send)
        elif on_space and request.url.path.endswith("/upload") and not await _may_upload(request):
            await PlainTextResponse("Only the owner of this Space may upload.", 403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _is_foreign(request: HTTPConnection) -> bool:
    foreign = request.headers.get("sec-fetch-site") in ("cross-site", "same-site")
    following = request.headers.get("sec-fetch-mode") == "navigate" and request.scope["method"] == "GET"
    return foreign and not following


def _other_origin(request: HTTPConnection) -> bool:
    """Whether a page of another host asks; programs name no origin, and plain http has no other sign."""
    origin = request.headers.get("origin")
    return origin is not None and origin.partition("://")[2] != request.headers.get("host")


async def _may_upload(request: HTTPConnection) -> bool:
    """Whether the owner asks: signed in, or with a token in the header, as clients of private Spaces do."""
    signed_in = (request.scope.get("session") or {}).get("oauth_info") or {}
    bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
    try:
        await anyio.to_thread.run_sync(check_access, signed_in.get("access_token") or bearer or None)
    except AccessError:
        return False
    return True
