"""What keeps less for the backward pass gives the same gradient as PEFT's and diffusers' own classes."""

from contextlib import contextmanager
from copy import deepcopy

import pytest
import torch
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_flux2 import Flux2SwiGLU
from diffusers.models.transformers.transformer_z_image import FeedForward
from peft.tuners.lora import LoraLayer
from torch import nn

from dopsd_app.config import TrainConfig
from dopsd_app.method import inputs_in_ram
from dopsd_app.method.adapters import adapter_weights, add_adapters, as_base, as_teacher
from dopsd_app.method.lora_product import LoraProduct
from dopsd_app.method.recompute import recompute_blocks
from dopsd_app.models import blocks, lean_layers
from dopsd_app.models.lean_layers import keep_less
from dopsd_app.models.load import load_base_model
from dopsd_app.models.memory_plan import ALL, MemoryPlan
from dopsd_app.models.protocol import Conditioning
from dopsd_app.models.quantize import quantize_layer
from tests.support.encoded import trained
from tests.support.tiny_models import save_klein

ARCHITECTURES = ("z_image", "klein")
SIDE = 64  # pixels


@pytest.fixture(scope="module")
def klein_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-klein")
    save_klein(folder)
    return folder


@pytest.fixture
def load(z_image_folder, klein_folder):
    """A base model with adapters that have an effect, under a memory plan."""

    def load(architecture, precision="float32", **plan):
        folder = z_image_folder if architecture == "z_image" else klein_folder
        config = TrainConfig(base_model=str(folder), rank=4, lora_alpha=6.0, precision=precision)
        base_model = load_base_model(config, MemoryPlan(**plan))
        base_model.load_transformer()
        add_adapters(base_model.transformer, base_model.lora_targets, config)
        trained(base_model)
        recompute_blocks(base_model)
        return base_model

    return load


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conditionings_of(base_model, number):
    """Random features; of another length for each picture, where the model takes such."""
    if base_model.lora_targets.startswith("(layers"):
        return [Conditioning(drawn(9 + 30 * i, 32, seed=i).to(base_model.dtype)) for i in range(number)]
    return [Conditioning(drawn(20, 48, seed=i).to(base_model.dtype)) for i in range(number)]


def velocity_of(base_model, number=1):
    latents = drawn(number, *base_model.latent_shape(SIDE, SIDE))
    return base_model.predict_velocity(latents, torch.tensor(0.7), conditionings_of(base_model, number))


def pass_of(base_model, number=1):
    """The velocity, and the student's gradients by name."""
    velocity = velocity_of(base_model, number)
    (velocity * drawn(*velocity.shape, seed=3)).sum().backward()
    weights = adapter_weights(base_model.transformer, "student")
    gradients = {name: weight.grad for name, weight in weights.items()}
    base_model.transformer.zero_grad()
    return velocity.detach(), gradients


def plain(base_model):
    """Takes everything back that is not PEFT's and diffusers' own."""
    for module in base_model.transformer.modules():
        for name in ("forward", "_forward_silu_gating"):
            module.__dict__.pop(name, None)
    base_model.transformer.set_adapter("student")
    return base_model


def error(found, expected):
    """The difference of two tensors, relative to the size of the second."""
    return ((found - expected).norm() / expected.norm()).item()


def assert_near(found, expected, bound=1e-6):
    """The velocity and the gradient as a whole within the bound; of single weights, which round more, 10."""
    (velocity, gradients), (plain_velocity, plain_gradients) = found, expected
    assert error(velocity, plain_velocity) <= bound
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
    assert error(flat(gradients), flat(plain_gradients)) <= bound
    for name, gradient in gradients.items():
        assert error(gradient, plain_gradients[name]) <= 10 * bound, name


def flat(gradients):
    return torch.cat([gradients[name].flatten() for name in sorted(gradients)])


@contextmanager
def kept():
    """The bytes that autograd keeps meanwhile besides weights; the same memory counts once."""
    memory = {}

    def pack(tensor):
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            memory[storage.data_ptr()] = storage.nbytes()
        return tensor

    counted = [0]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield counted
    counted[0] = sum(memory.values())


def bytes_kept(base_model):
    with kept() as counted:
        velocity = velocity_of(base_model)
    del velocity
    return counted[0]


# --- all that is always on


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_pass_gives_the_gradient_of_the_classes_own(load, architecture, number):
    base_model = load(architecture)
    assert_near(pass_of(base_model, number), pass_of(plain(base_model), number))


@pytest.mark.parametrize("how", [{"precision": "bfloat16"}, {"quantization": "nf4"}], ids=["bfloat16", "nf4"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_pass_on_a_rounded_base_is_near_the_classes_own(load, architecture, how):
    base_model = load(architecture, **how)
    assert_near(pass_of(base_model), pass_of(plain(base_model)), 0.05)


# --- the LoRA's product


def layer_of(kind, dtype, bias):
    torch.manual_seed(0)
    linear = nn.Linear(64, 128, bias=bias).to(dtype).requires_grad_(False)
    return quantize_layer(linear, "nf4") if kind == "nf4" else linear


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["linear", "nf4"])
def test_the_product_is_added_in_the_same_memory_with_the_right_gradients(kind, bias):
    base_layer = layer_of(kind, torch.float32, bias)
    x, a, b = drawn(2, 5, 64), drawn(4, 64, seed=1), drawn(128, 4, seed=2)
    inputs = [tensor.requires_grad_() for tensor in (x, a, b)]
    towards = drawn(2, 5, 128, seed=3)
    result = base_layer(x * 1)
    place = result.data_ptr()
    added = LoraProduct.apply(result, x, a, b, 0.5)
    assert added.data_ptr() == place
    expected = base_layer(x * 1) + 0.5 * x @ a.T @ b.T
    torch.testing.assert_close(added, expected)
    by_hand = torch.autograd.grad((expected * towards).sum(), inputs)
    found = torch.autograd.grad((added * towards).sum(), inputs)
    assert all(error(*pair) <= 1e-6 for pair in zip(found, by_hand, strict=True))


def test_a_layer_keeps_its_input_and_as_many_numbers_per_token_as_the_rank(load):
    base_model = load("z_image", precision="bfloat16")
    layer = base_model.transformer.layers[0].attention.to_q
    x = drawn(1, 10, 32).bfloat16()
    with kept() as counted:
        result = layer(x)
    assert result.requires_grad
    assert counted[0] == 2 * (10 * 32 + 10 * 4)


def test_the_teacher_is_switched_to_by_one_assignment_and_never_gets_gradients(load):
    base_model = load("z_image")
    transformer = base_model.transformer
    student = velocity_of(base_model)
    with as_teacher(transformer):
        assert transformer.adapters.active == "teacher"
        teacher = velocity_of(base_model)
        with as_base(transformer):
            base = velocity_of(base_model)
        assert velocity_of(base_model).equal(teacher)
        assert not any(weight.requires_grad for weight in adapter_weights(transformer, "teacher").values())
    assert velocity_of(base_model).equal(student)
    plain(base_model)
    assert error(velocity_of(base_model), student) <= 1e-6
    transformer.set_adapter("teacher")
    assert error(velocity_of(base_model), teacher) <= 1e-6
    transformer.disable_adapters()
    assert error(velocity_of(base_model), base) <= 1e-6


# --- norms and gates


NORMS = {"diffusers": RMSNorm(48, eps=1e-5), "torch": nn.RMSNorm(48, eps=1e-5)}


def made_lean(module):
    """A copy that keeps less."""
    lean = nn.ModuleList([deepcopy(module)])
    keep_less(lean, torch.device("cpu"))
    return lean[0]


@pytest.mark.parametrize("piece", [2**21, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("library", NORMS)
def test_a_norm_is_equal_bit_by_bit_and_keeps_its_input_and_a_number_per_row(
    library, dtype, piece, monkeypatch
):
    monkeypatch.setattr(lean_layers, "PIECE", piece)
    own = deepcopy(NORMS[library]).requires_grad_(False)
    own.weight.data = drawn(48, seed=1)
    own = own.to(dtype)
    x = drawn(2, 70, 3, 48).to(dtype).requires_grad_()
    towards = drawn(2, 70, 3, 48, seed=2).to(dtype)
    expected = own(x)
    lean = made_lean(own)
    with kept() as counted:
        found = lean(x)
    assert found.dtype == expected.dtype
    assert found.equal(expected)
    assert counted[0] == x.nbytes + 4 * 2 * 70 * 3
    (by_class,) = torch.autograd.grad(expected, x, towards)
    (by_formula,) = torch.autograd.grad(found, x, towards)
    assert by_formula.dtype == dtype
    assert error(by_formula, by_class) <= (5e-7 if dtype == torch.float32 else 0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gate_of_two_inputs_is_equal_bit_by_bit_and_keeps_them_alone(dtype):
    own = FeedForward(16, 48)
    gate, up = (drawn(2, 7, 48, seed=seed).to(dtype).requires_grad_() for seed in (1, 2))
    expected = own._forward_silu_gating(gate, up)
    lean = made_lean(own)
    with kept() as counted:
        found = lean._forward_silu_gating(gate, up)
    assert found.equal(expected)
    assert counted[0] == gate.nbytes + up.nbytes
    by_class = torch.autograd.grad(expected, (gate, up), drawn(2, 7, 48).to(dtype))
    by_formula = torch.autograd.grad(found, (gate, up), drawn(2, 7, 48).to(dtype))
    assert all(error(*pair) <= 1e-7 for pair in zip(by_formula, by_class, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gate_of_one_joined_input_is_equal_bit_by_bit_and_keeps_it_alone(dtype):
    own = Flux2SwiGLU()
    joined = drawn(2, 7, 96).to(dtype).requires_grad_()
    expected = own(joined)
    lean = made_lean(own)
    with kept() as counted:
        found = lean(joined)
    assert found.equal(expected)
    assert counted[0] == joined.nbytes
    (by_class,) = torch.autograd.grad(expected, joined, drawn(2, 7, 48).to(dtype))
    (by_formula,) = torch.autograd.grad(found, joined, drawn(2, 7, 48).to(dtype))
    assert error(by_formula, by_class) <= 1e-7


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_pass_keeps_less_than_that_of_the_classes_own(load, architecture):
    base_model = load(architecture, precision="bfloat16")
    assert bytes_kept(base_model) < 0.7 * bytes_kept(plain(base_model))


# --- recomputing


@pytest.mark.parametrize("recomputed", [1, 3, ALL])
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_recomputed_blocks_give_the_gradient_of_the_classes_own(load, architecture, number, recomputed):
    base_model = load(architecture, recomputed_blocks=recomputed)
    assert_near(pass_of(base_model, number), pass_of(plain(base_model), number))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_recomputed_block_keeps_less(load, architecture):
    number = 4 if architecture == "z_image" else 5
    counts = [bytes_kept(load(architecture, recomputed_blocks=first)) for first in range(number + 1)]
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == number + 1
    assert bytes_kept(load(architecture, recomputed_blocks=ALL)) == counts[-1] < counts[0] / 4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_wrong_adapter_while_recomputing_is_an_error(load, architecture):
    base_model = load(architecture, recomputed_blocks=1)
    for context in (as_teacher, as_base):
        loss = velocity_of(base_model).sum()
        with context(base_model.transformer), pytest.raises(RuntimeError, match="student is not active"):
            loss.backward()
    with as_teacher(base_model.transformer):
        assert not velocity_of(base_model).requires_grad


# --- in halves, and with inputs that wait in the computer's memory


@pytest.fixture(params=[10_000, 24], ids=["one chunk", "chunks"])
def chunk(request, monkeypatch):
    """As many tokens in a chunk as there are, or fewer."""
    monkeypatch.setattr(blocks, "CHUNK", request.param)


@pytest.mark.parametrize("recomputed", [3, ALL])
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_blocks_in_halves_give_the_gradient_of_the_classes_own(load, architecture, number, recomputed, chunk):
    base_model = load(architecture, recomputed_blocks=recomputed, halves=True)
    with torch.no_grad():
        drawn_alone = velocity_of(base_model, number)
    found, expected = pass_of(base_model, number), pass_of(plain(base_model), number)
    assert_near(found, expected)
    assert error(drawn_alone, expected[0]) <= 1e-6


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_part_of_a_block_has_its_block_fetched_also_while_it_is_recomputed(load, architecture, chunk):
    base_model = load(architecture)
    base_model.memory_plan = MemoryPlan(recomputed_blocks=ALL, halves=True)
    fetched = []
    recompute_blocks(base_model, fetched.append)
    parts = []
    for block in blocks.blocks_of(base_model.transformer, base_model.block_lists):
        layers = [layer for layer in block.modules() if isinstance(layer, LoraLayer)]
        parts.append((block, layers))
    seen = set()
    for block, layers in parts:
        for layer in layers:
            own = layer.forward

            def forward(x, own=own, block=block):
                seen.add(fetched[-1] is block)
                return own(x)

            layer.forward = forward
    velocity = velocity_of(base_model)
    forward_alone = list(fetched)
    velocity.sum().backward()
    assert seen == {True}
    # Recomputing a block as a whole ends where its last chunk begins, which is recomputed alone.
    assert len(fetched) >= 2 * len(forward_alone)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_inputs_that_wait_in_memory_give_the_very_same_gradient(
    load, architecture, halves, number, monkeypatch
):
    monkeypatch.setattr(blocks, "CHUNK", 24)
    monkeypatch.setattr(inputs_in_ram, "LEAST", 1)
    moved, back = [], []
    to_ram, from_ram = inputs_in_ram.copy_to_ram, inputs_in_ram.copy_back
    monkeypatch.setattr(inputs_in_ram, "copy_to_ram", lambda x: moved.append(x.shape) or to_ram(x))
    monkeypatch.setattr(inputs_in_ram, "copy_back", lambda *x: back.append(x[0].shape) or from_ram(*x))
    plan = {"recomputed_blocks": 3, "halves": halves}
    velocity, gradients = pass_of(load(architecture, **plan, inputs_in_ram=True), number)
    assert moved
    assert sorted(moved) == sorted(back)
    assert all(len(shape) == 3 for shape in moved)  # tokens, and neither positions nor modulation
    plain_velocity, plain_gradients = pass_of(load(architecture, **plan), number)
    assert velocity.equal(plain_velocity)
    assert all(gradient.equal(plain_gradients[name]) for name, gradient in gradients.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copy_in_memory_is_in_pieces_of_powers_of_two_and_comes_back_whole(dtype):
    x = drawn(2, 50_000, 3).to(dtype)[:, 1:]
    copy = inputs_in_ram.copy_to_ram(x)
    sizes = [piece.numel() for piece in copy.pieces]
    assert all(size & (size - 1) == 0 for size in sizes)
    assert x.nbytes <= sum(sizes) <= x.nbytes + inputs_in_ram.SMALLEST
    back = inputs_in_ram.copy_back(copy, x.device)
    assert back.equal(x)
    assert back.dtype == dtype
    assert inputs_in_ram.piece_sizes(36 * 2**20 + 1) == [2**25, 2**22, 2**16]


def test_what_is_small_stays_where_it_is_unless_it_holds_what_is_large():
    whole = drawn(2**18 + 6).requires_grad_()
    small, piece = (whole[:6] * 1), whole[-6:]
    with inputs_in_ram.InputsInRam([small, piece]):
        assert (small * small).grad_fn._saved_self.data_ptr() == small.data_ptr()
        assert (piece * piece).grad_fn._saved_self.data_ptr() != piece.data_ptr()


@pytest.mark.parametrize(
    "how", [{}, {"precision": "bfloat16"}, {"quantization": "nf4"}], ids=["float32", "bfloat16", "nf4"]
)
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_together_give_the_gradient_of_the_classes_own(load, architecture, number, how, monkeypatch):
    monkeypatch.setattr(blocks, "CHUNK", 24)
    monkeypatch.setattr(inputs_in_ram, "LEAST", 1)
    base_model = load(architecture, **how, recomputed_blocks=ALL, halves=True, inputs_in_ram=True)
    bound = 0.05 if how else 1e-6
    assert_near(pass_of(base_model, number), pass_of(plain(base_model), number), bound)
