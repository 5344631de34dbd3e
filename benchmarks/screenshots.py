"""Pictures of the page's five steps for the README: `python -m benchmarks.screenshots` makes them anew.

One LoRA is trained through the real page; each step is taken light and dark, on a wide and a narrow screen.
"""

import io
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

from tests.support.browser import Visit, chromium, settled
from tests.support.page_server import PageServer

FOLDER = Path(__file__).parent.parent / "assets" / "screenshots"
SCREENS = {f"{theme}-{width}": (theme, width) for theme in ("light", "dark") for width in (1280, 390)}
TALLEST = {1280: 1300, 390: 1500}  # pixels, of the window: the foot of each step stays at its end
PATIENCE = 30 * 60 * 1000  # milliseconds: a whole training is waited for
MIDDLE = 75  # the training step after which the run is taken


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        PageServer(Path(folder)) as server,
        chromium() as browser,
    ):
        visits = {
            screen: Visit(browser, server.url, width=width, height=TALLEST[width])
            for screen, (_, width) in SCREENS.items()
        }
        for visit in visits.values():
            visit.context.set_default_timeout(PATIENCE)
        show_steps([visit.open(f"?__theme={SCREENS[screen][0]}") for screen, visit in visits.items()])
        for visit in visits.values():
            visit.close()
    print(f"{sum(file.stat().st_size for file in FOLDER.iterdir()) / 1e6:.1f} MB in {FOLDER}")


def show_steps(pages: list[Page]) -> None:
    """Walks through the job on the first page; the others follow by loading again."""
    first = pages[0]
    first.click("#example-zorp")
    first.wait_for_selector("#picture-6 img")
    reload(pages)
    take(pages, "pictures", "#picture-6 img")
    each(pages, "#to-teacher")
    first.click("#check")
    take(pages, "teacher", "#verdict .word")
    each(pages, "#to-plan")
    take(pages, "plan", "#needs dl")
    first.click("#start")
    first.wait_for_selector("#run-status .status")
    run = first.locator("#runs li[data-run]").first.get_attribute("data-run")
    for page in pages:
        address = f"{page.url.partition('&run=')[0]}&run={run}"
        page.goto("about:blank")  # what the page asks for just then would break off the way to the next
        page.goto(address)
    first.wait_for_selector(f"#samples th:has-text('Step {MIDDLE}')")
    take(pages, "train", f"#samples th:has-text('Step {MIDDLE}')")
    for page in pages:
        page.wait_for_selector("#run-status:has-text('Finished')")
    each(pages, "#to-try")
    for page in pages:  # one after the other: each has its picture drawn
        page.click("#draw")
        page.wait_for_selector("#grid img")
    take(pages, "try", "#grid img")


def reload(pages: list[Page]) -> None:
    for page in pages:
        page.reload()
        settled(page)


def each(pages: list[Page], button: str) -> None:
    for page in pages:
        page.click(button)


def take(pages: list[Page], step: str, ready: str) -> None:
    """Saves what all pages show when this can be seen on them."""
    for page, screen in zip(pages, SCREENS, strict=True):
        page.wait_for_selector(ready)
        page.mouse.move(0, 0)
        page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
        page.wait_for_function("document.getAnimations().every(it => it.playState != 'running')")
        with Image.open(io.BytesIO(page.screenshot())) as shot:
            shot.convert("RGB").save(FOLDER / f"{step}-{screen}.webp", quality=82, method=6)


if __name__ == "__main__":
    main()
