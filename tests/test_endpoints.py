"""A whole job by the endpoints alone: the real server, gradio_client, and an imitation of the Hub."""

import inspect
import json
import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from gradio_client import handle_file
from huggingface_hub import ModelCard
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from dopsd_app.errors import KnownFailure
from dopsd_app.files import replace_file
from dopsd_app.hub.publication import Publication
from dopsd_app.hub.scheduled_push import ScheduledPush
from dopsd_app.jobs.job import JOBS_FOLDER
from dopsd_app.jobs.runs import LORA_FILE, Run
from dopsd_app.ui.endpoints import ENDPOINTS, typed
from tests.support.edits import save_pairs
from tests.support.imitation_hub import ImitationHub
from tests.support.page_server import ROOT, PageServer, all_bytes, wait_for
from tests.support.pictures import make_picture

pytestmark = pytest.mark.process

MARK = "marked4Kd93s"
GIVEN = f"hf_{MARK}OfTheClient"
TYPED = f"hf_{MARK}Typed"
AMBIENT = f"hf_{MARK}OfTheComputer"
ENDED = ("finished", "failed", "stopped", "interrupted")
QUICK = {"batch_size": 1, "micro_batch": 1, "rank": 4, "preview_prompts": ["a zorp on a hill"]}


@pytest.fixture(scope="module")
def hub():
    with ImitationHub() as hub:
        hub.add_account(GIVEN, "Ann")
        hub.add_account(TYPED, "Bob")
        hub.add_account(AMBIENT, "computer")
        yield hub


@pytest.fixture(scope="module")
def server(hub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "home").mkdir()
    (folder / "home" / "token").write_text(AMBIENT)  # as `hf auth login` leaves it
    kept = tmp_path_factory.mktemp("kept")
    places = {"DOPSD_RUNS": str(kept / "runs"), "DOPSD_DRAFTS": str(kept / "drafts")}
    with PageServer(folder, hub.environment(folder / "home") | places) as server:
        yield server


@pytest.fixture(scope="module")
def call(server):
    """The endpoints, for a client that gives no token."""
    return server.client()


@pytest.fixture(scope="module")
def job(server, hub, tmp_path_factory):
    """From uploads to a published LoRA; what each endpoint returned."""
    call, job = server.client(GIVEN), SimpleNamespace()
    uploads = tmp_path_factory.mktemp("uploads")
    for number in range(1, 5):
        shutil.copy(ROOT / f"assets/examples/zorp/{number}.png", uploads / f"mine {number}.png")
        (uploads / f"mine {number}.txt").write_text(f"zorp number {number} at home")
    job.draft = call("begin_draft")["id"]
    job.added = call("add_pictures", job.draft, [handle_file(file) for file in sorted(uploads.iterdir())])
    first = job.added["pictures"][0]["key"]
    job.captioned = call("caption_picture", job.draft, first, "zorp in the sun\nzorp, smiling")
    settings = {"name": "my zorp", "trigger_word": "zorp", "steps": 4, "checkpoint_every": 2}
    job.settings = call("change_settings", job.draft, settings | QUICK | {"preview_every": 2})["settings"]
    job.check = call("check_teacher", job.draft)
    job.plan = call("make_plan", job.draft)
    job.run = call("start", job.draft)
    job.scheduled = call("schedule_push", job.run, True, "others/zorp", True, False)  # whose member nobody is
    job.scheduled_before = call("show_scheduled_push", job.run)
    call.client.close()  # nobody looks
    wait_for(lambda: Run(server.runs / job.run).status.state in ENDED, "the end of the training")
    call = server.client(GIVEN)
    job.shown, job.listed = call("show_run", job.run), call("list_all_runs")
    job.pictures, job.log = call("show_pictures", job.run), call("read_log", job.run)
    wait_for(lambda: call("show_scheduled_push", job.run)["done"], "the push that nobody waits for")
    job.failed_push = call("show_scheduled_push", job.run)
    call("schedule_push", job.run, True, "by-itself", True, False)
    wait_for(lambda: call("show_scheduled_push", job.run)["done"], "the push that nobody waits for")
    job.finished_push = call("show_scheduled_push", job.run)
    job.drawn = call("draw", job.run, "a zorp at sea", 3)
    call("keep_for_card", job.run, job.drawn["id"])
    columns = [{"step": 2}, {"strength": 0.5}]
    job.grid = call("draw_grid", job.run, ["a zorp at sea", "a zorp"], columns, 3, 2)
    job.drawings = call("list_drawings", job.run)
    job.card = call("preview_card", job.run, "my-zorp", False, True)
    job.link = call("publish_lora", job.run, "my-zorp", False, True)
    job.download = call("download_lora", job.run)
    job.folder = server.runs / job.run
    return job


# --- the job


def test_uploads_become_a_draft(job):
    assert job.added["refused"] == [] and job.added["problems"] == []
    assert [item["name"] for item in job.added["pictures"]] == [f"mine {n}.png" for n in range(1, 5)]
    assert job.added["pictures"][1]["caption"] == "zorp number 2 at home"
    assert job.captioned["pictures"][0]["caption"] == "zorp in the sun\nzorp, smiling"
    assert job.settings["trigger_word"] == "zorp"


def test_the_teacher_check_tells_and_shows_what_was_drawn(job):
    assert job.check["verdict"] in ("sees", "partly", "does not")
    assert job.check["sentence"] and len(job.check["drawn"]) == 4
    for row in job.check["drawn"]:
        for file in row.values():
            with Image.open(file) as picture:
                assert picture.size == (64, 64)


def test_a_check_of_other_captions_says_so(call, server):
    draft = call("load_example", "zorp")["id"]
    call("change_settings", draft, QUICK)
    assert not call("check_teacher", draft)["outdated"]
    picture = call("show_draft", draft)["pictures"][0]
    call("caption_picture", draft, picture["key"], "a zorp, asleep")
    shown = str(server.event(server.numbers("to-teacher")[0], [{"id": draft, "keys": []}])["data"])
    assert "seen in other pictures or captions" in shown


def test_the_plan_tells_what_is_needed(job):
    assert job.plan["problems"] == [] and job.plan["steps"] == 4
    assert job.plan["seconds"] > 0 and job.plan["memory"] > 0 and job.plan["disk"] > 0
    assert job.plan["memory"] == max(job.plan["memory_by_phase"].values())
    assert job.plan["memory_plan"]["quantization"] == "none"


def test_a_run_is_shown_to_its_end(job):
    assert (job.shown["state"], job.shown["step"]) == ("finished", 4), job.log
    assert [step for step, _ in job.shown["loss"]] == [1, 2, 3, 4]
    assert job.shown["check"].startswith("The LoRA file is good.")
    assert {"id": job.run, "name": "my zorp", "state": "finished"}.items() <= job.listed[0].items()
    assert "Traceback" not in job.log
    samples, rollouts = job.pictures["samples"], job.pictures["rollouts"]
    assert {sample["step"] for sample in samples} == {0, 2, 4}  # step 0 is the base
    assert [rollout["step"] for rollout in rollouts] == [1, 2, 4]
    assert all(sample["prompt"] for sample in samples)
    states = [state for rollout in rollouts for who in ("student", "teacher") for state in rollout[who]]
    for file in [*states, *(sample["picture"] for sample in samples)]:
        with Image.open(file) as picture:
            assert picture.size == (64, 64)


def test_pictures_are_drawn_and_put_on_the_card(job, hub):
    with Image.open(job.drawn["base"]) as base, Image.open(job.drawn["lora"]) as lora:
        assert base.size == lora.size == (64, 64)
        assert base.tobytes() != lora.tobytes()
    assert ModelCard(job.card).data.widget[0]["text"] == "a zorp at sea" and "zorp, smiling" in job.card
    files = hub.repositories["Ann/my-zorp"].files
    assert "images/picture-1.webp" in files and b"zorp, smiling" in files["README.md"]


def test_a_grid_tells_of_each_picture_and_shares_the_bases(job, call):
    assert [drawing["id"] for drawing in job.drawings] == [job.grid["id"], job.drawn["id"]]
    assert job.grid["prompts"] == ["a zorp at sea", "a zorp"] and job.grid["seeds"] == [3, 4]
    steps = [(0, 0.0), (2, 1.0), (0, 0.5)]
    assert [(column["step"], column["strength"]) for column in job.grid["columns"]] == steps
    told = [(p["prompt"], p["seed"], p["step"], p["strength"]) for p in job.grid["pictures"]]
    assert told == [(p, s, *c) for p in job.grid["prompts"] for s in (3, 4) for c in steps]
    with Image.open(job.grid["pictures"][0]["picture"]) as of_grid, Image.open(job.drawn["base"]) as alone:
        assert of_grid.tobytes() == alone.tobytes()
    again = call("show_drawing", job.run, job.grid["id"])
    assert [picture["row"] for picture in again["pictures"]] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


def test_what_is_published_and_downloaded_is_the_file_of_the_run(job, hub):
    lora = (job.folder / LORA_FILE).read_bytes()
    assert job.link == f"{hub.url}/Ann/my-zorp" and not hub.repositories["Ann/my-zorp"].private
    assert hub.repositories["Ann/my-zorp"].files[LORA_FILE] == lora
    assert Path(job.download).name == "my-zorp_step-000004.safetensors"
    assert Path(job.download).read_bytes() == lora


def test_a_scheduled_push_runs_when_nobody_looks_or_tells_why_not(job, hub):
    assert job.scheduled == "It will be published as others/zorp when it has finished."
    assert (job.scheduled_before["push"], job.scheduled_before["name"]) == (True, "others/zorp")
    assert "Ann is not a member of others" in job.failed_push["reason"]
    assert job.failed_push["published"] == ""
    assert (job.finished_push["done"], job.finished_push["reason"]) == (True, "")
    assert job.finished_push["published"] == f"{hub.url}/Ann/by-itself"
    assert hub.repositories["Ann/by-itself"].private


# --- the other endpoints


def test_choices_drafts_and_examples(call, job):
    choices = call("list_choices")
    assert {"pocket"} <= choices["presets"].keys() and {"zorp", "mibbit"} <= choices["examples"].keys()
    draft = call("load_example", "mibbit")
    assert len(draft["pictures"]) == 6 and draft["problems"] == []
    assert call("list_all_drafts")[0] == {"id": draft["id"], "trigger_word": "mibbit", "pictures": 6}
    left = call("remove_from_draft", draft["id"], draft["pictures"][0]["key"])
    assert left["pictures"] == draft["pictures"][1:]
    assert call("show_draft", "") == left == call("show_draft", draft["id"])
    copy = call("clone_run", job.run)
    assert copy["settings"]["steps"] == 4
    assert [item["caption"] for item in copy["pictures"]] == [
        item["caption"] for item in job.captioned["pictures"]
    ]


def test_a_run_is_steered_and_another_one_waits(call, server):
    draft = call("load_example", "zorp")["id"]
    call("change_settings", draft, QUICK | {"steps": 5000, "preview_every": 0, "checkpoint_every": 5000})
    run = call("start", draft)
    assert call("start", draft) == run  # asked for twice, it is trained once
    call("change_settings", draft, {"steps": 4000})
    waiting = call("start", draft)
    assert call("show_run", waiting)["state"] == "queued"
    assert "has no LoRA or checkpoint" in call.refused("draw", waiting, "a zorp")
    call("stop_run", waiting)
    assert call("show_run", waiting)["state"] == "stopped"
    assert call("resume_run", waiting) == "Starts from the beginning."
    assert call("show_run", waiting)["state"] == "queued"
    call("stop_run", waiting)
    assert call("rename_run", waiting, " The \n second") == "The second"
    call("write_notes", waiting, "Too long")
    assert {"name": "The second", "notes": "Too long"}.items() <= call("list_all_runs")[0].items()
    other = call("use_settings", call("load_example", "mibbit")["id"], waiting)
    assert {"steps": 4000, "trigger_word": "mibbit"}.items() <= other["settings"].items()
    assert "is deleted" in call("remove_run", waiting)
    assert "not there any more" in call.refused("show_run", waiting)
    wait_for(lambda: call("show_run", run)["step"] >= 1, "the first step")
    assert "Stop it first" in call.refused("remove_run", run)
    assert "has no LoRA or checkpoint" in call.refused("download_lora", run)
    call("preview_now", run), call("save_now", run)
    wait_for(lambda: call("show_pictures", run)["samples"], "a preview")
    wait_for(lambda: list((server.runs / run / "checkpoints").glob("*/manifest.json")), "a checkpoint")
    call("stop_run", run)
    wait_for(lambda: call("show_run", run)["state"] == "stopped", "the stop")
    assert "is not at work" in call.refused("save_now", run)
    call("remove_run", run)
    assert not (server.runs / run).exists()


def test_drawing_and_checking_can_be_cancelled(call, server, job):
    drawings = server.runs / JOBS_FOLDER
    for name, arguments, cancel, target in (
        ("draw", (job.run, "a zorp", 7), "cancel_drawing", job.run),
        ("check_teacher", (job.draft,), "cancel_check", job.draft),
    ):
        for _ in range(3):  # small pictures: the last may be drawn before it is heard
            if holder := server.card_holder():
                psutil.Process(holder.pid).kill()  # a new one has to load the model first
            known = set(drawings.glob("[0-9]*"))
            submitted = call.client.submit(*arguments, api_name=f"/{name}")
            wait_for(lambda known=known: set(drawings.glob("[0-9]*")) - known, "the drawing")
            assert call(cancel, target) == "Cancelled."
            if "Cancelled." in (ended := str(submitted.exception())):
                break
        assert "Cancelled." in ended


def test_the_card_can_be_cleared(call, job):
    assert "widget" in call("preview_card", job.run, "my-zorp", True, False)
    call("clear_card", job.run)
    assert "widget" not in call("preview_card", job.run, "my-zorp", True, False)
    call("keep_for_card", job.run, job.drawn["id"])


def test_sources_come_and_go_by_the_key_of_their_picture(call, tmp_path):
    draft = call("begin_draft")["id"]
    call("change_settings", draft, {"preset": "klein-4b-edit", "kind": "edit"})
    files = sorted(save_pairs(tmp_path / "pairs", sizes=((256, 256),) * 4).iterdir())
    added = call("add_pictures", draft, [handle_file(file) for file in files])
    assert [item["sources"] for item in added["pictures"]] == [[f"{n}_source.png"] for n in range(4)]
    assert added["refused"] == added["problems"] == []
    key = added["pictures"][2]["key"]
    without = call("remove_sources", draft, key)
    assert without["problems"] == ["2.png has no source picture. Add what it is made from."]
    again = call("add_sources", draft, key, [handle_file(tmp_path / "pairs" / "2_source.png")])
    assert again["refused"] == again["problems"] == []
    assert again["pictures"][2]["sources"] == ["2_source.png"]
    assert call("make_plan", draft)["sources"] == 1


def test_a_lora_of_a_base_that_does_not_edit_takes_no_source(call, job, tmp_path):
    make_picture(1, 64, 64).save(tmp_path / "mine.png")
    mine = [handle_file(tmp_path / "mine.png")]
    assert "pocket-turbo cannot edit pictures" in call.refused("keep_sources", job.run, mine)
    assert "Choose a picture to start from." in call.refused("keep_sources", job.run, [])
    for source in ("own-1", "upload-../../x", "drawing-../x", "x"):
        assert "not" in call.refused("draw", job.run, "a zorp", 0, 1.0, 0, source)
    assert not (job.folder / "tried").exists()


# --- what goes wrong


def test_known_failures_arrive_as_their_sentences(call, job):
    empty = call("begin_draft")["id"]
    full = call("load_example", "zorp")["id"]
    sentences = {
        ("show_draft", "../x"): "This draft is no longer there.",
        ("load_example", "nobody"): "There is no example nobody.",
        ("clone_run", "../x"): "This run is not there any more.",
        ("caption_picture", full, "../x", "words"): "This picture is no longer in the draft.",
        ("remove_from_draft", full, "../x"): "This picture is no longer in the draft.",
        ("start", empty): "4 to 200 are needed, but this draft has 0.",
        ("check_teacher", empty): "4 to 200 are needed",
        ("draw", job.run, " "): "Write a prompt first.",
        ("draw", job.run, "x", -1): "The seed is from 0 to 2**32 - 1",
        ("draw", job.run, "x", 0, 99.0): "the strength from 0 to 1.5",
        ("draw", job.run, "x", 0, 1.0, 3): "has no checkpoint of step 3. Checkpoints there are: 2, 4.",
        ("keep_for_card", job.run, "../x"): "This is not kept any more",
        ("keep_for_card", job.run, job.drawn["id"], 0, 0): "was not drawn with this LoRA",
        ("keep_for_card", job.run, job.drawn["id"], 1, 1): "was not drawn with this LoRA",
        ("show_drawing", job.run, "../x"): "This drawing is not kept any more",
        ("resume_run", job.run): "is finished already",
        ("stop_run", job.run): "is not at work",
        ("schedule_push", job.run, True, "bad--name", True, False): "cannot be a name on the Hub",
        ("schedule_push", job.run, False, "x", True, True): "it comes only after a push",
        ("schedule_push", job.run, True, "x", True, True): "This is not a Space",
        ("publish_lora", job.run, "others/x", True, False): "computer is not a member of others",
    }
    for (name, *values), sentence in sentences.items():
        assert sentence in call.refused(name, *values), name
    assert "steps must be at least 1, got 0." in call.refused("change_settings", full, {"steps": 0})
    assert "There is no setting stepps." in call.refused("change_settings", full, {"stepps": 1})
    assert "There is no preset x." in call.refused("change_settings", full, {"preset": "x"})
    assert "kind must be one of" in call.refused("change_settings", full, {"kind": "x"})


def test_values_of_another_type_are_refused(call, job):
    for name, values, sentence in (
        ("show_draft", [{"a": 1}], "draft_id must be text."),
        ("show_run", [["x"]], "run_id must be text."),
        ("caption_picture", [job.draft, "x", {"a": 1}], "captions must be text."),
        ("change_settings", [job.draft, "steps"], "settings must be an object."),
        ("change_settings", [job.draft, {"steps": "many"}], "steps cannot be many."),
        ("change_settings", [job.draft, {"name": {"a": 1}}], "name cannot be"),
        ("draw", [job.run, "x", "y"], "seed must be a whole number."),
        ("draw", [job.run, "x", 0, "y"], "strength must be a number."),
        ("add_pictures", [job.draft, "x"], "files must be a list of objects."),
        ("add_pictures", [job.draft, ["x"]], "files must be a list of objects."),
        ("draw", [job.run, "x", True], "seed must be a whole number."),
        ("draw", [job.run, "x", 0, True], "strength must be a number."),
        ("publish_lora", [job.run, "x", "yes", False], "private must be true or false."),
        ("draw_grid", [job.run, "x", [{}]], "prompts must be a list of texts."),
        ("draw_grid", [job.run, ["x"], [{"stepp": 2}]], "Each of columns must be an object such as"),
        ("draw_grid", [job.run, ["x"], [{"step": "2"}]], "Each of columns must be an object such as"),
        ("draw_grid", [job.run, ["x"] * 9, [{}]], "There are 9 prompts."),
        ("draw_grid", [job.run, ["x"], [{}], 0, 5], "Draw each prompt with 1 to 4 seeds, not with 5."),
        ("draw_grid", [job.run, ["x"], []], "Choose what to compare with the base"),
    ):
        assert sentence in call.refused(name, *values)


def test_each_endpoint_names_the_parameter_that_is_wrong():
    for function in ENDPOINTS:
        if names := [name for name in inspect.signature(function).parameters if name != "oauth_token"]:
            with pytest.raises(KnownFailure, match=rf"^`{names[0]}` must be [a-z ]+\.$"):
                typed(function)(*[object() for _ in names])


def test_what_goes_wrong_within_an_endpoint_is_not_said_of_its_values():
    def endpoint(name: str) -> None:
        TypeAdapter(int).validate_python(name)

    with pytest.raises(ValidationError):
        typed(endpoint)("x")


# --- what must never be


def test_a_typed_token_is_used_and_the_box_is_emptied(server, hub, job):
    push = server.numbers("publish")[0]
    output = server.event(push, [job.run, "by-hand", True, False, "Final", TYPED])
    assert output["data"][-1] == ""
    box = next(c["id"] for c in server.config()["components"] if c["props"].get("elem_id") == "published")
    ticks = [d for d in server.config()["dependencies"] if d["targets"] and d["targets"][0][1] == "tick"]
    [look] = [d["id"] for d in ticks if box in d["outputs"]]

    def ended():
        told = server.event(look, [job.run])["data"][0]
        return "Publishing" not in told and told

    assert "Bob/by-hand" in wait_for(ended, "the end of the push") and "Bob/by-hand" in hub.repositories
    output = server.event(push, [job.run, "others/x", True, False, "Final", TYPED])
    assert output["data"][-1] == ""
    told = wait_for(ended, "the end of the push")
    assert "Bob is not a member of others" in told and MARK not in str(output) + told


def test_without_a_token_the_one_of_the_computer_pushes(call, hub, job):
    assert call("publish_lora", job.run, "from-here", True, False) == f"{hub.url}/computer/from-here"


def test_all_of_it_needs_no_torch_and_tokens_stay_nowhere(server, hub, call, job):
    missing = {function.__name__ for function in ENDPOINTS} - call.used
    assert not missing, f"These endpoints were not used: {missing}. Run the whole file."
    heavy = {"torch", "diffusers", "transformers", "peft", "bitsandbytes"}
    assert not heavy & server.modules()
    login = server.folder / "home" / "token"
    login.rename(server.folder.parent / "set-aside")  # the one place where a token belongs
    kept = all_bytes(server.folder, server.runs, server.drafts)
    (server.folder.parent / "set-aside").rename(login)
    assert MARK.encode() not in kept
    assert MARK.encode() not in b"".join(request.body for request in hub.requests)
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            assert MARK not in " ".join(process.cmdline())


def test_after_a_restart_a_scheduled_push_runs_with_the_token_of_the_computer(server, hub, job):
    server.kill()
    scheduled = ScheduledPush(Publication("in-the-morning"))
    replace_file(job.folder / "when_finished.json", json.dumps(asdict(scheduled)))
    server.start()
    call = server.client()
    wait_for(lambda: call("show_scheduled_push", job.run)["done"], "the push that nobody waits for")
    assert call("show_scheduled_push", job.run)["published"] == f"{hub.url}/computer/in-the-morning"
