"""Pictures by addresses of their own: what is sent, to whom, and what nobody gets."""

import os
from io import BytesIO

import pytest
from huggingface_hub import constants
from PIL import Image
from starlette.applications import Starlette
from starlette.testclient import TestClient

from dopsd_app.jobs.job import JOBS_FOLDER
from dopsd_app.models.base_report import checks_folder
from dopsd_app.ui import words
from dopsd_app.ui.server.doors import EVERYBODY, OWNER, find_door
from dopsd_app.ui.server.picture_files import KEPT, PictureFiles, address, whole

RUN = "20260102-030405-zorp-0123456789ab"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("DOPSD_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("DOPSD_DRAFTS", str(tmp_path / "drafts"))
    (tmp_path / "runs" / RUN / "previews").mkdir(parents=True)
    return tmp_path / "runs"


@pytest.fixture
def browser():
    app = Starlette()
    app.add_middleware(PictureFiles)
    return TestClient(app)


def draw(file, size=(1200, 600)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "teal").save(file)
    return file


def test_a_picture_is_sent_at_the_size_of_its_address_and_kept_by_the_browser(runs, browser):
    file = draw(runs / RUN / "previews" / "a picture é.png")
    answer = browser.get("/" + address(file, 500))
    assert answer.status_code == 200 and answer.headers["cache-control"] == KEPT
    assert Image.open(BytesIO(answer.content)).size == (512, 256)
    assert Image.open(BytesIO(browser.get("/" + address(file, 9000)).content)).size == (1200, 600)


def test_a_file_to_keep_is_sent_as_it_is(runs, browser):
    file = draw(runs / RUN / "previews" / "a.png")
    answer = browser.get("/" + whole(file))
    assert answer.content == file.read_bytes()
    assert answer.headers["content-type"] == "application/octet-stream"
    assert browser.get("/" + whole(file).replace("a.png", "b.png")).status_code == 404


def test_a_picture_that_changed_has_another_address(runs):
    file = draw(runs / RUN / "previews" / "a.png")
    before = address(file, 512)
    os.utime(file, ns=(1, 10**18))
    assert address(file, 512) != before


@pytest.mark.parametrize(
    "name",
    [
        f"runs/{RUN}/config.json",
        f"runs/{RUN}/previews/%2e%2e/config.png",
        f"runs/{RUN}/.reserve.png",
        f"runs/{RUN}/previews/.hidden.png",
        "runs/other/a.png",
        "runs/a.png",
        f"runs/.jobs/{RUN}/a.png",
        f"runs/{RUN}/link.png",
        f"runs/{RUN}/previews/text.png",
        f"runs/{RUN}/previews/none.png",
        f"runs/{RUN}/previews\\a.png",
        f"drafts/{RUN}/a.png",
        f"runs/%2e%2e/{RUN}/a.png",
        f"elsewhere/{RUN}/a.png",
    ],
)
def test_nothing_else_is_sent(runs, browser, name):
    draw(runs / "a.png")
    draw(runs / "other" / "a.png")
    draw(runs.parent / "drafts" / RUN / "a.png")
    for hidden in (".reserve.png", "config.png", "previews/.hidden.png", "previews\\a.png"):
        draw(runs / RUN / hidden)
    (runs / RUN / "config.json").write_text("{}")
    (runs / RUN / "previews" / "text.png").write_text("no picture")
    (runs / RUN / "link.png").symlink_to(draw(runs.parent / "private.png"))
    assert browser.get(f"/pictures/{name}?side=512").status_code == 404


@pytest.mark.parametrize("side", ["", "513", "99999", "-1", "512a"])
def test_only_the_sizes_of_the_page_are_made(runs, browser, side):
    draw(runs / RUN / "previews" / "a.png")
    assert browser.get(f"/pictures/runs/{RUN}/previews/a.png?side={side}").status_code == 404


def test_on_a_space_they_are_the_owners(runs):
    file = draw(runs / RUN / "previews" / "a.png")
    door, _ = find_door("GET", "/" + address(file, 512).partition("?")[0])
    assert door.who == OWNER != EVERYBODY


def test_words_for_a_picture_hold_its_shape_and_what_stands_below_it(runs):
    file = draw(runs / RUN / "previews" / "a.png")
    html = words.picture(file, "A <dog>", longest=300, group="row", caption="Step 5")
    assert 'width="300" height="150"' in html and "side=512" in html and "side=2048" in html
    assert 'data-group="row" data-caption="Step 5"' in html and "A &lt;dog&gt;" in html
    file.unlink()
    assert words.picture(file, "gone") == ""


def test_jobs_and_checks_of_base_models_have_theirs(runs, browser, monkeypatch):
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(runs.parent / "assets"))
    for file in (runs / JOBS_FOLDER / RUN / "a.png", checks_folder() / f"{7:024x}" / "picture.png"):
        assert browser.get("/" + address(draw(file), 512)).status_code == 200
    assert address(file, 512).startswith(f"pictures/checks/{7:024x}/picture.png?")


def test_of_a_picture_elsewhere_there_is_no_address(runs, tmp_path):
    with pytest.raises(ValueError, match="belongs to no"):
        address(draw(tmp_path / "a.png"), 512)
