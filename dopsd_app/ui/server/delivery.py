"""How the files that a browser builds the page from are sent: few, compressed, and kept by the browser."""

import hashlib
import re
from functools import lru_cache

import brotli
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dopsd_app.ui.server.preload import LINKS, STYLES, STYLES_PATH

# These are the same for everybody, and hold no secret that their compressed size could give away.
COMPRESSED = re.compile(r"/|/config/?|/gradio_api/info/?")
IMMUTABLE = "public, max-age=31536000, immutable"
DAY = "public, max-age=86400"


class Delivery:
    """Middleware that compresses the page, preloads its files, and says how long a browser may keep what.

    Gradio itself compresses what has the ending of a text. Events, pictures and LoRA files stay as they are.
    """

    def __init__(self, app: ASGIApp):
        self.app = app
        self._compressed = GZipMiddleware(self._page)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif (path := _path(scope)) == STYLES_PATH:
            styles = Response(STYLES, headers={"cache-control": IMMUTABLE}, media_type="text/css")
            await styles(scope, receive, send)
        elif COMPRESSED.fullmatch(path):
            await self._compressed(scope, receive, send)
        else:
            await self.app(scope, receive, _with_lifetime(send, _lifetime(path, scope["query_string"])))

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The page with its preloads, or a 304 for a browser that has it; what is no page stays as it is."""
        if _path(scope) != "/":
            await self.app(scope, receive, send)
            return
        start, body = {}, bytearray()

        async def collect(message: Message) -> None:
            start.update(message if message["type"] == "http.response.start" else {})
            body.extend(message.get("body", b""))

        await self.app(scope, receive, collect)
        page = bytes(body).replace(b"</head>", LINKS + b"</head>", 1)
        tag = f'W/"{hashlib.sha256(page).hexdigest()[:32]}"'
        headers, asked = MutableHeaders(raw=start["headers"]), Headers(scope=scope)
        if "br" in re.findall(r"\w+", asked.get("accept-encoding", "")):
            page = _by_brotli(page)
            headers.update({"content-encoding": "br", "vary": "Accept-Encoding"})
        headers.update({"content-length": str(len(page)), "cache-control": "no-cache", "etag": tag})
        if start["status"] == 200 and asked.get("if-none-match") == tag:
            answer = Response(status_code=304, headers={"cache-control": "no-cache", "etag": tag})
        else:
            answer = Response(page, start["status"], headers)
        await answer(scope, receive, send)


@lru_cache(maxsize=2)
def _by_brotli(page: bytes) -> bytes:
    """A third smaller than by gzip; browsers take it over https and from their own computer."""
    return brotli.compress(page, quality=9)


def _path(scope: Scope) -> str:
    return scope["path"].removeprefix(scope.get("root_path", ""))


def _lifetime(path: str, query: bytes) -> str | None:
    """The `Cache-Control` of a file that is the same for everybody; None where Gradio has the say."""
    # Names in `assets` carry a hash of the content, and the theme's is asked for with one.
    if path.startswith("/assets/") or (path.endswith("/theme.css") and query.startswith(b"v=")):
        return IMMUTABLE
    return DAY if path.startswith(("/static/", "/favicon.ico", "/manifest.json")) else None


def _with_lifetime(send: Send, lifetime: str | None) -> Send:
    async def with_header(message: Message) -> None:
        if lifetime and message["type"] == "http.response.start" and message["status"] == 200:
            MutableHeaders(raw=message["headers"])["cache-control"] = lifetime
        await send(message)

    return with_header
