"""Pushing to an imitation of the Hub: the real client in a process of its own, every fault at every stage."""

import ast
import io
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from filelock import FileLock
from huggingface_hub import ModelCard, ModelCardData
from markdown_it import MarkdownIt
from PIL import Image
from safetensors.torch import load, load_file, save

from dopsd_app.cli import main
from dopsd_app.config import make_config, save_config
from dopsd_app.errors import KnownFailure
from dopsd_app.hub import scheduled_push
from dopsd_app.hub.account import Account
from dopsd_app.hub.model_card import make_card
from dopsd_app.hub.publication import (
    BEST,
    Publication,
    check_name,
    checkpoint_to_publish,
    suggest_name,
    why_no_health,
)
from dopsd_app.hub.push import Place, published
from dopsd_app.hub.push_job import latest_push
from dopsd_app.hub.scheduled_push import ScheduledPush, read_scheduled_push, waits_for_sign_in
from dopsd_app.hub_errors import HubError, check_token, status_sentence
from dopsd_app.jobs.events import HealthMeasured, LoraChecked, append_event
from dopsd_app.jobs.job import create_job, delete_job, write_status
from dopsd_app.jobs.kinds import PUSH
from dopsd_app.jobs.launcher import process_started
from dopsd_app.jobs.runs import LORA_FILE
from dopsd_app.method.adapters import adapter_arrays, adapter_weights, add_adapters
from dopsd_app.method.lora_file import save_lora
from dopsd_app.method.lora_metadata import describe_lora
from dopsd_app.models import catalog
from dopsd_app.models.load import load_base_model
from dopsd_app.ui import when_finished
from dopsd_app.ui.use_file import what_to_try
from tests.support.checkpoint_files import leave_checkpoint
from tests.support.finished_run import finish, pocket_config
from tests.support.imitation_hub import ImitationHub, Repository
from tests.support.layout import lay_out
from tests.support.pictures import make_picture
from tests.support.waiting import wait_for

ROOT = Path(__file__).parent.parent
TOKEN = "hf_marked7Qx41kTokenOfAnn"
AMBIENT = "hf_marked7Qx41kTokenOfTheComputer"
MARK = "marked7Qx41k"
LIMITS_OF_TIME = {"silence": 1, "total": 4}
KEPT = "The LoRA file is kept here, and pushing again works."


class HubProcess:
    """A process with the real client; the functions of hub_process.py are called in it by name."""

    def __init__(self, hub, folder):
        self.folder = folder
        self.messages = folder / "stderr.txt"
        ours = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "SPACE"))}
        with self.messages.open("w") as messages:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "tests/support/hub_process.py")],
                env=ours | hub.environment(folder / "home") | {"PYTHONPATH": str(ROOT), "HF_TOKEN": AMBIENT},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                text=True,
            )

    def ask(self, function, **arguments):
        line = json.dumps({"name": function, "arguments": arguments}, default=str)
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def told(self):
        """The answer to what was asked last."""
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            assert MARK not in json.dumps(answer) + self.messages.read_text()
        return answer

    def answer(self, function, **arguments):
        self.ask(function, **arguments)
        return self.told()

    def call(self, function, **arguments):
        answer = self.answer(function, **arguments)
        assert "error" not in answer, answer["trace"]
        return answer["result"]

    def push(self, run, name="zorp", token=TOKEN, **arguments):
        return self.call("publish", run=run.path, name=name, token=token, **arguments)

    def refused_push(self, run, name="zorp", token=TOKEN, **arguments):
        """The sentence that a push ended with."""
        answer = self.answer("publish", run=run.path, name=name, token=token, **arguments)
        assert answer["kind"] in ("HubError", "PushRunningError"), answer
        return answer["error"]


@pytest.fixture(scope="module")
def imitation():
    with ImitationHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def process(imitation, tmp_path_factory):
    process = HubProcess(imitation, tmp_path_factory.mktemp("hub"))
    process.call("limits", **LIMITS_OF_TIME)
    yield process
    process.process.stdin.close()
    process.process.wait(10)
    process.process.stdout.close()


@pytest.fixture
def hub(imitation):
    imitation.reset()
    imitation.add_account(TOKEN, "Ann", {"Readers": "read", "makers": "contributor"})
    imitation.add_account(AMBIENT, "computer")
    return imitation


@pytest.fixture
def run(new_run):
    return finish(new_run(pocket_config(preview_prompts=["my dog at home"])))


@pytest.fixture
def pictures(tmp_path):
    """Two generated pictures, a large one that says where it was made."""
    large, small = tmp_path / "large.jpg", tmp_path / "small.png"
    exif = Image.Exif()
    exif[0x010E] = "made at home"
    make_picture(7, 2000, 1000).save(large, exif=exif, quality=95)
    make_picture(8).save(small)
    return [(large, "a zorp on a hill"), (small, "a zorp: swimming")]


def sent_files(hub, name="Ann/zorp"):
    return {path: content for path, content in hub.repositories[name].files.items() if path[0] != "."}


def pushed_card(hub, folder, name="Ann/zorp"):
    (folder / "card.md").write_bytes(hub.repositories[name].files["README.md"])
    return ModelCard.load(folder / "card.md")


def all_bytes(*folders):
    return b"".join(path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file())


# --- a push


def test_push_creates_a_private_repository_with_exactly_what_belongs_there(hub, process, run, pictures):
    link = process.push(run, pictures=pictures)
    assert link == f"{hub.url}/Ann/zorp"
    assert hub.repositories["Ann/zorp"].private
    files = sent_files(hub)
    assert set(files) == {
        "README.md",
        LORA_FILE,
        "training_config.json",
        "images/picture-1.webp",
        "images/picture-2.webp",
    }
    assert files[LORA_FILE] == run.lora_file.read_bytes()
    for number, size in ((1, (1024, 512)), (2, (32, 32))):
        with Image.open(io.BytesIO(files[f"images/picture-{number}.webp"])) as picture:
            assert (picture.format, picture.size) == ("WEBP", size)
            assert not picture.getexif() and not picture.info.keys() & {"exif", "xmp", "icc_profile"}
    # The repository was looked at after the commit, and what was staged is gone.
    assert hub.requests[-1].path == "/api/models/Ann/zorp"
    assert not (run.path / ".publish").exists()


def test_the_lora_file_on_the_hub_loads_as_it_was_saved(hub, process, run, tmp_path):
    process.push(run)
    (tmp_path / "back.safetensors").write_bytes(sent_files(hub)[LORA_FILE])
    back, saved = load_file(tmp_path / "back.safetensors"), load_file(run.lora_file)
    assert back.keys() == saved.keys()
    assert all(back[name].equal(saved[name]) for name in saved)


def test_the_card_says_what_is_known(hub, process, run, pictures, tmp_path):
    process.push(run, pictures=pictures)
    card = pushed_card(hub, tmp_path)
    assert card.data.to_dict() == {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "license": "apache-2.0",
        "tags": ["text-to-image", "diffusers", "lora", "template:sd-lora", "d-opsd"],
        "instance_prompt": "zorp",
        "widget": [
            {"text": "a zorp on a hill", "output": {"url": "images/picture-1.webp"}},
            {"text": "a zorp: swimming", "output": {"url": "images/picture-2.webp"}},
        ],
    }
    for words in (
        "<Gallery />",
        "# LoRA `zorp`",
        "`pocket-turbo`, the small demonstration model",
        "Write `zorp` in the prompt.",
        "4 pictures of about 64 x 64 pixels",
        "12 optimizer steps of 4 pictures each, learning rate 0.0001",
        "rank 4; the strength of 2",
        "draws in 4 steps",
        "check after saving: The LoRA file is good. It loads in diffusers: 1 modules at strength 1.000",
        "load_lora_weights('Ann/zorp', weight_name='pytorch_lora_weights.safetensors')",
        "apache-2.0",
    ):
        assert words in card.text, words
    assert "my dog" not in str(card)


def test_nothing_personal_is_published_unless_asked_for(hub, process, new_run, tiny_config, tmp_path):
    run = finish(new_run(replace(tiny_config, preview_prompts=("my dog at home",))))
    process.push(run)
    everything = b"".join(request.body for request in hub.requests).decode(errors="replace")
    everything += b"".join(sent_files(hub).values()).decode(errors="replace")
    assert "my dog" not in everything and str(tmp_path) not in everything
    settings = json.loads(sent_files(hub)["training_config.json"])
    assert settings["base_model"] == Path(tiny_config.base_model).name
    assert settings["preview_prompts"] == []
    card = pushed_card(hub, tmp_path)
    assert "license" not in card.data.to_dict() and "base_model" not in card.data.to_dict()
    assert f"The licence of the base model `{Path(tiny_config.base_model).name}` holds" in card.text

    process.push(run, with_captions=True)
    assert json.loads(sent_files(hub)["training_config.json"])["preview_prompts"] == ["my dog at home"]
    assert "```text\nmy dog number 0\nanother caption\n" in pushed_card(hub, tmp_path).text
    assert not any(path.startswith("images/") for path in sent_files(hub))


def test_the_run_remembers_where_it_was_pushed(hub, process, run):
    assert published(run) is None
    link = process.push(run)
    found = published(run)
    assert found.time > 1.7e9
    assert replace(found, time=0) == Place(link, "Ann/zorp", True, 0)
    assert run.log_file.read_text().endswith(f"pushed to {link} (private)\n")
    process.push(run, name="zorp-2", private=False)
    assert published(run).repo == "Ann/zorp-2"
    assert not hub.repositories["Ann/zorp-2"].private


def test_only_the_given_token_is_sent_and_it_stays_nowhere(hub, process, run, pictures):
    process.push(run, pictures=pictures)
    tokens = {request.token for request in hub.requests if not request.path.startswith("/storage/")}
    assert tokens == {TOKEN}
    kept = all_bytes(run.path, process.folder) + b"".join(request.body for request in hub.requests)
    assert MARK.encode() not in kept
    assert MARK not in " ".join(psutil.Process(process.process.pid).cmdline())


def test_pushing_again_replaces_the_pictures(hub, process, run, pictures):
    process.push(run, pictures=pictures)
    process.push(run, pictures=pictures[1:])
    files = sent_files(hub)
    assert [path for path in files if path.startswith("images/")] == ["images/picture-1.webp"]
    assert Image.open(io.BytesIO(files["images/picture-1.webp"])).size == (32, 32)
    process.push(run)
    assert not [path for path in sent_files(hub) if path.startswith("images/")]


def test_an_organisation_where_one_may_write_gets_it_under_its_own_spelling(hub, process, run):
    assert process.push(run, name="Makers/zorp") == f"{hub.url}/makers/zorp"
    assert set(hub.repositories) == {"makers/zorp"}


def test_a_checkpoint_is_pushed_with_its_own_weights_and_steps(hub, process, run, tmp_path):
    made = tmp_path / LORA_FILE
    weights = {"layers.0.w.lora_B.weight": np.ones((4, 8), np.float32)}
    save_lora(made, weights, 2.0, describe_lora(run.config, catalog.CATALOG["pocket-turbo"], [], 6))
    leave_checkpoint(run, 6, made.read_bytes())
    process.push(run, checkpoint=6)
    sent = load(sent_files(hub)[LORA_FILE])
    assert list(sent) == ["transformer.layers.0.w.lora_B.weight"]
    assert (sent["transformer.layers.0.w.lora_B.weight"] == run.config.strength).all()
    text = pushed_card(hub, tmp_path).text
    assert "6 optimizer steps" in text and "check after saving" not in text


# --- what is refused before anything is sent


def test_a_damaged_lora_is_not_pushed(hub, process, run):
    file = leave_checkpoint(run, 6, run.lora_file.read_bytes()) / "lora.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert f"The LoRA file of step 6 of {run.id} is damaged" in process.refused_push(run, checkpoint=6)
    assert not hub.requests


@pytest.mark.parametrize(
    ("name", "role", "words"),
    [
        ("zorp", "read", "This token may only read"),
        ("Readers/zorp", "write", "Ann may only read in Readers: push under your own name."),
        ("strangers/zorp", "write", "Ann is not a member of strangers: push under your own name."),
    ],
)
def test_what_the_hub_would_refuse_is_refused_before_anything_is_created(
    hub, process, run, name, role, words
):
    hub.add_account(TOKEN, "Ann", {"Readers": "read", "makers": "contributor"}, role=role)
    sentence = process.refused_push(run, name=name)
    assert words in sentence and sentence.endswith(KEPT)
    assert [request.path for request in hub.requests] == ["/api/whoami-v2"]


@pytest.mark.parametrize("token", [None, "", "  ", f"hf_{MARK}\nx: y", f"hf_{MARK}ä", f"hf {MARK}"])
def test_what_is_no_token_is_not_sent(hub, process, run, token):
    sentence = process.refused_push(run, token=token)
    assert sentence.startswith(("Sign in to the Hub first.", "This is not a token of the Hub"))
    assert not hub.requests
    assert MARK.encode() not in all_bytes(run.path)


def test_blanks_around_a_pasted_token_do_no_harm():
    assert check_token(f" {TOKEN}\n") == TOKEN


def test_what_cannot_be_published_is_refused_before_anything_is_created(hub, process, run, new_run, pictures):
    def refused(**arguments):
        return process.refused_push(run, **arguments)

    training = next(run.dataset.glob("*.png"))
    assert "00.png is a training picture" in refused(pictures=[(training, "")])
    assert "At most 5 pictures" in refused(pictures=pictures * 3)
    text = run.path / "no.png"
    text.write_text("no picture")
    assert "00.png cannot be read as a picture" in refused(pictures=[(text, "")])
    run.lora_file.write_bytes(b"torn")
    assert f"{LORA_FILE} cannot be read as a LoRA file" in refused()
    assert not hub.repositories and not (run.path / ".publish").exists()
    unfinished = new_run(pocket_config())
    sentence = process.refused_push(unfinished)
    assert sentence.endswith("has no LoRA or checkpoint. Checkpoints there are: none.")


def test_one_push_of_a_run_at_a_time(hub, process, run):
    with FileLock(run.path / ".publish.lock"):
        assert "is being pushed already" in process.refused_push(run)
    process.push(run)


# --- repositories that are there already


def test_a_repository_that_holds_something_else_is_left_alone(hub, process, run, new_run):
    process.push(run)
    other = new_run(pocket_config(trigger_word="mibbit"))
    finish(other, {"layers.0.w.lora_A.weight": np.ones((4, 8), np.float32)})
    before = sent_files(hub)
    sentence = process.refused_push(other)
    assert sentence == f"Ann/zorp is there already and holds something else: choose another name. {KEPT}"
    assert sent_files(hub) == before
    hub.repositories["Ann/zorp"].files = {"model.bin": b"mine"}
    assert "holds something else" in process.refused_push(other)


def test_a_private_push_never_lands_in_a_public_repository(hub, process, run):
    process.push(run, private=False)
    before = hub.repositories["Ann/zorp"].commits
    sentence = process.refused_push(run)
    assert sentence.startswith("Ann/zorp is there already and is public, not private: choose another name")
    assert hub.repositories["Ann/zorp"].commits == before
    process.push(run, name="other")
    assert "is private, not public" in process.refused_push(run, name="other", private=False)


def test_an_empty_repository_that_was_made_by_hand_is_filled(hub, process, run):
    hub.repositories["Ann/zorp"] = Repository(private=True)
    hub.repositories["Ann/zorp"].files["README.md"] = b"# to come"
    process.push(run)
    assert LORA_FILE in sent_files(hub)


# --- faults


WHOAMI, CREATE, LOOK = "GET /api/whoami", "POST /api/repos/create", "GET /api/models/Ann/zorp$"
ASK, BATCH, PUT, COMMIT = "/preupload/", "/objects/batch", "PUT /storage", "/commit/"
LIMITS = {"RateLimit": '"api";r=0;t=55', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}
AGAIN = "try again in a few minutes."
FAULTS = {
    "whoami-401": (WHOAMI, 401, {}, "The Hub does not accept this token: sign in again"),
    "whoami-429": (WHOAMI, 429, {"Retry-After": "7"}, "asked too often: try again in 7 seconds."),
    "whoami-date": (WHOAMI, 429, {"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT"}, "in a few minutes."),
    "whoami-drip": (WHOAMI, "drip", {}, f"The Hub did not answer within 4 seconds: {AGAIN}"),
    "whoami-500": (WHOAMI, 500, {}, f"The Hub has a problem of its own (status 500): {AGAIN}"),
    "whoami-hang": (WHOAMI, "hang", {}, f"The Hub did not answer for 1 seconds: {AGAIN}"),
    "whoami-reset": (WHOAMI, "reset", {}, "The connection to the Hub broke off: try again."),
    "create-401": (CREATE, 401, {}, "does not accept this token"),
    "create-403": (CREATE, 403, {}, "This token may not change Ann/zorp (the Hub says: told to fail;"),
    "create-409": (CREATE, 409, {}, "Ann/zorp is there already and holds something else: choose another"),
    "create-429": (CREATE, 429, LIMITS, "asked too often: try again in 55 seconds."),
    "create-418": (CREATE, 418, {}, "The Hub refused Ann/zorp with status 418 (the Hub says: told to fail"),
    "create-hang": (CREATE, "hang", {}, "did not answer for 1 seconds"),
    "look-500": (LOOK, 500, {}, "(status 500)"),
    "card-500": ("/validate-yaml", 500, {}, "(status 500)"),
    "ask-403": (ASK, 403, {}, "This token may not change Ann/zorp"),
    "ask-429": (ASK, 429, LIMITS, "try again in 55 seconds."),
    "ask-503": (ASK, 503, {"Retry-After": "1800"}, "(status 503): try again in 30 minutes."),
    "batch-500": (BATCH, 500, {}, "(status 500)"),
    "put-403": (PUT, 403, {}, "This token may not change Ann/zorp"),
    "put-hang": (PUT, "hang", {}, "did not answer for 1 seconds"),
    "put-drip": (PUT, "drip", {}, "did not answer within 4 seconds"),
    "put-reset": (PUT, "reset", {}, "The connection to the Hub broke off"),
    "verify-404": ("/lfs/verify", 404, {}, "The Hub does not know Ann/zorp"),
    "commit-412": (COMMIT, 412, {}, "Somebody changed Ann/zorp in the same moment: try again."),
    "commit-429": (COMMIT, 429, {}, f"asked too often: {AGAIN}"),
    "commit-500": (COMMIT, 500, {}, "(status 500)"),
    "commit-hang": (COMMIT, "hang", {}, "did not answer for 1 seconds"),
    "commit-drip": (COMMIT, "drip", {}, "did not answer within 4 seconds"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_after_a_fault_there_is_a_sentence_the_file_and_another_try(hub, process, run, pictures, fault):
    path, how, headers, words = FAULTS[fault]
    before = run.lora_file.read_bytes()
    hub.fail(path, how, headers, times=99)
    sentence = process.refused_push(run, pictures=pictures[1:])
    assert words in sentence and sentence.endswith(KEPT)
    assert sentence.count("\n") == 0
    assert run.lora_file.read_bytes() == before
    assert published(run) is None and not (run.path / ".publish").exists()
    assert f"push failed: {sentence.removesuffix(KEPT)}" in run.log_file.read_text()
    assert MARK.encode() not in all_bytes(run.path, process.folder)
    hub.mend()
    assert process.push(run, pictures=pictures[1:]) == f"{hub.url}/Ann/zorp"
    assert sent_files(hub)[LORA_FILE] == before


@pytest.mark.parametrize("how", ["hang", "reset", "drip", 500, 504])
def test_a_commit_whose_answer_is_lost_is_looked_for(hub, process, run, pictures, how):
    process.push(run, pictures=pictures)
    hub.fail(COMMIT, how, late=True)
    assert process.push(run, pictures=pictures[1:]) == f"{hub.url}/Ann/zorp"
    assert published(run).repo == "Ann/zorp"
    assert [path for path in sent_files(hub) if path.startswith("images/")] == ["images/picture-1.webp"]
    assert len(hub.asked(COMMIT)) == 2


def test_what_was_there_before_is_not_taken_for_a_lost_commit(hub, process, run, pictures):
    process.push(run, pictures=pictures)
    hub.fail(COMMIT, "reset")
    assert "broke off" in process.refused_push(run, pictures=pictures[1:])  # the card and a picture are old


def test_where_the_hub_is_gone_after_a_commit_nothing_is_claimed(hub, process, run):
    hub.fail(COMMIT, "reset", late=True)
    hub.fail(LOOK, "reset", after=1, times=99)
    sentence = process.refused_push(run)
    assert sentence == (
        "The connection to the Hub broke off: try again. It may have arrived all the same: see"
        f" {hub.url}/Ann/zorp. {KEPT}"
    )
    hub.mend()
    process.push(run)


def test_a_commit_that_the_hub_confirmed_needs_no_look(hub, process, run):
    hub.fail(LOOK, "reset", after=1, times=99)
    assert process.push(run) == f"{hub.url}/Ann/zorp"


def test_a_slow_sender_has_time_by_the_size_of_what_it_sends(hub, process, run):
    process.push(run)
    (sent,) = hub.asked(PUT)
    assert int(sent.headers["content-length"]) == run.lora_file.stat().st_size


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"retry-after": "7"}, "7 seconds"),
        ({"retry-after": "1"}, "1 second"),
        ({"retry-after": "60"}, "1 minute"),
        ({"retry-after": "100"}, "100 seconds"),
        ({"retry-after": "1800"}, "30 minutes"),
        ({"retry-after": "1801"}, "31 minutes"),
        ({"retry-after": "3600"}, "1 hour"),
        ({"retry-after": "86400"}, "24 hours"),
        (
            {"retry-after": "Sun, 06 Nov 1994 09:19:37 GMT", "date": "Sun, 06 Nov 1994 08:49:37 GMT"},
            "30 minutes",
        ),
        ({"retry-after": "Sun, 06 Nov 1994 09:19:37 GMT"}, "a few minutes"),  # over
        ({"retry-after": "soon"}, "a few minutes"),
        ({"ratelimit": '"api";r=0;t=55'}, "55 seconds"),
        ({}, "a few minutes"),
    ],
)
def test_the_time_that_the_hub_asks_to_wait_is_told_as_it_is(headers, words):
    for status in (429, 503):
        assert status_sentence(status, "Ann/zorp", headers).endswith(f": try again in {words}.")


# --- a push is told, and can be cancelled


def test_a_push_tells_its_steps_and_in_the_end_the_address(hub, process, run, pictures):
    told = process.call("steps", run=run.path, token=TOKEN, pictures=pictures, name="zorp")
    assert told == [
        *({"phase": "publishing", "done": done, "total": 6} for done in range(6)),
        {"link": f"{hub.url}/Ann/zorp"},
    ]


@pytest.mark.parametrize("path", [WHOAMI, PUT, COMMIT])
def test_a_push_is_cancelled_at_once_and_pushing_again_works(hub, process, run, path):
    process.call("limits", silence=60, total=60)
    hub.fail(path, "hang")
    process.call("begin", run=run.path, token=TOKEN, name="zorp")
    wait_for(lambda: hub.asked(path))
    begun = time.monotonic()
    process.call("cancel", run=run.path)
    assert latest_push(run).status.state == "stopped"
    assert time.monotonic() - begun < 5
    process.call("limits", **LIMITS_OF_TIME)
    process.push(run)
    assert not (run.path / ".publish").exists()
    assert MARK.encode() not in all_bytes(run.runs_dir)


# --- a run that is deleted meanwhile


def test_a_run_that_is_deleted_during_its_push_is_not_told_to_be_kept(hub, process, run, monkeypatch):
    create = hub.create

    def deleting(*arguments):
        delete_job(run)
        return create(*arguments)

    monkeypatch.setattr(hub, "create", deleting)
    sentence = process.refused_push(run)
    assert sentence == (
        "The run was deleted during its push, and its LoRA file with it: see on the Hub whether it arrived"
        " there."
    )
    assert not run.path.exists()


def test_what_arrived_is_published_even_where_its_run_was_deleted(hub, process, run, monkeypatch):
    commit = hub.commit

    def deleting(*arguments):
        delete_job(run)
        return commit(*arguments)

    monkeypatch.setattr(hub, "commit", deleting)
    assert process.push(run) == f"{hub.url}/Ann/zorp"
    assert LORA_FILE in sent_files(hub) and not run.path.exists()


def test_a_commit_without_the_lora_file_is_not_called_a_success(hub, process, run, monkeypatch):
    url = f"{hub.url}/Ann/zorp/commit/0"
    monkeypatch.setattr(hub, "commit", lambda *_: {"commitOid": "0", "commitUrl": url})
    assert "does not show the LoRA file in Ann/zorp" in process.refused_push(run)


def test_large_files_go_through_the_client_that_does_not_wait(hub, process, run):
    pytest.importorskip("hf_xet")  # otherwise the library would upload with it
    process.push(run)
    assert len(hub.asked(PUT)) == 1 and not hub.asked("xet")


@pytest.mark.parametrize("fault", ["ask-429", "ask-503", "put-hang"])
def test_a_long_wait_is_told_and_not_waited_for(hub, process, run, fault):
    path, how, headers, words = FAULTS[fault]
    hub.fail(path, how, headers, times=99)
    assert words in process.refused_push(run)
    assert len(hub.asked(path)) == 1  # the library would try six times, after as long as it is told to wait


def test_one_failed_try_of_the_storage_is_not_even_noticed(hub, process, run):
    hub.fail(PUT, 500)
    process.push(run)
    assert len(hub.asked(PUT)) == 2


def test_without_a_network_the_file_waits(hub, process, run):
    hub.stop()
    try:
        sentence = process.refused_push(run)
    finally:
        hub.start()
    assert sentence == (
        f"The Hub cannot be reached: see whether this computer is online, then try again. {KEPT}"
    )
    process.push(run)


# --- what is asked for: a publication, and a scheduled push


def test_a_publication_comes_back_from_its_fields_and_what_is_damaged_is_told():
    asked = Publication("Ann/zorp", private=False, with_captions=True, checkpoint=BEST, pause=True)
    assert Publication.from_fields(json.loads(json.dumps(asdict(asked)))) == asked
    assert Publication.from_fields({"name": "zorp"}) == Publication("zorp")
    for fields, words in (
        ({"name": "a--b"}, "`a--b` cannot be a name on the Hub"),
        ({"name": 7}, "The name on the Hub must be a text, got 7."),
        ({"name": "x", "private": "no"}, "`private` must be true or false, got 'no'."),
        ({"name": "x", "checkpoint": 0}, "`checkpoint` must be a step from 1, `best` or nothing, got 0."),
        ({"name": "x", "checkpoint": True}, "`checkpoint` must be"),
        ({"name": "x", "colour": "red"}, "other settings than known: name, colour."),
        ({}, "other settings than known: nothing."),
        (["x"], "is not written as its settings"),
    ):
        with pytest.raises(KnownFailure) as refused:
            Publication.from_fields(fields)
        assert words in str(refused.value)


def leave_checkpoints(run, *steps):
    for step in steps:
        leave_checkpoint(run, step, save({"layers.0.w.lora_B.weight": torch.full((4, 8), step * 1.0)}))


def measure(run, **concepts):
    """Tells in the run's events how near to the pictures its steps came."""
    for step, concept in {"s0": 0.0, **concepts}.items():
        append_event(run.events_file, HealthMeasured(int(step[1:]), concept, 1.0, 0.0, 1.0))


def test_the_best_step_is_the_one_that_the_page_recommends(run):
    best = Publication("zorp", checkpoint=BEST)
    assert checkpoint_to_publish(run, best) is None  # nothing was measured
    leave_checkpoints(run, 6, 12)
    measure(run, s6=0.5, s12=0.49)
    assert checkpoint_to_publish(run, best) is None  # the last one in good health is the end
    measure(run, s12=0.1)
    assert checkpoint_to_publish(run, best) == 6
    assert what_to_try(run)[1] == "Step 6"
    assert checkpoint_to_publish(run, Publication("zorp", checkpoint=12)) == 12
    assert checkpoint_to_publish(run, Publication("zorp")) is None


def offers_the_best_step(run):
    part = lay_out(lambda _: when_finished.when_finished())
    return part.show(run)[part.healthiest].visible


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"base_model": "flux2-klein-4b"}, "teacher's eyes"), ({"preview_every": 0}, "this run makes none")],
)
def test_where_no_health_is_measured_no_step_is_the_best(run, capsys, changes, told):
    """The teacher of FLUX.2 klein sees a reference, and nobody could say how like a picture is."""
    assert why_no_health(run) == "" and offers_the_best_step(run)
    save_config(replace(run.config, **changes), run.path / "config.json")
    assert told in why_no_health(run) and not offers_the_best_step(run)
    with pytest.raises(KnownFailure, match=f"No step of {run.id} is in best health.*{told}"):
        scheduled_push.schedule_push(run, Publication("zorp", checkpoint=BEST), TOKEN)
    assert read_scheduled_push(run).publication is None
    arguments = ["publish", run.id, "--runs", str(run.runs_dir), "--checkpoint", BEST]
    assert main(arguments) == 2
    assert told in capsys.readouterr().err
    measure(run, s6=0.5)  # what was measured counts, whatever the settings say
    assert why_no_health(run) == "" and offers_the_best_step(run)


def test_a_scheduled_push_takes_the_step_that_is_best_when_the_run_has_finished(hub, process, run):
    process.call("schedule", run=run.path, token=AMBIENT, name="zorp", checkpoint=BEST)
    process.call("run_scheduled", run=run.path)
    assert not hub.repositories  # it has not finished
    leave_checkpoints(run, 6, 12)
    measure(run, s6=0.5, s12=0.1)
    write_status(run, state="finished")
    process.call("run_scheduled", run=run.path)
    expected = ScheduledPush(Publication("zorp", checkpoint=BEST), done=True)
    assert replace(read_scheduled_push(run), job="") == expected
    (weight,) = load(hub.repositories["computer/zorp"].files[LORA_FILE]).values()
    assert (weight == 6).all()


@pytest.fixture
def other_process(imitation, tmp_path):
    """Another server on the same folder of runs."""
    process = HubProcess(imitation, tmp_path)
    yield process
    process.process.stdin.close()
    process.process.wait(10)
    process.process.stdout.close()


def test_of_two_servers_the_one_with_a_token_runs_the_push(hub, process, other_process, run, monkeypatch):
    write_status(run, state="finished")
    process.call("schedule", run=run.path, token=AMBIENT, name="zorp")
    other_process.call("run_scheduled", run=run.path, token="")
    scheduled = read_scheduled_push(run)
    assert scheduled.open and not hub.requests
    monkeypatch.delenv("HF_TOKEN", raising=False)  # nor has this process one
    assert waits_for_sign_in(run, scheduled)
    process.call("run_scheduled", run=run.path, token="")  # the token that it was told of is in its memory
    assert read_scheduled_push(run).done and published(run).repo == "computer/zorp"
    assert not waits_for_sign_in(run, read_scheduled_push(run))
    commits = len(hub.asked(COMMIT))
    other_process.call("run_scheduled", run=run.path, token=AMBIENT)
    assert len(hub.asked(COMMIT)) == commits == 1


def test_two_servers_with_a_token_publish_once(hub, process, other_process, run):
    write_status(run, state="finished")
    process.call("schedule", run=run.path, token=AMBIENT, name="zorp")
    for server in (process, other_process):
        server.ask("run_scheduled", run=run.path, token=AMBIENT)
    assert [server.told() for server in (process, other_process)] == [{"result": None}] * 2
    assert len(hub.asked(COMMIT)) == len(hub.asked(WHOAMI)) == 1
    assert replace(read_scheduled_push(run), job="") == ScheduledPush(Publication("zorp"), done=True)


def test_a_scheduled_push_waits_while_somebody_pushes_by_hand(hub, process, run):
    write_status(run, state="finished")
    process.call("schedule", run=run.path, token=AMBIENT, name="zorp")
    by_hand = create_job(run.runs_dir, PUSH, {"run_id": run.id, "publication": {}})
    ours = {"pid": os.getpid(), "pid_started": process_started(os.getpid())}
    write_status(by_hand, state="publishing", **ours)
    process.call("run_scheduled", run=run.path)
    assert read_scheduled_push(run).open and not hub.repositories
    write_status(by_hand, state="finished")
    process.call("run_scheduled", run=run.path)
    assert read_scheduled_push(run).done


def test_a_scheduled_push_finds_its_job_again_after_a_restart(hub, process, run):
    write_status(run, state="finished")
    process.call("schedule", run=run.path, token=AMBIENT, name="zorp")
    job = create_job(run.runs_dir, PUSH, {"run_id": run.id, "publication": {}})
    write_status(job, state="stopped")  # the person has cancelled it meanwhile
    kept = json.loads((run.path / "when_finished.json").read_text())
    (run.path / "when_finished.json").write_text(json.dumps(kept | {"job": job.id}))
    process.call("run_scheduled", run=run.path)
    assert read_scheduled_push(run).done and "Stopped" in read_scheduled_push(run).reason
    assert not hub.repositories


@pytest.mark.parametrize("content", [None, b"12", b"[]", b"null", b"\xff", b"{}"])
@pytest.mark.parametrize("name", ["when_finished.json", "published.json"])
def test_damaged_files_of_a_push_are_of_one_run_alone(run, name, content):
    file = run.path / name
    file.mkdir() if content is None else file.write_bytes(content)
    write_status(run, state="finished")
    scheduled_push.run_scheduled_pushes(run.runs_dir)
    assert published(run) is None and not read_scheduled_push(run).open


def test_the_page_keeps_and_tells_a_scheduled_push_and_that_it_waits(run, monkeypatch):
    monkeypatch.setenv("DOPSD_RUNS", str(run.runs_dir))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    part = lay_out(lambda _: when_finished.when_finished())

    def schedule(*choices):
        return part.schedule(run.id, *choices)[part.message]

    message = schedule(True, " zorp ", True, False, True)
    best = "The LoRA, of its step in best health, will be published as zorp when the run has finished"
    assert best in message
    shown = part.show(run)
    *values, healthiest = (shown[choice] for choice in part.choices)
    assert [*values, healthiest.value] == [True, "zorp", True, False, True]
    write_status(run, state="finished")
    assert "will be published" in schedule(True, "zorp", True, False, False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(scheduled_push, "_tokens", {})  # as after a restart
    message = when_finished.describe_scheduled(run)
    waits = (
        "The LoRA waits to be published as zorp: sign in with <code>hf auth login</code>, then press Save."
    )
    assert waits in message
    with pytest.raises(KnownFailure, match="only after a push"):
        schedule(False, "zorp", True, True, False)


def test_a_scheduled_push_file_is_read_or_refused_in_words(run):
    file = run.path / "when_finished.json"
    assert read_scheduled_push(run) == ScheduledPush()
    file.write_text(
        '{"push": true, "name": "x", "private": false, "pause": false, "done": true, "reason": "y"}'
    )
    assert read_scheduled_push(run) == ScheduledPush(Publication("x", private=False), True, "y")
    file.write_text(
        '{"push": false, "name": "", "private": true, "pause": false, "done": false, "reason": ""}'
    )
    assert read_scheduled_push(run) == ScheduledPush()
    for text in ("", "[]", "{}", '{"publication": {}}', '{"publication": {"name": "a b"}}'):
        file.write_text(text)
        scheduled = read_scheduled_push(run)
        assert scheduled.done and scheduled.reason.startswith(
            "when_finished.json cannot be read, so nothing was done"
        )


# --- accounts, names, the Space


def test_who_is_tells_name_organisations_and_role(hub, process):
    account = Account(**process.call("who_is", token=TOKEN))
    assert account == Account("Ann", {"Readers": "read", "makers": "contributor"}, "write")
    assert account.may_write and account.namespaces == ("Ann", "makers")
    hub.accounts[TOKEN] = {"name": "Ann", "auth": {"type": "oauth"}}  # a token that signing in gave
    assert Account(**process.call("who_is", token=TOKEN)) == Account("Ann", {}, "")
    hub.fail(WHOAMI, 403)
    assert "This token may not change your account" in process.answer("who_is", token=TOKEN)["error"]
    hub.accounts[TOKEN] = {"error": "strange"}
    assert "cannot be read" in process.answer("who_is", token=TOKEN)["error"]


def test_a_space_pauses_itself(hub, process):
    process.call("pause_space", token=TOKEN, environment={"SPACE_ID": "Ann/trainer"})
    assert hub.paused == ["Ann/trainer"]
    refused = process.answer("pause_space", token=TOKEN, environment={"SPACE_ID": "Bob/trainer"})
    assert refused["error"].startswith("This token may not change the Space Bob/trainer")
    refused = process.answer("pause_space", token=TOKEN)
    assert refused["error"] == "This is not a Space: there is nothing to pause."
    assert hub.paused == ["Ann/trainer"]


@pytest.mark.parametrize("name", ["z", "Zorp-1_b.c", "_z", "a" * 96, "Ann/zorp"])
def test_good_names(name):
    check_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a" * 97,
        "-a",
        "a-",
        ".a",
        "a.",
        "a--b",
        "a..b",
        "a b",
        "zörp",
        "a/b/c",
        "/a",
        "a/",
        "a\n",
        "a.git",
    ],
)
def test_bad_names(name):
    with pytest.raises(HubError, match=r"cannot be a name on the Hub: write a name, or owner/name, .*\.$"):
        check_name(name)


@pytest.mark.parametrize(
    ("name", "trigger_word", "expected"),
    [
        ("My Zorp!", "", "My-Zorp-lora"),
        ("", "zörp", "zorp-lora"),
        ("", "", "my-lora"),
        ("毛", "", "my-lora"),
        ("zorp LoRA", "", "zorp-LoRA"),
        ("--..__--", "x" * 300, f"{'x' * 80}-lora"),
    ],
)
def test_suggested_names_are_good_names(name, trigger_word, expected):
    suggested = suggest_name(make_config({"name": name, "trigger_word": trigger_word}))
    assert suggested == expected
    check_name(suggested)


def test_light_commands_do_not_wait_for_the_hubs_library():
    code = (
        "import sys, dopsd_app.hub.push; print([m for m in ('torch', 'huggingface_hub') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


# --- the card of hostile texts


HOSTILE = [
    "<script>alert(1)</script>",
    "<Gallery />",
    "<!-- ",
    "[click](https://evil.example)",
    "![x](https://evil.example/x.png)",
    "https://evil.example www.evil.example a@evil.example",
    "# heading",
    "line\n# heading\n\n---\n\n<b>",
    "\n---\nlicense: mit\n---\n",
    "---",
    "...",
    "a\r\n---\r\nb\rc",
    "`",
    "``` \n# out",
    "`` ` ```` ~~~",
    "~~~\n# out",
    "{{ 7 * 7 }}{% raw %}{# x #}",
    "${x} %s {0} {prompt!r}",
    "'\"\\' \"\"\" ''' \\",
    "\\n\\",
    "a: b # c",
    "- x",
    "&a *a !!python/object:os.system x",
    "1e3",
    "0o17",
    "null",
    "| table | row |",
    "> quote",
    "* * *",
    "    indented",
    "\ttab\t",
    "x\x85y",
    "x\u2028z\u2029\x0b\x0c",
    "\x00\x07\x1b[31m\x7f",
    "\ufeffzorp\u202egnp.exe",
    "\ud800",
    "👩‍🚀 zörp 毛",
    "$$x$$ \\(x\\)",
    "&lt;b&gt; &#60;",
    "'); __import__('os').system('x') #",
    "a" * 2000,
    "👩‍🚀 a | b: 'c' \"d\" # " * 100,
]


def hostile_card_as_written(run, text, pictures=("x.png", "y.png")):
    """The card of a run whose trigger word, prompts and captions are all this text."""
    settings = json.loads((run.path / "config.json").read_text())
    (run.path / "config.json").write_text(json.dumps(settings | {"trigger_word": text, "name": text}))
    (run.dataset / "01.txt").write_text(text, encoding="utf-8", errors="replace", newline="")
    pictures = [(Path(name), prompt) for name, prompt in zip(pictures, (text, f"a {text}"), strict=False)]
    return make_card(run, repo_id="Ann/zorp", pictures=pictures, with_captions=True)


def hostile_card(run, text):
    """The same as somebody reads it."""
    return ModelCard(str(hostile_card_as_written(run, text)))


def structure(text):
    """What Markdown makes of a text: the kinds of its parts, in order, without the content of code."""
    parts = []
    for token in MarkdownIt("commonmark", {"html": True}).parse(text):
        parts.append((token.type, token.tag, token.info))
        parts += [
            (child.type, child.tag, "" if child.type == "code_inline" else child.content, str(child.attrs))
            for child in token.children or ()
        ]
    return parts


def codes(text):
    tokens = MarkdownIt("commonmark").parse(text)
    blocks = {token.info: token.content for token in tokens if token.type == "fence"}
    inline = [
        child.content for token in tokens for child in token.children or () if child.type == "code_inline"
    ]
    return blocks, inline


def prompt_of(programme):
    """The prompt that the programme gives the pipeline."""
    calls = [node for node in ast.walk(ast.parse(programme)) if isinstance(node, ast.Call)]
    given = next(
        call.keywords for call in calls if isinstance(call.func, ast.Name) and call.func.id == "pipeline"
    )
    # By its name: the first place is another input's in a pipeline that edits.
    return next(keyword.value.value for keyword in given if keyword.arg == "prompt")


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_stay_texts(run, text):
    expected = structure(hostile_card(run, "zorp").text)
    card = hostile_card(run, text)
    assert card.data.instance_prompt == text
    assert [example["text"] for example in card.data.widget] == [text, f"a {text}"]
    assert card.data.license == "apache-2.0"
    if text.split() and any(c.isprintable() and c != " " for c in text):
        assert structure(card.text) == expected
    programme = codes(card.text)[0]["python"]
    assert compile(programme, "card", "exec") and prompt_of(programme) == text
    assert str(card).encode("utf-8")  # it can be written


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_without_pictures_a_card_of_hostile_texts_is_whole_too(run, text):
    keys = {"library_name", "license", "pipeline_tag", "tags", "instance_prompt"}
    written = str(hostile_card_as_written(run, text, pictures=()))
    front = yaml.safe_load(written.split("---\n")[1])
    assert front.keys() == keys and front["instance_prompt"] == text
    assert ModelCard(written).data.to_dict() == front == ModelCardData(**front).to_dict()
    programme = codes(ModelCard(written).text)[0]["python"]
    assert compile(programme, "card", "exec") and "prompt='a picture" in programme.replace('"', "'")


def test_random_hostile_texts_stay_texts(run):
    draw = random.Random(0)
    expected = structure(hostile_card(run, "zorp").text)
    for _ in range(150):
        text = "z" + "".join(draw.choice([*HOSTILE[:-1], *"\n\r`~#<>[]()!*_-|{}\\'\" "]) for _ in range(6))
        card = hostile_card(run, text)
        assert (card.data.instance_prompt, card.data.widget[0]["text"]) == (text, text)
        assert structure(card.text) == expected
        assert prompt_of(codes(card.text)[0]["python"]) == text


def test_a_hostile_push_arrives_as_it_was_meant(hub, process, run, pictures, tmp_path):
    text = "\n---\n<Gallery /> {{ x }} ``` '\"\\ [a](b) \x85 毛"
    hostile_card(run, text)
    process.push(run, pictures=[(pictures[1][0], text)], with_captions=True)
    card = pushed_card(hub, tmp_path)
    assert (card.data.instance_prompt, card.data.widget[0]["text"]) == (text, text)
    blocks, inline = codes(card.text)
    assert "--- <Gallery /> {{ x }} ``` '\"\\ [a](b) 毛" in inline
    assert prompt_of(blocks["python"]) == text


def test_what_other_readers_of_yaml_take_for_a_number_is_quoted(run):
    assert '\ninstance_prompt: "1e3"\n' in str(hostile_card_as_written(run, "1e3"))


def test_texts_appear_as_they_were_written_where_they_can(run):
    card = hostile_card(run, "`zorp` & <b> 👩‍🚀")
    blocks, inline = codes(card.text)
    assert "`zorp` & <b> 👩‍🚀" in inline
    assert blocks["text"].startswith("`zorp` & <b> 👩‍🚀\n")


def test_a_hostile_folder_name_of_the_base_stays_a_text(run, tmp_path):
    settings = json.loads((run.path / "config.json").read_text())
    for folder in ("/home/ann/a`](x)<b>", "C:\\models\\'x\\"):
        (run.path / "config.json").write_text(json.dumps(settings | {"base_model": folder}))
        card = make_card(run, repo_id="Ann/zorp")
        assert "home" not in str(card) and "models" not in str(card)
        kinds = {part[0] for part in structure(card.text)}
        assert not kinds & {"html_inline", "html_block", "image"}
        assert card.data.to_dict().keys().isdisjoint({"license", "base_model"})
        ast.parse(codes(card.text)[0]["python"])


def test_a_base_of_the_hub_is_named_with_its_revision(run, monkeypatch):
    facts = replace(
        catalog.CATALOG["pocket-turbo"], licence=catalog.Licence("mit", "MIT"), repository="maker/model"
    )
    monkeypatch.setitem(catalog.CATALOG, "a-base", facts)
    settings = json.loads((run.path / "config.json").read_text())
    (run.path / "config.json").write_text(json.dumps(settings | {"base_model": "a-base", "revision": "abc"}))
    card = make_card(run, repo_id="Ann/zorp")
    facts = (card.data.base_model, card.data.base_model_relation, card.data.license)
    assert facts == ("maker/model", "adapter", "mit")
    assert "revision='abc'" in card.text


def test_what_binds_a_lora_of_klein_9b_stands_in_its_card(new_run):
    run = finish(new_run(pocket_config(base_model="flux2-klein-9b", resolution=512)))
    card = ModelCard(str(make_card(run, repo_id="Ann/zorp")))
    assert next(iter(card.data.to_dict())) == "base_model"
    assert card.data.base_model == "black-forest-labs/FLUX.2-klein-9B"
    assert (card.data.license, card.data.license_name) == ("other", "flux-non-commercial-license")
    assert card.data.license_link.startswith("https://huggingface.co/black-forest-labs/FLUX.2-klein-9B/")
    assert "nor this LoRA may be used commercially" in card.text
    assert "gated: accept its terms at https://huggingface.co/black-forest-labs/FLUX.2-klein-9B " in card.text
    assert "# With diffusers 0.40 or newer" in codes(card.text)[0]["python"]
    free = str(make_card(finish(new_run(pocket_config())), repo_id="Ann/zorp"))
    assert "commercially" not in free and "gated" not in free


@pytest.mark.parametrize(
    ("id", "name", "forbidden"),
    [
        ("other", "flux-1-dev-non-commercial-license", True),
        ("cc-by-nc-sa-4.0", "", True),
        ("other", "My Noncommercial Licence", True),
        ("apache-2.0", "Apache 2.0", False),
        ("other", "ncsa-like", False),
    ],
)
def test_a_licence_that_forbids_commerce_is_known_by_its_name(id, name, forbidden):
    assert catalog.Licence(id, name).forbids_commerce is forbidden


def test_the_card_says_what_the_base_does_and_nothing_of_one_that_is_gone(run):
    card = make_card(run, repo_id="Ann/zorp")
    assert card.data.pipeline_tag == "text-to-image" and "text-to-image" in card.data.tags
    assert "guidance_scale=0.0," in card.text
    settings = json.loads((run.path / "config.json").read_text())
    (run.path / "config.json").write_text(json.dumps(settings | {"base_model": "/gone"}))
    card = make_card(run, repo_id="Ann/zorp")
    assert card.data.pipeline_tag is None and "text-to-image" not in card.data.tags
    assert "guidance_scale" not in card.text


def test_what_a_failed_check_quotes_is_not_published(run):
    append_event(run.events_file, LoraChecked(12, False, "Loading failed: /home/ann/x"))
    text = make_card(run, repo_id="Ann/zorp").text
    assert "check after saving: It did not load as it should." in text and "/home" not in text


@pytest.mark.parametrize("base", ["pocket-turbo", "folder"])
def test_the_programme_of_the_card_draws(new_run, tiny_config, tmp_path, monkeypatch, base):
    config = pocket_config(precision="float32") if base == "pocket-turbo" else tiny_config
    run = new_run(replace(config, trigger_word="zorp"))
    base_model = load_base_model(run.config)
    base_model.load_transformer()
    add_adapters(base_model.transformer, base_model.lora_targets, run.config)
    with torch.no_grad():
        for weight in adapter_weights(base_model.transformer, "student").values():
            weight += 0.01
    finish(run, adapter_arrays(base_model.transformer, "student"))
    # The Hub's names as folders: the loaders take either.
    (tmp_path / "Ann" / "zorp").mkdir(parents=True)
    (tmp_path / "Ann" / "zorp" / LORA_FILE).write_bytes(run.lora_file.read_bytes())
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    (tmp_path / Path(tiny_config.base_model).name).symlink_to(tiny_config.base_model)
    monkeypatch.chdir(tmp_path)
    blocks, _ = codes(make_card(run, repo_id="Ann/zorp").text)
    names = {}
    exec(blocks["python"], names)
    side = config.resolution
    with Image.open("picture.png") as picture:
        assert picture.size == (side, side)
    assert isinstance(names["pipeline"], DiffusionPipeline)
    assert names["pipeline"].get_active_adapters() == ["default_0"]


def test_the_command_publishes_with_the_stored_token(run, hub, tmp_path):
    environment = os.environ | hub.environment(tmp_path / "home") | {"HF_TOKEN": AMBIENT}
    command = [sys.executable, "-m", "dopsd_app", "publish", run.id, "--runs", str(run.runs_dir)]

    def publish(*more, **variables):
        return subprocess.run(
            [*command, *more], env=environment | variables, capture_output=True, text=True, timeout=120
        )

    refused = publish(HF_TOKEN="")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "An access token is needed" in refused.stderr
    leave_checkpoints(run, 6, 12)
    measure(run, s6=0.5, s12=0.1)
    best = publish("--name", "best", "--checkpoint", "best")
    assert (best.returncode, best.stdout) == (0, f"{hub.url}/computer/best\n")
    assert hub.repositories["computer/best"].files[LORA_FILE] != run.lora_file.read_bytes()
    done = publish("--name", "from-a-shell", "--public")
    assert (done.returncode, done.stdout) == (0, f"{hub.url}/computer/from-a-shell\n")
    repository = hub.repositories["computer/from-a-shell"]
    assert not repository.private
    assert repository.files[LORA_FILE] == run.lora_file.read_bytes()
    assert AMBIENT not in done.stdout + done.stderr
