"""How the Hub is asked: a client that does not wait for ever, and a sentence for whatever goes wrong."""

import json
import math
import os
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.request import getproxies

from dopsd_app.errors import KnownFailure

if TYPE_CHECKING:
    import httpx2

CONNECT_SECONDS = 10
READ_SECONDS = 120  # of silence; the library's own client would wait for ever
TOTAL_SECONDS = 300  # of a whole request, whose answer may trickle; what it sends has more
SLOWEST_SENDING = 50_000  # bytes per second
LONGEST_WAIT = 60.0  # seconds; a Hub that asks for more is waited for in steps


class HubError(KnownFailure):
    """Something that the Hub, the network or a name does not allow; the message says what to do."""

    detail = ""  # the client's own words, for the log
    transient = False  # whether the same may work in a moment: what was asked for may even have been done
    wait = 0.0  # seconds that the Hub asks to wait before that


def check_token(token: str | None) -> str:
    """The token without the blanks that pasting brings; raises `HubError` where it cannot be one.

    The HTTP client would quote a token that it cannot send.
    """
    token = (token or "").strip()
    if not token:
        raise HubError("Sign in to the Hub first.")
    if not re.fullmatch("[!-~]+", token):
        raise HubError("This is not a token of the Hub: copy it again, it begins with `hf_`.")
    return token


@contextmanager
def hub_errors(about: str, token: str) -> Iterator[None]:
    """Turns whatever the client raises into a `HubError`: a sentence about `about`, without the token.

    The client's own exception is not chained: nobody controls what a server puts into its words.
    """
    import httpx2

    _set_client()
    try:
        yield
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise _told(error, about, token) from None


_given = ""  # to a worker, by whoever started it


def keep_token(token: str) -> None:
    """Keeps the token that this process was given, in its memory alone."""
    global _given
    _given = token.strip()


def given_token() -> str:
    """The token that this process was given; empty where none was."""
    return _given


def ambient_token() -> str:
    """The token in this process's environment; on a Space none: that one is its owner's, for other things."""
    return "" if os.environ.get("SYSTEM") == "spaces" else os.environ.get("HF_TOKEN", "")


def reading_token() -> str | bool | None:
    """The `token` with which repositories are read: the one that was given, or this computer's own."""
    return _given or (False if os.environ.get("SYSTEM") == "spaces" else None)


@contextmanager
def reading_errors(repository: str) -> Iterator[None]:
    """Turns what the client raises while a repository is read into a `HubError`, without any token.

    A disk's errors stay what they are. The client is the library's own: that of pushes would give up too
    early on 30 GB.
    """
    import httpx2
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HubError:
        raise
    except (HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError, ValueError, KeyError) as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise
        raise _told(error, repository, _given or get_token() or "***", reading=True) from None


def _reading_sentence(answer: "httpx2.Response", repository: str, said: str) -> str | None:
    """What a refusal to show a repository means; None for what other requests are answered with too."""
    code = answer.headers.get("X-Error-Code", "")
    if code == "GatedRepo":
        page = f"https://huggingface.co/{repository}"
        sign_in = "" if answer.status_code == 403 else " and sign in here with `hf auth login`"
        return f"{repository} is gated: accept its terms at {page}{sign_in}, then try again."
    if code == "RevisionNotFound":
        return f"{repository} has no such revision: give a branch, a tag or a commit that it has."
    if code == "RepoNotFound" or answer.status_code == 404:
        return (
            f"The Hub does not know {repository}, nor is it a folder here: it is misspelt, gone, or private."
        )
    if answer.status_code in (401, 403):
        return (
            f"The Hub does not let this computer read {repository}{said}: sign in anew with `hf auth login`,"
            " or sign out with `hf auth logout`; a wrong HF_TOKEN in the environment counts before both."
        )
    return None


def _told(error: BaseException, about: str, token: str, reading: bool = False) -> HubError:
    """What an exception, or the nearest known one behind it, means for the person, without the token."""
    cause = _known_cause(error)
    told = HubError(_sentence(cause or error, about, reading).replace(token, "***"))
    words = " ".join(str(error).split()).replace(token, "***")
    told.detail = f"({type(error).__name__}: {words[:500]})"
    told.transient, told.wait = _prospect(cause)
    return told


def _known_cause(error: BaseException | None) -> BaseException | None:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    known = HubError | OfflineModeIsEnabled | HfHubHTTPError | httpx2.TransportError | ConnectionError
    while error is not None and not isinstance(error, known | json.JSONDecodeError | KeyError):
        error = error.__cause__ or error.__context__
    return error


def _prospect(cause: BaseException | None) -> tuple[bool, float]:
    """Whether the same may work in a moment, and after how many seconds."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    match cause:
        case HubError():
            return cause.transient, cause.wait
        case HfHubHTTPError():
            return _is_transient(cause.response.status_code), _seconds_to_wait(cause.response.headers)
    return isinstance(cause, httpx2.TransportError | ConnectionError), 0.0


def _is_transient(status: int) -> bool:
    return status == 429 or status >= 500


def _seconds_to_wait(headers: Mapping[str, str]) -> float:
    return min(LONGEST_WAIT, _seconds_asked(headers))


def _sentence(cause: BaseException, about: str, reading: bool = False) -> str:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    match cause:
        case HubError():
            return str(cause)
        case OfflineModeIsEnabled():
            return "The Hub may not be asked: HF_HUB_OFFLINE is set. Start again without it."
        case HfHubHTTPError():
            answer, said = cause.response, cause.server_message or ""
            if reading and (told := _reading_sentence(answer, about, _quoted(said))):
                return told
            return status_sentence(answer.status_code, about, answer.headers, said)
        case httpx2.TransportError() | ConnectionError():
            return _network_sentence(cause, reading)
        case json.JSONDecodeError() | KeyError():
            return "The Hub's answer cannot be read: try again in a few minutes."
    return f"The Hub's client failed, {type(cause).__name__}: {_first_line(str(cause))}."


def _network_sentence(error: BaseException, reading: bool = False) -> str:
    import httpx2

    if isinstance(error, httpx2.TimeoutException) and not isinstance(error, httpx2.ConnectTimeout):
        silence = "too long" if reading else f"{READ_SECONDS:g} seconds"
        return f"The Hub did not answer for {silence}: try again in a few minutes."
    broken = httpx2.ReadError | httpx2.WriteError | httpx2.RemoteProtocolError | ConnectionError
    if isinstance(error, broken):
        return "The connection to the Hub broke off: try again."
    told = "The Hub cannot be reached: see whether this computer is online, then try again."
    if reading and (proxy := getproxies().get("https") or getproxies().get("http")):
        told += f" It is asked through the proxy {re.sub('//[^@/]*@', '//', proxy)}."
    return told


def status_sentence(status: int, about: str, headers: Mapping[str, str], said: str = "") -> str:
    """What an HTTP status means for the person; `said` is what the Hub itself wrote."""
    said = _quoted(said)
    match status:
        case 401:
            return "The Hub does not accept this token: sign in again, or make a new token that may write."
        case 403:
            return f"This token may not change {about}{said}: use one that may write there."
        case 404:
            return f"The Hub does not know {about}: it is gone, or this token may not see it."
        case 409:
            return f"{about} is there already and holds something else: choose another name."
        case 412:
            return f"Somebody changed {about} in the same moment: try again."
        case 429:
            return f"The Hub was asked too often: try again in {_waiting_time(headers)}."
        case _ if status >= 500:
            when = _waiting_time(headers)
            return f"The Hub has a problem of its own (status {status}): try again in {when}."
    return f"The Hub refused {about} with status {status}{said}: look at your account's page on the Hub."


def _quoted(said: str) -> str:
    return f" (the Hub says: {_first_line(said)})" if said.strip() else ""


def _waiting_time(headers: Mapping[str, str]) -> str:
    seconds = _seconds_asked(headers)
    return _words_for_wait(seconds) if seconds else "a few minutes"


def _words_for_wait(seconds: float) -> str:
    """At least so long, in the largest unit that tells it well."""
    for unit, length in (("hour", 3600), ("minute", 60)):
        if seconds > 2 * length or seconds == length:
            number = math.ceil(seconds / length)
            return f"{number} {unit}{'s' * (number > 1)}"
    return f"{math.ceil(seconds)} second{'s' * (seconds > 1)}"


def _seconds_asked(headers: Mapping[str, str]) -> float:
    """How long to wait, by the header Retry-After (`55`, or a date) or RateLimit (`"api";r=0;t=55`); or 0."""
    asked = headers.get("retry-after", "").strip()
    limit = headers.get("ratelimit", "")
    if found := re.fullmatch(r"(\d+)", asked) or re.search(r"\bt\s*=\s*(\d+)", limit):
        return float(found[1])
    with suppress(ValueError, TypeError):  # no date, or one without a time zone
        # By the server's own clock, where it tells the time: ours may be wrong.
        now = parsedate_to_datetime(headers["date"]) if "date" in headers else datetime.now(UTC)
        return max(0.0, (parsedate_to_datetime(asked) - now).total_seconds())
    return 0.0


def _first_line(text: str) -> str:
    line = text.strip().partition("\n")[0]
    return "".join(c if c.isprintable() else " " for c in line)[:200].rstrip(".")


# --- the client


class Cancelled(Exception):
    """Nobody waits for this any more."""


class Cancellation:
    """Ends what one thread asks the Hub, from another: the request that is on its way, and all to come."""

    def __init__(self):
        self.asked = threading.Event()
        self._line: _Line | None = None

    def cancel(self) -> None:
        self.asked.set()
        if line := self._line:
            line.cut()

    def check(self) -> None:
        """Raises `Cancelled` where that was asked for."""
        if self.asked.is_set():
            raise Cancelled

    @contextmanager
    def of_this_thread(self) -> Iterator[None]:
        """The requests that this thread makes meanwhile can be cancelled."""
        before = _cancellation.set(self)
        try:
            yield
        finally:
            _cancellation.reset(before)

    @contextmanager
    def over(self, line: "_Line") -> Iterator[None]:
        """Meanwhile this is the line to cut."""
        self._line = line
        try:
            self.check()
            yield
        except Exception:
            self.check()
            raise
        finally:
            self._line = None


_cancellation: ContextVar[Cancellation] = ContextVar("_cancellation")


class _Line:
    """The connection of one request, which is cut when its time is over, or from another thread."""

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
        """Told by the HTTP client of all that it does: it has a new connection, or has encrypted it."""
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
    from huggingface_hub import constants, set_client_factory

    global _client_is_set
    with _client_lock:
        if not _client_is_set:
            constants.HF_HUB_DISABLE_XET = True  # what the environment variable of this name sets
            set_client_factory(_make_client)
            _client_is_set = True


def _make_client() -> "httpx2.Client":
    """The library's client with time limits, and without its silent waiting in uploads.

    What times out in an upload the library repeats five times, and it sleeps for as long as a server asks it
    to: half an hour of nothing to see. Downloads are left to it.
    """
    import httpx2
    from huggingface_hub.utils._http import hf_request_event_hook

    class ImpatientClient(httpx2.Client):
        def send(self, request: httpx2.Request, **keywords) -> httpx2.Response:
            if not any(request.extensions["timeout"].values()):
                # Some functions of the library ask for no limit where their caller gave none.
                request.extensions["timeout"] = self.timeout.as_dict()
            seconds = _most_seconds(request)
            with _Line(seconds) as line, _cancellation.get(Cancellation()).over(line):
                request.extensions["trace"] = line.trace
                try:
                    response = super().send(request, **keywords)
                except httpx2.TransportError as error:
                    if line.is_cut:
                        raise _transient(_too_slow(seconds)) from None
                    if request.method in ("GET", "HEAD") or not isinstance(error, httpx2.TimeoutException):
                        raise
                    raise _transient(_network_sentence(error)) from None
            if request.method in ("GET", "HEAD"):
                return response
            if response.status_code == 429 or (response.is_error and "retry-after" in response.headers):
                told = HubError(status_sentence(response.status_code, "what was sent", response.headers))
                told.transient = _is_transient(response.status_code)
                raise told
            return response

    return ImpatientClient(
        event_hooks={"request": [hf_request_event_hook]},
        follow_redirects=True,
        # A connection for each request: `_Line` hears of new ones only.
        limits=httpx2.Limits(max_keepalive_connections=0),
        timeout=httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
    )


def _most_seconds(request: "httpx2.Request") -> float:
    """How long a request may take from its beginning to the end of its answer."""
    return TOTAL_SECONDS + int(request.headers.get("content-length", 0)) / SLOWEST_SENDING


def _too_slow(seconds: float) -> str:
    return f"The Hub did not answer within {_words_for_wait(round(seconds))}: try again in a few minutes."


def _transient(sentence: str) -> HubError:
    told = HubError(sentence)
    told.transient = True
    return told
