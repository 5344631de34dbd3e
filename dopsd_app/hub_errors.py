"""What the Hub's refusals and the network's mean for a person, and whose token is used."""

import json
import math
import os
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.request import getproxies

from dopsd_app.errors import KnownFailure
from dopsd_app.progress import words_for_count

if TYPE_CHECKING:
    import httpx2

READ_SECONDS = 120  # of silence before a request is given up; the library's own client would wait for ever
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
def reading_errors(repository: str) -> Generator[None]:
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
        raise to_hub_error(error, repository, _given or get_token() or "***", reading=True) from None


def _reading_sentence(answer: "httpx2.Response", repository: str, quoted: str) -> str | None:
    """What a refusal to show a repository means; None for what other requests are answered with too."""
    code = answer.headers.get("X-Error-Code", "")
    # Of a fine-grained token: whoever accepted the terms is refused too.
    if "public gated repositories" in quoted:
        return (
            f"This token may not read gated repositories such as {repository}: in its settings, at"
            " https://huggingface.co/settings/tokens, allow it to read public gated repositories."
        )
    if code == "GatedRepo":
        if os.environ.get("SYSTEM") == "spaces":
            return (
                f"{repository} is gated, and a Space reads with nobody's token: take another base model, or"
                " train with this one on a computer of your own."
            )
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
            f"The Hub does not let this computer read {repository}{quoted}: sign in anew with"
            " `hf auth login`, or sign out with `hf auth logout`; a wrong HF_TOKEN in the environment counts"
            " before both."
        )
    return None


def to_hub_error(error: BaseException, about: str, token: str, reading: bool = False) -> HubError:
    """What an exception, or the nearest known one behind it, means for the person, without the token."""
    cause = _known_cause(error)
    hub_error = HubError(_sentence(cause or error, about, reading).replace(token, "***"))
    words = " ".join(str(error).split()).replace(token, "***")
    hub_error.detail = f"({type(error).__name__}: {words[:500]})"
    hub_error.transient, hub_error.wait = _prospect(cause)
    return hub_error


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
            return is_transient(cause.response.status_code), _seconds_to_wait(cause.response.headers)
    return isinstance(cause, httpx2.TransportError | ConnectionError), 0.0


def is_transient(status: int) -> bool:
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
            answer, message = cause.response, cause.server_message or ""
            if reading and (sentence := _reading_sentence(answer, about, _quoted(message))):
                return sentence
            return status_sentence(answer.status_code, about, answer.headers, message)
        case httpx2.TransportError() | ConnectionError():
            return network_sentence(cause, reading)
        case json.JSONDecodeError() | KeyError():
            return "The Hub's answer cannot be read: try again in a few minutes."
    return f"The Hub's client failed, {type(cause).__name__}: {_first_line(str(cause))}."


def network_sentence(error: BaseException, reading: bool = False) -> str:
    import httpx2

    if isinstance(error, httpx2.TimeoutException) and not isinstance(error, httpx2.ConnectTimeout):
        silence = "too long" if reading else f"{READ_SECONDS:g} seconds"
        return f"The Hub did not answer for {silence}: try again in a few minutes."
    broken = httpx2.ReadError | httpx2.WriteError | httpx2.RemoteProtocolError | ConnectionError
    if isinstance(error, broken):
        return "The connection to the Hub broke off: try again."
    sentence = "The Hub cannot be reached: see whether this computer is online, then try again."
    if reading and (proxy := getproxies().get("https") or getproxies().get("http")):
        sentence += f" It is asked through the proxy {re.sub('//[^@/]*@', '//', proxy)}."
    return sentence


def status_sentence(status: int, about: str, headers: Mapping[str, str], message: str = "") -> str:
    """What an HTTP status means for the person; `message` is what the Hub itself wrote."""
    quoted = _quoted(message)
    match status:
        case 401:
            return "The Hub does not accept this token: sign in again, or make a new token that may write."
        case 403:
            return f"This token may not change {about}{quoted}: use one that may write there."
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
    return f"The Hub refused {about} with status {status}{quoted}: look at your account's page on the Hub."


def _quoted(message: str) -> str:
    return f" (the Hub says: {_first_line(message)})" if message.strip() else ""


def _waiting_time(headers: Mapping[str, str]) -> str:
    seconds = _seconds_asked(headers)
    return words_for_wait(seconds) if seconds else "a few minutes"


def words_for_wait(seconds: float) -> str:
    """At least so long, in the largest unit that tells it well."""
    for unit, length in (("hour", 3600), ("minute", 60)):
        if seconds > 2 * length or seconds == length:
            number = math.ceil(seconds / length)
            return words_for_count(number, unit)
    return words_for_count(math.ceil(seconds), "second")


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
