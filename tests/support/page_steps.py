"""A person's way through the page."""

from playwright.sync_api import expect

from dopsd_app.data.drafts import current_draft, set_settings
from dopsd_app.data.uploads import load_example
from tests.support.browser import box
from tests.support.page_server import wait_for

LONG = 50_000  # steps: more than any test waits for
QUICK = {"preview_every": 0, "checkpoint_every": 50}
HOSTILE = (
    'zorp <img src=x onerror="window.hit=1;alert(1)">',
    "zorp ${alert(1)} {{constructor.constructor('alert(2)')()}}",
    "zorp </textarea></script><script>window.hit=3;alert(3)</script>",
    "zorp \"quoted\" 'twice' `thrice` &lt;b&gt; \u202eright to left\u202c \u200f\u05d0",
)
TRIGGER = "zorp<svg onload=\"window.hit=4;alert('4')\">"


def fill_captions(page, server):
    """Writes the trigger word and hostile captions into the first boxes; comes back when they are kept."""
    box(page, "trigger").fill(TRIGGER)
    for number, text in enumerate(HOSTILE, start=1):
        box(page, f"caption-{number}").fill(text)
    count = len(HOSTILE)

    def kept():
        draft = current_draft(server.drafts)
        captions = tuple(item.caption for item in draft.items[:count])
        return (draft.trigger_word, captions) == (TRIGGER, HOSTILE)

    wait_for(kept, "the trigger word and the captions")


def make_draft(server, **settings):
    """An example whose run would train for long."""
    draft = load_example(server.drafts, "zorp")
    return set_settings(draft, steps=LONG, **QUICK, **settings)


def at_plan(visit):
    """A new tab at the plan of the newest draft."""
    page = visit.open()
    page.click("#step-pictures-button")
    page.click("#to-teacher")
    page.click("#to-plan")
    plan_is_shown(page)
    return page


def plan_is_shown(page):
    """Comes back when the plan's answer has come, which fills all of the step: a run could be started."""
    expect(page.locator("#needs dl")).to_be_visible()
    expect(page.locator("#start")).to_be_enabled()
