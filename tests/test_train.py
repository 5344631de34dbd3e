"""Whole runs on the tiny model: in this process for what is written, in real workers for kills."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import ExifTags, Image
from safetensors.torch import load_file

from dopsd_app.checks.health_rules import PROMPTS, best_step
from dopsd_app.checks.preview_steps import early_samples, early_steps, preview_steps
from dopsd_app.jobs.events import (
    CheckpointSaved,
    Finished,
    HealthMeasured,
    LoraChecked,
    MemoryPlanned,
    PreviewSaved,
    Resumed,
    StepDone,
    Stopped,
    Warned,
    read_events,
)
from dopsd_app.jobs.job import job_name, write_status
from dopsd_app.jobs.runs import Run
from dopsd_app.jobs.watch import standing_warnings
from dopsd_app.jobs.worker import work
from dopsd_app.method import checkpoint
from dopsd_app.models.z_image import ZImage
from dopsd_app.progress import PhaseProgress
from dopsd_app.train import train
from tests.support import forks
from tests.support.small_disk import on_a_small_disk

ROOT = Path(__file__).parents[1]


def events_of(run, kind):
    return [event for event in read_events(run.events_file) if isinstance(event, kind)]


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


def student_of(run, step):
    return adapters_of(run, step)["student"]


def adapters_of(run, step):
    file = run.checkpoints / f"{step:06d}" / "resume.pt"
    return torch.load(file, weights_only=True)["adapters"]


@pytest.mark.process
def test_a_run_ends_with_a_checked_lora(new_run, tiny_config):
    run = new_run(replace(tiny_config, preview_every=2, memory_limit=0.1))
    events = list(train(run))
    assert [event.step for event in events if isinstance(event, StepDone)] == [1, 2, 3, 4]
    assert [event.folder for event in events if isinstance(event, CheckpointSaved)] == [
        "checkpoints/000002",
        "checkpoints/000004",
    ]
    checked = next(event for event in events if isinstance(event, LoraChecked))
    assert checked.passed, checked.summary
    assert events[-1] == Finished(4, "pytorch_lora_weights.safetensors")
    assert json.loads(run.check_file.read_text())["passed"] is True
    # 7 modules in each of 4 blocks, an A and a B for each.
    assert len(load_file(run.lora_file)) == 56
    assert not [event for event in events if isinstance(event, Warned)]


@pytest.mark.process
def test_a_failed_check_is_said_loudly_and_keeps_the_file(new_run, tiny_config):
    run = new_run(replace(tiny_config, learning_rate=1e-30))  # nothing is learned: no module has an effect
    events = list(train(run))
    checked = next(event for event in events if isinstance(event, LoraChecked))
    assert not checked.passed
    assert "28 modules have no effect" in checked.summary
    assert Warned(4, checked.summary) in events
    assert json.loads(run.check_file.read_text())["passed"] is False
    assert run.lora_file.exists()


def test_a_teacher_that_sees_no_more_than_the_student_is_refused(new_run, tiny_config, monkeypatch):
    encode = ZImage.encode
    monkeypatch.setattr(ZImage, "encode", lambda self, _, caption, role: encode(self, _, caption, "student"))
    with pytest.raises(ValueError, match=r"sees the same as the student for 01\.png"):
        list(train(new_run(tiny_config)))


@pytest.mark.process
def test_previews_show_the_rollout_and_base_beside_lora(new_run, tiny_config):
    prompts = ("a dog on the moon", "zwei Hunde")
    run = new_run(replace(tiny_config, preview_every=2, preview_prompts=prompts, seed=3))
    saved = [event for event in train(run) if isinstance(event, PreviewSaved)]
    # What the base draws comes first, the first roll-out at once: nobody waits for `preview_every`.
    assert [(event.step, event.kind) for event in saved] == [
        (0, "samples"),
        (1, "rollout"),
        (2, "rollout"),
        (2, "samples"),
        (4, "rollout"),
        (4, "samples"),
    ]
    assert saved[0].files == ("previews/base_0.png", "previews/base_1.png")
    rollout, samples = saved[2:4]
    # K = 2 states of the student, then of the teacher.
    assert rollout.files == tuple(
        f"previews/000002_{who}_{state}.webp" for who in ("student", "teacher") for state in range(2)
    )
    assert samples.files == ("previews/000002_sample_0.webp", "previews/000002_sample_1.webp")
    assert samples.prompts == prompts and samples.seed == 3
    # The first example of step 2 is square or wide; nothing is around the pictures.
    assert {size_of(run.path / file) for file in rollout.files} in ({(32, 32)}, {(48, 16)})
    assert size_of(run.path / samples.files[0]) == (32, 32)


@pytest.mark.process
def test_a_sample_says_in_itself_what_it_was_drawn_from(new_run, tiny_config):
    run = new_run(replace(tiny_config, preview_every=4, preview_prompts=("ein Hündchen 🐶",), seed=3))
    list(train(run))
    told = "ein Hündchen 🐶\nSteps: 4, Size: 32x32, Training step: {}, Noise: 1 of the training's seed 3"
    with Image.open(run.previews / "base_0.png") as base:
        assert base.text["parameters"] == told.format(0)
    with Image.open(run.previews / "000004_sample_0.webp") as sample:
        comment = sample.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert comment[:8] == b"UNICODE\0" and comment[8:].decode("utf-16-be") == told.format(4)


def test_previews_come_often_at_first(tiny_config):
    usual = replace(tiny_config, steps=400, preview_every=100)
    assert early_steps(usual) == [1, 2, 5, 10, 20, 50]
    assert early_samples(usual) == [10, 20, 50]
    assert preview_steps(usual) == [100, 200, 300, 400]
    quick = replace(tiny_config, steps=70, preview_every=25)
    assert early_steps(quick) == [1, 2, 5, 10] and preview_steps(quick) == [25, 50, 70]
    for none in (replace(usual, preview_every=0), replace(usual, preview_every=1)):
        assert early_steps(none) == []
    assert preview_steps(replace(usual, preview_every=0)) == []
    assert preview_steps(replace(usual, steps=30)) == [30]


@pytest.mark.process
def test_the_bases_pictures_are_shown_before_the_first_step(new_run, tiny_config):
    run = new_run(replace(tiny_config, preview_every=4))
    events = list(train(run))
    kinds = [type(event) for event in events]
    assert kinds.index(PreviewSaved) < kinds.index(StepDone)
    drawing = [event for event in events if isinstance(event, PhaseProgress) and event.phase == "drawing"]
    assert drawing == [PhaseProgress("drawing", 0, 2), PhaseProgress("drawing", 1, 2)]


@pytest.mark.process
def test_each_preview_measures_the_loras_health_beside_the_bases_own(new_run, tiny_config):
    run = new_run(replace(tiny_config, preview_every=2, preview_prompts=("a dog on the moon",)))
    measured = [event for event in train(run) if isinstance(event, HealthMeasured)]
    assert [event.step for event in measured] == [0, 2, 4]
    zero, *learned = measured
    assert (zero.following, zero.drift) == pytest.approx((1, 0), abs=1e-6)
    assert all(-1 <= event.concept <= 1 and 0 < event.drift <= 2 for event in learned)
    # More than the one that is shown, so that following can be seen; and four of what nobody trains.
    assert len(list(run.previews.glob("base_*.png"))) == PROMPTS == 4
    assert len(list(run.previews.glob("neutral_*.png"))) == 4


@pytest.mark.process
def test_the_bases_pictures_are_drawn_once_also_over_a_resume(new_run, tiny_config):
    run = new_run(replace(tiny_config, steps=4, preview_every=2, checkpoint_every=2))
    events = []
    for event in train(run):
        events.append(event)
        if isinstance(event, StepDone) and event.step == 2:
            (run.commands / "stop").touch()
    drawn = {file: file.stat().st_mtime_ns for file in run.previews.glob("*.png")}
    resumed = list(train(run))
    assert not [event for event in resumed if event == PhaseProgress("drawing", 0, 2)]
    events += resumed
    assert [event.step for event in events if isinstance(event, HealthMeasured)] == [0, 2, 0, 4]
    assert {file: file.stat().st_mtime_ns for file in run.previews.glob("*.png")} == drawn


@pytest.mark.process
def test_a_preview_that_fails_warns_and_the_run_goes_on(new_run, tiny_config):
    run = new_run(replace(tiny_config, preview_every=2))
    run.previews.rmdir()
    run.previews.write_text("a file where the folder should be")
    events = list(train(run))
    warned = [event for event in events if isinstance(event, Warned)]
    assert [event.step for event in warned] == [0, 1, 2, 4]
    assert all("training goes on" in event.message for event in warned)
    assert isinstance(events[-1], Finished)


@pytest.mark.process
def test_stop_keeps_a_checkpoint_and_resume_goes_on_from_it(new_run, tiny_config):
    config = replace(tiny_config, steps=6, checkpoint_every=100)
    run, uninterrupted = new_run(config), new_run(config)
    events = []
    for event in train(run):
        events.append(event)
        if isinstance(event, StepDone) and event.step == 3:
            (run.commands / "stop").touch()
    assert isinstance(events[-1], Stopped)
    assert events[-1].step == 3
    assert not run.lora_file.exists()
    events = list(train(run))
    assert [event.step for event in events if isinstance(event, Resumed)] == [3]
    assert [event.step for event in events if isinstance(event, StepDone)] == [4, 5, 6]
    list(train(uninterrupted))
    assert all(w.equal(student_of(uninterrupted, 6)[name]) for name, w in student_of(run, 6).items())


def test_a_stop_while_loading_comes_before_the_first_step(new_run, tiny_config):
    run = new_run(tiny_config)

    def stopped_at_once(run):
        (run.commands / "stop").touch()
        yield from train(run)

    assert work(run, stopped_at_once) == 0
    assert run.status.state == "stopped"
    planned, *others = read_events(run.events_file)
    assert isinstance(planned, MemoryPlanned)
    assert others == [PhaseProgress("loading", 0, 2), Stopped(0)]


@pytest.mark.process
def test_preview_now_and_save_now_do_it_at_the_next_step(new_run, tiny_config):
    run = new_run(replace(tiny_config, checkpoint_every=100))
    events = []
    for event in train(run):
        events.append(event)
        if event == Resumed(0):
            (run.commands / "preview-now").touch()
            (run.commands / "save-now").touch()
    saved = [(event.step, event.kind) for event in events if isinstance(event, PreviewSaved)]
    assert saved == [(1, "rollout"), (0, "samples"), (1, "samples")]  # the base's for comparison
    assert [event.step for event in events if isinstance(event, CheckpointSaved)] == [1, 4]


@pytest.mark.process
def test_older_checkpoints_keep_only_the_lora(new_run, tiny_config):
    run = new_run(replace(tiny_config, steps=3, checkpoint_every=1))
    list(train(run))
    files = {
        folder.name: sorted(f.name for f in folder.iterdir()) for folder in sorted(run.checkpoints.iterdir())
    }
    everything = ["lora.safetensors", "manifest.json", "resume.pt"]
    assert files == {
        "000001": ["lora.safetensors", "manifest.json"],
        "000002": everything,
        "000003": everything,
    }


@pytest.mark.process
def test_the_best_checkpoint_stays_when_others_of_its_age_go(new_run, tiny_config, monkeypatch):
    monkeypatch.setattr(checkpoint, "MAX_CHECKPOINTS", 1)
    kept = []
    for every in (0, 1):  # without previews nothing tells which is the best
        run = new_run(
            replace(tiny_config, steps=3, checkpoint_every=1, preview_every=every, learning_rate=1e-2)
        )
        measured = [event for event in train(run) if isinstance(event, HealthMeasured)]
        kept.append({int(folder.name) for folder in run.checkpoints.iterdir()})
    assert kept == [{3}, {best_step(measured, {1, 2}), 3}]


@pytest.mark.process
def test_the_vision_tower_leaves_when_the_health_cannot_be_measured(new_run, tiny_config, monkeypatch):
    towers = []

    def too_much(base_model, look):
        base_model.picture_features(look.lora[0])
        towers.append((base_model, base_model.vision_tower))
        raise RuntimeError("out of memory")

    monkeypatch.setattr("dopsd_app.checks.health.features_health", too_much)
    events = list(train(new_run(replace(tiny_config, preview_every=2))))
    assert [event.step for event in events if isinstance(event, Warned)] == [2, 4]
    assert all(tower is not None and base_model.vision_tower is None for base_model, tower in towers)
    assert isinstance(events[-1], Finished)


@pytest.mark.process
def test_a_warning_comes_once_when_the_health_becomes_bad_and_goes_when_it_is_good(
    new_run, tiny_config, monkeypatch
):
    monkeypatch.setattr(
        "dopsd_app.checks.health.complaint", lambda health, judged: "Drifts." if health.step in (2, 3) else ""
    )
    run = new_run(replace(tiny_config, steps=4, preview_every=1))
    warned = [event for event in train(run) if isinstance(event, Warned)]
    assert warned == [Warned(2, "Drifts.", "health"), Warned(4, "", "health")]
    assert standing_warnings(warned[:1]) == ("Drifts.",)
    assert standing_warnings([Warned(1, "A preview failed."), *warned]) == ("A preview failed.",)


@pytest.mark.process
def test_the_encoders_are_not_loaded_again_when_the_cache_holds_everything(new_run, tiny_config, monkeypatch):
    first = new_run(tiny_config)
    list(train(first))
    second = new_run(tiny_config)

    def must_not_load(self):
        raise AssertionError("the encoders were loaded")

    monkeypatch.setattr("dopsd_app.models.z_image.ZImage.load_encoders", must_not_load)
    list(train(second))
    assert all(w.equal(student_of(second, 4)[name]) for name, w in student_of(first, 4).items())


@pytest.mark.process
def test_seeds_make_a_difference_and_nothing_else_does(new_run, tiny_config):
    weights = []
    for config in (tiny_config, tiny_config, replace(tiny_config, seed=1)):
        torch.manual_seed(len(weights))
        run = new_run(config)
        list(train(run))
        weights.append(student_of(run, 4)["layers.0.attention.to_q.lora_B.weight"])
    assert weights[0].equal(weights[1])
    assert not torch.allclose(weights[0], weights[2])


@pytest.mark.process
def test_a_preview_does_not_change_what_is_learned(new_run, tiny_config):
    plain, watched = new_run(tiny_config), new_run(replace(tiny_config, preview_every=1))
    for run in (plain, watched):
        list(train(run))
    assert all(w.equal(student_of(watched, 4)[name]) for name, w in student_of(plain, 4).items())


# --- real workers


def start_worker(run):
    with run.log_file.open("ab") as log:
        process = forks.start(
            [sys.executable, "-m", "dopsd_app.jobs.worker", str(run.path)],
            cwd=ROOT,
            env=os.environ,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    process.stdin.close()
    return process


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        assert process.poll() is None, "the worker ended early"
        time.sleep(0.01)


@pytest.mark.process
def test_killed_at_random_moments_the_run_ends_with_the_very_same_weights(new_run, tiny_config):
    # Rank 128 makes every weight 4,096 numbers: the 8-bit optimizer really keeps 8-bit state.
    config = replace(
        tiny_config, steps=13, rank=128, optimizer="adamw8bit", checkpoint_every=3, preview_every=5
    )
    uninterrupted, killed = new_run(config), new_run(config)
    list(train(uninterrupted))
    moments = random.Random("a moment")
    process = start_worker(killed)
    # A random step of the 13, and then a random moment in it: a save, a preview, or the step itself.
    until = moments.randint(1, 10)
    wait_for(lambda: any(event.step >= until for event in events_of(killed, StepDone)), process)
    time.sleep(moments.random() * 0.1)
    process.kill()
    process.wait()
    assert killed.status.state == "interrupted"
    process = start_worker(killed)
    assert process.wait(120) == 0
    assert killed.status.state == "finished"
    resumed = [event.step for event in events_of(killed, Resumed)]
    assert all(step % 3 == 0 for step in resumed)
    assert [event.step for event in events_of(killed, StepDone)] == list(range(1, 14))
    first, second = (adapters_of(run, 13) for run in (uninterrupted, killed))
    for name in ("student", "teacher"):
        assert all(weight.equal(second[name][key]) for key, weight in first[name].items())
    assert uninterrupted.lora_file.read_bytes() == killed.lora_file.read_bytes()


@pytest.fixture(scope="module")
def worked(tmp_path_factory):
    """Where the folder of a finished run lies when a test has trained it."""
    return tmp_path_factory.mktemp("worked") / job_name("worked")


@pytest.mark.process
@pytest.mark.parametrize(
    "moment", ["torn checkpoint", "before the LoRA", "before Finished", "before the status"]
)
def test_killed_around_the_last_step_the_run_still_ends_well(new_run, tiny_config, worked, tmp_path, moment):
    if not worked.exists():
        first = new_run(tiny_config)
        assert work(first, train) == 0
        shutil.copytree(first.path, worked)
    run = Run(Path(shutil.copytree(worked, tmp_path / "runs" / worked.name)))
    expected = load_file(run.lora_file)
    write_status(run, state="training", pid=None)  # as the killed process left it
    if moment == "torn checkpoint":
        (run.checkpoints / "000004" / "manifest.json").unlink()
        (run.checkpoints / "000004" / "resume.pt").write_bytes(b"half")
    if moment in ("torn checkpoint", "before the LoRA"):
        run.lora_file.unlink()
        run.check_file.unlink()
    if moment != "before the status":
        lines = run.events_file.read_bytes().splitlines(keepends=True)
        run.events_file.write_bytes(b"".join(line for line in lines if b"Finished" not in line)[:-20])
    assert run.status.state == "interrupted"
    assert work(run, train) == 0
    assert run.status.state == "finished"
    assert all(weight.equal(expected[name]) for name, weight in load_file(run.lora_file).items())
    events = read_events(run.events_file)
    assert [event.step for event in events if isinstance(event, StepDone)] == [1, 2, 3, 4]
    assert [type(event) for event in events].count(Finished) == 1
    assert isinstance(events[-1], Finished)


@pytest.mark.process
def test_ctrl_c_stops_cleanly_with_a_checkpoint(new_run, tiny_config):
    run = new_run(replace(tiny_config, steps=100000, checkpoint_every=100000))
    process = start_worker(run)
    wait_for(lambda: events_of(run, StepDone), process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert run.status.state == "stopped"
    stopped = events_of(run, Stopped)[0]
    assert (run.checkpoints / f"{stopped.step:06d}" / "manifest.json").exists()


@pytest.mark.process
def test_a_disk_that_fills_up_with_checkpoints_fails_the_run_and_keeps_the_last(
    tmp_path, dataset, tiny_config
):
    # 2 MB of real disk: a checkpoint of rank 12 takes 0.5 MB, and 0.1 MB of every older one stay.
    settings = asdict(replace(tiny_config, steps=40, rank=12, checkpoint_every=1))
    script = """
        import json, sys
        from pathlib import Path
        from dopsd_app.method.checkpoint import load_checkpoint
        from dopsd_app.config import make_config
        from dopsd_app.models.load import load_base_model
        from dopsd_app.data.pictures import read_examples
        from dopsd_app.jobs.runs import create_run
        from dopsd_app.method.step import prepare
        from dopsd_app.train import train
        from dopsd_app.jobs.worker import work

        config = make_config(json.loads(sys.argv[3]))
        run = create_run(Path(sys.argv[1]), config, read_examples(sys.argv[2], minimum_side=32))
        code = work(run, train)
        base_model = load_base_model(config)
        base_model.load_transformer()
        loading = load_checkpoint(run, base_model.transformer, prepare(base_model, config))
        try:
            next(loading)
        except StopIteration as done:
            kept = done.value
        print(json.dumps([code, run.status.state, run.status.reason, run.status.step, kept]))
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    command = [*on_a_small_disk(disk), sys.executable, "-c", textwrap.dedent(script)]
    arguments = [str(disk), str(dataset.examples[0].image.parent), json.dumps(settings)]
    result = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=ROOT)
    code, state, reason, step, kept = json.loads(result.stdout.splitlines()[-1])
    assert (code, state) == (1, "failed"), result.stderr
    assert "The disk is full" in reason
    assert 2 <= kept == step - 1  # the step whose checkpoint did not fit is the only one that is lost


@pytest.mark.process
def test_a_torn_checkpoint_is_passed_over(new_run, tiny_config):
    run = new_run(tiny_config)
    list(train(run))
    torn = run.checkpoints / "000005"
    shutil.copytree(run.checkpoints / "000004", torn)
    (torn / "manifest.json").unlink()
    (torn / "resume.pt").write_bytes(b"half")
    write_status(run, state="stopped")
    assert [event.step for event in train(run) if isinstance(event, Resumed)] == [4]
    assert not torn.exists()  # it would hold gigabytes for ever
