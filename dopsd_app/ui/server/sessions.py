"""Whose the sessions on a Space are: the owner's are shut to others, and visitors' take little memory."""

from collections import OrderedDict

import anyio
from gradio.state_holder import StateHolder
from starlette.requests import HTTPConnection

from dopsd_app.hub.access import AccessError, check_access

REMEMBERED = 10_000  # sessions and events of the owner's
VISITS_KEPT = 20  # Gradio keeps a megabyte for each session; no visitor has anything in it


class Sessions:
    """The names of sessions and events, which only who began them should know."""

    def __init__(self):
        self._owned: OrderedDict[str, None] = OrderedDict()
        self._visits: OrderedDict[str, None] = OrderedDict()

    def own(self, name: object) -> None:
        """Shuts a session or an event to all but the owner."""
        if isinstance(name, str):
            _put_last(self._owned, name)
            if len(self._owned) > REMEMBERED:
                self._owned.popitem(last=False)

    def owned(self, name: object) -> bool:
        """Whether it is the owner's."""
        return isinstance(name, str) and name in self._owned

    def visit(self, name: object, states: StateHolder) -> None:
        """Notes a visitor's session, and forgets what Gradio keeps for the oldest of them.

        So visitors neither fill the memory nor push the owner's sessions out of it.
        """
        if isinstance(name, str):
            _put_last(self._visits, name)
            if len(self._visits) > VISITS_KEPT:
                oldest, _ = self._visits.popitem(last=False)
                with states.lock:
                    states.session_data.pop(oldest, None)
                    states.time_last_used.pop(oldest, None)


def _put_last(names: OrderedDict[str, None], name: str) -> None:
    names[name] = None
    names.move_to_end(name)


async def is_owner(request: HTTPConnection) -> bool:
    """Whether the Space's owner asks: signed in, or with a token in the header, as gradio_client sends it."""
    signed_in = (request.scope.get("session") or {}).get("oauth_info") or {}
    headers = request.headers
    given = headers.get("authorization") or headers.get("x-hf-authorization") or ""
    return await may(signed_in.get("access_token") or given.removeprefix("Bearer ") or None)


async def may(token: str | None) -> bool:
    """Whether this token's holder may use the app."""
    try:
        await anyio.to_thread.run_sync(check_access, token)
    except AccessError:
        return False
    return True
