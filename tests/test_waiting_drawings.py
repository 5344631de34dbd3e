"""Drawings that wait: who starts them, who takes them, and what is told meanwhile. No worker is started."""

import os
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from dopsd_app import beside, cli, terminal
from dopsd_app.beside import Beside
from dopsd_app.config import TrainConfig
from dopsd_app.data.pictures import Dataset
from dopsd_app.errors import KnownFailure
from dopsd_app.jobs import beside as beside_jobs
from dopsd_app.jobs import drawing as drawing_jobs
from dopsd_app.jobs import job, launcher, queue, runs
from dopsd_app.jobs.beside import Offer, keep_offer, read_offer
from dopsd_app.jobs.drawing import Column, Drawing, PictureRequest
from dopsd_app.jobs.kinds import DRAW
from dopsd_app.jobs.run_notes import name_of
from dopsd_app.train import train
from dopsd_app.ui import drawing_endpoints, teacher, try_it
from dopsd_app.ui.run_rows import waiting_words

OURS = {"pid": os.getpid(), "pid_started": launcher.process_started(os.getpid())}


@pytest.fixture
def runs_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DOPSD_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def run(runs_dir):
    return runs.create_run(runs_dir, TrainConfig(), Dataset((), ()))


@pytest.fixture
def started(monkeypatch):
    """The jobs whose workers would be started; each of them is stopped at once."""
    found = []

    def note(folder, secret="", card=""):
        found.append(folder)
        raise OSError("not in this test")

    monkeypatch.setattr(launcher.launcher, "start", note)
    return found


def wait_in_line(run, *prompts):
    waiting = job.create_job(run.runs_dir, DRAW, asdict(PictureRequest(run.id, prompts or ("a dog",), (0,))))
    queue.enqueue(waiting)
    return Drawing(waiting.path)


# --- who starts them


def by_terminal(run, waiting, monkeypatch):
    monkeypatch.setattr(terminal, "ask", lambda *_: waiting)
    with pytest.raises(KnownFailure, match="could not be started"):
        terminal.drawn(run.runs_dir, waiting.asked)


def by_endpoint(run, waiting, monkeypatch):
    with pytest.raises(KnownFailure, match="could not be started"):
        drawing_endpoints.wait_for(waiting)


def by_try_step(run, waiting, monkeypatch):
    monkeypatch.setattr(try_it.TryStep, "show_drawing", lambda *_: {})
    try_it.TryStep.poll(try_it.TryStep.__new__(try_it.TryStep), run.id, "", None)


def by_teacher_step(run, waiting, monkeypatch):
    monkeypatch.setattr(teacher.TeacherStep, "show", lambda *_: {})
    monkeypatch.setattr(teacher, "draft_of", lambda shown: shown)
    monkeypatch.setattr(teacher, "draft_check", lambda draft: waiting)
    teacher.TeacherStep.poll(teacher.TeacherStep.__new__(teacher.TeacherStep), "draft", None)


@pytest.mark.parametrize("look", [by_terminal, by_endpoint, by_try_step, by_teacher_step])
def test_who_waits_for_a_drawing_starts_it_where_the_training_was_killed(run, started, look, monkeypatch):
    job.write_status(run, state="training", **OURS)
    waiting = wait_in_line(run)
    assert queue.start_next(run.runs_dir) is None and not started
    job.write_status(run, state="training", pid=None)  # its process is gone, and said nothing
    look(run, waiting, monkeypatch)
    assert started == [waiting.path]


# --- who takes them


def test_a_process_takes_what_it_can_draw_and_leaves_the_rest_in_its_place(run):
    first, second, third = (wait_in_line(run, prompt) for prompt in ("a dog", "a cat", "a cow"))
    cats = queue.take_next(run.runs_dir, OURS, lambda one: "a cat" in one.request["prompts"])
    assert cats == job.Job(second.path) and cats.status.state == "loading"
    assert queue.take_next(run.runs_dir, OURS, lambda one: False) is None
    assert [one.path for one in queue.waiting_jobs(run.runs_dir)] == [first.path, third.path]


def test_a_drawing_that_another_process_accepted_is_left_to_it(run, monkeypatch):
    ours = Beside.__new__(Beside)
    ours.run, ours.offered = run, Offer("none", resolution=512, lora_numbers=10**9)
    ours.offer = ours.offered
    job.write_status(run, state="training", **OURS)
    waiting = wait_in_line(run)
    refusals = {}
    monkeypatch.setattr(beside_jobs, "why_not", lambda run, offer, wanted: refusals.get((run.id, offer), ""))
    monkeypatch.setattr(beside, "why_not", beside_jobs.why_not)
    assert ours._takes(waiting)
    refusals[run.id, ours.offered] = "this needs another base model"
    assert not ours._takes(waiting)
    # What it has accepted and cannot draw any more, it tells; but not where another one can.
    ours.offer = Offer("none", refusal="there is no room")
    keep_offer(run, ours.offer)
    refusals = {(run.id, ours.offer): "there is no room"}
    monkeypatch.setattr(beside_jobs, "why_not", lambda run, offer, wanted: refusals.get((run.id, offer), ""))
    monkeypatch.setattr(beside, "why_not", beside_jobs.why_not)
    assert ours._takes(waiting)
    other = runs.create_run(run.runs_dir, TrainConfig(), Dataset((), ()))
    job.write_status(other, state="training", **OURS)
    assert not ours._takes(waiting)


def test_a_command_asks_for_all_its_pictures_at_once_and_for_the_bases_only_where_they_are_wanted(
    run, monkeypatch, tmp_path
):
    asked = []

    def draw(runs_dir, request, sources):
        asked.append(request)
        check_cells(request)
        drawing = Drawing(job.create_job(runs_dir, DRAW, asdict(request)).path)
        for row, each in enumerate(request.rows):
            for column, drawn_by in enumerate(request.columns):
                drawing.cell(row, column).write_text(f"{each.prompt} {each.seed} {drawn_by.strength:g}")
        return drawing

    def check_cells(request):
        monkeypatch.setattr(drawing_jobs, "find_lora", lambda *_: None)
        drawing_jobs.check_request(run, request)

    monkeypatch.setattr(cli, "drawn", draw)
    monkeypatch.setattr(drawing_jobs, "file_variant", lambda run, column: "_lora")
    options = SimpleNamespace(
        prompt=[f"p{number}" for number in range(9)],
        checkpoint=None,
        strength=0.5,
        base_too=False,
        source=[],
        runs=run.runs_dir,
    )
    cli._draw_beside(run, list(range(5)), tmp_path / "out", options)
    assert [(len(one.prompts), one.seeds) for one in asked] == [
        (8, (0, 1, 2, 3)), (8, (4,)), (1, (0, 1, 2, 3)), (1, (4,)),
    ]  # fmt: skip
    assert {one.columns for one in asked} == {(Column(None, 0.5),)}
    assert (tmp_path / "out/9-p8_3_lora.png").read_text() == "p8 3 0.5"
    assert (tmp_path / "out/2-p1_4_lora.png").read_text() == "p1 4 0.5"
    assert len(list((tmp_path / "out").iterdir())) == 45
    options.base_too, options.prompt = True, ["p"]
    cli._draw_beside(run, [7], tmp_path / "out", options)
    assert (tmp_path / "out/1-p_7_base.png").read_text() == "p 7 0"
    assert (tmp_path / "out/1-p_7_lora.png").read_text() == "p 7 0.5"


# --- what is told meanwhile


def test_who_waits_is_told_for_whom(run, monkeypatch):
    waiting = wait_in_line(run)
    assert waiting_words(waiting) == "Next in the queue"
    job.write_status(run, state="training", **OURS)
    assert waiting_words(waiting).startswith("Second in the queue, after ")
    keep_offer(run, Offer("none", resolution=1024, lora_numbers=10**9))
    monkeypatch.setattr(beside_jobs, "needs_fetching", lambda *_: False)
    monkeypatch.setattr(beside_jobs, "_same_base", lambda *_: True)
    assert waiting_words(waiting) == f"Waits for the next step of {name_of(run)}"


def test_a_process_that_begins_offers_nothing_of_the_one_before(run):
    keep_offer(run, Offer("none", resolution=512))
    next(train(run))
    assert read_offer(run) is None
