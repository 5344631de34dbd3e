"""A base model that the program has never heard of: one file, trained and drawn from the command line."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants

from dopsd_app.check_base import check
from dopsd_app.checks.teacher_check import teacher_check
from dopsd_app.checks.verdict import read_check
from dopsd_app.cli import main
from dopsd_app.config import TrainConfig
from dopsd_app.data.pictures import read_examples
from dopsd_app.errors import KnownFailure
from dopsd_app.jobs.events import (
    CheckpointSaved,
    HealthMeasured,
    LoraChecked,
    PreviewSaved,
    StepDone,
    Warned,
    read_events,
)
from dopsd_app.jobs.launcher import launcher
from dopsd_app.jobs.runs import list_runs
from dopsd_app.method.encode import Prompt, encode_examples
from dopsd_app.method.objectives import make_objective
from dopsd_app.method.objectives.protocol import Material
from dopsd_app.method.rollout import sample
from dopsd_app.method.step import optimizer_step, prepare
from dopsd_app.models.architectures import ARCHITECTURES, register
from dopsd_app.models.base_report import Finding
from dopsd_app.models.catalog import find_base_model, find_facts
from dopsd_app.models.load import load_base_model
from dopsd_app.models.loaded_model import LoadedModel
from dopsd_app.models.memory_plan import ALL, MemoryPlan
from dopsd_app.models.protocol import NO_PICTURES, Pictures
from dopsd_app.planning.machine import Machine
from dopsd_app.planning.plan import make_plan
from dopsd_app.schema import STAMP_FILE
from dopsd_app.torch_build import TorchBuild
from tests.support.encoded import make_example, trained
from tests.support.pictures import make_picture

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "steps": 4,
    "rollout_steps": 2,
    "num_inference_steps": 4,
    "batch_size": 2,
    "rank": 4,
    "resolution": 64,
    "optimizer": "adamw",
    "learning_rate": 1e-2,
    "preview_every": 2,
    "checkpoint_every": 2,
}


@pytest.fixture
def toy(monkeypatch):
    """The toy's module, known in this process for one test."""
    # What importing it changes is undone after the test.
    monkeypatch.setitem(ARCHITECTURES, "ToyPipeline", None)
    monkeypatch.setattr(launcher, "command", launcher.command)
    from tests.support import toy_base

    launcher.command = (sys.executable, toy_base.__file__)
    register(toy_base.TOY)
    return toy_base


@pytest.fixture
def config(toy, tmp_path):
    toy.save_toy(tmp_path / "toy")
    return TrainConfig(base_model=str(tmp_path / "toy"), **SETTINGS)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(4):
        make_picture(number, 64, 64).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"thing number {number}")
    return folder


def load(config):
    base_model = load_base_model(config)
    base_model.load_encoders()
    base_model.load_transformer()
    return base_model


def test_a_memory_plan_changes_nothing_that_is_learned(config):
    plans = MemoryPlan(), MemoryPlan(recomputed_blocks=1), MemoryPlan(recomputed_blocks=ALL, halves=True)
    made = []
    for plan in plans:
        base_model = load(config)
        base_model.memory_plan = plan
        examples = (make_example(base_model, 0, "a thing", height=64, width=64),)
        optimizer = prepare(base_model, config)
        trained(base_model)
        objective = make_objective(base_model, config, Material(examples, (), ()))
        steps = [
            optimizer_step(base_model, config, examples, objective, optimizer, step) for step in range(1, 4)
        ]
        made.append([number for step in steps for number in (step.loss, step.grad_norm)])
    assert made[1] == pytest.approx(made[0], rel=1e-5)
    assert made[2] == pytest.approx(made[0], rel=1e-5)


@pytest.mark.process
def test_it_is_trained_and_drawn_from_the_command_line(config, pictures, tmp_path):
    settings = [f"{name}={str(value).lower()}" for name, value in SETTINGS.items()]
    where = ["--runs", str(tmp_path / "runs")]
    settings.append(f"base_model={config.base_model}")
    # Its worker is a process of its own, which knows the toy by its file.
    assert main(["train", "--images", str(pictures), *where, "--set", *settings]) == 0
    [run] = list_runs(tmp_path / "runs")
    assert run.status.state == "finished"
    events = list(read_events(run.events_file))
    of = lambda kind: [event for event in events if isinstance(event, kind)]  # noqa: E731
    assert [event.step for event in of(StepDone)] == [1, 2, 3, 4]
    assert all(event.grad_norm > 0 for event in of(StepDone))
    assert [event.step for event in of(CheckpointSaved)] == [2, 4]
    assert [event.kind for event in of(PreviewSaved)] == ["samples", "rollout"] + ["rollout", "samples"] * 2
    assert not of(HealthMeasured) and not of(Warned)  # nothing measures it: no eyes, and no judge
    [checked] = of(LoraChecked)
    assert checked.passed, checked.summary  # by its own pipeline
    drawn = str(tmp_path / "drawn")
    assert main(["generate", run.id, *where, "--prompt", "thing", "--out", drawn]) == 0
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 1


def test_its_files_alone_are_needed(config):
    place = find_base_model(config.base_model)
    assert place.vision_tower is None
    (place.folder / "autoencoder" / "model.safetensors").unlink()
    with pytest.raises(KnownFailure, match=r"it lacks autoencoder/\*\.safetensors"):
        find_base_model(config.base_model)


def test_its_plan_is_reckoned_by_its_own_arithmetic(config, tmp_path):
    machine = Machine((), TorchBuild(), 2**33, 2**33, 2)
    plan = make_plan(config, pictures=4, runs_dir=tmp_path, machine=machine)
    assert plan.problems == () and plan.lacks is None
    sizes = find_facts(config.base_model).sizes
    # 8 x 8 latents; two layers of 16 x 16, 2 operations for each weight and token; the teacher sees 64 more
    assert sizes.work(sizes.teacher_tokens(64, "auto")) == (2 * 512 * 128, 0)
    assert sizes.lora_parameters(4) == 2 * 4 * (16 + 16)
    wrong = make_plan(
        replace(config, teacher_context="vision_language"), pictures=4, runs_dir=tmp_path, machine=machine
    )
    [problem] = wrong.problems
    assert "`teacher_context` is vision_language" in problem and "one of: auto, reference." in problem


def test_time_and_velocity_are_turned_round(config):
    base_model = load(config)
    told = [base_model.encode(NO_PICTURES, "a", "student")]
    with torch.no_grad():
        for weight in base_model.transformer.parameters():
            weight.zero_()
        base_model.transformer.time_in.weight.fill_(1)
        base_model.transformer.latents_out.weight.fill_(1 / 16)  # it says its own time
        velocity = base_model.predict_velocity(torch.zeros(1, 4, 1, 1), torch.tensor(0.75), told)
        torch.testing.assert_close(velocity, torch.full((1, 4, 1, 1), -0.25))
        # Picture 0.5, noise -0.5: it says 1. A quarter of the way, at -0.25, the picture is 0.75 further on.
        base_model.transformer.latents_out.weight.zero_()
        base_model.transformer.latents_out.bias.fill_(1)
        latents = torch.full((1, 4, 1, 1), 0.75 * -0.5 + 0.25 * 0.5)
        velocity = base_model.predict_velocity(latents, torch.tensor(0.75), told)
    torch.testing.assert_close(latents - 0.75 * velocity, torch.full((1, 4, 1, 1), 0.5))


def test_previews_are_what_its_own_pipeline_draws(config):
    base_model = load(config)
    told = base_model.encode(NO_PICTURES, "a thing", "student")
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(1, 4, 8, 8, generator=generator)
    ours = base_model.decode(sample(base_model, [told], noise, base_model.sigmas(4, 64, 64)))[0]
    theirs = base_model.draw(
        base_model.make_pipeline(),
        told,
        height=64,
        width=64,
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(3),
    )
    assert np.abs(np.subtract(ours, theirs, dtype=int)).max() <= 1


def test_the_teacher_sees_the_picture_as_latents(config):
    base_model = load_base_model(config)
    base_model.load_encoders()  # the autoencoder comes with them, the transformer does not
    assert base_model.transformer is None
    picture = make_picture(0, 64, 64)
    student = base_model.encode(Pictures(picture), "a thing", "student")
    teacher = base_model.encode(Pictures(picture), "a thing", "teacher")
    assert student.reference_latents == ()
    assert [x.shape for x in teacher.reference_latents] == [(4, 8, 8)]
    base_model.free_encoders()
    base_model.load_transformer()
    with torch.no_grad():
        seen, unseen = (
            base_model.predict_velocity(torch.zeros(1, 4, 8, 8), torch.tensor(0.5), [told])
            for told in (teacher, student)
        )
    assert (seen - unseen).abs().max() > 1e-3


def test_another_context_is_encoded_anew(config, pictures, tmp_path):
    examples = read_examples(pictures, minimum_side=64).examples
    cache = tmp_path / "cache"

    def encoded(context):
        base_model = load_base_model(config)
        base_model.teacher_context = context
        *_, _ = encode_examples(base_model, config, examples, (), (), cache)
        return len([file for file in cache.iterdir() if file.name != STAMP_FILE])

    assert encoded("reference") == encoded("reference") == 8  # student and teacher
    assert encoded("another") == 12


def test_pictures_to_start_from_are_refused_where_nothing_is_edited(config, pictures, tmp_path):
    for number in range(4):
        make_picture(9, 64, 64).save(pictures / f"{number}_source.png")
    examples = read_examples(pictures, minimum_side=64).examples
    with pytest.raises(KnownFailure, match="cannot edit pictures"):
        list(encode_examples(load_base_model(config), config, examples, (), (), tmp_path / "cache"))


def test_pictures_to_start_from_are_part_of_what_is_encoded(config, toy, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(toy.Toy, "architecture", replace(toy.TOY, edits=True))
    for number in range(4):
        make_picture(number, 64, 64).save(pictures / f"{number}_source.png")
    given = []
    encode = toy.Toy.encode
    monkeypatch.setattr(toy.Toy, "encode", lambda self, *told: given.append(told) or encode(self, *told))
    for seed in (8, 9):  # another picture, another conditioning, for student and teacher
        make_picture(seed, 96, 64).save(pictures / "1_source.png")
        examples = read_examples(pictures, minimum_side=64).examples
        prompts = (Prompt("a thing"),)
        list(encode_examples(load_base_model(config), config, examples, prompts, (), tmp_path / "cache"))
    of_one = [(told[2], len(told[0].sources)) for told in given if told[1] == "thing number 1"]
    assert of_one == [("student", 1), ("teacher", 1)] * 2
    assert len(given) == 4 * 2 + 1 + 2  # the prompt and the other examples came from the cache


def test_the_teacher_check_asks_the_colours_where_there_are_no_eyes(config, pictures, tmp_path):
    examples = read_examples(pictures, minimum_side=64).examples
    (tmp_path / "check").mkdir()
    list(teacher_check(LoadedModel(config), config, examples, tmp_path / "check"))
    assert len(read_check(tmp_path / "check").rows) == 4


def test_it_is_checked_as_any_other(config, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    findings = [event for event in check(config, tmp_path / "runs") if isinstance(event, Finding)]
    assert len(findings) == 6 and all(finding.passed for finding in findings), findings


def test_the_program_has_never_heard_of_it():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "dopsd_app").rglob("*.py")]
    assert sources and not [source for source in sources if re.search("toy_base|ToyPipeline", source)]
