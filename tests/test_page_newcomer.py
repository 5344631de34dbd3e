"""A newcomer with twelve pictures of a phone, no captions and no card: up to an honest next step."""

import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import expect

from dopsd_app.data.drafts import current_draft
from tests.support.browser import Visit, box
from tests.support.page_server import PageServer, wait_for

pytestmark = pytest.mark.browser

# Twelve HEIC files of 640 x 480 pixels, in which nothing is to be made out: drawn by Pillow, and written by
# pillow-heif 1.8 at quality 40.
PHONE = Path(__file__).parent / "support" / "files" / "phone_pictures.zip"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with PageServer(tmp_path_factory.mktemp("page")) as server:
        yield server


@pytest.fixture(scope="module")
def page(browser, server):
    visit = Visit(browser, server.url)
    yield visit.open()
    visit.close()


def test_pictures_of_a_phone_become_cards_and_what_the_base_cannot_learn_is_said_above_them(
    page, server, tmp_path
):
    with zipfile.ZipFile(PHONE) as pictures:
        pictures.extractall(tmp_path)
    page.set_input_files("#upload input[type=file]", sorted(tmp_path.iterdir()))
    expect(page.locator(".slot:visible")).to_have_count(12)
    expect(page.locator("#upload-report")).to_contain_text("12")
    expect(page.locator("#unsuited")).to_contain_text("creatures")
    expect(page.locator("#use-z-image-turbo")).to_be_visible()
    expect(page.locator("#missing")).to_contain_text("12")
    expect(page.locator("#to-teacher")).to_be_disabled()
    assert current_draft(server.drafts).items[0].name == "IMG_4101.HEIC"


def test_a_trigger_word_is_all_that_is_typed_until_the_set_is_captioned(page, server):
    box(page, "trigger").fill("rexo")
    box(page, "trigger").blur()
    if not page.locator("#captions-empty").is_visible():
        page.locator("#caption-tools > button").click()
    page.click("#captions-empty")
    expect(page.locator("#captions-answer")).to_contain_text("12 captions")
    wait_for(lambda: all(item.caption for item in current_draft(server.drafts).items), "twelve captions")
    expect(box(page, "caption-12")).to_have_value("a photo of rexo")


def test_the_base_that_suits_is_one_click_away_and_says_what_it_needs(page):
    page.click("#use-z-image-turbo")
    expect(page.locator("#base-advice")).to_be_hidden()
    # Nothing of this computer is promised: the card that it needs, and where one can be had.
    expect(page.locator("#base-facts .need")).to_contain_text("of 6 GB or more")
    page.click("#base-facts .need summary")
    expect(page.locator("#base-facts .need table")).to_contain_text("an hour")
    expect(page.locator("#to-teacher")).to_be_enabled()
