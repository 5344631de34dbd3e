"""A run whose memory runs out goes on by a smaller plan, and trains the same LoRA."""

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from dopsd_app import gpus
from dopsd_app import train as training
from dopsd_app.config import save_config
from dopsd_app.jobs.events import (
    CheckpointSaved,
    Finished,
    HealthMeasured,
    LoraChecked,
    MemoryPlanned,
    PreviewSaved,
    StepDone,
    Stopped,
    Warned,
)
from dopsd_app.jobs.job import place_command
from dopsd_app.jobs.kept_plan import read_kept_plan
from dopsd_app.models.memory_plan import MemoryPlan
from dopsd_app.models.z_image import ZImage
from dopsd_app.planning import memory
from dopsd_app.planning.memory import GIB, Budget, Fitted
from dopsd_app.planning.slow_steps import SlowSteps
from dopsd_app.train import hold_to, train


@pytest.fixture
def run_out(monkeypatch):
    """Lets a function run out of memory at its n-th call, as torch tells it, and never again."""

    def make(owner, name, number=1):
        real, calls = getattr(owner, name), []

        def sometimes(*arguments, **keywords):
            calls.append(1)
            if len(calls) == number:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return real(*arguments, **keywords)

        monkeypatch.setattr(owner, name, sometimes)
        return calls

    return make


PLACES = {
    "load": (ZImage, "load_transformer", 1),
    "encode": (ZImage, "encode", 2),
    "first step": (ZImage, "predict_velocity", 1),
    "later step": (
        ZImage,
        "predict_velocity",
        18,
    ),  # 8 for each step: 2 pictures, 2 states, student and teacher
    "update": (torch.optim.AdamW, "step", 3),
    "the base's picture": (ZImage, "decode", 1),
    "first roll-out": (ZImage, "decode", 3),
    "preview": (ZImage, "decode", 7),
    "check": (training, "check_lora", 1),
}


@pytest.fixture(scope="module")
def undisturbed():
    """The weights of the LoRA that nothing disturbed, by the first test that has trained it."""
    return {}


@pytest.mark.process
@pytest.mark.parametrize("place", PLACES)
def test_a_run_whose_memory_runs_out_trains_the_same_lora(
    new_run, tiny_config, run_out, place, undisturbed, monkeypatch
):
    monkeypatch.setattr(memory, "TILE", 16)  # so small are the pictures here
    config = replace(tiny_config, preview_every=2, checkpoint_every=4)
    run = new_run(config)
    calls = run_out(*PLACES[place])
    events = list(train(run))
    assert len(calls) >= PLACES[place][2]
    plans = [event for event in events if isinstance(event, MemoryPlanned)]
    assert len(plans) == 2
    assert any("Memory ran out" in event.message for event in events if isinstance(event, Warned))
    assert isinstance(events[-1], Finished)
    assert next(event for event in events if isinstance(event, LoraChecked)).passed
    steps = [event.step for event in events if isinstance(event, StepDone)]
    # From the last step that was done: one is made again only where it was half made.
    assert steps == ([1, 2, 1, 2, 3, 4] if place == "update" else [1, 2, 3, 4])
    if not undisturbed:
        other = new_run(config)
        list(train(other))
        undisturbed.update(load_file(other.lora_file))
    weights = load_file(run.lora_file)
    assert weights.keys() == undisturbed.keys()
    for name, weight in undisturbed.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-4, atol=1e-6)
    assert read_kept_plan(run.path).ran_out


@pytest.mark.process
def test_a_run_that_goes_on_keeps_to_what_it_has_learned_of_the_memory(new_run, tiny_config, run_out):
    run = new_run(replace(tiny_config, steps=2))
    run_out(ZImage, "predict_velocity", 1)
    list(train(run))
    learned = read_kept_plan(run.path)
    assert learned.plan.recomputed_blocks
    save_config(replace(run.config, steps=4), run.path / "config.json")
    list(train(run))
    assert read_kept_plan(run.path) == learned


def test_where_no_smaller_plan_is_left_the_run_says_so(new_run, tiny_config, monkeypatch):
    def never(*arguments, **keywords):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(ZImage, "load_transformer", never)
    with pytest.raises(torch.OutOfMemoryError):
        list(train(new_run(tiny_config)))


@pytest.mark.process
def test_a_preview_that_does_not_fit_by_any_plan_does_not_end_the_training(new_run, tiny_config, run_out):
    run = new_run(replace(tiny_config, preview_every=2))
    run_out(ZImage, "decode", 7)
    events = list(train(run))
    assert any(
        "The preview of step 2 failed" in event.message for event in events if isinstance(event, Warned)
    )
    assert isinstance(events[-1], Finished)


def test_slow_steps_are_told_once_and_then_that_all_is_well():
    steps = SlowSteps(on_card=False)
    assert [steps.judge(seconds) for seconds in (9.0, 1.0, 1.1, 0.9, 1.0, 1.0)] == [None] * 6
    told = steps.judge(3.5)  # 3.5 times the median, 1.0
    assert told.startswith("A step took 4 times as long as those before.")
    assert steps.judge(4.0) is None  # told already
    assert steps.judge(1.0) == ""


def test_a_process_takes_no_more_than_was_planned_for(monkeypatch):
    limits = []
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    card = SimpleNamespace(total_memory=10 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limits.append)
    budget = Budget(memory.program_bytes(on_gpu=True) + 5 * GIB, 0, on_gpu=True)
    hold_to(Fitted(MemoryPlan(), memory.Memory(0, 0, 0), 1.0, budget))
    assert limits == [0.5]


@pytest.mark.parametrize("windows", [False, True])
def test_memory_is_taken_in_segments_that_can_grow_where_they_can(monkeypatch, windows):
    for name in ("PYTORCH_ALLOC_CONF", "CUDA_DEVICE_ORDER"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(gpus, "can_grow", lambda: not windows)
    gpus.settle_on_a_card()
    assert os.environ.get("PYTORCH_ALLOC_CONF") == (None if windows else "expandable_segments:True")


@pytest.mark.process
def test_a_stop_is_not_forgotten_when_a_preview_runs_out(new_run, tiny_config, run_out, monkeypatch):
    monkeypatch.setattr(memory, "TILE", 16)
    run = new_run(replace(tiny_config, steps=6, preview_every=2))
    run_out(ZImage, "decode", 7)  # after two pictures of the base, and four of the first step's roll-out
    steps = []
    for event in train(run):
        if isinstance(event, StepDone):
            steps.append(event.step)
            if event.step == 2:
                place_command(run, "stop")
    assert isinstance(event, Stopped) and event.step == steps[-1] == 3


def previews_of(events):
    """Step and kind of what was shown after the base's own."""
    shown = [(event.step, event.kind) for event in events if isinstance(event, PreviewSaved) and event.step]
    return shown, [event.step for event in events if isinstance(event, HealthMeasured) and event.step]


@pytest.mark.process
def test_the_last_preview_is_drawn_where_memory_ran_out_at_it(new_run, tiny_config, run_out, monkeypatch):
    monkeypatch.setattr(memory, "TILE", 16)
    run = new_run(replace(tiny_config, steps=2, preview_every=2))
    run_out(ZImage, "decode", 11)  # 2 of the base, 4 of the first roll-out, 4 of the second: a sample
    events = list(train(run))
    assert isinstance(events[-1], Finished)
    assert previews_of(events) == ([(1, "rollout"), (2, "rollout"), (2, "samples")], [2])
    assert not run.commands.exists() or not list(run.commands.iterdir())
    saved = [event.step for event in events if isinstance(event, CheckpointSaved)]
    assert saved == [2]


@pytest.mark.process
def test_an_early_rollout_that_runs_out_does_not_become_a_whole_preview(
    new_run, tiny_config, run_out, monkeypatch
):
    monkeypatch.setattr(memory, "TILE", 16)
    run = new_run(replace(tiny_config, steps=6, preview_every=6))
    run_out(ZImage, "decode", 3)
    events = list(train(run))
    shown = [(2, "rollout"), (6, "rollout"), (6, "samples")]
    assert previews_of(events) == (shown, [6])


@pytest.mark.process
def test_where_the_bases_pictures_failed_at_first_they_come_with_the_first_samples(
    new_run, tiny_config, run_out
):
    run = new_run(replace(tiny_config, preview_every=2))
    run_out(ZImage, "decode", 1)  # and no smaller plan has room for it
    told = [event for event in train(run) if isinstance(event, PreviewSaved) and event.kind == "samples"]
    assert [event.step for event in told] == [0, 2, 4]
