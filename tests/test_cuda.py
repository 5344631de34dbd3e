"""What only a CUDA card can show; without one there is nothing to run here."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_flux2 import Flux2SwiGLU
from diffusers.models.transformers.transformer_z_image import FeedForward
from safetensors.torch import load_file

from dopsd_app.config import TrainConfig
from dopsd_app.jobs.events import LoraChecked, StepDone
from dopsd_app.method.adapters import adapter_weights, add_adapters, as_teacher
from dopsd_app.method.recompute import recompute_blocks
from dopsd_app.models.lean_layers import keep_less
from dopsd_app.models.load import load_base_model
from dopsd_app.models.memory_plan import ALL, MemoryPlan
from dopsd_app.models.protocol import Conditioning
from dopsd_app.planning.memory import GIB, Budget, Fitted, Memory, program_bytes
from dopsd_app.train import hold_to, train
from tests.support.encoded import trained
from tests.support.tiny_models import save_z_image

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_run_on_the_card_is_checked_and_repeats_itself(new_run, tiny_config, quantization):
    config = replace(
        tiny_config,
        rank=128,
        device="cuda",
        optimizer="adamw8bit",
        memory_limit=8.0,
        quantization=quantization,
    )
    students = []
    for _ in range(2):
        run = new_run(config)
        events = list(train(run))
        assert next(event for event in events if isinstance(event, LoraChecked)).passed
        assert all(event.peak_memory > 0 for event in events if isinstance(event, StepDone))
        students.append(load_file(run.lora_file))
    assert all(weight.equal(students[1][name]) for name, weight in students[0].items())


# --- what is elsewhere while it is not needed


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory):
    """Copying one of its blocks takes longer than computing it: what does not wait for it is found out."""
    folder = tmp_path_factory.mktemp("wide-z-image")
    save_z_image(folder, width=1024, layers=6)
    return folder


def steps_of(folder, plan, steps=2):
    """What student and teacher say, and the student's gradients, of some steps one upon the other."""
    config = TrainConfig(base_model=str(folder), device="cuda", precision="float32", rank=4)
    base_model = load_base_model(config, plan)
    base_model.load_transformer()
    add_adapters(base_model.transformer, base_model.lora_targets, config)
    trained(base_model)
    recompute_blocks(base_model, base_model.fetch)
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(steps):
        noise = torch.randn(1, *base_model.latent_shape(256, 256), generator=generator).cuda()
        conditioning = [Conditioning(torch.randn(5, 32, generator=generator).cuda())]
        with as_teacher(base_model.transformer):
            teacher = base_model.predict_velocity(noise, torch.tensor(0.5), conditioning)
        student = base_model.predict_velocity(noise, torch.tensor(0.9), conditioning)
        (student - teacher).square().mean().backward()
        found += [student.detach(), teacher]
        for weight in adapter_weights(base_model.transformer, "student").values():
            found.append(weight.grad.clone())
            weight.grad = None
    return found


@pytest.mark.parametrize(
    "plan",
    [
        {"offloaded_blocks": 3},
        {"offloaded_blocks": ALL},
        {"offloaded_blocks": ALL, "halves": True},
        {"inputs_in_ram": True},
        {"inputs_in_ram": True, "halves": True},
        {"inputs_in_ram": True, "halves": True, "offloaded_blocks": ALL},
    ],
    ids=str,
)
def test_what_is_copied_beside_the_computing_is_there_when_it_is_needed(wide_folder, plan):
    expected = steps_of(wide_folder, MemoryPlan())
    found = steps_of(wide_folder, MemoryPlan(recomputed_blocks=ALL, **plan))
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.norm() > 0
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


# --- what a process may take


@pytest.fixture
def no_limit(monkeypatch):
    """As it was before, also for what comes after the test."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.cuda.empty_cache()
    yield
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_process_takes_no_more_than_was_planned_for(no_limit):
    taken = torch.cuda.memory_reserved()
    budget = Budget(taken + program_bytes(on_gpu=True) + GIB, 0, on_gpu=True)
    hold_to(Fitted(MemoryPlan(), Memory(0, 0, 0), 1.0, budget))
    half = torch.empty(GIB // 2, dtype=torch.uint8, device="cuda")
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(GIB * 3 // 4, dtype=torch.uint8, device="cuda")
    quarter = torch.empty(GIB // 4, dtype=torch.uint8, device="cuda")
    assert half.nbytes + quarter.nbytes <= torch.cuda.memory_reserved() <= taken + GIB


# --- layers that keep less


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "make",
    [
        lambda: RMSNorm(3840, eps=1e-5),
        lambda: RMSNorm(128, eps=1e-5),
        lambda: torch.nn.RMSNorm(128, eps=1e-5),
        lambda: FeedForward(dim=512, hidden_dim=1024),
        lambda: Flux2SwiGLU(),
    ],
    ids=["wide norm", "norm of a head", "torch's norm", "Z-Image's gate", "klein's gate"],
)
def test_a_layer_that_keeps_less_is_equal_bit_by_bit_on_the_card(make, dtype):
    torch.manual_seed(0)
    own = torch.nn.ModuleList([make()]).requires_grad_(False).to("cuda", dtype)
    for weight in own.parameters():
        weight.normal_()
    lean = deepcopy(own)
    keep_less(lean, torch.device("cuda"))
    width = next((weight.shape[-1] for weight in own.parameters()), 3840)
    x = torch.randn(1, 4200, width, device="cuda").to(dtype).requires_grad_()
    assert lean[0](x).equal(own[0](x))
