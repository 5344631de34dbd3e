"""Blocks that wait in the computer's memory compute exactly what they compute on the device."""

import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch

from dopsd_app.checks.lora_check import check_lora
from dopsd_app.config import TrainConfig
from dopsd_app.method.adapters import adapter_arrays, adapter_weights, add_adapters, as_teacher
from dopsd_app.method.lora_file import save_lora
from dopsd_app.method.recompute import recompute_blocks
from dopsd_app.models.catalog import find_base_model
from dopsd_app.models.frozen import load_frozen
from dopsd_app.models.load import load_base_model
from dopsd_app.models.memory_plan import ALL, MemoryPlan
from dopsd_app.models.offload import OffloadedBlocks, StoredBlock, _to_pieces, first_blocks
from dopsd_app.models.protocol import Conditioning
from dopsd_app.models.z_image_facts import Z_IMAGE
from tests.support.encoded import trained
from tests.support.tiny_models import save_klein, save_z_image

HOW = [{}, {"precision": "bfloat16"}, {"quantization": "int8"}, {"quantization": "nf4"}]
HOW += [{"halves": True}, {"halves": True, "inputs_in_ram": True}]


@pytest.fixture(scope="module", params=[save_z_image, save_klein], ids=["z-image", "klein"])
def config(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    request.param(folder)
    return TrainConfig(base_model=str(folder), device="cpu", precision="float32", rank=4)


def base_of(config, recomputed=True, **plan):
    base_model = load_base_model(config, MemoryPlan(**plan, recomputed_blocks=ALL))
    base_model.load_transformer()
    add_adapters(base_model.transformer, base_model.lora_targets, config)
    trained(base_model, 0.05)
    if recomputed:
        recompute_blocks(base_model, base_model.fetch)
    return base_model


def is_z_image(base_model):
    return base_model.architecture is Z_IMAGE


def step(base_model, seed=0):
    """Student and teacher on the same noise, and the student's gradients."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, *base_model.latent_shape(64, 32), generator=generator)
    width = 32 if is_z_image(base_model) else 48
    conditioning = [Conditioning(torch.randn(5, width, generator=generator).to(base_model.dtype))]
    student = base_model.predict_velocity(noise, torch.tensor(0.9), conditioning)
    with as_teacher(base_model.transformer):
        teacher = base_model.predict_velocity(noise, torch.tensor(0.5), conditioning)
    (student - teacher).square().mean().backward()
    weights = adapter_weights(base_model.transformer, "student")
    gradients = {name: weight.grad.clone() for name, weight in weights.items()}
    for weight in weights.values():
        weight.grad = None
    return student.detach(), teacher, gradients


def assert_equal(ours, theirs):
    assert ours[0].equal(theirs[0]) and ours[1].equal(theirs[1])
    assert ours[2].keys() == theirs[2].keys()
    for name, gradient in theirs[2].items():
        assert gradient.isfinite().all() and ours[2][name].equal(gradient), name


def blocks_of(base_model):
    transformer = base_model.transformer
    return [block for name in base_model.block_lists for block in getattr(transformer, name)]


@pytest.mark.parametrize("how", HOW, ids=str)
def test_velocities_and_gradients_are_bit_by_bit_those_without(config, how):
    config = replace(config, precision=how.get("precision", "float32"))
    how = {name: value for name, value in how.items() if name != "precision"}
    plain = base_of(config, **how)
    blocks, steps = len(blocks_of(plain)), [step(plain, seed) for seed in range(2)]
    for number in (1, 2, 3, ALL):
        offloaded = base_of(config, **how, offloaded_blocks=number)
        assert len(offloaded.offloaded.places) == min(number, blocks)
        for seed in range(2):
            assert_equal(step(offloaded, seed), steps[seed])


def test_the_device_holds_two_blocks_and_what_is_adapted(config):
    base_model = base_of(config, offloaded_blocks=ALL)
    blocks = blocks_of(base_model)
    frozen = [
        [weight for name, weight in block.named_parameters() if "lora_" not in name] for block in blocks
    ]
    largest = max(sum(weight.nbytes for weight in weights) for weights in frozen)
    buffers = [buffer.numel() for buffer in base_model.offloaded.buffers]
    # Where a tensor begins is a multiple of 512 bytes.
    assert all(largest <= size <= largest + 512 * max(map(len, frozen)) for size in buffers)
    held = []

    def count(*_):
        here = [n for n, weights in enumerate(frozen) if all(w.isfinite().all() for w in weights)]
        held.append(here)

    for block in blocks:
        block.register_forward_pre_hook(count)
        block.register_forward_hook(count)
    step(base_model)
    assert max(map(len, held)) == 2
    memory = {w.untyped_storage().data_ptr(): w.untyped_storage().nbytes() for ws in frozen for w in ws}
    assert sum(memory.values()) <= sum(buffers) + 4 * sum(map(len, frozen))
    lora = [weight for name, weight in base_model.transformer.named_parameters() if "lora_" in name]
    assert all(weight.isfinite().all() for weight in lora)


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_a_lora_file_is_checked_on_offloaded_blocks(config, tmp_path, quantization):
    base_model = base_of(config, quantization=quantization, offloaded_blocks=ALL)
    path = tmp_path / "lora.safetensors"
    save_lora(path, adapter_arrays(base_model.transformer, "student"), config.strength, {})
    conditioning = Conditioning(torch.randn(5, 32 if is_z_image(base_model) else 48))
    result = check_lora(path, base_model, config, conditioning, 64, 64)
    assert result.problems == []
    assert result.modules == len(adapter_arrays(base_of(config).transformer, "student")) // 2


def test_loading_puts_what_waits_into_the_computers_memory_and_the_rest_onto_the_device(config):
    folder = find_base_model(config.base_model).folder / "transformer"
    model_class = load_base_model(config).transformer_class
    lists = load_base_model(config).block_lists
    meta = torch.device("meta")  # a device like another, where there is no card
    taken = []
    transformer = load_frozen(
        lambda: model_class.from_config(model_class.load_config(folder)),
        folder,
        torch.float32,
        meta,
        waiting=partial(first_blocks, lists, 3),
        take=lambda block: taken.append((block, [weight.device.type for weight in block.parameters()])),
    )
    assert {block for block, _ in taken} == set(first_blocks(lists, 3, transformer)) and len(taken) == 3
    assert all(set(devices) == {"cpu"} for _, devices in taken)
    waiting = {weight for block in first_blocks(lists, 3, transformer) for weight in block.parameters()}
    for weight in transformer.parameters():
        assert weight.device.type == ("cpu" if weight in waiting else "meta")


def test_what_is_pinned_is_hardly_more_than_what_there_is():
    together = torch.arange(3_000_000, dtype=torch.int32).view(torch.uint8)
    pieces = _to_pieces(together, pinned=False)
    assert torch.cat(pieces).equal(together)
    taken = [piece.untyped_storage().nbytes() for piece in pieces]
    assert all(size & (size - 1) == 0 for size in taken) and 0 <= sum(taken) - together.numel() < 4096


def test_memory_is_given_back_with_the_transformer(config):
    base_model = base_of(config, offloaded_blocks=ALL)
    step(base_model)
    offloaded = weakref.ref(base_model.offloaded)
    base_model.free_transformer()
    assert offloaded() is None


class Doubling(torch.nn.Module):
    """A block that tells which weight it has computed with."""

    def __init__(self, number):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((3,), float(number)), requires_grad=False)

    def forward(self, x):
        return x * self.weight


def offload(blocks):
    cpu = torch.device("cpu")
    return OffloadedBlocks({block: StoredBlock(block, cpu) for block in blocks}, cpu)


def test_blocks_are_copied_ahead_in_the_direction_of_the_pass():
    blocks = [Doubling(number) for number in range(5)]
    offloaded = offload(blocks)
    copied, copy = [], offloaded._copy

    def told(place):
        if offloaded.held[place % 2] != place:
            copied.append(place)
        copy(place)

    offloaded._copy = told

    def walk(places):
        copied.clear()
        places = list(places)
        seen = [int(blocks[place](torch.ones(3))[0]) for place in places]
        assert seen == places
        return list(copied)

    assert walk(range(5)) == [0, 1, 2, 3, 4]
    assert walk(reversed(range(5))) == [2, 1, 0]  # the last two are there still
    assert walk(range(5)) == [2, 3, 4]
    assert walk(range(5)) == [0, 1, 2, 3, 4]  # a pass without gradient ends where it ends
    # In two halves each is asked for twice.
    assert walk([4, 4, 3, 3, 2, 2, 1, 1, 0, 0]) == [2, 1, 0]
    assert walk([0, 0, 1, 1, 2, 2]) == [2, 3]
    assert walk([0, 3, 1, 4, 2]) and walk([2, 2, 0, 4, 4, 1])  # any order is right


def test_a_block_whose_weights_have_left_is_not_computed_with():
    blocks = [Doubling(number) for number in range(3)]
    offload(blocks)
    assert blocks[2].weight.isnan().all() and blocks[2].weight.shape == (3,)


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_a_block_that_is_not_computed_anew_gives_no_gradient_that_could_pass_for_one(config, quantization):
    base_model = base_of(config, recomputed=False, quantization=quantization, offloaded_blocks=ALL)
    if quantization == "nf4":  # its placeholders are no NaN
        with pytest.raises(RuntimeError, match="was not computed anew"):
            step(base_model)
    else:
        assert not all(gradient.isfinite().all() for gradient in step(base_model)[2].values())
