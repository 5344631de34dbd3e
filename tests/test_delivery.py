"""What the page costs on the wire, what a browser keeps of it, and how it is on a narrow screen."""

import re
from itertools import pairwise

import pytest
from playwright.sync_api import expect

from dopsd_app.ui.server.preload import STYLES_PATH
from tests.support.browser import Visit, unfold
from tests.support.page_server import PageServer, leave_run

pytestmark = pytest.mark.browser

ZIPPED, PLAIN = {"Accept-Encoding": "gzip"}, {"Accept-Encoding": "identity"}
# Above all from the moment when the page is opened: what a screen reader gets to read, each text once.
LISTEN = """
window.read = [];
new MutationObserver(() => {
    for (const place of document.querySelectorAll("[aria-live]"))
        if (place.textContent.trim() && window.read.at(-1) !== place.textContent.trim())
            window.read.push(place.textContent.trim());
}).observe(document, {subtree: true, childList: true, characterData: true});
"""
# Bytes on the wire by address; nothing for what comes out of the browser's cache.
SENT = """() => Object.fromEntries(
    [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
        .map((entry) => [entry.name, entry.transferSize])
)"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with PageServer(tmp_path_factory.mktemp("page")) as server:
        yield server


def page_files(html: str) -> set[str]:
    """The files that the page itself names."""
    return {f"/assets/{name}" for name in re.findall(r'(?:href|src)="\./assets/([^"]+)"', html)}


# --- on the wire


@pytest.mark.parametrize(("coding", "most"), [("br", 40_000), ("gzip", 56_000)])
def test_the_page_takes_at_most_40_kilobytes_in_browsers_that_know_brotli(server, coding, most):
    page = server.get("/", **{"Accept-Encoding": coding})
    assert page.headers["content-encoding"] == coding
    assert page.num_bytes_downloaded <= most < int(server.get("/", **PLAIN).headers["content-length"])


@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/info"])
def test_a_client_that_knows_no_compression_gets_the_same(server, path):
    plain, zipped = server.get(path, **PLAIN), server.get(path, **ZIPPED)
    assert "content-encoding" not in plain.headers
    assert plain.content == zipped.content
    assert zipped.num_bytes_downloaded < len(plain.content) / 5


def test_a_page_that_the_browser_has_is_not_sent_again(server):
    page = server.get("/", **ZIPPED)
    assert page.headers["cache-control"] == "no-cache"  # kept, but asked about each time
    again = server.get("/", **ZIPPED, **{"If-None-Match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert server.get("/", **ZIPPED, **{"If-None-Match": 'W/"another"'}).content == page.content


def test_what_has_a_hash_in_its_name_is_kept_for_good_and_other_files_for_a_day(server):
    files = page_files(server.get("/").text)
    assert STYLES_PATH in files and len(files) > 10
    theme = f"/theme.css?v={server.config()['theme_hash']}"
    for path in (*files, theme):
        file = server.get(path)
        assert file.status_code == 200, path
        assert "immutable" in file.headers["cache-control"], path
    for path in ("/static/img/logo.svg", "/favicon.ico"):
        assert server.get(path).headers["cache-control"] == "public, max-age=86400"
    for path in ("/assets/of-another-version.js", "/theme.css", "/config"):
        assert "max-age" not in server.get(path).headers.get("cache-control", "")


def test_events_come_one_by_one_and_not_when_the_stream_ends(server):
    # A heartbeat goes on for as long as somebody listens.
    with server.http.stream("GET", f"{server.url}/gradio_api/heartbeat/tab", headers=ZIPPED) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert "content-encoding" not in stream.headers
        assert next(stream.iter_lines()) == "data: ALIVE"


# --- in a browser


def test_a_browser_looks_for_no_file_that_the_page_does_not_name(server, visit):
    visit.open()
    asked = {address.removeprefix(server.url) for address in visit.asked if "/assets/" in address}
    unnamed = asked - page_files(server.get("/").text)
    assert STYLES_PATH in asked
    assert not unnamed, (
        f"`python -m benchmarks.slow_line preload` writes the names anew; these lack: {unnamed}"
    )
    single = {name for name in asked if name.endswith(".css")} - {STYLES_PATH}
    assert len(single) == 1, "All style sheets but Gradio's first are one file"


def test_a_second_visit_fetches_none_of_the_pages_files(browser, server):
    visit = Visit(browser, server.url, empty=True)
    page = visit.open()
    visit.wait_for_files(page)
    first = page.evaluate(SENT)
    page.reload()
    page.wait_for_selector("#base input:checked", state="attached")
    second = page.evaluate(SENT)
    files = [address for address in second if "/assets/" in address or "theme.css" in address]
    assert len(files) > 40
    assert all(first[address] > 0 for address in files)
    assert not any(second[address] for address in files)
    assert second[page.url] < 1_000 < first[page.url]  # the page's own address: a 304
    visit.close()


@pytest.mark.parametrize("person", ["the first", "the next"])
def test_of_what_another_person_left_in_the_browser_a_test_finds_nothing(visit, person):
    page = visit.open()
    assert page.evaluate("[localStorage.left, document.cookie]") == [None, ""], person
    page.evaluate("localStorage.left = sessionStorage.left = 1, document.cookie = 'left=1'")


def test_screen_readers_get_words_and_no_keys(visit):
    page = visit.open(script=LISTEN)
    page.click("#example-zorp")
    page.wait_for_function("window.read.includes('Done')")
    keys = [text for text in page.evaluate("window.read") if re.fullmatch(r"\w+\.\w+", text)]
    assert not keys


@pytest.fixture(scope="module")
def run(server):
    """There is none before: an empty page is what the tests above open."""
    return leave_run(server, "zorp")


@pytest.fixture
def narrow(browser, server, run):
    visit = Visit(browser, server.url, width=390)
    yield visit.open(f"?run={run.id}")
    visit.close()


def test_on_a_narrow_screen_a_finger_hits_the_buttons_of_the_steps(narrow):
    buttons = narrow.locator("[id^=step-][id$=-button]:visible")
    expect(buttons).to_have_count(5)
    assert all(button.bounding_box()["height"] >= 44 for button in buttons.all())


def test_on_a_narrow_screen_the_rows_of_a_rollout_have_their_names(narrow):
    unfold(narrow, "learning")
    student, teacher = narrow.get_by_text("Student", exact=True), narrow.get_by_text("Teacher", exact=True)
    pictures = narrow.locator("#rollout img")
    expect(pictures).to_have_count(2)
    first, second = pictures.all()
    for picture in (first, second):
        expect(picture).to_be_visible()
    places = [part.bounding_box() for part in (student, first, teacher, second)]
    assert all(above["y"] + above["height"] <= below["y"] for above, below in pairwise(places))
