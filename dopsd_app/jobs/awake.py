"""The computer does not go to sleep while a job is at work; its display may."""

from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def awake() -> Generator[str]:
    """Keeps the computer awake meanwhile. The value says by which means, or that there is none.

    A server has nobody to ask, and does not go to sleep: a job goes on all the same.
    """
    from wakepy import keep  # of all jobs' modules, only the worker needs it

    with keep.running(on_fail="pass") as mode:
        by = mode.method.name if mode.active and mode.method else ""
        yield f"the computer is kept awake ({by})" if by else "nothing keeps this computer awake"
