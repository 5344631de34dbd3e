"""Checkpoints: what is in them, what damage does, and runs that go on from them as if never stopped."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from dopsd_app.config import TrainConfig, save_config
from dopsd_app.errors import KnownFailure
from dopsd_app.generate import generate
from dopsd_app.jobs import runs
from dopsd_app.jobs.events import Finished, HealthMeasured, Resumed, StepDone, Warned, read_events
from dopsd_app.jobs.job import RunError, write_status
from dopsd_app.jobs.lora_file import check_intact, find_lora
from dopsd_app.jobs.runs import Run, complete_checkpoints, latest_checkpoint
from dopsd_app.jobs.worker import work
from dopsd_app.method.adapters import adapter_weights, remove_adapters
from dopsd_app.method.checkpoint import load_checkpoint, save_checkpoint
from dopsd_app.models.load import load_base_model
from dopsd_app.train import prepare, train
from tests.support.checkpoint_files import leave_checkpoint

# --- damage on disk


@pytest.fixture(scope="module")
def config(z_image_folder):
    return TrainConfig(
        base_model=str(z_image_folder),
        rank=4,
        lora_alpha=6.0,
        optimizer="adamw",
        resolution=32,
    )


@pytest.fixture(scope="module")
def base_model(config):
    base_model = load_base_model(config)
    base_model.load_transformer()
    return base_model


@pytest.fixture
def learner(base_model, config):
    """A transformer with fresh adapters and its optimizer; the adapters leave after the test."""
    yield base_model.transformer, prepare(base_model, config)
    remove_adapters(base_model.transformer)


def learn(learner, seed):
    """A step along gradients that are drawn, not computed; student and teacher then differ."""
    _, optimizer = learner
    generator = torch.Generator().manual_seed(seed)
    for weight in optimizer.param_groups[0]["params"]:
        weight.grad = torch.randn(weight.shape, generator=generator)
    optimizer.step()
    return state_of(learner)


def state_of(learner):
    """All that training goes on with, as plain copies."""
    transformer, optimizer = learner
    weights = {
        (adapter, name): weight.detach().clone()
        for adapter in ("student", "teacher")
        for name, weight in adapter_weights(transformer, adapter).items()
    }
    moments = {
        (number, name): torch.as_tensor(value).clone()
        for number, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }
    return weights | moments


def same(first, second):
    return first.keys() == second.keys() and all(value.equal(second[key]) for key, value in first.items())


@pytest.fixture
def kept(tmp_path, config, learner):
    """A run with whole checkpoints of steps 2 and 4, and what training had come to at each."""
    run = Run(tmp_path / "20260101-000000-kept-0123456789ab")
    run.path.mkdir()
    save_config(config, run.path / "config.json")
    states = {}
    for step in (2, 4):
        states[step] = learn(learner, step)
        save_checkpoint(run, step, *learner, {})
    learn(learner, 5)
    return run, states


def restored(run, learner):
    """The step that was restored, and what was said."""
    loading, told = load_checkpoint(run, *learner), []
    while True:
        try:
            told.append(next(loading))
        except StopIteration as done:
            return done.value, told


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-3]),
    "a flipped bit": flip_a_bit,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["lora.safetensors", "resume.pt", "manifest.json"])
def test_the_newest_whole_checkpoint_is_taken_and_damage_is_told(kept, learner, name, damage):
    run, states = kept
    newest = run.checkpoints / "000004"
    DAMAGES[damage](newest / name)
    step, told = restored(run, learner)
    assert step == 2
    assert same(state_of(learner), states[2])
    if (name, damage) == ("manifest.json", "missing"):  # as a kill leaves it
        assert told == []
    else:
        (warned,) = told
        assert warned.step == 2
        assert "Damaged on disk: the checkpoint of step 4 (" in warned.message
        assert "So training goes on from that of step 2." in warned.message
    # A whole LoRA stays to be tried; nothing else of the damaged one takes room.
    left = [file.name for file in newest.glob("*")]
    assert sorted(left) == (["lora.safetensors", "manifest.json"] if name == "resume.pt" else [])
    assert latest_checkpoint(run) == run.checkpoints / "000002"
    assert restored(run, learner) == (2, [])


def test_without_damage_the_newest_is_restored_bit_for_bit_and_nothing_is_said(kept, learner):
    run, states = kept
    assert restored(run, learner) == (4, [])
    assert same(state_of(learner), states[4])


def test_when_all_are_damaged_training_starts_afresh_and_says_so(kept, learner):
    run, _ = kept
    before = state_of(learner)
    for step in (2, 4):
        DAMAGES["truncated"](run.checkpoints / f"{step:06d}" / "resume.pt")
    step, (warned,) = restored(run, learner)
    assert step == 0
    assert "step 4" in warned.message and "step 2" in warned.message
    assert "So training starts from the beginning." in warned.message
    assert same(state_of(learner), before)
    assert latest_checkpoint(run) is None
    save_checkpoint(run, 1, *learner, {})  # the LoRAs of later steps do not push it out
    save_checkpoint(run, 2, *learner, {})
    assert latest_checkpoint(run).name == "000002"
    assert restored(run, learner) == (2, [])


@pytest.mark.parametrize("name", ["notes.txt", ".DS_Store", "desktop.ini"])
def test_files_that_others_leave_there_are_left_alone(kept, learner, name):
    run, _ = kept
    for folder in (run.checkpoints, run.checkpoints / "000004"):
        (folder / name).write_text("mine")
    (run.checkpoints / "my best").mkdir()
    assert restored(run, learner) == (4, [])
    assert (run.checkpoints / name).read_text() == "mine"
    assert (run.checkpoints / "my best").is_dir()


def test_a_folder_of_checkpoints_that_is_gone_is_made_anew(kept, learner):
    run, _ = kept
    shutil.rmtree(run.checkpoints)
    assert restored(run, learner) == (0, [])
    save_checkpoint(run, 1, *learner, {})
    assert restored(run, learner) == (1, [])


def test_checkpoints_of_an_earlier_version_are_refused_in_words_and_kept(kept, learner):
    run, _ = kept
    old = run.checkpoints / "000004"
    shutil.rmtree(old)
    old.mkdir()
    (old / "manifest.json").write_text('{"step": 4}')
    for name in ("student.safetensors", "teacher.safetensors", "optimizer.pt"):
        (old / name).write_bytes(b"weights")
    write_status(run, state="stopped")
    for refused in (lambda: restored(run, learner), lambda: runs.resume(run), lambda: runs.resume(run, 3)):
        with pytest.raises(RunError, match="made by another version of this program"):
            refused()
    assert len(list(old.iterdir())) == 4
    assert run.status.state == "stopped"
    assert find_lora(run, 2) == run.checkpoints / "000002" / "lora.safetensors"
    with pytest.raises(RunError, match=r"no checkpoint of step 4\. Checkpoints there are: 2\."):
        find_lora(run, 4)


def test_of_an_old_checkpoint_only_the_lora_is_asked_for_and_its_hash_stays(kept, learner):
    run, _ = kept
    written = json.loads((run.checkpoints / "000002" / "manifest.json").read_text())["files"]
    flip_a_bit(run.checkpoints / "000002" / "lora.safetensors")
    save_checkpoint(run, 6, *learner, {})
    thinned = json.loads((run.checkpoints / "000002" / "manifest.json").read_text())["files"]
    assert thinned == {"lora.safetensors": written["lora.safetensors"]}
    assert [folder.name for folder in complete_checkpoints(run)] == ["000002", "000004", "000006"]
    with pytest.raises(RunError, match=r"The LoRA file of step 2 of .* is damaged"):
        check_intact(run, find_lora(run, 2))
    check_intact(run, find_lora(run, 4))


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path, learner):
    run = Run(tmp_path / "20260101-000000-new-0123456789ab")
    manifest = leave_checkpoint(run, 3) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema": 2', '"schema": 3'))
    with pytest.raises(RunError, match="another version"):
        restored(run, learner)
    assert manifest.exists()


# --- the LoRA files


def steps_of(file):
    with safe_open(file, framework="np") as opened:
        return json.loads(opened.metadata()["dopsd"])["steps"]


@pytest.mark.process
def test_each_checkpoint_is_a_lora_file_and_the_last_one_is_the_final_file(new_run, tiny_config):
    run = new_run(replace(tiny_config, lora_alpha=6.0, trigger_word="zorp"))
    list(train(run))
    first, last = (find_lora(run, step) for step in (2, 4))
    assert last.read_bytes() == find_lora(run, None).read_bytes() == run.lora_file.read_bytes()
    assert (steps_of(first), steps_of(last)) == (2, 4)
    assert not any(folder.joinpath("student.safetensors").exists() for folder in run.checkpoints.iterdir())


@pytest.mark.process
def test_a_damaged_lora_is_told_in_words_by_who_loads_it(new_run, tiny_config, tmp_path):
    run = new_run(tiny_config)
    list(train(run))
    for checkpoint in (None, 2):
        file = find_lora(run, checkpoint)
        whole = file.read_bytes()
        for damage in ("empty", "truncated", "a flipped bit"):
            DAMAGES[damage](file)
            with pytest.raises(KnownFailure, match=r"is damaged: it does not|has no checkpoint of step 2"):
                list(generate(run, ["a dog"], [1], out=tmp_path, checkpoint=checkpoint))
            file.write_bytes(whole)
    run.check_file.unlink()  # as an earlier version left it: without a hash
    DAMAGES["truncated"](run.lora_file)
    with pytest.raises(KnownFailure, match="cannot be read as a LoRA file"):
        list(generate(run, ["a dog"], [1], out=tmp_path))


# --- runs that go on


def trained_in_parts(run, parts):
    """The events of a run that makes so many steps at a time."""
    events = []
    for number, steps in enumerate(parts):
        if number:
            runs.resume(run, steps)
        assert work(run, train) == 0
        events = read_events(run.events_file)
    return events


@pytest.mark.process
def test_a_finished_run_goes_on_and_ends_with_the_very_same_file_as_one_long_run(new_run, tiny_config):
    config = replace(tiny_config, preview_every=3)
    long, short = new_run(replace(config, steps=8)), new_run(replace(config, steps=4))
    made = (short.path / "config.json").stat().st_mtime_ns
    list(train(long))
    events = trained_in_parts(short, (4, 4))
    assert short.lora_file.read_bytes() == long.lora_file.read_bytes()
    states = [
        torch.load(run.checkpoints / "000008" / "resume.pt", weights_only=True)["adapters"]
        for run in (long, short)
    ]
    for adapter in ("student", "teacher"):
        assert same(*(state[adapter] for state in states))
    assert [event.step for event in events if isinstance(event, Resumed)] == [0, 4]
    assert [event.step for event in events if isinstance(event, StepDone)] == list(range(1, 9))
    assert [event.step for event in events if isinstance(event, HealthMeasured)] == [0, 3, 4, 6, 8]
    assert events[-1] == Finished(8, short.lora_file.name)
    assert (short.status.state, short.status.step, short.status.steps) == ("finished", 8, 8)
    assert short.config == replace(long.config, steps=8)
    assert (short.path / "config.json").stat().st_mtime_ns == made  # the list of runs is ordered by it
    assert json.loads(short.check_file.read_text())["passed"] is True


@pytest.mark.process
def test_until_the_longer_training_ends_the_shorter_ones_file_stays(new_run, tiny_config):
    run = new_run(tiny_config)
    assert work(run, train) == 0
    before = run.lora_file.read_bytes()
    runs.resume(run, 4)
    for event in train(run):
        if isinstance(event, StepDone) and event.step == 6:
            (run.commands / "stop").touch()
    assert run.lora_file.read_bytes() == before
    assert steps_of(find_lora(run, 6)) == 6


@pytest.mark.process
def test_a_run_goes_on_from_an_older_checkpoint_where_the_last_is_damaged(new_run, tiny_config):
    run = new_run(tiny_config)
    assert work(run, train) == 0
    flip_a_bit(run.checkpoints / "000004" / "resume.pt")
    runs.resume(run, 2)
    assert work(run, train) == 0
    events = read_events(run.events_file)
    assert [event.step for event in events if isinstance(event, StepDone)] == [1, 2, 3, 4, 5, 6]
    (warned,) = [event for event in events if isinstance(event, Warned)]
    assert "step 4 (resume.pt does not hold what was written)" in warned.message
    assert warned.message in run.log_file.read_text()
    whole = new_run(replace(tiny_config, steps=6))
    list(train(whole))
    assert run.lora_file.read_bytes() == whole.lora_file.read_bytes()


@pytest.mark.parametrize(
    ("state", "steps", "reason"),
    [
        ("finished", None, "is finished already. Say how many more steps"),
        ("finished", 0, "at least 1, not 0"),
        ("finished", -3, "at least 1, not -3"),
        ("queued", 3, "is queued. Wait for its end"),
    ],
)
def test_what_cannot_go_on_is_refused(new_run, tiny_config, state, steps, reason):
    run = new_run(tiny_config)
    leave_checkpoint(run, 4)
    write_status(run, state=state)
    with pytest.raises(RunError, match=reason):
        runs.resume(run, steps)
    assert (run.status.state, run.config) == (state, tiny_config)


def test_without_a_checkpoint_there_is_nothing_to_go_on_from(new_run, tiny_config):
    run = new_run(tiny_config)
    write_status(run, state="finished")
    with pytest.raises(RunError, match="has no checkpoint to go on from"):
        runs.resume(run, 3)
    assert run.config == tiny_config


# --- the cache of encoded pictures


@pytest.mark.process
def test_damaged_files_in_the_cache_are_encoded_anew(new_run, tiny_config):
    first = new_run(tiny_config)
    list(train(first))
    cache = sorted((first.runs_dir / ".cache").iterdir())
    whole = [file.read_bytes() for file in cache]
    for file, content in zip(cache, (b"", whole[1][:-3], b"x" * 999), strict=False):
        file.write_bytes(content)
    second = new_run(tiny_config)
    list(train(second))
    assert second.lora_file.read_bytes() == first.lora_file.read_bytes()
    assert [file.read_bytes() for file in cache] == whole
