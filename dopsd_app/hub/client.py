"""How the Hub is asked for pushes: by a client that does not wait for ever, as the library's own does."""

import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from dopsd_app import hub_errors
from dopsd_app.hub_errors import (
    HubError,
    is_transient,
    network_sentence,
    status_sentence,
    to_hub_error,
    words_for_wait,
)

if TYPE_CHECKING:
    import httpx2

CONNECT_SECONDS = 10
TOTAL_SECONDS = 300  # of a whole request, whose answer may trickle; what it sends has more
SLOWEST_SENDING = 50_000  # bytes per second


@contextmanager
def pushing_errors(about: str, token: str) -> Generator[None]:
    """Turns whatever the client raises into a `HubError`: a sentence about `about`, without the token.

    The client's own exception is not chained: nobody controls what a server puts into its words.
    """
    import httpx2

    _set_client()
    try:
        yield
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise to_hub_error(error, about, token) from None


class _Line:
    """The connection of one request, which is cut when its time is over."""

    def __init__(self, seconds: float):
        self.is_cut = False
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self.cut)
        self._timer.daemon = True

    def __enter__(self) -> "_Line":
        self._timer.start()
        return self

    def __exit__(self, *_) -> None:
        self._timer.cancel()

    def trace(self, event: str, info: dict) -> None:
        """Called by the HTTP client for all that it does: it has a new connection, or has encrypted it."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            with self._lock:
                self._socket = info["return_value"].get_extra_info("socket")
            if self.is_cut:
                self.cut()

    def cut(self) -> None:
        """Ends the connection at once: who reads from it or writes to it gets an error."""
        with self._lock, suppress(OSError):  # gone already
            self.is_cut = True
            if self._socket:
                # An encrypted socket's own method would first forget the encryption: what is still written
                # in that moment would be sent in the clear.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


_client_lock = threading.Lock()
_client_is_set = False


def _set_client() -> None:
    """Gives huggingface_hub our client, once in a process, and has it upload through nothing else.

    hf_xet, which it would upload large files with, has a client of its own: where the storage cannot be
    reached, that tries on for more than six minutes without a word. A LoRA file is small enough without it.
    """
    from huggingface_hub import constants, get_session, set_client_factory

    global _client_is_set
    with _client_lock:
        if not _client_is_set:
            constants.HF_HUB_DISABLE_XET = True  # what the environment variable of this name sets
            # The hooks of the library's own client number requests, and refuse all while it is set offline.
            set_client_factory(partial(_make_client, get_session().event_hooks))
            _client_is_set = True


def _make_client(event_hooks: dict[str, list[Callable]]) -> "httpx2.Client":
    """The library's client, of which these are the hooks, with time limits and no silent waiting in uploads.

    What times out in an upload the library repeats five times, and it sleeps for as long as a server asks it
    to: half an hour of nothing to see. Downloads are left to it.
    """
    import httpx2

    class ImpatientClient(httpx2.Client):
        def send(self, request: httpx2.Request, **keywords) -> httpx2.Response:
            if not any(request.extensions["timeout"].values()):
                # Some functions of the library ask for no limit where their caller gave none.
                request.extensions["timeout"] = self.timeout.as_dict()
            seconds = _most_seconds(request)
            with _Line(seconds) as line:
                request.extensions["trace"] = line.trace
                try:
                    response = super().send(request, **keywords)
                except httpx2.TransportError as error:
                    if line.is_cut:
                        raise _transient(_too_slow(seconds)) from None
                    if request.method in ("GET", "HEAD") or not isinstance(error, httpx2.TimeoutException):
                        raise
                    raise _transient(network_sentence(error)) from None
            if request.method in ("GET", "HEAD"):
                return response
            if response.status_code == 429 or (response.is_error and "retry-after" in response.headers):
                hub_error = HubError(status_sentence(response.status_code, "what was sent", response.headers))
                hub_error.transient = is_transient(response.status_code)
                raise hub_error
            return response

    return ImpatientClient(
        event_hooks=event_hooks,
        follow_redirects=True,
        # A connection for each request: `_Line` hears of new ones only.
        limits=httpx2.Limits(max_keepalive_connections=0),
        timeout=httpx2.Timeout(hub_errors.READ_SECONDS, connect=CONNECT_SECONDS),
    )


def _most_seconds(request: "httpx2.Request") -> float:
    """How long a request may take from its beginning to the end of its answer."""
    return TOTAL_SECONDS + int(request.headers.get("content-length", 0)) / SLOWEST_SENDING


def _too_slow(seconds: float) -> str:
    return f"The Hub did not answer within {words_for_wait(round(seconds))}: try again in a few minutes."


def _transient(sentence: str) -> HubError:
    hub_error = HubError(sentence)
    hub_error.transient = True
    return hub_error
