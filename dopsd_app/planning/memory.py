"""Which memory plan a run gets: the fastest one that surely fits into what the card has free.

Bytes are reckoned by formulas whose numbers come from steps of the real models that were simulated
(benchmarks/results/simulated.json).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from dopsd_app.config import OBJECTIVES, TrainConfig
from dopsd_app.gpus import can_grow
from dopsd_app.models.architecture import TILE, Blocks, Sizes
from dopsd_app.models.memory_plan import NOTHING_SAVED, MemoryPlan
from dopsd_app.planning.cards import COPYING, WEIGHTS_SLOWER, operations_per_second
from dopsd_app.planning.cost import step_work
from dopsd_app.planning.machine import Machine

GIB = 2**30
# Python with torch and diffusers: five runs of the built-in base took from 17 % less to 18 % more than is
# reckoned with it. On a card: CUDA's context with cuBLAS, as measured (benchmarks/results/real_size.json).
PROGRAM_ON_CPU, PROGRAM_ON_GPU = 600_000_000, 690_000_000
WORKSPACE = 2 * 8 * 4 * 2**20  # bytes: cuBLAS's, of the thread that trains and of autograd's
SMALL_WORKSPACE = 2 * 8 * 16 * 2**10  # the smallest that repeats itself
# What the allocator takes of the card besides, where its segments can grow, or not: of what a block works
# with, and of what is kept for the way back.
FRAGMENTS = {True: 0.37, False: 1.1}
FRAGMENTS_KEPT = 0.08
CONVOLUTIONS = 2**29  # bytes: cuDNN's work space in the autoencoder, as a card has shown it at 512 x 512
BYTES = {"none": 0.0, "int8": 1.0003, "nf4": 0.5156}  # of a rounded weight, with its share of the scales
SCALES = {"none": 0.0, "int8": 0.0, "nf4": 0.0156}  # of these, what stays on the device in any case
ENCODING = 1.04  # of the encoders' weights: with what they keep of caption and picture
# Of these weights, where they are read by layer: one of them, and beside it the teacher's eyes, or none.
LAYER_SHARE = {"eyes": 0.17, "reference": 0.09}
COMPUTER = 3 * GIB  # of the computer's own memory: the program with CUDA, and a tensor on its way
ERROR = {True: 0.02, False: 0.15}  # of the formulas on a card and on a processor
# GB of 2^30 bytes of cards that compute in bfloat16, but for a few of 4 GB that nothing was planned for;
# their drivers tell up to a fiftieth less.
CARDS = (6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 80, 96, 141)
IN_16_GB = 12 * GIB  # what a computer with so much memory has free
EXACT = ("none", "int8", "nf4")  # what a base's weights may be rounded to, from the nearest to the real ones
WEIGHTS = {  # for the person
    "none": "the base model's weights as they are",
    "int8": "the base model's weights in 8 bits",
    "nf4": "the base model's weights in 4 bits",
}
CLEARLY_LESS = 0.9  # of what ran out: so much a smaller plan may take of it
AS_FAST = 1.05  # times the time of the fastest plan: among those, the weights nearest to the real ones


@dataclass(frozen=True)
class Memory:
    """Bytes at the most, in the phases of a run, on the device that trains, the program included."""

    encoding: int  # while captions and pictures are encoded
    training: int
    drawing: int  # while a preview is drawn
    computer: int = 0  # of the computer's own memory, where a card trains
    parts: tuple[tuple[str, int], ...] = ()  # of training, for the person: what it is, and its bytes

    @property
    def peak(self) -> int:
        return max(self.encoding, self.training, self.drawing)

    def times(self, measured: float, program: int) -> "Memory":
        """With so many times the memory of training, but for the program itself."""
        training = program + round((self.training - program) * measured)
        *others, (activations, _) = self.parts
        rest = training - sum(taken for _, taken in others)
        return replace(self, training=training, parts=(*others, (activations, rest)))


@dataclass(frozen=True)
class Budget:
    """What a plan may take, in bytes, the program included."""

    device: int  # of the device that trains
    computer: int  # of the computer's own memory, where that is a card
    on_gpu: bool
    rate: float = 0.0  # operations per second that the device reaches
    ran_out: Mapping[str, int] = field(default_factory=dict)  # phase of `Memory`: it must take less than this
    measured: float = 1.0  # times the reckoned memory of a step, as the base model's check has measured it


@dataclass(frozen=True)
class Fitted:
    """A memory plan, and what it takes."""

    plan: MemoryPlan
    memory: Memory
    slower: float  # times the time of a step of the plan that saves nothing
    budget: Budget  # that it was made for


def budget_of(config: TrainConfig, machine: Machine, *, own: bool = True) -> Budget:
    """What is free now, or what the settings allow; with `own` False, all that the device has.

    The latter is for a run that waits for one of ours to end, whose memory is then free.
    """
    gpu = None if config.device == "cpu" else machine.card(config.precision)
    holder = gpu or machine
    device = holder.free_memory if own else holder.memory
    if config.memory_limit:
        device = min(device, int(config.memory_limit * GIB))
    rate = operations_per_second(machine, gpu is not None)
    computer = machine.free_memory if own else machine.memory
    # Windows lets a card read half of it by itself, in its subsystem for Linux too.
    return Budget(device, computer if can_grow() else computer // 2, gpu is not None, rate)


def fit(config: TrainConfig, sizes: Sizes, budget: Budget) -> Fitted | None:
    """The fastest plan within the budget; None where none fits."""
    found = [fitted for fitted in _candidates(config, sizes, budget) if _fits(fitted.memory, budget)]
    if not found:
        return None
    fastest = min(fitted.slower for fitted in found)
    good = [fitted for fitted in found if fitted.slower <= AS_FAST * fastest]
    return min(good, key=lambda fitted: (EXACT.index(fitted.plan.quantization), fitted.slower))


def within(config: TrainConfig, sizes: Sizes, budget: Budget) -> Fitted:
    """`fit`, or the smallest plan where none fits."""
    return fit(config, sizes, budget) or _smallest(config, sizes, budget)


def _smallest(config: TrainConfig, sizes: Sizes, budget: Budget) -> Fitted:
    """The plan that needs the least of the device, and of the computer no more than it has, if any."""
    found = list(_candidates(config, sizes, replace(budget, device=0)))
    possible = [fitted for fitted in found if fitted.memory.computer <= budget.computer]
    of_the_computer = min(found, key=lambda fitted: fitted.memory.computer)
    smallest = min(possible or [of_the_computer], key=lambda fitted: fitted.memory.peak)
    return replace(smallest, budget=budget)


def next_smaller(config: TrainConfig, sizes: Sizes, fitted: Fitted, phase: str) -> Fitted | None:
    """The fastest plan that takes clearly less in a phase of `Memory` in which this one ran out.

    Where there is none, the one that takes the least; None where that takes no less. With the same weights:
    what is trained stays what it is.
    """
    config = replace(config, quantization=fitted.plan.quantization)
    program, taken = program_bytes(fitted.budget.on_gpu), getattr(fitted.memory, phase)
    for most in (program + round(CLEARLY_LESS * (taken - program)), taken):
        ran_out = {**fitted.budget.ran_out, phase: most}
        if found := fit(config, sizes, replace(fitted.budget, ran_out=ran_out)):
            return found
    return None


def _fits(memory: Memory, budget: Budget) -> bool:
    less = all(getattr(memory, phase) < most for phase, most in budget.ran_out.items())
    return less and memory.peak <= budget.device and memory.computer <= budget.computer


def _candidates(config: TrainConfig, sizes: Sizes, budget: Budget) -> Iterator[Fitted]:
    """Of each way to save, the plan that saves no more than the budget asks for, and else the most."""
    number = number_bytes(config, budget.on_gpu)
    blocks = sum(kind.count for kind in sizes.blocks(sizes.student_tokens(config.resolution)))
    rounded = EXACT if config.quantization == "auto" else (config.quantization,)
    if not budget.on_gpu and config.quantization == "auto":
        rounded = ("none",)  # in a processor's memory, there is room for the models that it can train
    ways = [(False, False), (True, False)]  # in halves or not, and inputs in the computer's memory or not
    if budget.on_gpu:
        ways += [(False, True), (True, True)]
    # What is saved there waits in the computer's memory: more of it fits the device better, and that worse.
    ran_out = {phase: most for phase, most in budget.ran_out.items() if phase != "computer"}
    of_device = replace(budget, computer=2**62, ran_out=ran_out)
    for quantization, (halves, inputs_in_ram) in product(rounded, ways):
        plan = MemoryPlan(
            quantization=quantization,
            halves=halves,
            inputs_in_ram=inputs_in_ram,
            autoencoder_in_ram=budget.on_gpu,
        )
        plan = _encoding_and_drawing(plan, config, sizes, budget)
        every = replace(plan, recomputed_blocks=blocks)

        def enough(tried: MemoryPlan) -> bool:
            return _fits(_measured(config, sizes, tried, budget), of_device)

        recomputed = _least(blocks, lambda n, plan=plan: enough(replace(plan, recomputed_blocks=n)))
        found = [replace(plan, recomputed_blocks=recomputed)]
        if budget.on_gpu:
            offloaded = _least(blocks, lambda n, plan=every: enough(replace(plan, offloaded_blocks=n)))
            found.append(replace(every, offloaded_blocks=offloaded))
        for tried in found:
            memory = _measured(config, sizes, tried, budget)
            yield Fitted(tried, memory, slowdown(config, sizes, tried, number, budget.rate), budget)


def _measured(config: TrainConfig, sizes: Sizes, plan: MemoryPlan, budget: Budget) -> Memory:
    program = program_bytes(budget.on_gpu)
    return reckon(config, sizes, plan, budget.on_gpu).times(
        budget.measured * (1 + ERROR[budget.on_gpu]), program
    )


def _least(most: int, enough) -> int:
    """The least number up to `most` that is enough; `most` where none is. More never is less."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


def _encoding_and_drawing(plan: MemoryPlan, config: TrainConfig, sizes: Sizes, budget: Budget) -> MemoryPlan:
    """With what makes these two phases fit, where they would not."""
    memory = _measured(config, sizes, plan, budget)

    def fits(phase: str) -> bool:
        taken = getattr(memory, phase)
        return taken <= budget.device and taken < budget.ran_out.get(phase, taken + 1)

    return replace(
        plan,
        encoders_by_layer=not fits("encoding"),
        tiled_decode=config.resolution > TILE and not fits("drawing"),
    )


# --- bytes


def number_bytes(config: TrainConfig, on_gpu: bool) -> int:
    """Bytes of a number of the frozen base."""
    return 2 if config.precision == "bfloat16" or (config.precision == "auto" and on_gpu) else 4


def reckon(
    config: TrainConfig, sizes: Sizes, plan: MemoryPlan, on_gpu: bool, expandable: bool | None = None
) -> Memory:
    """Bytes at the most in each phase under a plan, the program included.

    `expandable` says whether the allocator's segments can grow: of this computer, unless it is given.
    """
    number = number_bytes(config, on_gpu)
    program = program_bytes(on_gpu)
    base, lora = _weights(sizes, plan, number), _adapters(config, sizes)
    resting = base + lora
    convolutions = 0
    if on_gpu:
        resting += SMALL_WORKSPACE if plan.halves else WORKSPACE
        convolutions = CONVOLUTIONS
    autoencoder = 4 * sizes.decoder_parameters
    always = 0 if plan.autoencoder_in_ram else autoencoder
    reference = sizes.encoding_bytes(config.resolution, config.teacher_context)
    by_layer = LAYER_SHARE["reference" if reference else "eyes"]
    encoders = (by_layer if plan.encoders_by_layer else ENCODING) * number * sizes.encoder_parameters
    reference += convolutions if reference else 0
    # Read by layer, the text encoder is not there while pictures are encoded.
    encoding = max(encoders, reference) if plan.encoders_by_layer else encoders + reference
    side = min(config.resolution, TILE) if plan.tiled_decode else config.resolution
    # Meanwhile there is no gradient.
    of_gradient = 4 * sizes.lora_parameters(config.rank)
    decoding = autoencoder + sizes.decoding_bytes(side) + convolutions
    walking = always + max(_passing(kind, plan, number) for kind in _student(config, sizes))
    drawing = resting - of_gradient + max(decoding, walking)
    working, held = _activations(config, sizes, plan, number)
    training = resting + always + working + held
    if on_gpu:
        grows = can_grow() if expandable is None else expandable
        training += FRAGMENTS[grows] * working + FRAGMENTS_KEPT * held
    encoding, training, drawing = (program + int(phase) for phase in (encoding, training, drawing))
    parts = {"Program": program, "Base model": int(base + always), "LoRA": lora}
    parts["Activations"] = training - sum(parts.values())
    return Memory(
        encoding,
        training,
        drawing,
        computer=COMPUTER + _in_ram(config, sizes, plan, number) if on_gpu else 0,
        parts=tuple(parts.items()),
    )


def program_bytes(on_gpu: bool) -> int:
    """What the program itself takes on the device that trains."""
    return PROGRAM_ON_GPU if on_gpu else PROGRAM_ON_CPU


def least_gpu_memory(sizes: Sizes) -> int:
    """Bytes that a card must have with all that saves memory, at 512 x 512; 0 where none is needed."""
    if not sizes.needs_card:
        return 0
    config = TrainConfig(optimizer="adamw8bit", rank=16, resolution=512, micro_batch=1)
    return _smallest(config, sizes, Budget(0, IN_16_GB, on_gpu=True)).memory.peak


def least_card(sizes: Sizes) -> int:
    """The smallest card, in GB of 2^30 bytes, on which training surely fits; 0 where it needs none."""
    surely = least_gpu_memory(sizes) / 2**30
    return next(card for card in CARDS if 0.98 * card >= surely) if surely else 0


def _weights(sizes: Sizes, plan: MemoryPlan, number: int) -> float:
    """The transformer's on the device, with the two blocks of those that are copied there in turn."""
    each = BYTES[plan.quantization] or number
    kinds = [kind for kind in sizes.blocks(sizes.student_tokens(1024)) for _ in range(kind.count)]
    blocks = [kind.parameters * each + kind.others * number for kind in kinds]
    here, elsewhere = blocks[plan.offloaded_blocks :], blocks[: plan.offloaded_blocks]
    outside = sizes.parameters - sum(kind.parameters + kind.others for kind in kinds)
    scales = sum(kind.parameters for kind in kinds[: plan.offloaded_blocks]) * SCALES[plan.quantization]
    return sum(here) + 2 * max(elsewhere, default=0) + scales + outside * number


def _adapters(config: TrainConfig, sizes: Sizes) -> int:
    """Student, its gradient, two moments, and an EMA teacher, in float32; 8-bit moments take 1 byte each."""
    moments = 2 if config.optimizer == "adamw8bit" else 8
    return sizes.lora_parameters(config.rank) * (4 + 4 + moments + (4 if config.has_ema_teacher else 0))


def _activations(config: TrainConfig, sizes: Sizes, plan: MemoryPlan, number: int) -> tuple[float, float]:
    """What a block works with, and what is held beside it: of the way back, or of a pass without gradient."""
    student = _student(config, sizes)
    seeing = sizes.blocks(sizes.teacher_tokens(config.resolution, config.teacher_context))
    together = OBJECTIVES[config.objective].together
    back = _way_back([_times(kind, config.micro_batch * together) for kind in student], plan, number)
    passing = [_times(kind, config.micro_batch) for kind in (seeing if config.passes[1] else student)]
    return max(back, *((_passing(kind, plan, number), 0.0) for kind in passing), key=sum)


def _student(config: TrainConfig, sizes: Sizes) -> tuple[Blocks, ...]:
    return sizes.blocks(sizes.student_tokens(config.resolution))


def _passing(kind: Blocks, plan: MemoryPlan, number: int) -> float:
    working = kind.passing_in_halves if plan.halves else kind.passing
    return working.bytes(kind.features, kind.chunk, number, _unpacked(kind, plan, number))


def _times(kind: Blocks, pictures: int) -> Blocks:
    return replace(kind, features=pictures * kind.features)


def _way_back(kinds: Sequence[Blocks], plan: MemoryPlan, number: int) -> tuple[float, float]:
    """The same while the student goes back: block after block, from the last to the first."""
    most, held, at = (0.0, 0.0), 0.0, 0
    for kind in kinds:
        entering = kind.features * number  # what goes into one of them
        working = kind.back_in_halves[plan.inputs_in_ram] if plan.halves else kind.back
        peak = working.bytes(kind.features, kind.chunk, number, _unpacked(kind, plan, number))
        for _ in range(kind.count):
            at += 1
            if at > plan.recomputed_blocks:
                held += kind.kept * entering
                beside = kind.beside * entering
            else:
                held += 0 if plan.inputs_in_ram else entering
                # One input that comes back from there, and one that follows.
                beside = peak + (2 * entering if plan.inputs_in_ram else 0)
            most = max(most, (beside, held), key=sum)
    return most


def _unpacked(kind: Blocks, plan: MemoryPlan, number: int) -> float:
    """A rounded layer's weights as they are multiplied with."""
    return 0.0 if plan.quantization == "none" else kind.largest * number


def _in_ram(config: TrainConfig, sizes: Sizes, plan: MemoryPlan, number: int) -> int:
    """Bytes that wait in the computer's memory."""
    kinds = sizes.blocks(sizes.student_tokens(config.resolution))
    each = BYTES[plan.quantization] or number
    weights = [kind.parameters for kind in kinds for _ in range(kind.count)][: plan.offloaded_blocks]
    halved = [kind.inputs_in_halves if plan.halves else 1.0 for kind in kinds]
    inputs = [
        factor * kind.features for kind, factor in zip(kinds, halved, strict=True) for _ in range(kind.count)
    ][: plan.recomputed_blocks]
    pictures = config.micro_batch * OBJECTIVES[config.objective].together
    waiting = sum(weights) * each + (4 * sizes.decoder_parameters if plan.autoencoder_in_ram else 0)
    return int(waiting + (pictures * number * sum(inputs) if plan.inputs_in_ram else 0))


# --- time


def slowdown(config: TrainConfig, sizes: Sizes, plan: MemoryPlan, number: int, rate: float) -> float:
    """Times the time of a step of the exact base with nothing made anew and nothing copied.

    `rate` is in operations per second, without which copying takes no time.
    """
    plain = step_work(config, sizes, NOTHING_SAVED)
    work = step_work(config, sizes, plan) * WEIGHTS_SLOWER[plan.quantization]
    if not rate:
        return work / plain
    of_student, of_teacher = config.passes
    kinds = [
        kind for kind in sizes.blocks(sizes.student_tokens(config.resolution)) for _ in range(kind.count)
    ]
    weights = sum(kind.parameters for kind in kinds[: plan.offloaded_blocks])
    passes = (of_teacher + 2 * of_student) * config.batch_size / config.micro_batch
    copying = passes * weights * (BYTES[plan.quantization] or number) / COPYING
    # A pass waits for its copies only as far as they take longer than its work.
    waiting = max(0.0, copying - work / rate)
    inputs = sum(
        kind.features * (kind.inputs_in_halves if plan.halves else 1)
        for kind in kinds[: plan.recomputed_blocks]
        if plan.inputs_in_ram
    )
    moving = 2 * of_student * config.batch_size * inputs * number / COPYING
    return (work / rate + waiting + moving) * rate / plain


# --- in words


def words_for_plan(fitted: Fitted, sizes: Sizes) -> str:
    """How a plan makes a run fit, as one sentence for the person."""
    plan = fitted.plan
    blocks = sum(kind.count for kind in sizes.blocks(sizes.student_tokens(1024)))
    does = [WEIGHTS[plan.quantization]]
    if plan.recomputed_blocks:
        share = min(1.0, plan.recomputed_blocks / blocks)
        does.append(f"{share:.0%} of each pass is made anew on the way back")
    waiting = {"weights": plan.offloaded_blocks, "activations": plan.inputs_in_ram}
    if what := " and ".join(name for name, waits in waiting.items() if waits):
        does.append(f"{what} wait in the computer's memory")
    if plan.encoders_by_layer:
        does.append("captions are read layer by layer")
    if plan.tiled_decode:
        does.append("pictures are decoded in tiles")
    if plan == MemoryPlan(autoencoder_in_ram=plan.autoencoder_in_ram):
        return "There is room for all: the base model's weights as they are, and nothing is done twice."
    return f"{'; '.join(does).capitalize()}."
