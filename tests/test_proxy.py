"""With a proxy in the environment: the page's own server is asked directly, the Hub through it."""

import os
import re
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

from dopsd_app.ui import reach_own_server_directly
from tests.support.page_server import PageServer, wait_for

SCHEMES = ("http", "https", "all")
CLOSED = "http://127.0.0.1:9"
HUB = "http://hub.example/"  # not https: what a proxy is asked for then is a tunnel, and no address
NAMES = [spelling for name in (*SCHEMES, "no") for spelling in (f"{name}_proxy", f"{name}_proxy".upper())]


class Proxy(HTTPServer):
    """Answers whatever it is asked for, and remembers the addresses."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def proxy(monkeypatch):
    """A proxy that nothing in the environment names yet."""
    for name in (*NAMES, "GRADIO_SERVER_NAME"):
        # First set, then deleted: what the tested function sets is undone too.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    with Proxy() as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield proxy
        proxy.shutdown()
        thread.join()


def asked_through(proxy: Proxy, *addresses: str) -> list[str]:
    """Which of the addresses the proxy is asked for."""
    proxy.asked.clear()
    for address in addresses:
        with suppress(httpx.TransportError):  # directly there may be nobody
            httpx.get(address, timeout=5)
    # httpx writes no brackets around the IPv6 addresses that it asks a proxy for.
    return [address for address in addresses if re.sub(r"[\[\]]", "", address) in proxy.asked]


@pytest.mark.process
def test_the_page_starts_behind_a_proxy_that_cannot_reach_it(tmp_path):
    server = PageServer(tmp_path, {"PYTHONUNBUFFERED": "1"}, forked=False)
    for name in NAMES:
        server.environment.pop(name, None)
    server.environment |= {f"{scheme}_proxy".upper(): CLOSED for scheme in SCHEMES}
    with server:
        # It answers before Gradio has asked it, and ends when that fails. Afterwards Gradio says this.
        started = "To create a public link"
        wait_for(lambda: server.process.poll() is not None or started in server.output.read_text(), "a start")
        assert server.process.poll() is None, server.output.read_text()
        assert server.get("/").status_code == 200


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_only_the_own_addresses_are_asked_directly(variable, proxy, monkeypatch):
    monkeypatch.setenv(variable, proxy.url)
    own = [f"http://{host}:9/" for host in ("localhost", "127.0.0.1", "[::1]")]
    assert asked_through(proxy, *own, HUB) == [*own, HUB]  # the test sees what it should
    reach_own_server_directly()
    assert asked_through(proxy, *own, HUB) == [HUB]


@pytest.mark.parametrize(
    "name, host", [("127.0.0.2", "127.0.0.2"), ("[::1]", "[::1]"), ("0.0.0.0", "localhost")]
)
def test_an_address_that_the_page_is_served_at_is_asked_directly(name, host, proxy, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.setenv("GRADIO_SERVER_NAME", name)
    reach_own_server_directly()
    assert asked_through(proxy, f"http://{host}:9/", HUB) == [HUB]


@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
def test_what_the_person_keeps_from_the_proxy_stays_so(variable, proxy, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.setenv(variable, "127.0.0.3, [::1], 127.0.0.4")
    reach_own_server_directly()
    hosts = ("localhost", "127.0.0.3", "127.0.0.4", "127.0.0.5")
    assert asked_through(proxy, *(f"http://{host}:9/" for host in hosts)) == ["http://127.0.0.5:9/"]


def test_proxies_of_the_systems_settings_stay_in_use(proxy, monkeypatch):
    """Where Windows and macOS keep them, Python looks only while no variable speaks of proxies."""
    monkeypatch.setattr("dopsd_app.ui.getproxies", lambda: {"http": proxy.url})
    reach_own_server_directly()
    assert asked_through(proxy, "http://localhost:9/", HUB) == [HUB]


def test_without_a_proxy_the_environment_stays_as_it_is(proxy, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "hub.example")
    before = dict(os.environ)
    reach_own_server_directly()
    assert os.environ == before
