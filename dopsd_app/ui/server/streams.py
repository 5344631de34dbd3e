"""That no answer gets lost between two of a tab's streams."""

import anyio
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SESSION_OF_CALL = "dopsd_app.session"  # in a call's scope: the tab that it comes from
PATIENCE = 1.0  # seconds: a stream's end and a call's answer travel at about the same time
CLOSING = b'"msg":"close_stream"'


class Streams:
    """Middleware that tells a tab of a queued call only when it knows whether its stream goes on.

    Gradio sends a tab's answers in one stream, ends it when no call is left, and the tab opens another for
    its next call. A tab that hears of its call before it has read that the stream is at its end would open
    none, and wait for the answer for good. So the server waits after the last message until the tab has hung
    up, and until then keeps back what it says to calls that came too late for this stream.
    """

    def __init__(self, app: ASGIApp):
        self.app = app
        self._ending: dict[object, anyio.Event] = {}  # by session: set when the tab knows

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/gradio_api/queue/data"):
            await self._stream(scope, receive, send)
        elif scope["type"] == "http" and scope["path"].endswith("/gradio_api/queue/join"):
            await self.app(scope, receive, self._kept_back(scope.get(SESSION_OF_CALL), send))
        else:
            await self.app(scope, receive, send)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        session = Request(scope).query_params.get("session_hash")
        known, ending = anyio.Event(), False

        async def watched(message: Message) -> None:
            nonlocal ending
            if CLOSING in message.get("body", b"")[:100]:
                # Before anything is awaited: a call that comes from now on is too late.
                self._ending[session], ending = known, True
            if ending and not message.get("more_body"):
                return
            await send(message)

        try:
            await self.app(scope, receive, watched)
            if ending:
                with anyio.move_on_after(PATIENCE):
                    while (await receive())["type"] != "http.disconnect":
                        pass
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            known.set()
            if self._ending.get(session) is known:
                del self._ending[session]

    def _kept_back(self, session: object, send: Send) -> Send:
        async def later(message: Message) -> None:
            if (known := self._ending.get(session)) is not None:
                await known.wait()
            await send(message)

        return later
