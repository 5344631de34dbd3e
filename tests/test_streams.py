"""A tab's calls and the streams of their answers, with Gradio's own queue."""

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import gradio as gr
import httpx
import pytest
import uvicorn
from gradio.routes import App
from starlette.middleware import Middleware

from dopsd_app.ui.server import streams
from dopsd_app.ui.server.doors import Doors
from tests.support.layout import lay_out
from tests.support.page_server import free_port, wait_for


def upper_case(blocks: gr.Blocks) -> App:
    """A server's app with one function."""
    text = gr.Textbox()
    text.change(str.upper, text, text)
    middleware = [Middleware(Doors), Middleware(streams.Streams)]
    return App.create_app(blocks, app_kwargs={"middleware": middleware})


@pytest.fixture
def queue(monkeypatch):
    """The address of the queue of an app with one function, behind the doors; a tab may take its time."""
    monkeypatch.setattr(streams, "PATIENCE", 120)
    monkeypatch.setenv("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(sys.maxsize))  # as in the product
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(lay_out(upper_case), port=port, log_level="error", loop="asyncio"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for(lambda: server.started, "the server")
    api = f"http://127.0.0.1:{port}/gradio_api"
    httpx.get(f"{api}/startup-events", timeout=60)
    yield f"{api}/queue"
    server.should_exit = True
    thread.join()


def join(queue: str, tab: str, word: str) -> str:
    """Calls the function from this tab: the event's id."""
    call = {"data": [word], "fn_index": 0, "session_hash": tab}
    return httpx.post(f"{queue}/join", json=call, timeout=60).json()["event_id"]


def messages(stream: httpx.Response):
    for line in stream.iter_lines():
        if line.startswith("data:"):
            yield json.loads(line[5:])


def test_a_call_is_answered_when_the_tab_knows_that_its_last_stream_has_ended(queue):
    def stream():
        return httpx.stream("GET", f"{queue}/data", params={"session_hash": "tab"}, timeout=60)

    with ThreadPoolExecutor() as threads:
        first = join(queue, "tab", "first")
        with stream() as answer:
            told = messages(answer)
            done = next(message for message in told if message["msg"] == "process_completed")
            assert (done["event_id"], done["output"]["data"]) == (first, ["FIRST"])
            assert next(told)["msg"] == "close_stream"
            # The tab has not read that yet. Would it hear of its call now, it would wait here for the answer.
            called = threads.submit(join, queue, "tab", "second")
            with pytest.raises(TimeoutError):
                called.result(timeout=0.5)
            assert join(queue, "another tab", "third")
        second = called.result(timeout=60)
        with stream() as answer:
            done = next(message for message in messages(answer) if message["msg"] == "process_completed")
    assert (done["event_id"], done["output"]["data"]) == (second, ["SECOND"])


def test_a_tab_that_does_not_hang_up_is_not_waited_for_long(queue, monkeypatch):
    monkeypatch.setattr(streams, "PATIENCE", 0.1)
    first = join(queue, "tab", "first")
    with httpx.stream("GET", f"{queue}/data", params={"session_hash": "tab"}, timeout=60) as answer:
        told = list(messages(answer))
    assert [message["msg"] for message in told][-2:] == ["process_completed", "close_stream"]
    assert {message["event_id"] for message in told[:-1]} == {first}
    assert join(queue, "tab", "second")
