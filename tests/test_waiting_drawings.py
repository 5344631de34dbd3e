"""Drawings that wait: who starts them, who takes them, and what is told meanwhile. No worker is started."""

import os
from dataclasses import asdict

import pytest

from dopsd_app import terminal
from dopsd_app.config import TrainConfig
from dopsd_app.data.pictures import Dataset
from dopsd_app.errors import KnownFailure
from dopsd_app.jobs import job, launcher, queue, runs
from dopsd_app.jobs.drawing import Drawing, PictureRequest
from dopsd_app.jobs.kinds import DRAW
from dopsd_app.ui import drawing_endpoints, teacher, try_it

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
