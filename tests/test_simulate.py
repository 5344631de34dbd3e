"""What is simulated on the device "meta" is what happens elsewhere."""

import gc
import json
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.allocator import EMPTY_CACHE, MIB, reserved
from benchmarks.ledger import Ledger, as_on_a_card
from benchmarks.real_size import PRESET
from benchmarks.record import RESULTS
from benchmarks.simulate import CAPTION, STEP, run, settle, simulate
from dopsd_app.config import TrainConfig, load_preset
from dopsd_app.method import adapters
from dopsd_app.method.encode import EncodedExample
from dopsd_app.method.objectives import make_objective
from dopsd_app.method.objectives.protocol import Material
from dopsd_app.method.step import optimizer_step, prepare
from dopsd_app.models import phases
from dopsd_app.models.load import load_base_model
from dopsd_app.models.memory_plan import ALL, MemoryPlan
from dopsd_app.models.protocol import Pictures
from tests.support.pictures import make_picture
from tests.support.tiny_models import save_klein

pytestmark = pytest.mark.benchmark
SIDE = 256
KERNELS = ("aten::_scaled_dot_product_flash_attention_for_cpu", "aten::mm", "aten::addmm")


@pytest.fixture(scope="module")
def klein_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-klein")
    save_klein(folder)
    return folder


class OnCpu(Ledger):
    """Counts as PyTorch's own kernels on the CPU allocate."""

    granularity = 1
    cuda_kernels = False

    def work_space(self, func, args):
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        if torch.Tag.pointwise in func.tags and len({x.dtype for x in tensors if x.ndim}) > 1:
            # There, numbers of another type are cast before; a card casts them as it reads them.
            common = max((x for x in tensors if x.ndim), key=lambda x: x.element_size()).dtype
            for x in tensors:
                self.hide(x.numel() * common.itemsize * (x.dtype != common), "cast")


def settings(folder, precision: str, plan: MemoryPlan) -> TrainConfig:
    return TrainConfig(
        base_model=str(folder),
        precision=precision,
        resolution=SIDE,
        rank=4,
        batch_size=1,
        optimizer="adamw",
        rollout_steps=1,
        num_inference_steps=4,
    )


def simulated(config, plan) -> tuple[int, Ledger]:
    """Bytes that a step takes at the most beside what there was before it."""
    ledger = OnCpu()
    with as_on_a_card(ledger):
        run(config, plan, ledger)
    totals, total = [0], 0
    for number, size in ledger.events:
        total += size if number > 0 else -size
        totals.append(total)
    places = [place for place, phase in enumerate(ledger.phases) if phase in STEP]
    return max(totals[place + 1] for place in places) - totals[places[0]], ledger


def measured(config, plan, mode=None) -> int:
    """The same by PyTorch's own account of a real step on the CPU, under a mode."""
    base_model = load_base_model(config, plan)
    base_model.load_encoders()
    picture = Pictures(make_picture(0, SIDE, SIDE))
    student, teacher = (base_model.encode(picture, CAPTION, role) for role in ("student", "teacher"))
    base_model.load_transformer()
    optimizer = prepare(base_model, config)
    settle(optimizer)
    example = EncodedExample((student,), (teacher,), SIDE, SIDE)
    objective = make_objective(base_model, config, Material((example,), (), ()))
    gc.collect()
    with mode or nullcontext(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        optimizer_step(base_model, config, (example,), objective, optimizer, 1)
    return peak_of(profiled.profiler.kineto_results.events())


def peak_of(events) -> int:
    """Bytes at the most, but for what large kernels take for themselves: a card has others."""
    kernels = [
        (event.start_ns(), event.start_ns() + event.duration_ns())
        for event in events
        if event.name().startswith(KERNELS)
    ]
    now = peak = 0
    for event in sorted((x for x in events if x.name() == "[memory]"), key=lambda event: event.start_ns()):
        before, now = now, now + event.nbytes()
        if not any(start <= event.start_ns() <= end for start, end in kernels):
            peak = max(peak, before, now)
    return peak


@pytest.mark.parametrize("folder", ["z_image_folder", "klein_folder"])
@pytest.mark.parametrize("recomputed", [0, ALL])
@pytest.mark.parametrize(
    "precision, quantization", [("float32", "none"), ("bfloat16", "none"), ("bfloat16", "nf4")]
)
def test_a_simulated_step_takes_the_bytes_of_a_real_one(request, folder, recomputed, precision, quantization):
    plan = MemoryPlan(quantization=quantization, recomputed_blocks=recomputed)
    config = settings(request.getfixturevalue(folder), precision, plan)
    assert simulated(config, plan)[0] == pytest.approx(measured(config, plan), rel=0.01)


ONLY_ON_META = {
    # A card, and the CPU, have kernels for these; on "meta" they are called by another name.
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_backward",
}
ONLY_ON_CPU = {
    # Clipping has one call for all gradients; on "meta" it has one for each.
    "aten::_foreach_norm.Scalar",
    "aten::_foreach_mul_.Tensor",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
}


class Names(TorchDispatchMode):
    """The names of all operators."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("folder", ["z_image_folder", "klein_folder"])
def test_only_attention_is_another_operator_on_meta(request, folder):
    plan = MemoryPlan(recomputed_blocks=ALL)
    config = settings(request.getfixturevalue(folder), "bfloat16", plan)
    names = Names()
    measured(config, plan, names)
    ledger = simulated(config, plan)[1]
    on_meta = {name for name, phase in ledger.operators if phase in STEP}
    assert on_meta - names.found <= ONLY_ON_META
    assert names.found - on_meta <= ONLY_ON_CPU


def test_what_is_reserved_is_worked_out_by_hand():
    events = [
        (1, MIB // 2),  # small: a segment of 2 MiB
        (2, 3 * MIB),  # a segment of 20 MiB
        (3, 17 * MIB),  # the rest of that
        (4, 11 * MIB),  # a segment of 12 MiB, whose last MiB is not split off
        (-2, 3 * MIB),
        (5, 4 * MIB),  # does not fit into the free 3 MiB: a segment of 20 MiB
        (-4, 11 * MIB),
        (6, 12 * MIB),  # the whole segment of 12 MiB
        (-6, 12 * MIB),
        EMPTY_CACHE,  # gives that one back: the others are in use
    ]
    assert [size // MIB for size in reserved(events)] == [2, 22, 22, 34, 34, 54, 54, 54, 54, 42]
    # One range: the first 3 and 17 MiB fill a page of 20, 11 begin the second, and 4 come behind them. Then
    # 11 and, at the end, 5 are free: for 12 the end grows by a page, which nobody uses when it is emptied.
    expandable = [2, 22, 22, 42, 42, 42, 42, 62, 62, 42]
    assert [size // MIB for size in reserved(events, expandable=True)] == expandable


def test_pages_without_use_are_given_back_and_mapped_again():
    events = [
        (1, 20 * MIB),
        (2, 40 * MIB),
        (3, 20 * MIB),
        (-2, 40 * MIB),
        EMPTY_CACHE,  # two pages between those in use
        (4, 30 * MIB),  # mapped there again
        (5, 20 * MIB),  # 10 MiB there are too few, and one page more would be: at the end
    ]
    sizes = [size // MIB for size in reserved(events, expandable=True)]
    assert sizes == [20, 60, 80, 80, 40, 80, 100]


def test_a_run_that_was_measured_on_a_card_is_simulated(monkeypatch):
    """Of an H100, with PEFT's own product of a LoRA and diffusers' own norms and gates, as they were then."""
    row = json.loads((RESULTS / "real_size.json").read_text())["rows"][0]
    assert (row["resolution"], row["quantization"]) == (512, "nf4")
    monkeypatch.setattr(adapters, "_forward", lambda layer, _: partial(type(layer).forward, layer))
    monkeypatch.setattr(phases, "keep_less", lambda transformer, device: None)
    rank = load_preset(PRESET).settings["rank"]
    plan = MemoryPlan(quantization="nf4", recomputed_blocks=ALL)
    found = simulate("z-image-turbo", 512, plan, rank=rank, sms=132)
    training = max(found.allocated[phase] for phase in STEP) / 2**30
    assert training == pytest.approx(row["allocated_gb"]["training"], rel=0.02)
    encoding = max(found.allocated[phase] for phase in ("encode student", "encode teacher")) / 2**30
    assert encoding == pytest.approx(row["allocated_gb"]["encoding"], rel=0.02)
    assert found.allocated["load"] / 2**30 == pytest.approx(row["allocated_gb"]["loading"], rel=0.02)
