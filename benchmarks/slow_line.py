"""What opening the page costs on a slow line: bytes, requests, and the time until a button can be pressed.

python -m benchmarks.slow_line [FOLDER]   FOLDER: another version's checkout, measured in turns with this one
python -m benchmarks.slow_line preload    writes anew which files the page preloads: Gradio or layout are new
"""

import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from playwright.sync_api import Browser, BrowserContext, Page, Route, sync_playwright

from benchmarks.page import ROOT, wait_for
from benchmarks.record import save_result
from dopsd_app.ui.server.preload import LINKS, PRELOADED

VISITS = 5
LATENCY, BANDWIDTH = 300, 1_500_000  # milliseconds, bits a second
# Milliseconds since the page was asked for, at the first frame in which a click would hit the button.
USABLE = """() => {
    const button = document.querySelector("#example-zorp");
    if (!button || button.disabled) return 0;
    button.scrollIntoView({block: "nearest"});
    const box = button.getBoundingClientRect();
    const hit = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
    return button.contains(hit) && performance.now();
}"""


def main() -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        if sys.argv[1:] == ["preload"]:
            write_preloaded(browser)
        else:
            folders = [ROOT, *map(Path, sys.argv[1:])]
            measure(browser, dict(zip(("this", "other"), folders, strict=False)))
        browser.close()


def measure(browser: Browser, versions: dict[str, Path]) -> None:
    visits: dict[str, list[dict]] = {version: [] for version in versions}
    loads = []
    for _ in range(VISITS):
        for version, root in versions.items():
            with served(root) as url:
                visits[version].append(visit(browser, url))
            loads.append(os.getloadavg()[0])
    result = {
        "line": f"{LATENCY} ms a request, {BANDWIDTH / 1e6} Mbit/s, set in headless Chromium",
        "usable_means": "a click would hit the first button; each visit with a server of its own",
        "processes_at_work_on_this_machine": {"median": statistics.median(loads), "most": max(loads)},
        **{version: _summary(seen) for version, seen in visits.items()},
    }
    print(f"Saved {save_result('slow_line', result).name}: {result}")


def _summary(visits: list[dict]) -> dict:
    return {
        opened: {
            "median_seconds": round(statistics.median(v[opened]["seconds"] for v in visits), 2),
            "seconds": [round(v[opened]["seconds"], 2) for v in visits],
            **{name: visits[-1][opened][name] for name in ("requests", "bytes")},
        }
        for opened in ("first", "reload")
    }


def visit(browser: Browser, url: str) -> dict:
    """Opens the page in a browser with an empty cache, then loads it again."""
    context = browser.new_context()
    page = context.new_page()
    sent = _throttle(context, page)
    page.goto(url, wait_until="commit")
    first = _until_usable(page, sent)
    sent.clear()
    page.reload(wait_until="commit")
    reload = _until_usable(page, sent)
    context.close()
    return {"first": first, "reload": reload}


def _throttle(context: BrowserContext, page: Page) -> list[tuple[str, int]]:
    """Slows the page's line down; the list will tell each answer's kind and its bytes on the wire."""
    session = context.new_cdp_session(page)
    session.send("Network.enable")
    each_way = BANDWIDTH / 8
    line = {"latency": LATENCY, "downloadThroughput": each_way, "uploadThroughput": each_way}
    session.send("Network.emulateNetworkConditions", {"offline": False, **line})
    kinds, sent = {}, []

    def answered(event: dict) -> None:
        kinds[event["requestId"]] = "page" if event["type"] == "Document" else event["type"].lower()

    def finished(event: dict) -> None:
        if event["encodedDataLength"] and event["requestId"] in kinds:  # else out of the browser's cache
            sent.append((kinds[event["requestId"]], int(event["encodedDataLength"])))

    session.on("Network.responseReceived", answered)
    session.on("Network.loadingFinished", finished)
    return sent


def _until_usable(page: Page, sent: list[tuple[str, int]]) -> dict:
    seconds = page.wait_for_function(USABLE, polling="raf").json_value() / 1000
    sizes = Counter()
    for kind, size in sent:
        sizes[kind] += size
    return {"seconds": seconds, "requests": len(sent), "bytes": dict(sizes)}


def write_preloaded(browser: Browser) -> None:
    """Writes which files a browser asks for by itself, in its order, but for those that the page names."""

    def without_links(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=answer.body().replace(LINKS, b""))

    asked = []
    with served(ROOT) as url:
        own = httpx.get(url).text.replace(LINKS.decode(), "")
        page = browser.new_page()
        page.route(url, without_links)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        page.wait_for_function(USABLE, polling="raf")
    names = [address.partition("/assets/")[2] for address in asked]
    wanted = [name for name in dict.fromkeys(names) if name and name not in own]
    PRELOADED.write_text("\n".join(wanted) + "\n")
    print(f"{len(wanted)} files in {PRELOADED.name}")


@contextmanager
def served(root: Path) -> Iterator[str]:
    """The address of the page of this checkout, with neither runs nor drafts."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        environment = os.environ | {
            "GRADIO_SERVER_PORT": str(port),
            "DOPSD_RUNS": f"{folder}/runs",
            "DOPSD_DRAFTS": f"{folder}/drafts",
            "XDG_CACHE_HOME": f"{folder}/cache",
            "HF_HUB_OFFLINE": "1",
        }
        server = subprocess.Popen(
            [sys.executable, str(root / "app.py")], env=environment, stdout=subprocess.DEVNULL
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/")
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
