"""The computer does not go to sleep while a job is at work; its display may."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress


@contextmanager
def awake() -> Generator[str]:
    """Keeps the computer awake meanwhile. The value says by which means, or that there is none.

    A server has nobody to ask, and does not go to sleep: a job goes on all the same.
    """
    from wakepy import keep  # of all jobs' modules, only the worker needs it

    kept = ExitStack()
    mode = kept.enter_context(keep.running(on_fail="pass"))
    by = mode.method.name if mode.active and mode.method else ""
    try:
        yield f"the computer is kept awake ({by})" if by else "nothing keeps this computer awake"
    finally:
        # Whoever was asked may be gone by now, as after a logout: that ends no job otherwise than it ended.
        with suppress(Exception):
            kept.close()
