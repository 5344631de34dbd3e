"""A newcomer's way in a browser with FLUX.2 klein: downloaded from its card, proved, looked at, trained."""

import json

import pytest
from playwright.sync_api import expect

from dopsd_app.data.drafts import current_draft, set_settings
from dopsd_app.jobs.job import list_jobs
from dopsd_app.jobs.kinds import CHECK_BASE, DOWNLOAD
from dopsd_app.jobs.runs import list_runs
from tests.support.browser import Visit, box
from tests.support.imitation_hub import ImitationHub
from tests.support.page_server import PageServer
from tests.support.pictures import make_picture
from tests.support.real_layout import save_klein_repository, save_qwen_vl_repository

pytestmark = pytest.mark.browser

TOKEN = "hf_marked7Qx41kTokenOfAnn"
KLEIN, QWEN = "black-forest-labs/FLUX.2-klein-4B", "Qwen/Qwen3-VL-4B-Instruct"
WEIGHTS = r"\.safetensors$"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repositories")
    save_klein_repository(folder / "klein")
    save_qwen_vl_repository(folder / "qwen")
    with ImitationHub() as hub:
        hub.add_account(TOKEN, "Ann")
        hub.add_model(KLEIN, folder / "klein")
        hub.add_model(QWEN, folder / "qwen")
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


def test_its_card_downloads_it_seen_after_a_reload_cancelled_and_gone_on_with(page, hub, server):
    page.locator("#base").get_by_text("FLUX.2 klein 4B").click()
    expect(page.locator("#base-fetch")).to_be_visible()
    # As little as it may draw: all that follows is drawn on a processor.
    sides = {"resolution": 256, "teacher_picture_minimum": 256, "teacher_picture_maximum": 256}
    settings = {**sides, "rank": 4, "quantization": "none", "rollout_steps": 1}
    set_settings(current_draft(server.drafts), **settings)
    hub.slow(WEIGHTS, 60_000)
    page.click("#base-fetch")
    expect(page.locator("#base-status")).to_contain_text("MB/s")
    page.reload()
    expect(page.locator("#base-status")).to_contain_text("MB/s")
    page.click("#base-cancel")
    expect(page.locator("#base-status")).to_contain_text("Cancelled. What was fetched is kept.")
    assert sum(file.stat().st_size for file in (server.folder / "home").rglob("*.incomplete"))
    hub.mend()
    page.click("#base-fetch")
    expect(page.locator("#base-facts")).to_contain_text("Ready")
    # Not the transformer that lies in its root once more, for other programs.
    assert not list((server.folder / "home").rglob("flux-2-klein-4b.safetensors"))
    assert not [request for request in hub.requests if "/flux-2-klein-4b.safetensors" in request.path]


def test_then_it_is_checked_by_itself_and_the_card_shows_what_was_found(page, server):
    expect(page.locator("#base-status")).to_contain_text("Checked here: it works.")
    assert {job.kind for job in list_jobs(server.runs)} == {DOWNLOAD, CHECK_BASE}
    page.click("#base-status summary")
    expect(page.locator("#base-status figure img")).to_have_count(3)
    expect(page.locator("#base-status pre")).to_contain_text("Check of flux2-klein-4b at ")
    expect(page.locator("#base-status pre")).not_to_contain_text(str(server.folder))
    page.reload()
    expect(page.locator("#base-check")).to_have_text("Check it again")


def test_each_teacher_shows_what_it_sees_and_the_second_fetches_its_eyes_alone(page, hub, server, tmp_path):
    for number in range(4):
        make_picture(number, 256, 256).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"a photo of grumbo on floor number {number}")
    page.set_input_files("#upload input[type=file]", sorted(tmp_path.iterdir()))
    expect(page.locator(".slot:visible")).to_have_count(4)
    box(page, "trigger").fill("grumbo")
    box(page, "trigger").blur()
    page.click("#to-teacher")
    page.click("#check")
    page.wait_for_selector("#verdict .word")
    expect(page.locator("#check-rows .row img")).to_have_count(4 * 3)
    before = len(hub.requests)
    set_settings(current_draft(server.drafts), teacher_context="vision_language")
    page.reload()
    page.wait_for_selector("#verdict .word")
    page.click("#check")
    expect(page.locator("#verdict .advice")).to_have_count(0)
    page.wait_for_selector("#verdict .word")
    fetched = {request.path for request in hub.requests[before:] if request.path.endswith(".safetensors")}
    assert fetched and all(QWEN in path for path in fetched)
    set_settings(current_draft(server.drafts), teacher_context=None)


def test_it_is_trained_tried_and_pushed(page, hub, server):
    page.reload()
    page.click("#to-plan")
    page.wait_for_selector("#needs dl")
    expect(page.locator("#needs")).to_contain_text("measured when the base model was checked here")
    for name, value in {"steps": 2, "preview-every": 2, "checkpoint-every": 2}.items():
        if name == "preview-every":
            page.locator("#more").get_by_text("More").first.click()
        box(page, f"set-{name}").fill(str(value))
    page.click("#start")
    expect(page.locator("#run-status")).to_contain_text("draws what was trained")
    page.click("#to-try")
    page.click("#draw")
    page.wait_for_selector("#grid img")
    box(page, "repo-name").fill("grumbo")
    box(page, "token").fill(TOKEN)
    page.click("#publish")
    page.wait_for_selector("#published a")
    files = hub.repositories["Ann/grumbo"].files
    assert f"base_model: {KLEIN}" in files["README.md"].decode()
    run = list_runs(server.runs)[0]
    assert json.loads(files["training_config.json"])["revision"] == run.config.revision
