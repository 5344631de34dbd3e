"""Drawing in a training's own process, between two of its steps, on the tiny model."""

import json
import os
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dopsd_app import generate
from dopsd_app.checks.verdict import read_check
from dopsd_app.jobs import beside, job, launcher, queue, runs
from dopsd_app.jobs.drawing import CheckRequest, Drawing, PictureRequest, ask, cancel
from dopsd_app.jobs.events import StepDone, append_event, read_events
from dopsd_app.jobs.job import RunError, create_job
from dopsd_app.jobs.kinds import CHECK_TEACHER, DRAW
from dopsd_app.jobs.promise import Promise, keep_promise
from dopsd_app.jobs.worker import find_function, work
from dopsd_app.models.memory_plan import MemoryPlan
from dopsd_app.planning.beside import NO_ROOM, make_offer
from dopsd_app.planning.memory import Budget, Fitted, fit, reckon
from dopsd_app.progress import PhaseProgress
from dopsd_app.train import train

pytestmark = pytest.mark.process


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


@pytest.fixture
def finished(new_run, tiny_config, tmp_path, monkeypatch):
    """A run with a LoRA and the checkpoints 2 and 4; nobody else has the card."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = new_run(replace(tiny_config, learning_rate=0.05))
    list(train(run))
    job.write_status(run, state="finished", step=4)
    return run


def wait_in_line(runs_dir, request):
    """A drawing in the queue, as it was asked for while a run trained."""
    kind = DRAW if isinstance(request, PictureRequest) else CHECK_TEACHER
    waiting = create_job(runs_dir, kind, asdict(request))
    queue.enqueue(waiting)
    return Drawing(waiting.path)


def draw_here(waiting):
    """The same as a warm worker draws it; its folder."""
    again = create_job(waiting.runs_dir, waiting.kind, waiting.request)
    for _ in find_function(again)(again):
        pass
    return Drawing(again.path)


def what_is_trained(run):
    kept = torch.load(run.checkpoints / f"{run.config.steps:06d}" / "resume.pt", weights_only=True)
    return load_file(run.lora_file), kept


def equal(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one.equal(other) if isinstance(one, torch.Tensor) else one == other


def test_a_run_draws_what_a_warm_worker_would_and_trains_as_if_it_drew_nothing(
    finished, new_run, tiny_config
):
    config = replace(tiny_config, steps=8, learning_rate=0.01, checkpoint_every=1)
    alone, runs_dir = new_run(config), finished.runs_dir
    assert work(alone) == 0
    run = new_run(config)
    picture = PictureRequest(finished.id, "my dog", 1)
    broken = runs.Run(shutil.copytree(finished.path, runs_dir / "20990101-000000-other-0123456789ab"))
    broken.lora_file.write_bytes(b"nonsense")
    drawn = wait_in_line(runs_dir, picture)
    bad = wait_in_line(runs_dir, replace(picture, run_id=broken.id))
    weak = wait_in_line(runs_dir, replace(picture, checkpoint=2, strength=0.5, prompt="a cat"))
    check = wait_in_line(runs_dir, CheckRequest(tiny_config, finished.dataset))
    own = wait_in_line(runs_dir, PictureRequest(run.id, "my dog", 2))
    gone = wait_in_line(runs_dir, CheckRequest(tiny_config, runs_dir / "nothing"))
    assert work(run) == 0

    ends = [one.status for one in (drawn, bad, weak, check, own, gone)]
    states = ["finished", "failed", "finished", "finished", "finished", "failed"]
    assert [end.state for end in ends] == states, ends
    assert "is damaged" in bad.status.reason and "no folder" in gone.status.reason
    assert all(one.status.pid == os.getpid() for one in (drawn, weak, check, own))
    assert equal(what_is_trained(run), what_is_trained(alone))
    losses = [[e.loss for e in read_events(r.events_file) if isinstance(e, StepDone)] for r in (run, alone)]
    assert losses[0] == losses[1]

    for one in (drawn, weak):
        again = draw_here(one)
        assert np.array_equal(pixels(one.base), pixels(again.base))
        assert np.array_equal(pixels(one.lora), pixels(again.lora))
    assert np.abs(pixels(drawn.lora) - pixels(drawn.base)).max() > 2
    assert pixels(own.lora).shape == pixels(drawn.lora).shape
    again = draw_here(check)
    assert read_check(again.path) == read_check(check.path)
    for file in sorted(check.path.glob("*.webp")):
        assert np.array_equal(pixels(file), pixels(again.path / file.name))
    generate.drawing_cache.clear()
