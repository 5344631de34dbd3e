"""The real job in a browser: photos, and a base model that comes from an imitation of the Hub by itself."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image
from playwright.sync_api import expect

from dopsd_app.data.drafts import current_draft, set_settings
from dopsd_app.jobs.runs import list_runs
from tests.support.browser import Visit, box, unfold
from tests.support.imitation_hub import ImitationHub
from tests.support.page_server import PageServer, wait_for
from tests.support.real_layout import save_qwen_vl_repository, save_z_image_repository

pytestmark = pytest.mark.browser

TOKEN = "hf_marked7Qx41kTokenOfAnn"
Z_IMAGE, QWEN, FINE_TUNE = "Tongyi-MAI/Z-Image-Turbo", "Qwen/Qwen3-VL-4B-Instruct", "Ann/z-image-comic"
WEIGHTS = r"\.safetensors$"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repositories")
    save_z_image_repository(folder / "z-image")
    save_z_image_repository(folder / "comic", fine_tune=True)
    save_qwen_vl_repository(folder / "qwen")
    with ImitationHub() as hub:
        hub.add_account(TOKEN, "Ann")
        hub.add_model(Z_IMAGE, folder / "z-image")
        hub.add_model(FINE_TUNE, folder / "comic")
        hub.add_model(QWEN, folder / "qwen")
        yield hub


@pytest.fixture(scope="module")
def server(hub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    # In one process at a time only: the tests' own is offline.
    with PageServer(folder, hub.environment(folder / "home")) as server:
        yield server


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Four pictures with the detail of photographs, and their captions."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(4):
        draw = np.random.default_rng(number)
        picture = sum(
            np.asarray(
                Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8)).resize((320, 320))
            )
            / share
            for side, share in ((4, 2), (40, 4), (320, 4))
        )
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{number}.jpg", quality=92)
        (folder / f"{number}.txt").write_text(f"a photo of grumbo on floor number {number}")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def page(browser, server):
    visit = Visit(browser, server.url)
    yield visit.open()
    visit.close()


def look(page, name: str) -> None:
    """Keeps a picture of the page where a folder for them is given."""
    if folder := os.environ.get("PICTURES_OF_PAGE"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def test_photos_on_the_built_in_base_are_told_at_once_with_the_right_base_as_next_action(
    page, server, photos
):
    page.set_input_files("#upload input[type=file]", photos)
    expect(page.locator(".slot:visible")).to_have_count(4)
    expect(page.locator("#base-advice")).to_contain_text("not of the built-in model's world")
    expect(page.locator("#base-advice")).to_contain_text("34 GB to fetch, once, a card of 6 GB or more")
    look(page, "1-photos-on-the-built-in-base")
    page.click("#use-z-image-turbo")
    expect(page.locator("#base input:checked")).to_have_value("z-image-turbo")
    expect(page.locator("#base-facts")).to_contain_text("once, when it is needed")
    expect(page.locator("#base-facts")).to_contain_text("Apache 2.0")
    expect(page.locator("#base-facts")).to_contain_text("free there")
    expect(page.locator("#base-advice")).to_be_hidden()
    box(page, "trigger").fill("grumbo")
    page.locator("#trigger textarea, #trigger input").first.blur()
    look(page, "2-z-image-turbo")
    # As little as the base may draw: all that follows is drawn on a processor.
    set_settings(current_draft(server.drafts), resolution=256, rank=4, num_inference_steps=4, rollout_steps=2)


def test_the_teacher_check_fetches_the_base_first_and_a_cancelled_one_loses_nothing(page, hub, server):
    hub.slow(WEIGHTS, 150_000)
    page.click("#to-teacher")
    page.click("#check")
    expect(page.locator("#check-status")).to_contain_text("Fetching the base model")
    expect(page.locator("#check-status")).to_contain_text("MB/s")
    look(page, "3-fetching")
    page.click("#cancel-check")
    expect(page.locator("#check-status")).to_have_text("Cancelled.")
    kept = sum(file.stat().st_size for file in (server.folder / "home").rglob("*.incomplete"))
    assert kept
    hub.mend()
    page.click("#check")
    page.wait_for_selector("#verdict .word")
    expect(page.locator("#check-rows .row img")).to_have_count(4 * 3)
    look(page, "4-teacher")


def test_a_run_trains_on_it_and_keeps_which_commit_it_was(page, hub, server):
    page.click("#to-plan")
    page.wait_for_selector("#needs dl")
    for name, value in {"steps": 3}.items():
        box(page, f"set-{name}").fill(str(value))
    unfold(page, "more")
    box(page, "set-preview-every").fill("3")
    box(page, "set-checkpoint-every").fill("3")
    expect(page.locator("#needs")).to_contain_text("3")
    page.click("#start")
    expect(page.locator("#run-status")).to_contain_text("Finished")
    expect(page.locator("#run-status")).to_contain_text("draws what was trained")
    look(page, "5-trained")
    run = list_runs(server.runs)[0]
    snapshot = next((server.folder / "home" / "hub").glob("models--Tongyi*/snapshots/*"))
    assert (run.config.base_model, run.config.revision) == ("z-image-turbo", snapshot.name)
    assert run.config.steps == 3


def test_the_lora_is_tried_and_pushed_with_its_base_and_commit(page, hub, server, tmp_path):
    page.click("#to-try")
    page.click("#draw")
    page.click("#grid .tools button")
    page.wait_for_selector("#card-pictures img")
    box(page, "repo-name").fill("grumbo")
    box(page, "token").fill(TOKEN)
    page.click("#publish")
    page.wait_for_selector("#published a")
    look(page, "6-pushed")
    files = hub.repositories["Ann/grumbo"].files
    (tmp_path / "card.md").write_bytes(files["README.md"])
    card = ModelCard.load(tmp_path / "card.md")
    run = list_runs(server.runs)[0]
    assert card.data.base_model == Z_IMAGE and card.data.license == "apache-2.0"
    assert f"revision={run.config.revision!r}" in card.text
    assert json.loads(files["training_config.json"])["revision"] == run.config.revision
    assert files["pytorch_lora_weights.safetensors"] == run.lora_file.read_bytes()


def test_a_fine_tune_on_the_hub_is_a_name_and_what_is_none_is_told(page, hub):
    page.locator("#walk").get_by_role("tab").first.click()
    for name, told in (
        (FINE_TUNE, "my-licence"),
        ("Ann/nothing", "The Hub does not know Ann/nothing"),
        (QWEN, "is no pipeline of diffusers"),
        (os.path.dirname(__file__), "is no base model: it has no model_index.json"),
    ):
        box(page, "base-folder").fill(name)
        box(page, "base-folder").press("Enter")
        expect(page.locator("#base-facts")).to_contain_text(told)
    look(page, "7-another-base")
    box(page, "base-folder").fill("")
    box(page, "base-folder").press("Enter")
    expect(page.locator("#base-facts")).to_contain_text("Ready")


def test_a_download_that_was_killed_says_so_and_the_resumed_run_goes_on_from_there(page, hub, server):
    page.locator("#walk").get_by_role("tab").first.click()
    box(page, "base-folder").fill(FINE_TUNE)
    box(page, "base-folder").press("Enter")
    expect(page.locator("#base-facts")).to_contain_text("my-licence")
    hub.slow(WEIGHTS, 100_000)
    page.click("#to-teacher")
    page.click("#to-plan")
    expect(page.locator("#needs")).to_contain_text("from the Hub, once, before it begins")
    page.click("#start")
    expect(page.locator("#run-progress")).to_contain_text("MB/s")
    look(page, "8-run-fetching")
    run = list_runs(server.runs)[0]
    os.kill(run.status.pid, 9)
    expect(page.locator("#run-status")).to_contain_text("Interrupted")
    expect(page.locator("#run-status")).to_contain_text("What was fetched is kept: resume")
    hub.mend()
    page.click("#resume")
    wait_for(lambda: run.status.state == "finished", "the run")
    assert run.config.base_model == FINE_TUNE and len(run.config.revision) == 40
    expect(page.locator("#run-status")).to_contain_text("Finished")
