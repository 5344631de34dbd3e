"""Runs as things: what they are called, how long they took, where they stand, what is done with several."""

import json
import os
import shutil
import time
from dataclasses import asdict, replace

import gradio as gr
import pytest

from dopsd_app.cli import main
from dopsd_app.config import load_preset, make_config
from dopsd_app.data.drafts import draft_config, draft_dataset, set_settings
from dopsd_app.data.run_settings import take_settings
from dopsd_app.data.uploads import load_example
from dopsd_app.jobs import queue
from dopsd_app.jobs.events import (
    Failed,
    HealthMeasured,
    MemoryPlanned,
    PreviewSaved,
    Resumed,
    StepDone,
    Stopped,
    append_event,
)
from dopsd_app.jobs.job import RunError, create_job, write_status
from dopsd_app.jobs.kinds import CHECK_TEACHER
from dopsd_app.jobs.launcher import process_started
from dopsd_app.jobs.promise import Promise, keep_promise
from dopsd_app.jobs.queue_place import queue_places
from dopsd_app.jobs.run_notes import MAX_NAME, name_of, read_notes, set_name, set_notes
from dopsd_app.jobs.runs import create_run, list_runs
from dopsd_app.jobs.worked_time import worked_seconds
from dopsd_app.progress import DownloadProgress, PhaseProgress
from dopsd_app.ui import run_actions
from dopsd_app.ui.page import add_page
from dopsd_app.ui.run_compare import compare
from dopsd_app.ui.run_rows import in_queue, newest_sample, rows
from dopsd_app.ui.updates import only_changed
from tests.support.checkpoint_files import leave_checkpoint
from tests.support.layout import lay_out
from tests.support.pictures import make_picture

STEP = StepDone(1, 0.5, 0.1, 1.0, 0)
LOADING = PhaseProgress("loading", 0, 2)
PLANNED = MemoryPlanned(0, 1, 2, "As it is.")


@pytest.fixture
def draft(tmp_path, monkeypatch):
    monkeypatch.setenv("DOPSD_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("DOPSD_DRAFTS", str(tmp_path / "drafts"))
    return load_example(tmp_path / "drafts", "zorp")


@pytest.fixture
def new_run(draft, tmp_path):
    dataset = draft_dataset(draft)
    return lambda **settings: create_run(
        tmp_path / "runs", replace(draft_config(draft), **{"steps": 100, **settings}), dataset
    )


@pytest.fixture(scope="module")
def page():
    return lay_out(add_page)


def tell(run, *timed):
    """Events with when each was told, in seconds."""
    with run.events_file.open("a") as file:
        for moment, event in timed:
            file.write(json.dumps({"event": type(event).__name__, "time": moment, **asdict(event)}) + "\n")


def at_work(run, **status):
    """Makes this very process its worker."""
    write_status(run, pid=os.getpid(), pid_started=process_started(os.getpid()), **status)
    return run


# --- names and notes


def test_another_name_changes_nothing_that_the_lora_is_made_of(new_run):
    run = new_run(name="zorp")
    before = (run.path / "config.json").read_bytes()
    set_name(run, "  My\tfirst \n zorp \x1b[31m")
    set_notes(run, "Too dark.\nTry rank 8.")
    assert name_of(run) == "My first zorp [31m"
    assert read_notes(run) == "Too dark.\nTry rank 8."
    assert (run.path / "config.json").read_bytes() == before
    assert run.config.name == "zorp"


@pytest.mark.parametrize("back", ["", "  ", "Élan: d'été"])
def test_a_run_goes_back_to_its_first_name(new_run, back):
    run = new_run(name="Élan: d'été")
    assert name_of(run) == "Élan: d'été"
    set_name(run, "猫 \ud800")  # with half a letter, as any client can send it
    assert name_of(run) == "猫 ?"
    set_name(run, back)
    assert name_of(run) == "Élan: d'été"
    assert not (run.path / "name.txt").exists()


def test_a_name_has_an_end_and_a_damaged_run_has_one(new_run):
    run = new_run(name="zorp")
    with pytest.raises(RunError, match=r"101 characters\. Shorten it to 100"):
        set_name(run, "x" * (MAX_NAME + 1))
    (run.path / "config.json").write_text("{")
    assert name_of(run) == "zorp"


def test_the_command_line_lists_what_a_run_is_called_and_what_is_written_of_it(new_run, capsys):
    run = new_run(name="zorp")
    set_name(run, "The dark one")
    set_notes(run, "Too dark.\nTry rank 8.")
    assert main(["runs", "--runs", str(run.runs_dir)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[1].startswith(run.id)
    assert told[2:] == ["    The dark one", "    Too dark.", "    Try rank 8."]


# --- how long it has worked


def test_time_between_two_processes_does_not_count(new_run):
    run = new_run()
    first = [(1000, LOADING), (1010, Resumed(0)), (1040, STEP), (1045, Stopped(1))]
    second = [(5000, PLANNED), (5001, LOADING), (5020, Resumed(1)), (5050, StepDone(2, 0.5, 0.1, 1.0, 0))]
    killed_and_resumed = [(90_000, DownloadProgress("checking", 0, 1, 0.0)), (90_005, Failed(2, "No."))]
    assert worked_seconds(run) == 0
    tell(run, *first)
    assert worked_seconds(run) == 45
    tell(run, *second)
    assert worked_seconds(run) == 45 + 50
    tell(run, *killed_and_resumed)
    assert worked_seconds(run) == 45 + 50 + 5


def test_a_plan_made_anew_when_memory_ran_out_and_a_long_loading_count(new_run):
    run = new_run()
    tell(run, (0, PLANNED), (300, LOADING), (310, STEP), (310, PLANNED), (340, LOADING), (350, STEP))
    assert worked_seconds(run) == 350
    tell(run, (351, Stopped(2)), (400, LOADING), (90_000, LOADING))  # killed while it loaded
    assert worked_seconds(run) == 351 + 600


# --- the queue


def test_a_place_in_the_queue_tells_what_is_before_and_how_long_that_takes(new_run, draft):
    now, first, second, third = (new_run(name=name) for name in ("now", "first", "second", "third"))
    for run in (first, second, third):
        keep_promise(run.path, Promise(60.0, 2.0, 0.5, 1.0))  # 60 + 100 * 1.5 * 2 = 360 seconds
    check = create_job(now.runs_dir, CHECK_TEACHER, {})
    for job in (first, check, third, second):
        queue.enqueue(job)
    assert in_queue(queue_places(now.runs_dir, lambda job: 90.0)[first.id]) == "Next in the queue"
    at_work(now, state="training", step=40)
    places = queue_places(now.runs_dir, lambda job: 90.0)
    # A drawing or a check gives way to all trainings.
    assert places[first.id].before == (now,) and places[first.id].seconds == 90
    assert places[third.id].before == (now, first) and places[third.id].seconds == 90 + 360
    assert places[check.id].before == (now, first, third, second)
    assert in_queue(places[third.id]) == "Third in the queue, after now and first: about 8 min"
    assert in_queue(places[check.id]).endswith("after now, first, third and second: about 20 min")
    unknown = queue_places(now.runs_dir, lambda job: None)
    assert in_queue(unknown[second.id]) == "Fourth in the queue, after now, first and third"


def test_a_run_that_goes_on_takes_the_time_of_what_is_left(new_run):
    now, half = new_run(), new_run()
    keep_promise(half.path, Promise(60.0, 2.0, 0.0, 1.0))
    write_status(half, step=50)
    last = new_run()
    for run in (half, last):
        queue.enqueue(run)
    at_work(now, state="training")
    assert queue_places(now.runs_dir, lambda job: 10.0)[last.id].seconds == 10 + 60 + 50 * 2


# --- the list


def test_a_step_of_a_run_at_work_is_all_that_is_sent_of_it(new_run, page):
    new_run(name="rests")
    run = at_work(new_run(), state="training", step=1)
    tell(run, (1000, LOADING), (1001, STEP))
    runs = page.train.runs
    sent = only_changed(runs.values(run_actions.statuses(), run, run.status), page.train.digests, None)
    write_status(run, step=2)
    tell(run, (1031, StepDone(2, 0.5, 0.1, 30.0, 0)))
    values = runs.values(run_actions.statuses(), run, run.status)
    changed = only_changed(values, page.train.digests, sent[page.train.digests])
    assert changed.keys() == {page.train.digests, runs.cards}
    update = changed[runs.cards]
    assert update["live"] == {run.id: ("Step 2 of 100 · 31 s · about 49 min left", 0.02)}
    assert not {"value", "shown"} & update.keys()


def test_a_row_says_what_a_person_knows_a_run_by(new_run):
    run = new_run(trigger_word="zorp", name="first")
    write_status(run, state="failed", step=60)
    tell(run, (0, LOADING), (2520, Failed(60, "No.")))
    set_name(run, "Second <b>")
    set_notes(run, "\n" + "long " * 30)
    [row] = rows(run_actions.statuses())
    assert (row["name"], row["state"], row["kind"]) == ("Second <b>", "Failed", "bad")
    assert row["facts"] == "Step 60 of 100 · 42 min"
    assert row["about"] == "pocket-turbo (built in) · a first LoRA in minutes"
    assert len(row["note"]) == 80 and row["note"].endswith("…")
    assert all(words in row["found_by"] for words in ("second <b>", "zorp", "long long"))
    (run.path / "config.json").write_text("{}")
    assert rows(run_actions.statuses())[0]["about"] == "Of another version of this program"


def test_a_thumbnail_is_of_the_newest_step_that_has_samples(new_run):
    run = new_run()
    assert newest_sample(run) is None and rows(run_actions.statuses())[0]["picture"] == ""
    for name in ("base_0.png", "000050_samples.webp", "000050_rollout.webp"):
        make_picture(0).save(run.previews / name)
    assert newest_sample(run).name == "000050_samples.webp"
    for name in ("000100_sample_1.webp", "000100_sample_0.webp", "1000000_rollout.webp"):
        make_picture(1).save(run.previews / name)
    assert newest_sample(run).name == "000100_sample_0.webp"
    assert "000100_sample_0.webp?side=256" in rows(run_actions.statuses())[0]["picture"]


def test_a_look_at_hundreds_of_runs_is_quick(new_run):
    run = new_run()
    tell(run, *[(second, STEP) for second in range(1000)])
    for number in range(300):
        folder = run.path.with_name(f"20260101-000000-run{number}-0123456789ab")
        folder.mkdir()
        for name in ("config.json", "job.json", "status.json", "events.jsonl"):
            os.link(run.path / name, folder / name)
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        assert len(rows(run_actions.statuses())) == 301
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.5


@pytest.mark.parametrize("settings", ["{", "{}", '{"name": "zorp"}'])
def test_a_run_whose_settings_cannot_be_read_is_shown_and_can_be_deleted(new_run, page, settings):
    run, other = new_run(name="broken"), new_run(name="other")
    tell(run, *((step, HealthMeasured(step, 0.1 * step, None, 0.0, 1.0)) for step in (0, 5)))
    write_status(run, state="finished", step=5, steps=5)
    set_notes(run, "It was good.")
    run.log_file.write_text("What it said.")
    (run.path / "config.json").write_text(settings)
    shown = page.train.show(run.id)
    assert "Finished" in shown[page.train.status] and shown[page.train.log_text] == "What it said."
    runs = page.train.runs
    assert shown[runs.notes.box] == "It was good." and shown[runs.delete].visible
    runs.delete_runs(run.id, run.id)
    assert list_runs(run.runs_dir) == [other]


def test_new_checkpoints_can_be_tried_while_the_run_trains(new_run, page):
    run, trying = at_work(new_run(), state="training"), page.trying
    leave_checkpoint(run, 4)
    shown = trying.show(run.id)
    assert shown[trying.timer].active and shown[trying.steps]["value"] == ["Step 4"]
    assert trying.poll(run.id, "", shown[trying.digests]) == {}
    leave_checkpoint(run, 8)
    shutil.rmtree(run.checkpoints / "000004")
    new = trying.poll(run.id, "", shown[trying.digests])
    for chosen in (trying.steps, trying.using.checkpoint):
        # Not what is chosen.
        assert new[chosen] == gr.update(choices=[("Step 8", "Step 8")])
    write_status(run, state="finished")
    assert not trying.poll(run.id, "", new[trying.digests])[trying.timer].active


# --- several at once


def test_several_are_asked_about_by_name_and_deleted_but_for_the_one_at_work(new_run, page):
    one, two, kept = (new_run(name=name) for name in ("one", "two", "kept"))
    works = at_work(new_run(name="works"), state="training")
    runs = page.train.runs
    ids = [works.id, two.id, one.id]
    asked = runs.ask_to_delete_all(ids)
    assert asked[runs.deletion.confirm].value == "Delete works, two and one for good"
    write_status(two, state="queued", queue_number=1)
    shown = runs.delete_runs(asked[runs.deletion.subject], two.id)
    assert set(list_runs(kept.runs_dir)) == {kept, works}
    assert shown[page.train.run_id] == works.id  # the newest that is left
    told = run_actions.remove_runs([one.id, kept.id])
    assert told == "2 runs deleted."  # what another tab has deleted is gone all the same
    with pytest.raises(RunError, match="Stop it first"):
        run_actions.remove_runs([works.id])


def test_ticks_offer_what_can_be_done_with_as_many(page):
    runs = page.train.runs
    for ids, offered in (([], (False, False)), (["a"], (True, False)), (["a", "b"], (True, True))):
        shown = runs.tick(gr.EventData(None, {"ticked": ids}))
        assert (shown[runs.delete_ticked].visible, shown[runs.compare].visible) == offered


def test_two_are_compared_by_what_differs_and_by_the_prompts_that_they_share(new_run):
    one = new_run(name="one", rank=4, optimizer="adamw", preview_prompts=("a hill", "a sea"))
    other = new_run(name="<b>", rank=16, optimizer="adamw8bit", preview_prompts=("a sea", "a moon"))
    for run, step in ((one, 50), (other, 75)):
        for index in range(2):
            make_picture(index).save(run.previews / f"{step:06d}_sample_{index}.webp")
        files = tuple(f"previews/{step:06d}_sample_{index}.webp" for index in range(2))
        append_event(run.events_file, PreviewSaved(0, "samples", ("previews/base_0.png",), ("a sea",)))
        append_event(run.events_file, PreviewSaved(step, "samples", files, run.config.preview_prompts))
        append_event(run.events_file, HealthMeasured(step, 0.5, None, 0.25, 1.0))
    told = compare(one, other)
    for label, *values in (("Rank", "4", "16"), ("Optimizer", "AdamW", "AdamW, 8 bits: less memory")):
        cells = "".join(f"<td>{value}</td>" for value in values)
        assert f"<th scope='row'>{label}</th>{cells}" in told
    assert "Learning rate" not in told and "<b>" not in told
    assert "Like your pictures, at step 50" in told and "Follows the prompt" not in told
    assert told.count("<figure>") == 1 and "a sea" in told
    assert "000050_sample_1.webp" in told and "000075_sample_0.webp" in told


def test_two_of_the_same_settings_say_so(new_run):
    one, other = new_run(), new_run()
    told = compare(one, other)
    assert "Their settings are the same." in told and "Newest samples" not in told


# --- the settings of one for other pictures


def test_a_draft_takes_a_runs_settings_and_keeps_what_is_said_of_its_own_pictures(new_run, draft):
    run = new_run(
        rank=16, steps=7, loss="velocity", name="theirs", trigger_word="theirs", preview_prompts=("a",)
    )
    draft = set_settings(draft, name="mine", preview_prompts=["mine"], batch_size=2, seed=7)
    taken = take_settings(draft, run.config)
    own = {"name": "mine", "trigger_word": "zorp", "preview_prompts": ("mine",)}
    assert draft_config(taken) == replace(run.config, **own)
    assert taken.items == draft.items


def test_what_of_a_runs_settings_does_not_fit_the_pictures_is_said(draft, tmp_path):
    config = make_config(
        {**load_preset("z-image-style").settings, "resolution": 4096, "card": "GPU-gone", "name": "x"}
    )
    run = create_run(tmp_path / "runs", config, draft_dataset(draft))
    taken, remarks = run_actions.take_settings(draft, run.id)
    assert (taken.preset, taken.kind) == ("z-image-style", "style")
    assert draft_config(taken).card == ""
    assert any("The card that this run was given" in remark for remark in remarks)
    edit = set_settings(taken, kind="edit", preset="klein-4b-edit")
    _, remarks = run_actions.take_settings(edit, run.id)
    assert any("has learned no edit" in remark for remark in remarks)
