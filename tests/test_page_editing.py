"""An edit on the page, from pairs of pictures to a LoRA that is tried on another one; on a tiny klein."""

import pytest
from PIL import Image
from playwright.sync_api import expect

from dopsd_app.data.drafts import current_draft, set_settings
from dopsd_app.jobs.drawing import list_drawings
from dopsd_app.jobs.runs import list_runs
from tests.support.browser import Visit, box
from tests.support.edits import save_pairs
from tests.support.imitation_hub import ImitationHub
from tests.support.page_server import PageServer, all_bytes, wait_for
from tests.support.pictures import make_picture
from tests.support.tiny_models import save_klein

pytestmark = pytest.mark.browser

TOKEN = "hf_marked7Qx41kTokenOfAnn"

QUICK = {"resolution": 256, "steps": 2, "preview_every": 2, "rank": 4}
QUICK |= {"quantization": "none", "optimizer": "adamw"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pairs, one more source, and a tiny klein."""
    folder = tmp_path_factory.mktemp("edits")
    save_klein(folder / "klein")
    save_pairs(folder / "pairs", sizes=((256, 256),) * 4)
    make_picture(50, 320, 256).save(folder / "more.png")
    (folder / "broken.png").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def hub():
    with ImitationHub() as hub:
        hub.add_account(TOKEN, "Ann")
        yield hub


@pytest.fixture(scope="module")
def server(hub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    with PageServer(folder, hub.environment(folder / "home")) as server:
        yield server


@pytest.fixture(scope="module")
def page(browser, server):
    visit = Visit(browser, server.url)
    yield visit.open()
    visit.close()


def choose_file(page, button: str, file) -> None:
    with page.expect_file_chooser() as chooser:
        page.click(f"#{button}")
    chooser.value.set_files(str(file))


def test_pairs_that_are_dropped_in_are_an_edit_for_a_base_that_can(page, server, folder):
    page.set_input_files("#upload input[type=file]", sorted((folder / "pairs").iterdir()))
    expect(page.locator(".slot:visible")).to_have_count(4)
    expect(page.locator("#base-advice")).to_contain_text("cannot start from source pictures")
    expect(page.locator("#use-z-image-turbo")).to_be_hidden()
    expect(page.locator("#to-teacher")).to_be_disabled()
    page.click("#use-flux2-klein-4b")
    expect(page.locator("#base input:checked")).to_have_value("flux2-klein-4b")
    expect(page.locator("#kind input:checked")).to_have_value("edit")
    expect(page.locator("#base-advice")).to_be_hidden()
    expect(page.locator("#picture-1 figcaption")).to_have_text(["Before", "After"])
    expect(page.locator("#caption-1")).to_contain_text("Instruction for picture 1")
    box(page, "base-folder").fill(str(folder / "klein"))
    box(page, "base-folder").press("Enter")
    expect(page.locator("#base-facts")).to_contain_text("Ready")
    expect(page.locator("#to-teacher")).to_be_enabled()
    assert current_draft(server.drafts).preset == "klein-4b-edit"


def test_a_source_is_added_on_the_card_and_taken_away_there(page, server, folder):
    page.click("#remove-sources-2")
    expect(page.locator("#message-2")).to_contain_text("1.png has no source picture")
    expect(page.locator("#remove-sources-2")).to_be_hidden()
    expect(page.locator("#to-teacher")).to_be_disabled()
    choose_file(page, "add-source-2", folder / "more.png")
    expect(page.locator("#picture-2 .before img")).to_have_attribute("alt", "more.png")
    choose_file(page, "add-source-2", folder / "pairs" / "1_source.png")
    expect(page.locator("#picture-2 .before img")).to_have_count(2)
    choose_file(page, "add-source-3", folder / "broken.png")
    expect(page.locator("#upload-report")).to_contain_text("broken.png cannot be read as a picture")
    # Uploads are where nobody can fetch them, and the next tab shows what was kept.
    assert (folder / "more.png").read_bytes() not in all_bytes(server.temporary)
    page.reload()
    expect(page.locator("#picture-2 .before img")).to_have_count(2)
    expect(page.locator("#to-teacher")).to_be_enabled()
    draft = current_draft(server.drafts)
    assert [len(item.sources) for item in draft.items] == [1, 2, 1, 1]


def test_another_kind_takes_the_edit_off_the_cards_and_says_what_is_left(page):
    page.locator("#kind").get_by_text("A style").click()
    expect(page.locator("#set-problems")).to_contain_text("which only an edit starts from")
    expect(page.locator("#caption-1")).to_contain_text("Caption of picture 1")
    expect(page.locator("#add-source-1")).to_be_hidden()
    expect(page.locator("#remove-sources-1")).to_be_visible()
    page.locator("#kind").get_by_text("An edit").click()
    expect(page.locator("#add-source-1")).to_be_visible()
    expect(page.locator("#caption-1")).to_contain_text("Instruction for picture 1")
    expect(box(page, "caption-1")).to_have_value("make it blue")


def test_it_is_checked_planned_and_trained(page, server):
    set_settings(current_draft(server.drafts), **QUICK)
    page.click("#to-teacher")
    page.click("#check")
    expect(page.locator("#verdict .verdict")).to_be_visible()
    expect(page.locator("#check-rows .head span").first).to_have_text("Before")
    expect(page.locator("#check-rows .row:not(.head) img")).to_have_count(4 * 4)
    page.click("#to-plan")
    expect(page.locator("#needs")).to_contain_text("with 2 sources")
    page.click("#start")
    expect(page.locator("#run-status")).to_contain_text("Finished")
    expect(page.locator("#samples thead")).to_contain_text("Source Base")
    [run] = list_runs(server.runs)
    assert run.sources == 2


def at_rest(run):
    """The last drawing that has ended."""
    return next(iter(list_drawings(run)), None)


def test_it_is_tried_from_a_source_of_the_run_or_another(page, server, folder):
    page.click("#to-try")
    expect(page.locator("#sources img")).to_have_count(1)
    expect(box(page, "prompt")).to_have_value("make it blue")
    page.click("#draw")
    [run] = list_runs(server.runs)
    first = wait_for(lambda: at_rest(run), "a picture")
    assert [file.read_bytes() for file in first.sources] == [file.read_bytes() for file in run.sources_of(1)]
    expect(page.locator("#grid img").first).to_be_visible()
    choose_file(page, "add-source", folder / "more.png")
    expect(box(page, "source")).to_have_value("Your upload")
    assert (folder / "more.png").read_bytes() not in all_bytes(server.temporary)
    page.click("#draw")
    second = wait_for(lambda: (found := at_rest(run)) != first and found, "another picture")
    with Image.open(second.sources[0]) as started_from:
        assert started_from.tobytes() == make_picture(50, 320, 256).tobytes()


def test_it_is_pushed_as_what_starts_from_pictures_and_no_picture_goes_with_it(page, hub, server):
    box(page, "repo-name").fill("blue")
    box(page, "token").fill(TOKEN)
    page.click("#publish")
    page.wait_for_selector("#published a")
    [run] = list_runs(server.runs)
    files = hub.repositories["Ann/blue"].files
    card = files["README.md"].decode()
    assert "pipeline_tag: image-to-image" in card and "load_image(" in card
    assert files["pytorch_lora_weights.safetensors"] == run.lora_file.read_bytes()
    assert not [name for name in files if name.endswith((".png", ".jpg", ".webp"))]
    private = [file.read_bytes() for file in run.dataset.rglob("*") if file.suffix in (".png", ".webp")]
    assert private and not any(picture in content for content in files.values() for picture in private)


def test_a_run_of_edits_can_be_used_again(page, server):
    before = current_draft(server.drafts).id
    page.click("#to-runs")
    page.click("#clone")
    expect(page.locator("#needs")).to_be_visible()
    expect(page.locator("#needs")).to_contain_text("with 2 sources")
    draft = current_draft(server.drafts)
    assert draft.id != before
    assert [len(item.sources) for item in draft.items] == [1, 2, 1, 1] and draft.kind == "edit"


def test_a_base_that_does_not_edit_offers_no_edit(page):
    page.click("#step-pictures-button")
    page.click("#fresh")
    expect(page.locator("#kind input")).to_have_count(2)
    page.locator("#base").get_by_text("FLUX.2 klein 9B").click()
    expect(page.locator("#kind input")).to_have_count(3)
