"""The page in a browser, up to a run that is started: real server, real workers, the built-in base."""

import re
import shutil
from contextlib import contextmanager

import pytest
from PIL import Image
from playwright.sync_api import expect

from dopsd_app.data.drafts import current_draft
from dopsd_app.jobs.runs import list_runs
from dopsd_app.models.catalog import find_base_model
from tests.support.browser import Visit, box, settled, unfold
from tests.support.page_server import PageServer, wait_for
from tests.support.page_steps import HOSTILE, TRIGGER, at_plan, fill_captions, make_draft, plan_is_shown
from tests.support.pictures import make_picture

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with PageServer(tmp_path_factory.mktemp("page"), {"HF_HUB_OFFLINE": "1"}) as server:
        yield server


# --- pictures and captions


@pytest.fixture(scope="module")
def tab(browser, server):
    visit = Visit(browser, server.url)
    yield visit.open()
    visit.close()


@pytest.fixture
def page(tab):
    """The first step with an empty draft."""
    page = tab
    page.click("#step-pictures-button")
    page.click("#fresh")
    expect(page.locator("#no-pictures .empty")).to_be_visible()
    expect(page.locator(".slot:visible")).to_have_count(0)
    return page


@pytest.fixture
def files(tmp_path):
    """Makes so many picture files, each with its caption."""

    def make(count):
        made = []
        for number in range(1, count + 1):
            picture, caption = tmp_path / f"mine {number}.png", tmp_path / f"mine {number}.txt"
            make_picture(number, 96, 64).save(picture)
            caption.write_text(f"zorp, number {number}")
            made += [picture, caption]
        return made

    return make


def upload(page, files, slots):
    page.set_input_files("#upload input[type=file]", files)
    expect(page.locator(".slot:visible")).to_have_count(slots)


def captions(page):
    return [box.input_value() for box in page.locator(".slot:visible textarea").all()]


def names(page):
    """The file names of the pictures that are shown, in their order."""
    return [picture.get_attribute("alt") for picture in page.locator(".slot:visible .pic img").all()]


def test_uploaded_pictures_show_with_the_captions_of_their_text_files(page, files):
    upload(page, files(5), 5)
    assert names(page) == [f"mine {number}.png" for number in range(1, 6)]
    assert captions(page) == [f"zorp, number {number}" for number in range(1, 6)]
    page.wait_for_function("[...document.querySelectorAll('.slot .pic img')].every(img => img.naturalWidth)")
    expect(page.locator("#to-teacher")).to_be_enabled()


def test_removing_a_picture_takes_that_one_and_its_caption(page, files):
    upload(page, files(5), 5)
    page.click("#remove-2")
    expect(page.locator(".slot:visible")).to_have_count(4)
    page.reload()
    expect(page.locator(".slot:visible")).to_have_count(4)
    assert names(page) == [f"mine {number}.png" for number in (1, 3, 4, 5)]
    assert captions(page) == [f"zorp, number {number}" for number in (1, 3, 4, 5)]


def test_a_text_named_png_is_refused_with_a_sentence_and_the_others_stay(page, files, tmp_path):
    fake = tmp_path / "notes.png"
    fake.write_text("These are only notes.")
    upload(page, [*files(4), fake], 4)
    expect(page.locator("#upload-report .done")).to_have_text("4 pictures added.")
    expect(page.locator("#upload-report .problem")).to_contain_text("notes.png")


def test_three_pictures_are_too_few_and_the_page_says_so(page, files):
    upload(page, files(3), 3)
    expect(page.locator("#set-problems .problem")).to_contain_text("4")
    expect(page.locator("#missing")).to_contain_text("1 picture must be added")
    expect(page.locator("#to-teacher")).to_be_disabled()


def test_a_file_of_another_kind_leaves_the_rest_of_an_upload_alone(page, files, tmp_path):
    strange = [tmp_path / f"strange {number}.xyz" for number in range(4)]
    for file in strange:
        file.write_bytes(b"nothing known")
    upload(page, [*files(4), *strange], 4)
    expect(page.locator("#upload-report summary")).to_contain_text("4 files were not taken")
    expect(page.locator("#to-teacher")).to_be_enabled()


def test_more_pictures_than_twenty_are_in_pages_and_where_the_new_ones_are_is_told(page, server, files):
    upload(page, files(20), 20)
    expect(page.locator("#cards-pager")).to_be_hidden()
    page.set_input_files("#upload input[type=file]", files(23)[40:])
    expect(page.locator("#upload-report .done")).to_have_text(
        "3 pictures added. The first is on page 2 of cards."
    )
    expect(page.locator("#cards-pager-where")).to_have_text("Pictures 1-20 of 23")
    page.click("#cards-pager-on")
    expect(page.locator("#cards-pager-where")).to_have_text("Pictures 21-23 of 23")
    expect(page.locator(".slot:visible")).to_have_count(3)
    assert names(page) == ["mine 21.png", "mine 22.png", "mine 23.png"]
    box(page, "caption-2").fill("typed at last")
    page.click("#cards-below-back")
    expect(page.locator("#cards-pager-where")).to_have_text("Pictures 1-20 of 23")
    assert captions(page) == [f"zorp, number {number}" for number in range(1, 21)]
    assert current_draft(server.drafts).items[21].caption == "typed at last"
    box(page, "caption-1").fill("")
    page.click("#cards-pager-on")
    expect(page.locator("#cards-pager-unready")).to_have_text("1 picture elsewhere needs something: show")
    page.click("#remove-1")
    expect(page.locator("#cards-pager-where")).to_have_text("Pictures 21-22 of 22")
    page.click("#cards-pager-unready")
    expect(page.locator("#message-1 .mark")).to_have_text("No caption yet")


NOTE_PROGRESS = """() => {
    window.read = [];
    const note = () => window.read.push(document.querySelector("#upload")?.innerText ?? "");
    new MutationObserver(note).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""


def test_how_many_pictures_have_been_read_is_shown_meanwhile(page, tmp_path):
    for number in range(4):
        Image.new("RGB", (2000, 2000), (0, 0, number)).save(tmp_path / f"{number}.png")
    page.evaluate(NOTE_PROGRESS)
    upload(page, sorted(tmp_path.iterdir()), 4)
    assert re.search(r"Pictures read - [27]5.0%", "".join(page.evaluate("window.read")))


def test_a_crop_is_shown_and_moved_with_the_mouse_and_with_keys(page, server, tmp_path):
    for number in range(4):
        make_picture(number, 64, 256).save(tmp_path / f"{number}.png")
    upload(page, sorted(tmp_path.iterdir()), 4)

    def focus(number):
        return current_draft(server.drafts).items[number].focus

    kept = page.locator("#picture-2 .kept")
    kept.hover()
    place, whole = kept.bounding_box(), page.locator("#picture-2 .crop").bounding_box()
    # The built-in base's longest crop is of 88 x 48 pixels.
    assert place["height"] == pytest.approx(whole["height"] * 88 / 48 / 4, abs=1)
    page.mouse.down()
    page.mouse.move(place["x"] + place["width"] / 2, place["y"] - whole["height"] / 2, steps=5)
    page.mouse.up()
    wait_for(lambda: focus(1) == (0.5, 0.0), "the crop that was dragged to the top")
    assert kept.bounding_box()["y"] == pytest.approx(whole["y"], abs=1)
    kept.focus()
    page.keyboard.press("ArrowDown")
    wait_for(lambda: focus(1) == (0.5, 0.05), "the crop that was moved with a key")
    assert [focus(number) for number in (0, 2, 3)] == [(0.5, 0.5)] * 3
    page.reload()
    expect(kept).to_have_attribute("aria-valuenow", "5")
    kept.click(position={"x": 5, "y": 5})  # nothing was moved: it is enlarged
    expect(page.locator("#enlarged img")).to_be_visible()
    page.keyboard.press("Escape")


def test_all_captions_are_written_at_once_and_taken_back(page, server, files):
    upload(page, files(4)[::2], 4)
    expect(page.locator("#missing")).to_have_text("4 pictures have no caption.")
    assert page.locator("#set-problems .problem").count() == 0
    box(page, "trigger").fill("grumbo")
    box(page, "caption-2").fill("typed by hand")
    page.click("#captions-empty")  # the panel is open while captions are missing
    expect(page.locator("#captions-answer")).to_have_text("3 captions filled.")
    written = ["a photo of grumbo", "typed by hand", "a photo of grumbo", "a photo of grumbo"]
    assert captions(page) == written
    expect(page.locator("#missing")).to_be_empty()
    page.click("#captions-first")
    expect(page.locator("#captions-answer")).to_have_text("4 captions changed.")
    assert [item.caption for item in current_draft(server.drafts).items][1] == "grumbo, typed by hand"
    page.click("#captions-undo")
    expect(page.locator("#captions-answer")).to_have_text("4 captions are as before.")
    assert captions(page) == written
    expect(page.locator("#captions-undo")).to_be_hidden()


def test_a_wrapped_caption_is_told_and_joined(page, files):
    made = files(4)
    made[1].write_text("zorp in a garden\nunder a tree")
    upload(page, made, 4)
    expect(page.locator("#wrapped")).to_contain_text("1 caption has several lines")
    page.click("#captions-join")
    expect(box(page, "caption-1")).to_have_value("zorp in a garden under a tree")
    expect(page.locator("#wrapped")).to_be_hidden()


def test_a_reload_loses_no_picture_caption_word_or_setting(page, server, files):
    upload(page, files(4), 4)
    fill_captions(page, server)
    page.reload()
    expect(page.locator(".slot:visible")).to_have_count(4)
    expect(box(page, "caption-4")).to_have_value(HOSTILE[3])
    assert captions(page) == list(HOSTILE)
    expect(box(page, "trigger")).to_have_value(TRIGGER)
    page.click("#to-teacher")
    page.click("#to-plan")
    expect(page.locator("#needs dl")).to_be_visible()
    box(page, "set-name").fill("My zörp")
    box(page, "set-steps").fill("17")
    box(page, "set-preview-prompts").fill("zorp at home\nzorp abroad")
    unfold(page, "more")
    box(page, "set-seed").fill("5")
    wait_for(lambda: current_draft(server.drafts).settings.get("seed") == 5, "the last setting")
    page.reload()
    expect(page.locator("#needs dl")).to_contain_text("17")
    expect(box(page, "set-name")).to_have_value("My zörp")
    expect(box(page, "set-steps")).to_have_value("17")
    expect(box(page, "set-preview-prompts")).to_have_value("zorp at home\nzorp abroad")
    unfold(page, "more")
    expect(box(page, "set-seed")).to_have_value("5")


def test_what_is_typed_or_pasted_is_kept_though_the_box_is_never_left(page, server, files):
    upload(page, files(4), 4)

    def kept(number):
        return current_draft(server.drafts).items[number - 1].caption

    text = box(page, "caption-2")
    text.press("End")
    text.press_sequentially(", typed")
    text.press("Backspace")
    wait_for(lambda: kept(2) == "zorp, number 2, type", "the last key")
    box(page, "caption-3").focus()
    page.keyboard.press("ControlOrMeta+a")
    pasted = "pasted " + "x" * 1993
    page.keyboard.insert_text(pasted)  # as the clipboard, an input method or a dictation does
    wait_for(lambda: kept(3) == pasted, "what was pasted")
    page.reload()
    expect(box(page, "caption-3")).to_have_value(pasted)
    assert captions(page)[1] == "zorp, number 2, type"


def test_an_empty_caption_is_marked_on_its_card_and_counted_at_the_foot(page, files):
    upload(page, files(4), 4)
    box(page, "caption-3").fill("")
    box(page, "caption-3").blur()
    expect(page.locator("#message-3 .mark")).to_have_text("No caption yet")
    expect(page.locator("#missing")).to_have_text("1 picture has no caption.")
    expect(page.locator(".slot .problem")).to_have_count(0)
    expect(page.locator("#to-teacher")).to_be_disabled()


def test_passing_the_list_of_earlier_drafts_changes_nothing(page, files):
    upload(page, files(4), 4)
    page.click("#example-zorp")  # so that there is an earlier draft with pictures
    expect(page.locator(".slot:visible")).to_have_count(6)
    box(page, "earlier").focus()
    expect(page.locator("#earlier [role=listbox]")).to_be_visible()
    with page.expect_response("**/queue/join*"):
        page.keyboard.press("Tab")
    box(page, "caption-1").fill("typed at once")
    page.wait_for_timeout(1500)
    expect(page.locator("#earlier [role=listbox]")).to_have_count(0, timeout=5000)  # it would cover buttons
    expect(box(page, "caption-1")).to_have_value("typed at once")


def test_an_earlier_draft_comes_back_when_it_is_chosen(page, files, server):
    upload(page, files(4), 4)
    page.click("#example-zorp")
    expect(page.locator(".slot:visible")).to_have_count(6)
    (chosen,) = server.numbers("earlier")
    asked = []
    page.on(
        "request", lambda request: asked.append(request.post_data_json) if "join" in request.url else None
    )
    box(page, "earlier").click()
    page.locator("[role=option]", has_text="4 pictures").first.click()
    expect(page.locator(".slot:visible")).to_have_count(4)
    expect(box(page, "caption-1")).to_have_value("zorp, number 1")
    # A second answer would take back what is typed after the first.
    assert [body["fn_index"] for body in asked].count(chosen) == 1
    box(page, "caption-1").fill("typed at once")
    page.wait_for_timeout(1500)
    expect(box(page, "caption-1")).to_have_value("typed at once")
    box(page, "earlier").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator(".slot:visible")).to_have_count(6)
    assert "not in the list of choices" not in server.output.read_text()


@contextmanager
def on_its_way(page, server, component):
    """Meanwhile what is typed into this component is sent, and arrives at the end."""
    typed = server.numbers(component)[0]
    held = []

    def hold(route):
        if route.request.post_data_json["fn_index"] == typed:
            held.append(route)
        else:
            route.continue_()

    page.route("**/queue/join*", hold)
    yield
    for _ in range(600):
        if held:
            break
        page.wait_for_timeout(50)  # a busy browser sends late
    assert held
    for route in held:
        route.continue_()
    page.unroute("**/queue/join*")


def test_the_last_words_count_though_they_are_still_on_their_way(page, server, files):
    upload(page, files(4), 4)
    text = box(page, "caption-3")
    with on_its_way(page, server, "caption-3"):
        text.fill("the first")
        text.fill("the second")
        text.fill("")
    expect(page.locator("#message-3 .mark")).to_be_visible()
    assert current_draft(server.drafts).items[2].caption == ""


def test_a_picture_that_another_tab_removed_is_told_where_its_caption_is_typed(visit, files):
    page = visit.open()
    page.click("#fresh")
    expect(page.locator(".slot:visible")).to_have_count(0)
    upload(page, files(5), 5)
    other = visit.open()
    expect(other.locator(".slot:visible")).to_have_count(5)
    other.click("#remove-1")
    expect(other.locator(".slot:visible")).to_have_count(4)
    box(page, "caption-1").fill("still there?")
    expect(page.locator(".toast-body")).to_contain_text("This picture is no longer in the draft")


def arrives(page, place, what):
    """Comes back when a step shows this, and the browser has remembered its place."""
    expect(page.locator(what)).to_be_visible()
    page.wait_for_function("place => localStorage['dopsd-place'] == place", arg=place)


def test_back_leads_to_the_step_before_and_forward_to_the_next(visit, files):
    page = visit.open()
    page.click("#fresh")
    expect(page.locator(".slot:visible")).to_have_count(0)
    upload(page, files(4), 4)
    page.click("#to-teacher")
    expect(page.locator("#check")).to_be_visible()
    page.click("#to-plan")
    expect(page.locator("#start")).to_be_enabled()
    page.go_back()
    arrives(page, 2, "#check")
    page.go_back()
    arrives(page, 1, "#upload")
    page.go_forward()
    arrives(page, 2, "#check")
    page.go_forward()
    arrives(page, 3, "#start")
    page.click("#step-pictures-button")
    arrives(page, 1, "#upload")
    page.wait_for_function("history.state.place == 1")
    page.reload()
    settled(page)
    page.go_back()
    expect(page.locator("#start")).to_be_visible()


# --- to a run


FOCUS = """() => {
    const at = document.activeElement, style = getComputedStyle(at), place = at.getBoundingClientRect();
    const shown = style.outlineStyle != "none" && parseFloat(style.outlineWidth) >= 2 && place.width > 0;
    const around = at.closest("[id]");
    return [at == document.body ? "" : at.id || (around ? around.id : at.tagName), shown];
}"""


def tab_to(page, name):
    """Presses Tab until this has the focus, which can be seen wherever it is on the way."""
    for _ in range(120):
        page.keyboard.press("Tab")
        at, shown = page.evaluate(FOCUS)
        assert shown or not at, f"The focus on {at} cannot be seen."
        if at == name:
            return
    raise AssertionError(f"Tab does not come to {name}.")


def test_the_keyboard_alone_leads_from_an_example_to_a_started_run(visit, server):
    page = visit.open()
    known = set(list_runs(server.runs))
    tab_to(page, "example-mibbit")
    page.keyboard.press("Enter")
    expect(box(page, "caption-6")).to_have_value(re.compile("mibbit"))
    tab_to(page, "caption-1")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("mibbit in a garden")
    expect(box(page, "caption-1")).to_have_value("mibbit in a garden")
    tab_to(page, "to-teacher")
    page.keyboard.press("Space")
    expect(page.locator("#check")).to_be_visible()
    tab_to(page, "to-plan")
    page.keyboard.press("Enter")
    plan_is_shown(page)
    tab_to(page, "set-steps")
    with on_its_way(page, server, "set-steps"):
        page.keyboard.press("ControlOrMeta+a")
        page.keyboard.type("3")
        tab_to(page, "start")
        page.keyboard.press("Enter")
        expect(page.locator("#run-status .status")).to_be_visible()
    (run,) = set(list_runs(server.runs)) - known
    assert run.config.steps == 3
    assert "mibbit in a garden" in [file.read_text().strip() for file in run.dataset.glob("*.txt")]
    tab_to(page, "stop")
    page.keyboard.press("Enter")
    expect(page.locator("#run-status")).to_contain_text("Stopped")


def test_a_base_model_that_breaks_is_told_as_a_failure_in_a_sentence(visit, server, tmp_path):
    base = tmp_path / "my-base"
    shutil.copytree(find_base_model("pocket-turbo").folder, base)
    make_draft(server, base_model=str(base))
    page = at_plan(visit)
    # As long as it was, and whole: only loading finds that a tensor has another name.
    weights = next((base / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes().replace(b"layers.0.", b"layerz.0."))
    page.click("#start")
    status = page.locator("#run-status")
    expect(status).to_contain_text("Failed")
    run = list_runs(server.runs)[0]
    assert run.status.reason in page.inner_text("#run-status")
    expect(page.locator("#resume")).to_be_visible()
    expect(page.locator("#to-try")).to_be_hidden()
    unfold(page, "log")
    wait_for(lambda: "Traceback" in box(page, "log-text").input_value(), "the log")
