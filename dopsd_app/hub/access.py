"""Who may use the app: everybody at the own computer, on a Space its owner alone.

What a Space says of itself comes from the environment variables that Spaces set.
"""

import hashlib
import os
import threading
import time
from dataclasses import dataclass

from dopsd_app.errors import KnownFailure
from dopsd_app.hub.account import who_is
from dopsd_app.hub_errors import HubError

ANSWER_SECONDS = 300  # that the Hub's answer about a token holds: a role taken away ends after it
WRITING_ROLES = ("admin", "write")  # of an organisation's members: they may change its Spaces


class AccessError(KnownFailure):
    """A visitor asked for what only the Space's owner may see or do."""


@dataclass(frozen=True)
class Space:
    """The Space that the app runs on."""

    id: str  # owner/name
    owner: str  # a person or an organisation
    zero_gpu: bool  # the GPU is lent for a minute at a time: not supported
    sign_in: bool  # whether visitors can sign in (`hf_oauth: true` in the README's front matter)


def this_space() -> Space | None:
    """The Space that we run on, or None on a person's own computer."""
    if os.environ.get("SYSTEM") != "spaces":
        return None
    space_id = os.environ.get("SPACE_ID", "")
    return Space(
        id=space_id,
        owner=os.environ.get("SPACE_AUTHOR_NAME") or space_id.partition("/")[0],
        zero_gpu=os.environ.get("SPACES_ZERO_GPU", "").lower() == "true",
        sign_in=bool(os.environ.get("OAUTH_CLIENT_ID")),
    )


def check_access(token: str | None) -> None:
    """Raises `AccessError` unless the holder of this token may see pictures and runs, train and push."""
    space = this_space()
    if space is None:
        return
    if not token:
        raise AccessError(f"Only {space.owner}, who owns this Space, may do this. Sign in, or duplicate it.")
    if not _owns(token, space.owner):
        raise AccessError(
            f"This Space belongs to {space.owner}, and only its owner may do this. Duplicate it: in your own"
            " Space everything works."
        )


_answers: dict[tuple[str, str], tuple[float, bool]] = {}
_answers_lock = threading.Lock()


def _owns(token: str, owner: str) -> bool:
    """Whether the Hub knows the token's holder as the owner, or as a member of it with the right to write."""
    key = (hashlib.sha256(token.encode()).hexdigest(), owner)  # the token itself is not kept
    now = time.monotonic()
    with _answers_lock:
        for old in [old for old, (asked, _) in _answers.items() if now - asked > ANSWER_SECONDS]:
            del _answers[old]
        if key in _answers:
            return _answers[key][1]
    try:
        account = who_is(token)
    except HubError as error:
        raise AccessError(f"The Hub could not say who you are. {error}") from error
    role = {name.casefold(): role for name, role in account.organisations.items()}.get(owner.casefold())
    owns = bool(owner) and (account.name.casefold() == owner.casefold() or role in WRITING_ROLES)
    with _answers_lock:
        _answers[key] = (now, owns)
    return owns


def find_token(given: str, oauth_token: str | None) -> str:
    """The token to push with; `AccessError` says where to get one."""
    if given and given.strip():
        return given.strip()
    if oauth_token:
        return oauth_token
    if this_space() is not None:  # never the ambient token there: it is the owner's, for other things
        raise AccessError("Sign in to Hugging Face first: the button is at the top.")
    from huggingface_hub import get_token

    if token := get_token():
        return token
    raise AccessError(
        "An access token is needed. Make one with the right to write at huggingface.co/settings/tokens and"
        " paste it, or run `hf auth login` once."
    )


def trusted_hosts() -> list[str]:
    """Host names that a browser may ask for: others would be a foreign page that reaches for this server.

    `DOPSD_TRUSTED_HOSTS` adds names, separated by commas: for a page that is served to a network, or a Space
    with a domain of its own.
    """
    added = [name.strip() for name in os.environ.get("DOPSD_TRUSTED_HOSTS", "").split(",") if name.strip()]
    spaces = ["*.hf.space"] if this_space() is not None else []
    return ["localhost", "127.0.0.1", "[::1]", *spaces, *added]
