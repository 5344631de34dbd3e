"""Drawing in a training's own process, between two of its steps, on the tiny model."""

import os
import shutil
from dataclasses import asdict, replace

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dopsd_app import generate
from dopsd_app.beside import _Lent
from dopsd_app.checks.verdict import read_check
from dopsd_app.cli import main
from dopsd_app.config import TrainConfig
from dopsd_app.jobs import card, job, launcher, queue, runs
from dopsd_app.jobs.beside import Offer, keep_offer, read_offer
from dopsd_app.jobs.drawing import BASE, CheckRequest, Column, Drawing, PictureRequest, ask, cancel
from dopsd_app.jobs.events import StepDone, append_event, read_events
from dopsd_app.jobs.job import RunError, create_job
from dopsd_app.jobs.kept_plan import read_kept_plan
from dopsd_app.jobs.kinds import CHECK_TEACHER, DRAW
from dopsd_app.jobs.promise import Promise, keep_promise
from dopsd_app.jobs.worker import find_function, work
from dopsd_app.method.adapters import adapter_arrays, adapter_weights, add_adapters
from dopsd_app.method.lora_file import save_lora
from dopsd_app.method.recompute import recompute_blocks
from dopsd_app.models.catalog import find_facts
from dopsd_app.models.load import load_base_model
from dopsd_app.models.loaded_model import LoadedModel
from dopsd_app.models.memory_plan import ALL, MemoryPlan
from dopsd_app.models.protocol import Conditioning
from dopsd_app.planning.beside import NO_ROOM, make_offer
from dopsd_app.planning.memory import Budget, fit
from dopsd_app.planning.plan import RESOLUTIONS
from dopsd_app.train import train
from tests.support.encoded import trained
from tests.support.tiny_models import save_klein, save_z_image
from tests.support.waiting import ended, wait_for

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
    yield run
    for _, status in queue.statuses(run.runs_dir):
        if status.live and status.pid != os.getpid():
            launcher.launcher.stop(status)
    if (holder := card.read_holder()) and holder.pid != os.getpid():  # a warm worker without work
        psutil.Process(holder.pid).kill()


def picture_of(run, prompt="my dog", seed=1, **column):
    return PictureRequest(run.id, (prompt,), (seed,), (BASE, Column(**column)))


def drawn_pictures(drawing):
    """The base's and the LoRA's, or those of a check."""
    return [pixels(file) for file in sorted([*drawing.path.glob("*.png"), *drawing.path.glob("*.webp")])]


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


# --- what it can draw


OFFER = Offer("none", resolution=64, lora_numbers=10**6)
OURS = {"pid": os.getpid(), "pid_started": launcher.process_started(os.getpid())}


@pytest.fixture
def working(new_run, tiny_config, finished):
    """A run that this process trains, as its status says."""
    run = new_run(tiny_config)
    keep_offer(run, OFFER)
    job.write_status(run, state="training", step=1, **OURS)
    return run


def refusal_of(runs_dir, request):
    with pytest.raises(RunError) as refused:
        ask(runs_dir, request)
    return str(refused.value)


def test_what_a_run_at_work_cannot_draw_is_refused_with_the_reason_and_the_time(
    working, finished, tiny_config, new_run, z_image_folder, tmp_path, monkeypatch
):
    runs_dir, picture = working.runs_dir, picture_of(finished)
    assert ask(runs_dir, picture).status.state == "queued"
    assert ask(runs_dir, CheckRequest(tiny_config, finished.dataset)).status.state == "queued"
    other = tmp_path / "other"
    shutil.copytree(z_image_folder, other)
    for settings, reason in (
        ({"base_model": str(other)}, "needs another base model"),
        ({"quantization": "nf4"}, r"loaded in other weights than this needs (nf4)"),
        ({"teacher_picture_minimum": 32}, "sees pictures in another way"),
        ({"resolution": 128}, "room for pictures of 64 pixels beside it, not of 128"),
    ):
        asked = CheckRequest(replace(tiny_config, **settings), finished.dataset)
        assert reason in refusal_of(runs_dir, asked)
    for offer, reason in (
        (replace(OFFER, lora_numbers=1), "no room for a second LoRA of rank 4 beside it"),
        (replace(OFFER, refusal=NO_ROOM), NO_ROOM),
    ):
        keep_offer(working, offer)
        assert reason in refusal_of(runs_dir, picture)
    assert refusal_of(runs_dir, picture).endswith("Draw when it has ended, or stop it.")

    # 3 more steps of 20 s; then the run that waits: 4 steps and 30 s of loading.
    keep_promise(working.path, Promise(loading=30.0, seconds_per_step=100.0, previews=0.0, slowness=1.0))
    append_event(working.events_file, StepDone(1, 1.0, 1.0, 20.0, 0))
    assert refusal_of(runs_dir, picture).endswith("It will have ended in about 60 s; or stop it.")
    waits = new_run(tiny_config)
    keep_promise(waits.path, Promise(loading=30.0, seconds_per_step=20.0, previews=0.0, slowness=1.0))
    queue.enqueue(waits)
    told = "It, with 1 training that waits, will have ended in about 3 min; or stop it."
    assert refusal_of(runs_dir, picture).endswith(told)

    file = working.path / "offer.json"
    for damaged in ("{", file.read_text().replace('"schema": 1', '"schema": 2')):
        file.write_text(damaged)
        assert read_offer(working) is None
    told = "has not come to its first step. Draw when it has done its first step."
    assert refusal_of(runs_dir, picture).endswith(told)
    job.write_status(working, state="stopped")
    assert f"{waits.id} waits to be trained" in refusal_of(runs_dir, picture)


@pytest.mark.parametrize(
    ("base_model", "gigabytes", "offered"),
    [
        ("z-image-turbo", 24, (1024, False)),  # all of the encoders come beside what trains
        ("z-image-turbo", 12, (1024, True)),  # layer by layer
        ("flux2-klein-9b", 8, (0, False)),
    ],
)
def test_an_offer_is_what_fits_into_the_budget_beside_the_training(base_model, gigabytes, offered):
    config = TrainConfig(base_model=base_model, optimizer="adamw8bit", rank=16, resolution=512)
    sizes = find_facts(base_model, "").sizes_for(config)
    budget = Budget(int(0.95 * gigabytes * 2**30), 64 * 2**30, on_gpu=True)
    fitted = fit(config, sizes, budget)
    offer = make_offer(config, sizes, fitted, sources=0, ran_out=0)
    assert (offer.resolution, offer.encoders_by_layer) == offered
    assert offer.refusal == ("" if offered[0] else NO_ROOM)
    assert offer.quantization == fitted.plan.quantization
    if offered[0]:  # a spare LoRA as large as its own has room, in the two bytes of a number
        assert offer.lora_numbers >= sizes.lora_parameters(16)
        assert fitted.memory.drawing + 2 * offer.lora_numbers <= budget.device
        # Where memory ran out at a drawing, only smaller ones are offered, down to none at all.
        assert make_offer(config, sizes, fitted, sources=0, ran_out=1024).resolution == 768
        assert make_offer(config, sizes, fitted, sources=0, ran_out=min(RESOLUTIONS)).refusal == NO_ROOM


# --- drawing


LEVERS = {"recomputed_blocks": ALL, "offloaded_blocks": ALL, "autoencoder_in_ram": True}


@pytest.mark.parametrize("plan", [{}, LEVERS, LEVERS | {"quantization": "nf4"}, {"quantization": "int8"}])
@pytest.mark.parametrize("save", [save_z_image, save_klein])
def test_a_lent_base_draws_as_a_loaded_one_and_comes_back_as_it_was(save, plan, tmp_path):
    save(tmp_path / "base")
    config = TrainConfig(
        base_model=str(tmp_path / "base"),
        rank=4,
        lora_alpha=6.0,
        resolution=64,
        rollout_steps=2,
        num_inference_steps=2,
    )
    plan = MemoryPlan(**plan)
    ours = load_base_model(config, plan)
    ours.load_transformer()
    add_adapters(ours.transformer, ours.lora_targets, config)
    trained(ours)
    lora = tmp_path / "lora.safetensors"
    save_lora(lora, adapter_arrays(ours.transformer, "student"), config.strength, {})
    for weight in adapter_weights(ours.transformer, "student").values():
        weight.data *= -0.5  # training went on
    recompute_blocks(ours, ours.fetch)
    before = state_of(ours)

    lent, model = _Lent(config, ours, True, {}), LoadedModel(config, plan)
    with lent.lent():
        here = pictures_by(lent, config, lora)
        lent.unload_lora()
        bare = lent.draw(lent.encode(["a dog"])[0], config, 1, with_lora=False)
    base, drawn = pictures_by(model, config, lora)
    assert here == (base, drawn) and base != drawn and bare == base
    assert equal(state_of(ours), before)
    assert ours.text_encoder is None


def pictures_by(model, config, lora):
    """The base's picture, and the LoRA's."""
    conditioning = model.encode(["a dog"])[0]
    model.load_transformer()
    model.load_lora(lora, 0.7)
    return tuple(model.draw(conditioning, config, 1, with_lora=with_lora) for with_lora in (False, True))


def state_of(base_model):
    """All that training works with: weights, what learns, which adapter is active, and what it predicts."""
    transformer = base_model.transformer
    conditioning = Conditioning(torch.ones(20, transformer_width(base_model)))
    latents = torch.ones(1, *base_model.latent_shape(64, 64))
    velocity = base_model.predict_velocity(latents, torch.tensor(0.7), [conditioning])
    velocity.square().sum().backward()
    weights = adapter_weights(transformer, "student")
    gradients = {name: weight.grad for name, weight in weights.items()}
    transformer.zero_grad()
    empty = {"_diffusers_hook"}  # an empty list of hooks, which klein's pipeline leaves
    modules = {
        name: (module.training, module.__dict__.keys() - empty, getattr(module, "active_adapters", None))
        for name, module in transformer.named_modules()
    }
    learns = {name: weight.requires_grad for name, weight in transformer.named_parameters()}
    return [velocity.detach(), gradients, modules, learns, sorted(transformer.peft_config)]


def transformer_width(base_model):
    return 32 if base_model.lora_targets.startswith("(layers") else 48


def test_a_run_draws_what_a_warm_worker_would_and_trains_as_if_it_drew_nothing(
    finished, new_run, tiny_config, monkeypatch
):
    config = replace(tiny_config, steps=9, learning_rate=0.01, checkpoint_every=1)
    alone, runs_dir = new_run(config), finished.runs_dir
    assert work(alone) == 0
    run = new_run(config)
    broken = runs.Run(shutil.copytree(finished.path, runs_dir / "20990101-000000-other-0123456789ab"))
    broken.lora_file.write_bytes(b"nonsense")
    drawn = wait_in_line(runs_dir, picture_of(finished))
    bad = wait_in_line(runs_dir, picture_of(broken))
    weak = wait_in_line(runs_dir, picture_of(finished, "a cat", checkpoint=2, strength=0.5))
    check = wait_in_line(runs_dir, CheckRequest(tiny_config, finished.dataset))
    own = wait_in_line(runs_dir, picture_of(run, seed=2))
    gone = wait_in_line(runs_dir, CheckRequest(tiny_config, runs_dir / "nothing"))
    heavy, last = (wait_in_line(runs_dir, picture_of(finished, seed=seed)) for seed in (3, 4))
    draw = generate.draw

    def draw_until_memory_runs_out(one):
        result = yield from draw(one)
        if one == heavy:
            raise MemoryError
        return result

    with monkeypatch.context() as patch:
        patch.setattr(generate, "draw", draw_until_memory_runs_out)
        assert work(run) == 0

    ends = [one.status for one in (drawn, bad, weak, check, own, gone, heavy, last)]
    states = ["finished", "failed", "finished", "finished", "finished", "failed", "failed", "failed"]
    assert [end.state for end in ends] == states, ends
    assert "is damaged" in bad.status.reason and "no folder" in gone.status.reason
    assert read_kept_plan(run.path).beside == tiny_config.resolution  # a resume knows
    assert heavy.status.reason.startswith("Out of memory") and NO_ROOM in last.status.reason
    assert all(one.status.pid == os.getpid() for one in (drawn, weak, check, own))
    assert equal(what_is_trained(run), what_is_trained(alone))
    losses = [[e.loss for e in read_events(r.events_file) if isinstance(e, StepDone)] for r in (run, alone)]
    assert losses[0] == losses[1]

    for one in (drawn, weak, check):
        here, again = drawn_pictures(one), drawn_pictures(draw_here(one))
        assert len(here) == len(again) and all(map(np.array_equal, here, again))
    base, lora = drawn_pictures(drawn)
    assert np.abs(base - lora).max() > 2
    assert len(drawn_pictures(own)) == 2 and len(read_check(check.path).rows) == 4
    generate.drawing_cache.clear()


def test_a_drawing_stops_with_its_own_command_and_waits_on_when_its_run_is_stopped(
    finished, new_run, tiny_config
):
    """In real processes: the run's worker, and the warm one after it."""
    runs_dir, picture = finished.runs_dir, picture_of(finished)
    run = new_run(replace(tiny_config, steps=1000, checkpoint_every=1000, learning_rate=0.01))
    queue.enqueue(run)
    assert queue.start_next(runs_dir) == run
    wait_for(lambda: run.status.step >= 1)
    assert read_offer(run).refusal == ""
    first = ask(runs_dir, picture)
    assert ended(first).state == "finished", first.status
    assert first.status.pid == run.status.pid
    wait_for(lambda: run.status.state == "training")
    pictures = finished.dataset.parent / "generated"
    command = ["generate", finished.id, "--runs", str(runs_dir), "--prompt", "my dog", "--seed", "1"]
    assert main([*command, "--base-too"]) == 0
    for name, place in (("1-my-dog_1.png", 1), ("1-my-dog_1_base.png", 0)):
        assert np.array_equal(pixels(pictures / name), pixels(first.cell(0, place)))
    checks = [ask(runs_dir, CheckRequest(tiny_config, finished.dataset)) for _ in range(2)]
    wait_for(lambda: checks[0].status.state == "drawing")
    cancel(checks[0])
    assert ended(checks[0]).state == "stopped"
    assert run.status.state in ("training", "beside")
    wait_for(lambda: checks[1].status.state in ("loading", "encoding", "drawing"))
    queue.send_command(run, "stop")
    assert ended(run).state == "stopped"
    assert checks[1].status.state != "stopped"
    assert ended(checks[1]).state == "finished", checks[1].status
    assert checks[1].status.pid != run.status.pid
    assert runs.latest_checkpoint(run).name == f"{run.status.step:06d}"

    # Killed while it draws: both are interrupted, and the run goes on.
    runs.resume(run)
    card.ask_for_card()
    wait_for(lambda: queue.start_next(runs_dir) or run.status.live)
    kept = run.status.step
    wait_for(lambda: run.status.step > kept)
    last = ask(runs_dir, CheckRequest(tiny_config, finished.dataset))
    wait_for(lambda: last.status.state == "drawing")
    os.kill(run.status.pid, 9)
    wait_for(lambda: not run.status.live)
    assert (run.status.state, ended(last).state) == ("interrupted", "interrupted")
    assert runs.latest_checkpoint(run).name == f"{kept:06d}"
    assert work_to(run, kept + 2) == 0
    assert ended(run).state == "finished"


def work_to(run, steps):
    runs._change_settings(run, steps=steps)
    queue.enqueue(run)
    return work(run)
