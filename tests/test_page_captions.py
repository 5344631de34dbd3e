"""Captions that are written for the person, in a browser: the model comes from an imitation of the Hub."""

import pytest
from playwright.sync_api import expect

from dopsd_app.data.drafts import current_draft, make_current, new_draft, set_caption, set_settings
from dopsd_app.data.uploads import add_pictures
from dopsd_app.models.captioner_facts import CAPTIONERS
from tests.support.browser import box
from tests.support.imitation_hub import ImitationHub
from tests.support.page_server import PageServer, wait_for
from tests.support.pictures import make_picture
from tests.support.tiny_captioner import save_captioner_repository

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captioner")
    save_captioner_repository(folder)
    with ImitationHub() as hub:
        for captioner in CAPTIONERS:
            hub.add_model(captioner.repository, folder)
        yield hub


@pytest.fixture(scope="module")
def server(hub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    # In one process at a time only: the tests' own is offline.
    with PageServer(folder, hub.environment(folder / "home")) as server:
        yield server


@pytest.fixture
def draft(server, tmp_path):
    for number in range(4):
        make_picture(number, 300, 200).save(tmp_path / f"{number}.png")
    draft = add_pictures(new_draft(server.drafts), sorted(tmp_path.glob("*.png"))).draft
    draft = set_settings(draft, trigger_word="zorp")
    make_current(draft)
    return draft


def captions(server):
    return [item.caption for item in current_draft(server.drafts).items]


def test_captions_come_into_the_boxes_and_what_was_typed_stays(visit, server, draft):
    set_caption(draft, draft.items[0].key, "zorp, in my own words")
    page = visit.open()
    page.click("#step-pictures-button")
    status = page.locator("#caption-status")
    expect(status).to_contain_text("Qwen3-VL")
    expect(status).to_contain_text("It is fetched once")
    box(page, "caption-what").fill("dog")
    page.click("#write-captions")
    expect(status).to_contain_text("3 captions written")
    expect(box(page, "caption-1")).to_have_value("zorp, in my own words")
    for number in (2, 3, 4):
        expect(box(page, f"caption-{number}")).to_have_value(captions(server)[number - 1])
        assert captions(server)[number - 1].startswith("zorp dog, ")
    expect(status).to_contain_text("It is on this computer")
    expect(page.locator("#to-teacher")).to_be_enabled()

    # One alone, written again; and all, which asks before it writes over the person's own.
    box(page, "caption-2").fill("zorp dog, changed by me")
    wait_for(lambda: captions(server)[1] == "zorp dog, changed by me", "the caption")
    expect(page.locator("#write-2")).to_have_text("Write again")
    page.click("#write-2")
    expect(page.locator("#really-caption")).to_have_text("Write over your own caption of picture 2")
    assert captions(server)[1] == "zorp dog, changed by me"
    page.click("#really-caption")
    wait_for(lambda: captions(server)[1].startswith("zorp dog, green"), "the caption that is written again")
    expect(box(page, "caption-2")).to_have_value(captions(server)[1])
    expect(page.locator("#write-all")).to_be_visible()
    page.click("#write-all")
    expect(page.locator("#really-captions")).to_have_text("Write 4 captions again, of which 1 is your own")
    page.click("#keep-captions")
    expect(page.locator("#really-captions")).to_be_hidden()
    assert captions(server)[0] == "zorp, in my own words"


def test_without_a_trigger_word_it_says_what_is_missing(visit, server, draft):
    set_settings(draft, trigger_word=None)
    page = visit.open()
    page.click("#step-pictures-button")
    page.click("#write-captions")
    expect(page.get_by_text("Write the trigger word first")).to_be_visible()
