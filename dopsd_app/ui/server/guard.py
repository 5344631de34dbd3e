"""What stands before every handler and endpoint: who may call it, and plain words when it fails."""

import contextvars
import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any, Protocol

import gradio as gr
from filelock import Timeout

from dopsd_app.errors import KnownFailure
from dopsd_app.hub.access import check_access

logger = logging.getLogger(__name__)
# Where a call whose values cannot be read is noted, for who answers the request that it came with.
unreadable_calls: contextvars.ContextVar[list | None] = contextvars.ContextVar("unreadable", default=None)


class Handler(Protocol):
    """A function with a name."""

    @property
    def __name__(self) -> str: ...

    def __call__(self, *inputs: Any, **options: Any) -> Any: ...


class GuardedBlocks(gr.Blocks):
    """`gr.Blocks` that takes values which no page sends for the caller's fault: one sentence, and no trace.

    It fails before any function is called: over too few values, a choice that is none, a file that is no
    upload.
    """

    async def preprocess_data(self, block_fn, inputs, *others, **more):
        try:
            return await super().preprocess_data(block_fn, inputs, *others, **more)
        except OSError:
            raise
        except Exception as error:
            logger.warning("Values for %s made no sense: %s", block_fn.name, in_one_line(error))
            if (noted := unreadable_calls.get()) is not None:
                noted.append(block_fn.name)
            raise _error("The server cannot use what was sent. Reload the page and try again.") from error


def in_one_line(error: Exception) -> str:
    """What an error says, for the log: callers choose what it quotes."""
    return repr(str(error)[:200])


def guarded(function: Handler, *, silent: bool = False, everybody: bool = False) -> Callable:
    """The function, for the owner only; a known failure reaches the caller as one plain sentence.

    `silent` is for what nobody asked for, such as a timer's poll: when it fails, nothing changes. `everybody`
    is for a function that looks itself at who calls. An answer of no components changes nothing.

    Gradio sees one parameter more: the caller's sign-in token. It is handed on where the function has a
    parameter `oauth_token` of its own. Also endpoints that are hidden from the API's page can be called, so
    every function that shows or changes something is wrapped.
    """
    signature = inspect.signature(function)
    wants_token = "oauth_token" in signature.parameters

    @functools.wraps(function)
    def handler(*inputs):
        *inputs, oauth_token = inputs
        token = oauth_token.token if oauth_token else None
        try:
            if not everybody:
                check_access(token)
            answer = function(*inputs, token) if wants_token else function(*inputs)
            return gr.skip() if answer == {} else answer
        except KnownFailure as error:
            if silent:
                return gr.skip()
            raise _error(str(error)) from error
        except OSError as error:
            logger.exception("%s failed", function.__name__)
            if silent:
                return gr.skip()
            raise _error(_file_trouble(error)) from error
        except Exception as error:  # a fault of ours: the person must see that nothing was done
            logger.exception("%s failed", function.__name__)
            if silent:
                return gr.skip()
            raise _error("Something went wrong here that should not. The server's log tells what.") from error

    own = [parameter for name, parameter in signature.parameters.items() if name != "oauth_token"]
    token_type = gr.OAuthToken | None
    extra = inspect.Parameter(
        "oauth_token", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=token_type
    )
    # Every function can hold it, and `inspect` looks for it.
    # ty: ignore[missing-attribute]
    handler.__signature__ = signature.replace(parameters=[*own, extra])
    handler.__annotations__ = {**function.__annotations__, "oauth_token": token_type}
    del handler.__wrapped__  # or Gradio would look at the inner function's parameters
    return handler


def plain_text(words: str) -> str:
    """The words of a message in a corner: browsers take it for HTML, and clients for text.

    It may quote somebody's file name: no tags for either, and no backticks, which neither of them reads.
    """
    return words.replace("<", "(").replace(">", ")").replace("`", "")


def _error(words: str) -> gr.Error:
    return gr.Error(plain_text(words), title="That did not work", duration=20, print_exception=False)


def _file_trouble(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "What this is about was deleted meanwhile. Reload the page."
    if isinstance(error, Timeout):
        return "Another process of this program has held the same files for a long time. Try again."
    reason = (error.strerror or str(error)).rstrip(".")
    return f"The disk did not take or give a file: {reason}. Free some space or check the rights, then retry."
