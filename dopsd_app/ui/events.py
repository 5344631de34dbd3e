"""How the page's events are connected: to guarded handlers, each of whose answers and failures is shown."""

import functools
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component

from dopsd_app.errors import KnownFailure
from dopsd_app.ui.server.guard import Handler, guarded

# Handlers that write a draft come one after the other, in the order in which the page has sent them.
WRITES_DRAFT: dict[str, Any] = {"concurrency_id": "draft", "concurrency_limit": 1}
# For what the browser does by itself: no function here is called.
IN_BROWSER: dict[str, Any] = {"queue": False, "api_visibility": "private"}


def listen(
    triggers: Callable | Sequence[Callable],
    handler: Handler,
    inputs: Component | Sequence[Component] | AbstractSet[Component] | None = None,
    outputs: Block | Sequence[Block] | None = None,
    *,
    progress_on: Component | None = None,
    **options,
) -> gr.events.Dependency:
    """Calls a handler whenever one of the triggers fires; `progress_on` shows that it is at work.

    Always through the queue: what fails outside of it, Gradio answers with a status that nobody sees.
    """
    connect = functools.partial(gr.on, triggers) if isinstance(triggers, Sequence) else triggers
    return connect(
        guarded(handler),
        inputs,
        outputs,
        api_visibility="private",
        # At every event, Gradio's script touches all that may show progress: so it is one place, or none.
        show_progress="minimal" if progress_on else "hidden",
        show_progress_on=[progress_on] if progress_on else [],
        **options,
    )


def on_tick(timer: gr.Timer, handler: Handler, inputs: Sequence[Component], outputs: Sequence[Block]) -> None:
    """Calls a handler at every tick; when that fails, nothing changes: nobody has asked for it."""
    timer.tick(
        guarded(handler, silent=True),
        inputs,
        outputs,
        api_visibility="private",
        queue=False,
        show_progress="hidden",
        show_progress_on=[],
    )


def source_of(event: gr.EventData) -> str:
    """The `elem_id` of the component that an event came from: the rest Gradio may make anew."""
    name = event.target.elem_id if event.target else None
    if not name:
        raise KnownFailure("The server cannot use what was sent. Reload the page and try again.")
    return name


def held() -> gr.JSON:
    """An object or a list of the page's own that lives in the tab, and travels with its requests.

    Not a `gr.State`: that lives in the server, which forgets it when a laptop sleeps, and which would tell a
    request that was sent before an answer came what the answer says. In one answer this value and what it
    stands for arrive together.
    """
    return gr.JSON(visible=False)
