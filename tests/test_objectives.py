"""Objectives: each trains in the one loop, with the same checks and resume; a new one costs a file."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from dopsd_app import config as settings
from dopsd_app.config import OBJECTIVES, ConfigError, ObjectiveFacts, TrainConfig
from dopsd_app.data.drafts import new_draft, set_settings
from dopsd_app.hub.model_card import make_card
from dopsd_app.jobs.events import HealthMeasured, LoraChecked, PreviewSaved, StepDone
from dopsd_app.method import objectives
from dopsd_app.method.losses import flow_matching_loss, preference_loss
from dopsd_app.method.objectives import make_objective
from dopsd_app.method.objectives.flow import shifted
from dopsd_app.method.objectives.made import draw_priors, draw_samples
from dopsd_app.method.objectives.protocol import Material, Objective
from dopsd_app.method.step import optimizer_step, prepare
from dopsd_app.models.load import load_base_model
from dopsd_app.models.memory_plan import ALL, MemoryPlan
from dopsd_app.models.protocol import NO_PICTURES
from dopsd_app.models.sizes import read_sizes
from dopsd_app.models.z_image import ZImage
from dopsd_app.models.z_image_facts import Z_IMAGE
from dopsd_app.planning.cost import step_work
from dopsd_app.train import train
from dopsd_app.ui.plan import plan_step
from tests.support.encoded import gradients_of, make_example, trained
from tests.support.layout import lay_out
from tests.support.pictures import make_picture
from tests.support.torn_run import train_and_tear

OTHERS = [name for name in OBJECTIVES if name != "dopsd"]


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    """Pictures that are drawn first are many: for what is asked here a few are enough."""
    monkeypatch.setattr("dopsd_app.method.objectives.made.SAMPLES", 5)


def make_material(base_model):
    """Three pictures in two sizes, one of them with two captions."""
    shapes = ((32, "a dog", "a much longer caption about the very same dog"), (32, "a cat"), (64, "a cow"))
    examples = [make_example(base_model, i, *told, width=width) for i, (width, *told) in enumerate(shapes)]
    latents = [base_model.encode_picture(make_picture(i, width)) for i, (width, *_) in enumerate(shapes)]
    neutral = [base_model.encode(NO_PICTURES, prompt, "student") for prompt in ("a tree", "a house")]
    return Material(tuple(examples), tuple(latents), tuple(neutral))


def fresh(config):
    base_model = load_base_model(config)
    base_model.load_encoders()
    base_model.load_transformer()
    return base_model


def lora_mark(run):
    return hashlib.sha256(run.lora_file.read_bytes()).hexdigest()


def test_each_objective_has_its_class_and_its_facts():
    assert objectives.OBJECTIVE_CLASSES.keys() == OBJECTIVES.keys()
    with pytest.raises(ConfigError, match=r"`objective` must be one of dopsd, sft, .*, got 'dpo'"):
        TrainConfig(objective="dpo")


def test_what_a_step_asks_of_the_transformer():
    asked = {name: TrainConfig(objective=name, rollout_steps=4).passes for name in OBJECTIVES}
    assert asked == {
        "dopsd": (4, 4),  # at each state the student's and the teacher's
        "sft": (1, 0),
        "dreambooth": (2, 0),  # of a picture and of a prior picture
        "pso": (2, 0),  # of a picture and of the base's own
        "off_policy": (4, 4),
        "sft_on_samples": (1, 0),
    }


def test_the_plan_of_sft_has_one_pass_and_no_teacher(real_size_folder):
    sizes = read_sizes(Z_IMAGE, real_size_folder, real_size_folder / "vision_tower")
    plan = MemoryPlan(recomputed_blocks=ALL)
    configs = (TrainConfig(objective=name, rollout_steps=4) for name in ("sft", "dopsd"))
    sft, dopsd = (step_work(config, sizes, plan) for config in configs)
    assert sft < dopsd / 4


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_micro_batch_gives_the_same_gradient(tiny_config, name):
    gradients, losses = [], []
    for micro_batch in (1, 4):
        config = replace(tiny_config, objective=name, batch_size=4, micro_batch=micro_batch)
        base_model = fresh(config)
        material = make_material(base_model)
        optimizer = prepare(base_model, config)
        trained(base_model)  # with B at zero, every gradient of A would be zero too
        objective = make_objective(base_model, config, material)
        optimizer.step = lambda optimizer=optimizer: gradients.append(gradients_of(optimizer))
        losses.append(optimizer_step(base_model, config, material.examples, objective, optimizer, 1).loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert all(gradient.any() for gradient in gradients[0])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-3)


@pytest.mark.process
@pytest.mark.parametrize("name", OTHERS)
def test_a_run_has_samples_health_and_checks_and_resumes_to_the_same_bytes(new_run, tiny_config, name):
    every = {"checkpoint_every": 1, "preview_every": 1}
    config = replace(tiny_config, objective=name, steps=2, memory_limit=0.1, **every)
    whole = new_run(config)
    events, torn = train_and_tear(whole)
    assert [event.step for event in events if isinstance(event, StepDone)] == [1, 2]
    assert {event.kind for event in events if isinstance(event, PreviewSaved)} == {"samples"}
    assert [event.step for event in events if isinstance(event, HealthMeasured)] == [0, 1, 2]
    checked = next(event for event in events if isinstance(event, LoraChecked))
    assert checked.passed, checked.summary

    again = [event.step for event in train(torn) if isinstance(event, StepDone)]
    assert again == [2]
    assert lora_mark(torn) == lora_mark(whole)


@pytest.mark.process
def test_sft_asks_for_no_teacher(new_run, tiny_config, monkeypatch):
    encode = ZImage.encode

    def encode_for_the_student(self, pictures, caption, role):
        assert role == "student", "SFT has nobody who would look at the picture"
        return encode(self, pictures, caption, role)

    monkeypatch.setattr(ZImage, "encode", encode_for_the_student)
    run = new_run(replace(tiny_config, objective="sft"))
    list(train(run))
    assert {file.name for file in (run.checkpoints / "000004").iterdir()} == {
        "lora.safetensors",
        "resume.pt",
        "manifest.json",
    }


def test_what_is_drawn_first_is_the_untrained_bases_whenever_it_is_drawn(tiny_config):
    config = replace(tiny_config, objective="pso")
    base_model = fresh(config)
    material = make_material(base_model)
    prepare(base_model, config)
    before = draw_samples(base_model, config, material.examples, "student")
    priors = draw_priors(base_model, config, material)
    trained(base_model)  # as after a resume
    after = draw_samples(base_model, config, material.examples, "student")
    assert all(a.latents.equal(b.latents) for a, b in zip(before, after, strict=True))
    assert [a.prompt for a in before[:4]] == [
        *(example.student[0] for example in material.examples),
        material.examples[0].student[1],  # its other caption, when its turn comes again
    ]
    assert [a.prompt for a in priors] == [material.neutral[i] for i in (0, 1, 0, 1, 0)]
    assert not draw_priors(base_model, replace(config, seed=1), material)[0].latents.equal(priors[0].latents)


@pytest.mark.process
def test_sft_learns_its_pictures(tiny_config):
    config = replace(tiny_config, objective="sft", rank=32, learning_rate=3e-3, batch_size=4, micro_batch=4)
    base_model = fresh(config)
    material = make_material(base_model)
    optimizer = prepare(base_model, config)
    objective = make_objective(base_model, config, material)
    losses = [
        optimizer_step(base_model, config, material.examples, objective, optimizer, step).loss
        for step in range(1, 41)
    ]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_losses_by_hand():
    velocity, noise, latents = (
        torch.tensor(x).reshape(1, 1, 1, 2) for x in ([3.0, 1.0], [2.0, 2.0], [1.0, 1.0])
    )
    assert flow_matching_loss(velocity, noise, latents).tolist() == [2.0]  # (3 - 1)^2 and 0, on the mean
    better, worse = torch.tensor([0.5, 0.1]), torch.tensor([0.6, 0.5])
    # 1 - 5 * .1 + .5 * .6, and nothing of the hinge + .5 * .5
    torch.testing.assert_close(preference_loss(better, worse), torch.tensor([0.8, 0.25]))


def test_times_are_shifted_as_the_scheduler_shifts_its_steps(tiny_z_image):
    sigmas = tiny_z_image.sigmas(4, 32, 32)
    times = torch.tensor([1, 0.75, 0.5, 0.25, 0])
    torch.testing.assert_close(shifted(tiny_z_image, times, (32, 32)), sigmas)


@pytest.mark.process
def test_file_and_card_name_what_the_lora_was_trained_by(new_run, tiny_config):
    run = new_run(replace(tiny_config, objective="sft"))
    list(train(run))
    with safe_open(run.lora_file, framework="np") as file:
        assert json.loads(file.metadata()["dopsd"])["method"] == "SFT (arXiv 2210.02747)"
    card = make_card(run, repo_id="ann/dog")
    assert "trained with [SFT](https://arxiv.org/abs/2210.02747): ordinary fine-tuning" in card.text
    assert "D-OPSD" not in card.text and "roll-out" not in card.text
    assert card.data.tags[-1] == "sft"


def test_the_page_offers_two_and_what_a_copied_run_had(tmp_path):
    draft = new_draft(tmp_path)
    step = lay_out(lambda _: plan_step())

    def offered(draft):
        control = next(control for control in step.controls if control.name == "objective")
        choice = step.show(draft)[control.part]
        return [value for _, value in choice.choices], choice.value

    assert offered(draft) == (["dopsd", "sft"], "dopsd")
    assert offered(set_settings(draft, objective="sft")) == (["dopsd", "sft"], "sft")
    assert offered(set_settings(draft, objective="pso")) == (["dopsd", "sft", "pso"], "pso")


# --- a new objective: this class and its facts


class Stillness(Objective):
    """Draws velocities towards zero: of no use, and an objective all the same."""

    def losses(self, batch, step):
        sigma = self.base_model.sigmas(2, *batch.size)[0]
        noise = torch.ones(len(batch.positions), *self.base_model.latent_shape(*batch.size))
        for share in self.base_model.predict_velocity(noise, sigma, batch.student).square():
            yield share.mean() / self.config.batch_size


@pytest.mark.process
def test_a_new_objective_is_a_class_and_its_facts(new_run, tiny_config, monkeypatch):
    monkeypatch.setitem(settings.OBJECTIVES, "stillness", ObjectiveFacts("Stillness", "0000.00000", "a toy"))
    monkeypatch.setitem(settings.SETTINGS["objective"].choices, "stillness", "Stillness")
    monkeypatch.setitem(objectives.OBJECTIVE_CLASSES, "stillness", Stillness)
    config = replace(tiny_config, objective="stillness", steps=12, learning_rate=1e-2, batch_size=4)
    run = new_run(config)
    losses = [event.loss for event in train(run) if isinstance(event, StepDone)]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert run.lora_file.exists()
