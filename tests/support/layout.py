"""Parts of the page without a server."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

import gradio as gr

T = TypeVar("T")


def lay_out(build: Callable[[gr.Blocks], T]) -> T:
    """What `build` returns for an empty app; where no event loop runs, `gr.Blocks` leaves one behind."""

    async def in_blocks() -> T:
        with gr.Blocks() as app:
            return build(app)

    return asyncio.run(in_blocks())
