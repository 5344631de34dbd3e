"""A person's browser for tests of the page: chromium, what it asked for and what it let happen."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, Page, Request, WebError, expect, sync_playwright

PATIENCE = 120_000  # milliseconds that anything may take: cores may be shared
# All tabs of a person in one process, which has compiled the page's scripts once: half of what a tab costs.
FLAGS = ("--no-sandbox", "--process-per-site")
LEFT: list[Page] = []  # tabs that keep such processes alive, of persons who are gone with all they stored


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser of this computer."""
    path = shutil.which("chromium")
    assert path, "The page is tested in chromium, which is not here: apt-get install chromium."
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        LEFT.clear()
        browser.close()


class Visit:
    """One person's browser, with a storage of its own.

    Its cache may hold the files of the page already, unless it is to be `empty`.
    """

    def __init__(self, browser: Browser, url: str, width: int = 1280, height: int = 900, empty: bool = False):
        self.url, self.size = url, {"width": width, "height": height}
        self.asked: list[str] = []  # addresses
        self.dialogs: list[str] = []
        self.errors: list[str] = []  # that no script of the page caught
        self.loading: set[Request] = set()  # files of the page itself that have not come yet
        self._keeper: Page = LEFT.pop() if LEFT and not empty else browser.new_context().new_page()
        self._keeper.goto(f"{url}/favicon.ico")
        self.context: BrowserContext = self._keeper.context
        self.context.set_default_timeout(PATIENCE)
        self._listeners = {
            "request": self._note,
            "requestfinished": self._loaded,
            "requestfailed": self._loaded,
            "weberror": self._err,
            "page": self._watch,
        }
        for event, listener in self._listeners.items():
            self.context.on(event, listener)

    def _loaded(self, request: Request) -> None:
        self.loading.discard(request)

    def _err(self, error: WebError) -> None:
        self.errors.append(str(error.error))

    def _note(self, request: Request) -> None:
        self.asked.append(request.url)
        if "/assets/" in request.url:
            self.loading.add(request)

    def wait_for_files(self, page: Page) -> None:
        """Until the page has all its scripts and styles: Gradio fetches some long after it can be used."""
        quiet = 0
        while quiet < 5:
            page.wait_for_timeout(200)  # milliseconds
            quiet = 0 if self.loading else quiet + 1

    def _watch(self, page: Page) -> None:
        page.on("websocket", lambda socket: self.asked.append(socket.url))
        page.on("dialog", self._refuse)

    def _refuse(self, dialog) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    @property
    def foreign(self) -> list[str]:
        """Requests to any other host than the page's own."""
        own = urlsplit(self.url).netloc
        parts = [urlsplit(address) for address in self.asked]
        return [part.geturl() for part in parts if part.scheme not in ("data", "blob") and part.netloc != own]

    def open(self, query: str = "", script: str = "") -> Page:
        """A new tab that has found its place; the script runs before those of the page."""
        page = self.context.new_page()
        page.add_init_script(script)
        page.set_viewport_size(self.size)
        page.goto(f"{self.url}/{query}")
        return settled(page)

    def close(self) -> None:
        """Closes all tabs; nobody else was asked for anything, and no text of a person did anything."""
        pages = [page for page in self.context.pages if page != self._keeper]
        hits = [page.evaluate("window.hit") for page in pages]
        for page in pages:
            page.close()
        self._leave()
        found = {"foreign": self.foreign, "dialogs": self.dialogs, "errors": self.errors, "hits": hits}
        assert not any(self.foreign + self.dialogs + self.errors + hits), found

    def _leave(self) -> None:
        """Nothing of this person stays for the next."""
        for event, listener in self._listeners.items():
            self.context.remove_listener(event, listener)
        everything = {"origin": self.url, "storageTypes": "all"}
        self.context.new_cdp_session(self._keeper).send("Storage.clearDataForOrigin", everything)
        LEFT.append(self._keeper)


def settled(page: Page) -> Page:
    """The page when it shows what the server knows, after it was opened or loaded again."""
    # All is filled at once, and this radio is empty before.
    page.wait_for_selector("#base input:checked", state="attached")
    return page


def box(page: Page, name: str):
    """What is typed into, in the component of this id."""
    return page.locator(f"#{name} :is(textarea, input)").first


def unfold(page: Page, name: str) -> None:
    """Opens the accordion of this id."""
    page.click(f"#{name} > button")
