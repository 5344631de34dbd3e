"""The method on tiny real parts: what each property is worth is said in its name."""

from collections import Counter
from dataclasses import replace

import bitsandbytes as bnb
import pytest
import torch

from dopsd_app.errors import KnownFailure
from dopsd_app.method import randomness
from dopsd_app.method.adapters import adapter_weights, add_adapters, as_base, as_teacher, update_teacher
from dopsd_app.method.encode import EncodedExample
from dopsd_app.method.losses import distillation_loss
from dopsd_app.method.objectives import make_objective
from dopsd_app.method.objectives.protocol import Material
from dopsd_app.method.recompute import recompute_blocks
from dopsd_app.method.rollout import rollout
from dopsd_app.method.step import micro_batches, optimizer_step, prepare
from dopsd_app.models.load import load_base_model
from dopsd_app.models.memory_plan import ALL, MemoryPlan
from tests.support.encoded import gradients_of, make_example, trained


def take_step(base_model, config, examples, optimizer, step):
    objective = make_objective(base_model, config, Material(examples, (), ()))
    return optimizer_step(base_model, config, examples, objective, optimizer, step)


@pytest.fixture
def example(tiny_z_image):
    return make_example(tiny_z_image, 0, "a dog")


@pytest.fixture
def noise():
    return torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(5))


def gradients(base_model):
    return {
        name: parameter.grad.clone()
        for name, parameter in base_model.transformer.named_parameters()
        if parameter.grad is not None
    }


def walk(base_model, example, noise, steps=2, student=None, teacher=None):
    sigmas = base_model.sigmas(steps, 32, 32)
    return rollout(
        base_model, list(student or example.student), list(teacher or example.teacher), noise, sigmas
    )


def test_the_same_context_and_weights_give_no_loss(tiny_z_image, tiny_config, example, noise):
    add_adapters(tiny_z_image.transformer, tiny_z_image.lora_targets, tiny_config)
    for step in walk(tiny_z_image, example, noise, teacher=example.student):
        assert distillation_loss(step).item() < 1e-10
    for step in walk(tiny_z_image, example, noise):
        assert distillation_loss(step).item() > 1e-6  # the picture makes a difference


def test_backward_per_state_gives_the_gradient_of_the_sum(tiny_z_image, tiny_config, example, noise):
    add_adapters(tiny_z_image.transformer, tiny_z_image.lora_targets, tiny_config)
    trained(tiny_z_image)
    for step in walk(tiny_z_image, example, noise, steps=4):
        (distillation_loss(step).sum() / 4).backward()
    one_by_one = gradients(tiny_z_image)
    tiny_z_image.transformer.zero_grad()
    sum(distillation_loss(step).sum() / 4 for step in walk(tiny_z_image, example, noise, steps=4)).backward()
    torch.testing.assert_close(one_by_one, gradients(tiny_z_image), atol=1e-7, rtol=1e-4)


def test_only_the_students_weights_get_gradients(tiny_z_image, tiny_config, example, noise):
    add_adapters(tiny_z_image.transformer, tiny_z_image.lora_targets, tiny_config)
    trained(tiny_z_image)
    for step in walk(tiny_z_image, example, noise):
        distillation_loss(step).sum().backward()
    with_gradient = gradients(tiny_z_image)
    assert all(".student." in name for name in with_gradient)
    assert len(with_gradient) == len(adapter_weights(tiny_z_image.transformer, "student"))
    assert all(gradient.abs().sum() > 0 for gradient in with_gradient.values())


def test_seven_modules_of_every_block_of_all_three_lists_are_adapted(tiny_z_image, tiny_config):
    add_adapters(tiny_z_image.transformer, tiny_z_image.lora_targets, tiny_config)
    modules = {name.rsplit(".", 2)[0] for name in adapter_weights(tiny_z_image.transformer, "student")}
    suffixes = [f"attention.to_{x}" for x in ("q", "k", "v", "out.0")] + [
        f"feed_forward.w{i}" for i in (1, 2, 3)
    ]
    blocks = ["layers.0", "layers.1", "noise_refiner.0", "context_refiner.0"]
    assert modules == {f"{block}.{suffix}" for block in blocks for suffix in suffixes}


def test_adapters_stay_float32_on_a_bfloat16_base(tiny_config):
    base_model = load_base_model(replace(tiny_config, precision="bfloat16"))
    base_model.load_transformer()
    add_adapters(base_model.transformer, base_model.lora_targets, tiny_config)
    for adapter in ("student", "teacher"):
        weights = adapter_weights(base_model.transformer, adapter).values()
        assert {weight.dtype for weight in weights} == {torch.float32}
    assert base_model.transformer.layers[0].attention.to_q.base_layer.weight.dtype == torch.bfloat16


def test_the_teacher_is_the_ema_of_the_student(tiny_z_image, tiny_config):
    transformer = tiny_z_image.transformer
    add_adapters(transformer, tiny_z_image.lora_targets, tiny_config)
    student, teacher = (adapter_weights(transformer, adapter) for adapter in ("student", "teacher"))
    name = "layers.0.attention.to_q.lora_B.weight"
    student[name].data.fill_(1.0)
    update_teacher(transformer, 0.9)  # 0.9 * 0 + 0.1 * 1
    torch.testing.assert_close(teacher[name], torch.full_like(teacher[name], 0.1))
    student[name].data.fill_(2.0)
    update_teacher(transformer, 0.9)  # 0.9 * 0.1 + 0.1 * 2
    torch.testing.assert_close(teacher[name], torch.full_like(teacher[name], 0.29))
    first = teacher[name].clone()
    update_teacher(transformer, 0.9999)  # 0.29 + 0.0001 * (2 - 0.29): nothing in bfloat16
    torch.testing.assert_close(teacher[name] - first, torch.full_like(first, 0.000171), atol=1e-7, rtol=0)
    before = teacher[name].clone()
    update_teacher(transformer, 1.0)
    assert teacher[name].equal(before)


def test_student_and_teacher_start_as_the_base_and_equal(tiny_z_image, tiny_config, example, noise):
    sigma = torch.tensor(0.9)
    with torch.no_grad():
        base = tiny_z_image.predict_velocity(noise, sigma, list(example.student))
    add_adapters(tiny_z_image.transformer, tiny_z_image.lora_targets, tiny_config)
    with torch.no_grad():
        student = tiny_z_image.predict_velocity(noise, sigma, list(example.student))
    torch.testing.assert_close(student, base)
    student, teacher = (
        adapter_weights(tiny_z_image.transformer, adapter) for adapter in ("student", "teacher")
    )
    assert all(weight.equal(teacher[name]) for name, weight in student.items())
    assert student["layers.0.attention.to_q.lora_A.weight"].std().item() == pytest.approx(
        1 / 4, rel=0.2
    )  # 1 / rank


def test_the_teacher_uses_its_own_adapter_and_the_student_comes_back(
    tiny_z_image, tiny_config, example, noise
):
    add_adapters(tiny_z_image.transformer, tiny_z_image.lora_targets, tiny_config)
    trained(tiny_z_image)
    sigma, transformer = torch.tensor(0.9), tiny_z_image.transformer

    def velocity():
        with torch.no_grad():
            return tiny_z_image.predict_velocity(noise, sigma, list(example.student))

    student = velocity()
    with as_teacher(transformer):
        teacher = velocity()
    with as_base(transformer):
        base = velocity()
    assert not torch.allclose(student, teacher)
    assert not torch.allclose(teacher, base)
    with pytest.raises(KeyError), as_teacher(transformer):
        raise KeyError
    assert velocity().equal(student)
    wants = {name for name, parameter in transformer.named_parameters() if parameter.requires_grad}
    assert wants == {name for name, _ in transformer.named_parameters() if ".student." in name}


def test_with_the_base_as_teacher_there_is_no_teacher_adapter(tiny_z_image, tiny_config, example, noise):
    sigma = torch.tensor(0.9)
    with torch.no_grad():
        base = tiny_z_image.predict_velocity(noise, sigma, list(example.teacher))
    config = replace(tiny_config, teacher="base")
    add_adapters(tiny_z_image.transformer, tiny_z_image.lora_targets, config)
    trained(tiny_z_image)
    assert list(tiny_z_image.transformer.peft_config) == ["student"]
    with as_teacher(tiny_z_image.transformer):
        torch.testing.assert_close(tiny_z_image.predict_velocity(noise, sigma, list(example.teacher)), base)
    update_teacher(tiny_z_image.transformer, 0.5)  # there is nothing to move
    for step in walk(tiny_z_image, example, noise):
        distillation_loss(step).sum().backward()
    assert len(gradients(tiny_z_image)) == len(adapter_weights(tiny_z_image.transformer, "student"))


def test_recomputing_gives_the_same_gradient(tiny_z_image, tiny_config, example, noise):
    add_adapters(tiny_z_image.transformer, tiny_z_image.lora_targets, tiny_config)
    trained(tiny_z_image)
    for step in walk(tiny_z_image, example, noise):
        distillation_loss(step).sum().backward()
    plain = gradients(tiny_z_image)
    tiny_z_image.transformer.zero_grad()
    tiny_z_image.memory_plan = MemoryPlan(recomputed_blocks=ALL)
    recompute_blocks(tiny_z_image)
    for step in walk(tiny_z_image, example, noise):
        distillation_loss(step).sum().backward()
    torch.testing.assert_close(gradients(tiny_z_image), plain, atol=1e-7, rtol=1e-4)


def test_backward_with_the_teacher_left_active_is_an_error(tiny_z_image, tiny_config, example, noise):
    add_adapters(tiny_z_image.transformer, tiny_z_image.lora_targets, tiny_config)
    tiny_z_image.memory_plan = MemoryPlan(recomputed_blocks=ALL)
    recompute_blocks(tiny_z_image)
    for context in (as_teacher, as_base):
        loss = distillation_loss(next(walk(tiny_z_image, example, noise))).sum()
        with context(tiny_z_image.transformer), pytest.raises(RuntimeError, match="student is not active"):
            loss.backward()


def test_no_graph_can_be_built_as_teacher(tiny_z_image, tiny_config, example, noise):
    add_adapters(tiny_z_image.transformer, tiny_z_image.lora_targets, tiny_config)
    with as_teacher(tiny_z_image.transformer):
        velocity = tiny_z_image.predict_velocity(noise, torch.tensor(0.9), list(example.student))
    assert not velocity.requires_grad


def test_denoised_loss_is_sigma_squared_times_velocity_loss(tiny_z_image, tiny_config, example, noise):
    add_adapters(tiny_z_image.transformer, tiny_z_image.lora_targets, tiny_config)
    steps = list(walk(tiny_z_image, example, noise, steps=4))
    assert [step.sigma.item() for step in steps] == pytest.approx([1, 0.9, 0.75, 0.5])
    for step in steps:
        by_hand = step.sigma**2 * distillation_loss(step, "velocity")
        torch.testing.assert_close(distillation_loss(step, "denoised"), by_hand, rtol=1e-4, atol=1e-9)


def test_the_states_are_the_students_own_and_carry_no_graph(tiny_z_image, tiny_config, example, noise):
    add_adapters(tiny_z_image.transformer, tiny_z_image.lora_targets, tiny_config)
    trained(tiny_z_image)
    first, second, third, _ = walk(tiny_z_image, example, noise, steps=4)
    torch.testing.assert_close(second.latents, noise + (0.9 - 1) * first.student_velocity)
    torch.testing.assert_close(third.latents, second.latents + (0.75 - 0.9) * second.student_velocity)
    assert not any(
        step.latents.requires_grad or step.teacher_velocity.requires_grad for step in (first, second)
    )


def test_micro_batches_of_one_and_four_give_the_same_gradient(tiny_z_image, tiny_config):
    examples = (
        make_example(tiny_z_image, 0, "a dog", "a much longer caption about the very same dog on a lawn"),
        make_example(tiny_z_image, 1, "a cat"),
        make_example(tiny_z_image, 2, "a wide cow", width=64),
    )
    students, losses = [], []
    for micro_batch in (1, 4):
        base_model = load_base_model(tiny_config)
        base_model.load_transformer()
        config = replace(tiny_config, batch_size=4, micro_batch=micro_batch, optimizer="adamw")
        optimizer = prepare(base_model, config)
        trained(base_model)  # with B at zero, every gradient of A would be zero too
        optimizer.step = lambda optimizer=optimizer: students.append(gradients_of(optimizer))
        losses.append(take_step(base_model, config, examples, optimizer, 1).loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert all(gradient.any() for gradient in students[0])
    torch.testing.assert_close(students[0], students[1], atol=1e-7, rtol=1e-3)


def test_passes_hold_one_picture_size_and_cover_the_batch(tiny_config):
    tall, wide = (EncodedExample((), (), height, width) for height, width in ((64, 32), (32, 64)))
    config = replace(tiny_config, batch_size=6, micro_batch=2)
    for step in range(1, 6):
        passes = micro_batches(config, (tall, wide, tall), step)
        positions = sorted(position for batch in passes for position in batch)
        assert positions == list(range(6))
        assert all(len(batch) <= 2 and len({index == 1 for index in batch.values()}) == 1 for batch in passes)


def test_every_epoch_shows_every_example_once_also_across_batches():
    drawn = [index for step in range(1, 8) for index in randomness.draw_examples(3, step, 5, 7)]
    assert all(sorted(drawn[epoch * 7 : epoch * 7 + 7]) == list(range(7)) for epoch in range(5))
    assert drawn[:7] != drawn[7:14]  # each epoch in its own order


def test_fewer_examples_than_the_batch_still_make_full_batches():
    drawn = randomness.draw_examples(0, 1, batch_size=8, count=3)
    assert sorted(Counter(drawn).values()) == [2, 3, 3]


def test_draws_depend_on_seed_step_index_and_purpose_and_on_nothing_else():
    torch.manual_seed(1)
    first = randomness.draw_noise((4, 2, 2), 7, 3, 1)
    torch.manual_seed(2)
    assert randomness.draw_noise((4, 2, 2), 7, 3, 1).equal(first)
    others = [(8, 3, 1), (7, 4, 1), (7, 3, 2)]
    assert not any(randomness.draw_noise((4, 2, 2), *other).equal(first) for other in others)
    assert not randomness.draw_noise((4, 2, 2), 7, 3, 1, randomness.PREVIEW).equal(first)
    assert {randomness.draw_caption(0, step, 0, 3) for step in range(30)} == {0, 1, 2}


def test_eight_bit_optimizer_state_is_really_uint8(tiny_config, z_image_folder, tmp_path):
    # Tensors under 4,096 numbers keep float32 state: rank 128 makes each of these 128 x 32 = 4,096.
    config = replace(tiny_config, rank=128, optimizer="adamw8bit")
    base_model = load_base_model(config)
    base_model.load_encoders()
    base_model.load_transformer()
    optimizer = prepare(base_model, config)
    assert isinstance(optimizer, bnb.optim.AdamW8bit)
    before = [weight.detach().clone() for weight in optimizer.param_groups[0]["params"]]
    take_step(base_model, config, (make_example(base_model, 0, "a dog"),), optimizer, 1)
    assert {optimizer.state[p]["state1"].dtype for p in optimizer.param_groups[0]["params"]} == {torch.uint8}
    moved = [not a.equal(b) for a, b in zip(before, optimizer.param_groups[0]["params"], strict=True)]
    assert sum(moved) >= len(moved) / 2  # every B moves at once; A only when B is no longer zero


@pytest.mark.process
@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_the_student_learns_what_only_the_teacher_sees(tiny_z_image, tiny_config, noise, optimizer):
    config = replace(tiny_config, rank=128, learning_rate=2e-3, optimizer=optimizer)
    examples = (make_example(tiny_z_image, 0, "a dog"), make_example(tiny_z_image, 0, "my dog"))
    trainer = prepare(tiny_z_image, config)

    def fixed_loss():
        with torch.no_grad():
            return sum(distillation_loss(step).item() for step in walk(tiny_z_image, examples[0], noise))

    before = fixed_loss()
    for step in range(1, 31):
        take_step(tiny_z_image, config, examples, trainer, step)
    assert fixed_loss() < before / 2


@pytest.mark.process
@pytest.mark.parametrize(
    ("how", "memory_plan"),
    [
        ({"precision": "bfloat16"}, MemoryPlan()),
        ({}, MemoryPlan(quantization="nf4", recomputed_blocks=ALL)),
        ({"teacher": "base"}, MemoryPlan()),
        ({"loss": "velocity"}, MemoryPlan()),
    ],
    ids=["bfloat16", "nf4", "base as teacher", "velocity loss"],
)
def test_every_kind_of_base_and_loss_learns(tiny_config, how, memory_plan):
    config = replace(tiny_config, rank=32, learning_rate=3e-3, **how)
    base_model = load_base_model(config, memory_plan)
    base_model.load_encoders()
    base_model.load_transformer()
    example = make_example(base_model, 0, "a dog")
    optimizer = prepare(base_model, config)
    losses = [take_step(base_model, config, (example,), optimizer, step).loss for step in range(1, 26)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_a_gradient_that_is_not_a_number_ends_the_run_before_it_spoils_the_weights(tiny_z_image, tiny_config):
    example = make_example(tiny_z_image, 0, "a dog")
    nan = replace(example.teacher[0], prompt_embeds=example.teacher[0].prompt_embeds * torch.nan)
    optimizer = prepare(tiny_z_image, tiny_config)
    with pytest.raises(
        KnownFailure, match=r"gradient of step 3 is not a number.*lower `learning_rate` than 0\.001"
    ):
        take_step(tiny_z_image, tiny_config, (replace(example, teacher=(nan,)),), optimizer, 3)
    for adapter in ("student", "teacher"):
        weights = adapter_weights(tiny_z_image.transformer, adapter).values()
        assert all(weight.isfinite().all() for weight in weights)
