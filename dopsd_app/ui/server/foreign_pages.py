"""What other sites' pages may not do with this server: the middleware in front of it."""

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dopsd_app.hub.access import this_space


class ForeignPages:
    """Middleware that answers another site's page as one that nobody signed in to, and refuses its requests.

    On a Space, Gradio lets every site ask with the cookies that the browser has for the Space: there they are
    forgotten. Browsers tell who asks; following a link, also back from the sign-in, stays possible. Elsewhere
    nobody signs in, and whoever asks for another site is refused. No other site may show the page in a frame,
    where it could have buttons clicked unseen; only the Hub shows Spaces so.
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
        send = _unframed(send, on_space)
        if not on_space and _other_origin(request):
            await PlainTextResponse("Another site may not ask this server.", 403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _unframed(send: Send, on_space: bool) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            if on_space:
                headers["content-security-policy"] = "frame-ancestors 'self' https://huggingface.co"
            else:
                headers["content-security-policy"] = "frame-ancestors 'self'"
                headers["x-frame-options"] = "SAMEORIGIN"
        await send(message)

    return with_headers


def _is_foreign(request: HTTPConnection) -> bool:
    foreign = request.headers.get("sec-fetch-site") in ("cross-site", "same-site")
    following = request.headers.get("sec-fetch-mode") == "navigate" and request.scope["method"] == "GET"
    return foreign and not following


def _other_origin(request: HTTPConnection) -> bool:
    """Whether a page of another host asks; programs name no origin, and plain http has no other sign."""
    origin = request.headers.get("origin")
    return origin is not None and origin.partition("://")[2] != request.headers.get("host")
