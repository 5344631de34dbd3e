"""The page in a browser, from an example to a published LoRA: real server and workers, the built-in base."""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from huggingface_hub import ModelCard
from PIL import Image
from playwright.sync_api import expect
from safetensors import safe_open

from dopsd_app.jobs.events import LoraChecked, read_events
from dopsd_app.jobs.runs import Run, complete_checkpoints, list_runs
from dopsd_app.ui.use_file import file_name
from tests.support import forks
from tests.support.browser import Visit, box, settled, unfold
from tests.support.imitation_hub import ImitationHub, Repository
from tests.support.page_server import PageServer, all_bytes, wait_for
from tests.support.page_steps import HOSTILE, TRIGGER, fill_captions

pytestmark = pytest.mark.browser

TOKEN = "hf_onlyhere5Wz93TokenOfAnn"
MARK = "onlyhere5Wz93"
KEPT = "The LoRA file is kept here, and pushing again works."


@pytest.fixture(scope="module")
def hub():
    with ImitationHub() as hub:
        hub.add_account(TOKEN, "Ann")
        yield hub


@pytest.fixture(scope="module")
def server(hub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    with PageServer(folder, hub.environment(folder / "home"), forked=False) as server:
        yield server


# --- one whole job


@dataclass
class Job:
    """A LoRA that was trained through the page, and what there was to see on the way."""

    run: Run
    seen: dict[str, str] = field(default_factory=dict)  # texts of the page


@pytest.fixture(scope="module")
def job(browser, server):
    """From an example, with hostile captions, through all steps to a finished LoRA."""
    visit = Visit(browser, server.url)
    page, seen = visit.open(), {}
    page.click("#example-zorp")
    page.wait_for_selector("#picture-6 img")
    fill_captions(page, server)
    page.click("#to-teacher")
    page.click("#check")
    page.wait_for_selector("#verdict .word")
    seen["verdict"] = page.inner_text("#verdict")
    seen["rows"] = page.inner_text("#check-rows")
    seen["teacher's pictures"] = shown_pictures(page, "#check-rows .row img")
    page.click("#to-plan")
    page.wait_for_selector("#needs dl")
    box(page, "set-steps").fill("6")
    box(page, "set-preview-prompts").fill(HOSTILE[0])
    unfold(page, "more")
    box(page, "set-preview-every").fill("2")
    page.click("#start")
    page.wait_for_function(
        "document.querySelector('#run-status')?.innerText.includes('Training')"
        " && document.querySelectorAll('#samples th[scope=col]').length > 1"
    )
    seen["while training"] = page.inner_text("#run-progress")
    expect(page.locator("#run-status")).to_contain_text("Finished")
    seen["end"] = page.inner_text("#run-status")
    page.wait_for_selector("#loss canvas, #loss svg")
    seen["columns"] = page.locator("#samples th[scope=col]").all_inner_texts()
    seen["samples"] = shown_pictures(page, "#samples img")
    page.locator("#samples img").last.click()
    page.keyboard.press("ArrowLeft")
    seen["enlarged"] = page.inner_text("#enlarged figcaption")
    page.keyboard.press("Escape")
    unfold(page, "compare-steps")
    seen["pair"] = shown_pictures(page, "#pair img")
    unfold(page, "learning")
    seen["roll-outs"] = shown_pictures(page, "#rollout img")
    assert not page.evaluate("window.hit")
    visit.close()
    # So far all was started as a person's computer does; what follows is forked.
    server.kill()
    server.forked = forks.can_fork()
    server.start()
    return Job(list_runs(server.runs)[0], seen)


def shown_pictures(page, selector):
    """How many pictures there are, all of which must have something to show."""
    page.wait_for_function(
        """all => { const shown = [...document.querySelectorAll(all)];
        shown.forEach(img => img.scrollIntoView());
        return shown.length && shown.every(img => img.naturalWidth) }""",
        arg=selector,
    )
    return page.locator(selector).count()


def test_the_teacher_check_shows_pictures_and_a_verdict(job):
    assert job.seen["teacher's pictures"] == 4 * 3
    assert "The teacher" in job.seen["verdict"]
    assert "Score" in job.seen["verdict"]


def test_previews_arrive_while_it_trains(job):
    assert "of 6" in job.seen["while training"]
    assert job.seen["columns"] == ["Base", "Step 2", "Step 4", "Step 6"]
    assert job.seen["samples"] == 4


def test_a_picture_is_enlarged_and_arrows_walk_through_its_steps(job):
    assert job.seen["enlarged"] == f"Step 4 · the run's seed {job.run.config.seed} · {HOSTILE[0]}"
    assert job.seen["pair"] == 2  # the base, and the newest step


def test_the_roll_out_is_a_row_of_states_for_each(job):
    assert job.seen["roll-outs"] == 2 * job.run.config.rollout_steps


def test_a_finished_run_says_that_its_file_was_checked(job):
    checks = [event for event in read_events(job.run.events_file) if isinstance(event, LoraChecked)]
    assert [check.passed for check in checks] == [True]
    assert all(words in job.seen["end"] for words in ("Finished in", "LoRA file", "Next: try it"))


def test_the_settings_of_the_page_are_those_of_the_run(job):
    config = job.run.config
    assert (config.steps, config.preview_every, config.preview_prompts) == (6, 2, (HOSTILE[0],))
    assert config.trigger_word == TRIGGER


def test_hostile_captions_are_trained_as_they_were_written(job):
    texts = [file.read_text() for file in sorted(job.run.dataset.glob("*.txt"))]
    # Marks of direction are no control characters: they stay.
    assert [text.strip() for text in texts[: len(HOSTILE)]] == list(HOSTILE)
    assert all(text in job.seen["rows"] for text in HOSTILE[:3])


@dataclass
class Trying:
    """The last step, open with the trained LoRA."""

    page: object
    run: Run
    worker: int | None = None


@pytest.fixture(scope="module")
def trying(browser, server, job):
    """The last step with a picture that was drawn and put on the card."""
    visit = Visit(browser, server.url)
    page = visit.open(f"?run={job.run.id}")
    page.click("#to-try")
    page.click("#draw")
    page.click("#grid .tools button")
    page.wait_for_selector("#card-pictures img")
    yield Trying(page, job.run, server.card_holder().pid)
    visit.close()


def pictures_of_grid(page):
    return page.evaluate("[...document.querySelectorAll('#grid a.enlarge')].map(link => link.href)")


def test_a_second_picture_comes_from_the_same_warm_worker(trying, server):
    page, before = trying.page, pictures_of_grid(trying.page)
    assert len(set(before)) == 2
    box(page, "seed").fill("5")
    page.click("#draw")
    expect(page.locator("#grid a[data-caption$='seed 5']")).to_have_count(2)
    page.wait_for_function("[...document.querySelectorAll('#grid img')].every(img => img.naturalWidth)")
    assert set(pictures_of_grid(page)).isdisjoint(before)
    assert server.card_holder().pid == trying.worker


def test_hostile_words_are_text_where_the_lora_is_tried_and_on_its_card(trying):
    page = trying.page
    expect(box(page, "prompt")).to_have_value(HOSTILE[0])
    expect(page.get_by_text("The trigger word is")).to_contain_text(TRIGGER)
    expect(page.locator("#card-pictures figcaption")).to_have_text(HOSTILE[0])
    page.locator("#with-captions input").check()
    page.click("#preview-card")
    expect(page.locator("#card")).to_be_visible()
    card = wait_for(lambda: box(page, "card").input_value(), "the card")
    assert all(text in card for text in HOSTILE[:3])
    page.locator("#with-captions input").uncheck()
    assert page.locator("[onerror], [onload]").count() == 0


def test_a_drawn_picture_is_there_again_when_the_page_is_loaded_anew(trying, visit):
    box(trying.page, "seed").fill("6")
    trying.page.click("#draw")
    expect(trying.page.locator("#grid a[data-caption$='seed 6']")).to_have_count(2)
    page = visit.open(f"?run={trying.run.id}")
    page.click("#to-try")
    page.wait_for_selector("#grid img")
    expect(box(page, "seed")).to_have_value("6")
    expect(box(page, "prompt")).to_have_value(HOSTILE[0])
    page.goto(page.url.partition("?")[0])  # as a reload, without the run in the address
    settled(page)
    page.wait_for_selector("#grid img")
    expect(page.locator("#grid .tools button")).to_be_visible()
    expect(page.locator("#draw")).to_be_visible()
    expect(page.locator("#cancel-draw")).to_have_count(0)


def test_prompts_and_steps_are_compared_in_a_grid_that_is_saved_and_found_again(trying, visit):
    page = visit.open(f"?run={trying.run.id}")
    page.click("#to-try")
    page.wait_for_selector("#grid img")
    box(page, "prompt").fill("a zorp on a hill\n\na zorp at sea")
    step = int(complete_checkpoints(trying.run)[0].name)
    page.click("#steps input")
    page.get_by_role("option", name=f"Step {step}", exact=True).click()
    page.click("#random-seed")
    expect(page.locator("#estimate")).to_contain_text("6 pictures, ")
    expect(box(page, "seed")).not_to_have_value("6")
    seed = box(page, "seed").input_value()
    page.click("#draw")
    expect(page.locator("#grid h3")).to_have_text(["a zorp on a hill", "a zorp at sea"])
    expect(page.locator("#grid a[data-caption$='seed {seed}']".replace("{seed}", seed))).to_have_count(6)
    expect(page.locator("#grid figcaption")).to_have_text(["Base", "Final", f"Step {step}"] * 2)
    page.wait_for_selector("#sheet a")
    saved = {}
    for link in (page.locator("#sheet a"), page.locator("#grid .tools a").nth(5)):
        with page.expect_download() as download:
            link.click()
        with Image.open(download.value.path()) as picture:
            saved[download.value.suggested_filename] = picture.width, picture.info.get("dopsd", "{}")
    (sheet, (width, _)), (name, (_, told)) = saved.items()
    named = file_name(trying.run)
    assert sheet == f"{named}_step-{step}-final_seed-{seed}.png" and width > 3 * 256
    assert name == f"{named}_prompt-2_step-{step}_seed-{seed}.png"
    expected = {"prompt": "a zorp at sea", "seed": int(seed), "step": step, "strength": 1.0}
    assert expected.items() <= json.loads(told).items()
    page.locator("#history button").nth(1).click()
    expect(box(page, "seed")).to_have_value("6")
    expect(page.locator("#grid figure")).to_have_count(2)


def publish(page, name, token=TOKEN):
    """Presses Publish and waits for what is said then."""
    box(page, "repo-name").fill(name)
    box(page, "token").fill(token)
    page.click("#publish")
    # Until the answer is there, the last one is covered.
    page.wait_for_function(
        "name => { const said = document.querySelector('#published');"
        " return said.innerText.includes(name) || said.querySelector('.problem') }",
        arg=name,
    )


def test_a_push_ends_with_a_link_to_a_private_repository_with_card_and_picture(trying, hub, tmp_path):
    page = trying.page
    publish(page, "my-zorp")
    assert page.locator("#published a").get_attribute("href") == f"{hub.url}/Ann/my-zorp"
    repository = hub.repositories["Ann/my-zorp"]
    assert repository.private
    assert repository.files["pytorch_lora_weights.safetensors"] == trying.run.lora_file.read_bytes()
    assert repository.files["images/picture-1.webp"][8:12] == b"WEBP"
    (tmp_path / "card.md").write_bytes(repository.files["README.md"])
    data = ModelCard.load(tmp_path / "card.md").data
    assert data.instance_prompt == TRIGGER
    assert data.widget == [{"text": HOSTILE[0], "output": {"url": "images/picture-1.webp"}}]
    assert not any(text.encode() in repository.files["README.md"] for text in HOSTILE[1:])
    assert all(request.token in (TOKEN, "") for request in hub.requests)


@pytest.mark.parametrize("fault", ["401", "403", "409", "refused"])
def test_a_push_that_fails_says_why_in_a_sentence_and_pushing_again_works(trying, hub, fault):
    page, lora = trying.page, trying.run.lora_file
    before = hashlib.sha256(lora.read_bytes()).digest()
    said = page.locator("#published .problem")
    name = f"zorp-{fault}"
    if fault == "401":
        publish(page, name, "hf_nobodys")
        expect(said).to_have_text(f"The Hub does not accept this token: sign in again, or make a new token that may write. {KEPT}")  # fmt: skip  # noqa: E501
    elif fault == "403":
        hub.fail("POST /api/repos/create", 403)
        publish(page, name)
        expect(said).to_contain_text("This token may not change Ann/zorp-403")
        assert TOKEN not in said.inner_text()
    elif fault == "409":
        hub.repositories[f"Ann/{name}"] = Repository(private=True, files={"another.bin": b"model"})
        publish(page, name)
        expect(said).to_have_text(
            f"Ann/{name} is there already and holds something else: choose another name. {KEPT}"
        )
        name += "-b"
    else:
        hub.stop()
        try:
            publish(page, name)
            expect(said).to_have_text(f"The Hub cannot be reached: see whether this computer is online, then try again. {KEPT}")  # fmt: skip  # noqa: E501
        finally:
            hub.start()
    assert hashlib.sha256(lora.read_bytes()).digest() == before
    expect(box(page, "token")).to_have_value("")
    publish(page, name)
    expect(page.locator("#published a")).to_have_attribute("href", f"{hub.url}/Ann/{name}")
    expect(said).to_have_count(0)


KEPT_BY_THE_BROWSER = """async () => {
    const kept = [{...localStorage}, {...sessionStorage}, document.cookie, await caches.keys()];
    for (const {name} of await indexedDB.databases()) {
        const open = indexedDB.open(name);
        await new Promise(done => open.onsuccess = done);
        for (const store of open.result.objectStoreNames) {
            const all = open.result.transaction(store).objectStore(store).getAll();
            await new Promise(done => all.onsuccess = done);
            kept.push(name, store, all.result);
        }
    }
    const typed = [...document.querySelectorAll("input, textarea")].map(box => box.value);
    return JSON.stringify([kept, typed]) + document.documentElement.outerHTML;
}"""


def test_a_typed_token_is_nowhere_afterwards(trying, server, hub):
    page = trying.page
    publish(page, "zorp-token")
    expect(box(page, "token")).to_have_value("")
    assert hub.asked("PUT|POST")[-1].token == TOKEN  # the mark is what was sent
    assert MARK not in page.evaluate(KEPT_BY_THE_BROWSER)
    assert page.evaluate("Object.keys(localStorage)") == ["dopsd-place", "dopsd-run"]
    page.reload()
    settled(page)
    assert MARK not in page.evaluate(KEPT_BY_THE_BROWSER)
    assert MARK.encode() not in all_bytes(server.folder)
    for process in [server.process.pid, *(int(name) for name in os.listdir("/proc") if name.isdigit())]:
        for told in ("cmdline", "environ"):
            try:
                assert MARK.encode() not in Path(f"/proc/{process}/{told}").read_bytes()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue


def test_the_lora_file_can_be_downloaded_as_it_is(visit, trying, server):
    page = visit.open(f"?run={trying.run.id}")
    page.click("#to-try")
    unfold(page, "use")
    name = f"{file_name(trying.run)}_step-{{:06d}}.safetensors".format
    expect(page.locator("#download")).to_have_text(f"Download {name(6)}")
    with page.expect_download() as download:
        page.click("#download")
    assert Path(download.value.path()).read_bytes() == trying.run.lora_file.read_bytes()
    assert download.value.suggested_filename == name(6)
    first = complete_checkpoints(trying.run)[0]
    page.click("#checkpoint input")
    page.get_by_role("option", name=f"Step {int(first.name)}", exact=True).click()
    # What was unfolded stays so, and the button says which file it holds.
    expect(page.locator("#download")).to_have_text(f"Download {name(int(first.name))}")
    with page.expect_download() as download:
        page.click("#download")
    with safe_open(download.value.path(), framework="np") as file:
        assert json.loads(file.metadata()["dopsd"])["steps"] == int(first.name)
    offered = list((server.temporary / "gradio").rglob("*.safetensors"))
    assert len(offered) >= 2 and all(
        file.stat().st_nlink > 1 for file in offered
    )  # links: nothing was copied


# --- for everybody


def walk(page, run):
    """Opens one step after the other, each with content and all that can be unfolded; yields their names."""
    page.click("#fresh")
    expect(page.locator(".slot:visible")).to_have_count(0)
    yield "no pictures"
    page.click("#example-zorp")
    page.wait_for_selector("#picture-6 img")
    yield "pictures"
    page.click("#to-teacher")
    page.click("#check")
    page.wait_for_selector("#verdict .word")
    page.wait_for_selector("#check-rows .row img")
    yield "teacher"
    page.click("#to-plan")
    page.wait_for_selector("#needs dl")
    unfold(page, "more")
    page.wait_for_selector("#set-seed:visible")
    yield "plan"
    separator = "&" if "?" in page.url else "?"
    page.goto(f"{page.url}{separator}run={run.id}")
    page.wait_for_selector("#samples img")
    folded = {
        "log": "#log-text",
        "when-finished": "#scheduled-name",
        "compare-steps": "#pair img",
        "learning": "#rollout img",
        "curves": "#smoothing",
    }
    for name, inside in folded.items():
        unfold(page, name)
        page.wait_for_selector(f"{inside}:visible")
    yield "train"
    page.click("#to-try")
    page.click("#draw")
    page.wait_for_selector("#grid img")
    unfold(page, "use")
    page.wait_for_selector("#diffusers:visible")
    page.click("#preview-card")
    page.wait_for_selector("#card:visible")
    yield "try"


def test_every_step_is_accessible_and_fits_the_screen(visit, trying):
    page, axe = visit.open(), Axe()
    found, widths = {}, {}
    for step in walk(page, trying.run):
        for theme, width in (("light", 1280), ("dark", 390)):
            page.emulate_media(color_scheme=theme)
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_function(
                "dark => document.body.classList.contains('dark') == dark", arg=theme == "dark"
            )
            page.wait_for_function("document.getAnimations().every(it => it.playState != 'running')")
            violations = axe.run(page).response["violations"]
            if violations:
                nodes = [(it["id"], [node["html"][:200] for node in it["nodes"]]) for it in violations]
                found[step, theme] = nodes
            widths[step, width] = page.evaluate("document.scrollingElement.scrollWidth")
        page.set_viewport_size({"width": 1280, "height": 900})
    assert found == {}
    assert {where: shown for where, shown in widths.items() if shown != where[1]} == {}
