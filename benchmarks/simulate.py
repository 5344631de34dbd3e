"""What a run takes of a card at real size, without one: the product's own code on the device "meta".

Memory by phase as it is allocated and as CUDA's caching allocator reserves it, floating-point operations,
and bytes that are copied between the computer and the card. Time is not simulated.

    python -m benchmarks.simulate --only z-image-turbo:512:nf4
"""

import argparse
import gc
import json
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image

from benchmarks.allocator import reserved
from benchmarks.hollow_bases import BASES, save_hollow_base
from benchmarks.ledger import CARD, Ledger, as_on_a_card, loading
from benchmarks.record import RESULTS, save_result
from dopsd_app.config import TrainConfig
from dopsd_app.method.adapters import adapter_weights
from dopsd_app.method.encode import EncodedExample
from dopsd_app.method.objectives import make_objective
from dopsd_app.method.objectives.protocol import Material
from dopsd_app.method.rollout import sample, training_sigmas
from dopsd_app.method.step import optimizer_step, prepare
from dopsd_app.models.load import load_base_model
from dopsd_app.models.memory_plan import ALL, MemoryPlan
from dopsd_app.models.protocol import BaseModel, Conditioning, Pictures

STATES = 4  # K, that the work of a step is told for; one is simulated, since each takes the same
STEP = ("teacher", "student", "backward", "optimizer")
PHASES = ("encode student", "encode teacher", "load", *STEP, "preview", "decode")
RESOLUTIONS = (512, 768, 1024)
QUANTIZATIONS = ("none", "int8", "nf4")
SMALL_PARTS = {"autoencoder_in_ram": True, "encoders_by_layer": True, "tiled_decode": True}
RECOMPUTED = {"recomputed_blocks": ALL}
# From the fastest to the smallest.
PLANS = (
    {},
    RECOMPUTED,
    {"autoencoder_in_ram": True} | RECOMPUTED,
    SMALL_PARTS | RECOMPUTED | {"halves": True},
    SMALL_PARTS | RECOMPUTED | {"inputs_in_ram": True},
    SMALL_PARTS | RECOMPUTED | {"halves": True, "inputs_in_ram": True},
    SMALL_PARTS | RECOMPUTED | {"offloaded_blocks": 8},
    SMALL_PARTS | RECOMPUTED | {"offloaded_blocks": ALL},
    SMALL_PARTS | RECOMPUTED | {"halves": True, "inputs_in_ram": True, "offloaded_blocks": ALL},
)
FEW = (0, 1, 7)  # of these, for weights in 8 bits or as they are: nothing but their size differs
CAPTION = "a photograph of a small dog that sits in tall grass beside a red wooden gate in the evening"
RESULT = RESULTS / "simulated.json"


@dataclass(frozen=True)
class Simulated:
    """Bytes on the card and work, by phase; CUDA's own context, about 0.65 GiB, is not in it."""

    allocated: dict[str, int]  # at the most
    reserved: dict[str, int]  # at the most, by CUDA's caching allocator
    reserved_expandable: dict[str, int]  # with expandable segments
    kinds: dict[str, dict[str, int]]  # what there is at the phase's peak
    at: dict[str, str]  # what was allocated last at the phase's peak
    largest: dict[str, dict[str, int]]  # what is neither weight nor state at the peak, by its origin
    step_work: dict[str, int]  # floating-point operations of one picture's optimizer step
    to_card: dict[str, int]  # bytes copied in one picture's optimizer step
    to_host: dict[str, int]


def simulate(
    base: str,
    resolution: int,
    memory_plan: MemoryPlan,
    *,
    rank: int = 32,
    optimizer: str = "adamw8bit",
    teacher: str = "ema",
    sources: int = 0,
    sms: int = 24,
) -> Simulated:
    """A run of one known base model at real size; `sms` are the card's multiprocessors (24: RTX 4060)."""
    with tempfile.TemporaryDirectory() as place:
        save_hollow_base(base, Path(place))
        config = TrainConfig(
            base_model=place,
            precision="bfloat16",
            resolution=resolution,
            rank=rank,
            optimizer=optimizer,
            teacher=teacher,
            rollout_steps=1,
            num_inference_steps=STATES,
            batch_size=1,
        )
        return simulate_run(config, memory_plan, sources=sources, sms=sms)


def simulate_run(
    config: TrainConfig, memory_plan: MemoryPlan, *, sources: int = 0, sms: int = 24
) -> Simulated:
    """A run by a configuration that visits one state; the weights of its base model are never read."""
    ledger = Ledger(sms)
    if memory_plan.halves:  # as `train.hold_to` asks for it
        ledger.cublas = 8 * 16 * 2**10
    with as_on_a_card(ledger):
        run(config, memory_plan, ledger, sources)
    return summarize(ledger)


# --- a run


def run(config: TrainConfig, memory_plan: MemoryPlan, ledger: Ledger, sources: int = 0) -> None:
    """Encoding, an optimizer step, a preview: the product's, phase by phase."""
    base_model = load_base_model(config, memory_plan)
    base_model.device = CARD
    with loading(ledger):
        with ledger.of("encode"):
            student, teacher = encode(base_model, config, ledger, sources)
        ledger.name("conditioning", (student.prompt_embeds, *student.reference_latents))
        ledger.name("conditioning", (teacher.prompt_embeds, *teacher.reference_latents))
        ledger.empty_cache()
        with ledger.of("load"):
            base_model.load_transformer()
            optimizer, workspaces = put_adapters(base_model, config, ledger)
    example = EncodedExample((student,), (teacher,), config.resolution, config.resolution)
    train(base_model, config, example, optimizer, ledger)
    draw(base_model, config, example, ledger)
    del workspaces


def encode(
    base_model: BaseModel, config: TrainConfig, ledger: Ledger, sources: int
) -> tuple[Conditioning, Conditioning]:
    """What student and teacher see of a picture."""
    picture = Image.new("RGB", (config.resolution, config.resolution))
    pictures = Pictures(picture, (picture,) * sources)
    base_model.load_encoders()
    ledger.keeps_values = True
    with ledger.of("encode student"):
        student = kept(base_model.encode(pictures, CAPTION, "student"))
    with ledger.of("encode teacher"):
        teacher = kept(base_model.encode(pictures, CAPTION, "teacher"))
    ledger.keeps_values = False
    base_model.free_encoders()
    gc.collect()
    return student, teacher


def kept(conditioning: Conditioning) -> Conditioning:
    """As it comes back from the cache on disk, with memory of its own."""
    references = tuple(latents.clone() for latents in conditioning.reference_latents)
    return Conditioning(conditioning.prompt_embeds.clone(), references)


def put_adapters(base_model: BaseModel, config: TrainConfig, ledger: Ledger):
    """The optimizer, and what cuBLAS keeps for itself."""
    transformer = base_model.transformer
    ledger.name("weights", _weights(transformer))
    if base_model.offloaded:
        ledger.name("buffers of offloaded blocks", base_model.offloaded.buffers)
    if base_model.vae is not None:
        ledger.name("autoencoder", _weights(base_model.vae))
    add = transformer.add_adapter

    def add_on_card(*args, **kwargs):  # PEFT leaves an adapter on the CPU where its layer is on "meta"
        with CARD:
            add(*args, **kwargs)

    transformer.add_adapter = add_on_card
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = prepare(base_model, config)
    for adapter in ("student", "teacher") if config.has_ema_teacher else ("student",):
        ledger.name(adapter, adapter_weights(transformer, adapter).values())
    if isinstance(optimizer, torch.optim.AdamW) and ledger.cuda_kernels:
        optimizer.param_groups[0]["foreach"] = True  # as it chooses on a card
    # Of the thread that computes, and of autograd's.
    workspaces = [torch.empty(ledger.cublas, dtype=torch.uint8, device=CARD) for _ in range(2)]
    ledger.name("cuBLAS", workspaces)
    return optimizer, workspaces


def _weights(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """All that belongs to a module, the scales of packed weights included."""
    for tensor in (*module.parameters(), *module.buffers()):
        yield tensor
        state = getattr(tensor, "quant_state", None)
        for part in (state, state.state2) if state else ():
            yield from (x for x in vars(part).values() if isinstance(x, torch.Tensor))


def train(
    base_model: BaseModel, config: TrainConfig, example: EncodedExample, optimizer, ledger: Ledger
) -> None:
    """One state of one optimizer step amid others."""
    with ledger.of("settle"):
        weights = settle(optimizer)
        ledger.name("gradients", (weight.grad for weight in weights))
        states = optimizer.state.values()
        moments = (x for state in states for x in state.values() if isinstance(x, torch.Tensor))
        ledger.name("moments", moments)
    objective = make_objective(base_model, config, Material((example,), (), ()))
    with watched(base_model, optimizer, ledger), ledger.of("student"):
        optimizer_step(base_model, config, (example,), objective, optimizer, 1)


def settle(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """Moments and gradients are there from the states before; returns the trained weights."""
    weights = optimizer.param_groups[0]["params"]
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    gc.collect()
    return weights


@contextmanager
def watched(base_model: BaseModel, optimizer: torch.optim.Optimizer, ledger: Ledger) -> Iterator[None]:
    """Names the phases of a step."""
    predict, step = base_model.predict_velocity, optimizer.step

    def predict_velocity(*args):
        ledger.phase = "student" if torch.is_grad_enabled() else "teacher"
        velocity = predict(*args)
        ledger.phase = "backward" if torch.is_grad_enabled() else "student"
        return velocity

    def optimize():
        ledger.phase = "optimizer"
        step()

    base_model.predict_velocity, optimizer.step = predict_velocity, optimize
    try:
        yield
    finally:
        base_model.predict_velocity, optimizer.step = predict, step


def draw(base_model: BaseModel, config: TrainConfig, example: EncodedExample, ledger: Ledger) -> None:
    """A preview: a pass at one of the native sigmas, and the decoded picture."""
    size = (config.resolution, config.resolution)
    gc.collect()
    with ledger.of("preview"):
        noise = torch.empty(1, *base_model.latent_shape(*size), device=CARD)
        sigmas = training_sigmas(base_model, config, size)
        latents = sample(base_model, [example.student[0]], noise, sigmas)
    with ledger.of("decode"):
        base_model.decode(latents)


# --- what came of it


def summarize(ledger: Ledger) -> Simulated:
    """The peaks of each phase, and what there is at each."""
    totals, total = [], 0
    for number, size in ledger.events:
        total += size if number > 0 else -size
        totals.append(total)
    places = {name: [i for i, phase in enumerate(ledger.phases) if phase == name] for name in PHASES}
    names = [name for name in PHASES if places[name]]
    peaks = {name: max(places[name], key=lambda i: totals[i]) for name in names}
    histories = [reserved(ledger.events, expandable) for expandable in (False, True)]
    most = [{name: max(history[i] for i in places[name]) for name in names} for history in histories]
    kinds, largest, at = {}, {}, {}
    for name, alive in _snapshots(ledger, peaks).items():
        kinds[name], largest[name] = _account(ledger, alive)
        at[name] = str(ledger.allocations[abs(ledger.events[peaks[name]][0])])
    states = {name: STATES if name != "optimizer" else 1 for name in STEP}
    return Simulated(
        allocated={name: totals[peaks[name]] for name in names},
        reserved=most[0],
        reserved_expandable=most[1],
        kinds=kinds,
        at=at,
        largest=largest,
        step_work={name: states[name] * ledger.work[name] for name in STEP},
        to_card={name: states[name] * ledger.to_card[name] for name in STEP},
        to_host={name: states[name] * ledger.to_host[name] for name in STEP},
    )


def _snapshots(ledger: Ledger, peaks: dict[str, int]) -> dict[str, list[int]]:
    """Numbers of the allocations that are alive at these events."""
    at, alive, found = {place: name for name, place in peaks.items()}, {}, {}
    for place, (number, _) in enumerate(ledger.events):
        if number > 0:
            alive[number] = None
        else:
            alive.pop(-number, None)
        if place in at:
            found[at[place]] = list(alive)
    return found


def _account(ledger: Ledger, alive: list[int]) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes by kind, and of the ten largest origins of what has no kind."""
    kinds, origins = Counter(), Counter()
    for number in alive:
        allocation = ledger.allocations[number]
        kinds[allocation.kind or f"made in {allocation.phase}"] += allocation.size
        if not allocation.kind:
            origins[str(allocation)] += allocation.size
    return dict(kinds.most_common()), dict(origins.most_common(10))


# --- the table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--only",
        nargs="*",
        metavar="BASE:RESOLUTION:QUANTIZATION",
        default=[f"{b}:{r}:{q}" for b in BASES for r in RESOLUTIONS for q in QUANTIZATIONS],
        help="cases to simulate anew; without, all that the table does not have yet",
    )
    parser.add_argument("--plans", nargs="*", type=int, help="of PLANS, by number")
    arguments = parser.parse_args()
    anew = "--only" in sys.argv
    rows = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    for case in arguments.only:
        base, resolution, quantization = case.split(":")
        for plan in (
            MemoryPlan(quantization=quantization, **PLANS[i])
            for i in arguments.plans or plans_of(quantization)
        ):
            key = {"base": base, "resolution": int(resolution), "plan": plan.to_fields()}
            others = [row for row in rows if not key.items() <= row.items()]
            if len(others) < len(rows) and not anew:
                continue
            simulated = simulate(base, int(resolution), plan)
            rows = [*others, {**key, **asdict(simulated)}]
            save_result("simulated", {"rank": 32, "states": STATES, "multiprocessors": 24, "rows": rows})
            print(describe(key, simulated), flush=True)


def plans_of(quantization: str) -> Sequence[int]:
    return range(len(PLANS)) if quantization == "nf4" else FEW


def describe(key: dict, simulated: Simulated) -> str:
    """A line with the largest figures, in GiB and TFLOP."""
    levers = [name for name, value in key["plan"].items() if value and name != "quantization"]
    training = max((name for name in STEP), key=lambda name: simulated.allocated[name])
    figures = [simulated.allocated[training], simulated.reserved[training]]
    figures += [simulated.reserved_expandable[training], simulated.allocated["decode"]]
    allocated, reserved_, expandable, decode = (f"{figure / 2**30:.2f}" for figure in figures)
    return (
        f"{key['base']} {key['resolution']} {key['plan']['quantization']} {' '.join(levers) or 'no lever'}:"
        f" training {allocated}, reserved {reserved_} or {expandable} (in {training}), decoding {decode} GiB;"
        f" {sum(simulated.step_work.values()) / 1e12:.0f} TFLOP"
    )


if __name__ == "__main__":
    main()
