"""Follows every storage and every operator of PyTorch code that runs on the device "meta", as on a card.

Nothing is computed there, and nothing held: bytes and operations are counted of real classes at real size. A
storage lives as long as PyTorch itself keeps it, tensors saved for the backward pass included: it is followed
by a weak reference. What lies in the computer's own memory is a tensor on the CPU that nobody writes to.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from unittest.mock import patch
from weakref import ref

import bitsandbytes.functional
import numpy as np
import torch
from accelerate import init_empty_weights
from bitsandbytes.nn import Linear4bit
from safetensors import safe_open
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.flop_counter import flop_registry

from benchmarks.allocator import EMPTY_CACHE, GRANULARITY, Event, rounded
from dopsd_app.models import frozen, phases, quantize, vision_language
from dopsd_app.models.prepared import Prepared

aten = torch.ops.aten
CARD = torch.device("meta")
LARGE = 2**22  # bytes: what is smaller is computed in earnest, where it is on the CPU
# They keep their values where shapes depend on them.
VALUES = (torch.int64, torch.int32, torch.bool)
INDEXING = (aten.index, aten.index_put, aten.index_put_, aten.index_select, aten.embedding, aten.gather)
INDEXING += (aten.masked_scatter, aten.masked_scatter_, aten.index_add_, aten.index_copy_)
SDPA, RMS_NORM = torch.nn.functional.scaled_dot_product_attention, torch.nn.functional.rms_norm


@dataclass(frozen=True)
class Allocation:
    """Where a storage came from."""

    size: int  # bytes
    phase: str
    module: str
    operator: str
    dtype: str
    shape: tuple[int, ...]
    kind: str = ""  # of what is kept, as `Ledger.name` was told; of all else, its phase

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        return f"{self.phase}: {self.operator} in {self.module or 'no module'}, {shape} {self.dtype}"


class Ledger(TorchDispatchMode):
    """What is allocated, freed, computed and copied while it is active.

    `multiprocessors` are the card's.
    """

    granularity = GRANULARITY
    cuda_kernels = True  # RMSNorm is one, and the optimizer has some for all weights at once
    cublas = 32 * 2**20  # bytes: what `use_repeatable_kernels` lets it keep for a thread

    def __init__(self, multiprocessors: int = 24):
        super().__init__()
        self.multiprocessors = multiprocessors
        self.phase, self.modules = "between", []
        self.events: list[Event] = []
        self.phases: list[str] = []  # of each event
        self.allocations: dict[int, Allocation] = {}  # by number
        self.live = 0  # bytes
        self.work, self.operators = Counter(), Counter()  # floating-point operations by phase; calls
        self.to_card, self.to_host = Counter(), Counter()  # bytes copied, by phase
        self.counts = True
        # Whether integers that are moved to the card stay on the CPU, uncounted: a vision tower's shapes
        # depend on them.
        self.keeps_values = False
        self._numbers: dict[int, tuple[ref, int]] = {}  # by a storage's id

    # --- what a benchmark says

    @contextmanager
    def of(self, phase: str) -> Iterator[None]:
        """Names what is done by its phase."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """For modules that are "meta" in truth, too: they wait for their weights."""
        before, self.counts = self.counts, False
        try:
            yield
        finally:
            self.counts = before

    def name(self, kind: str, tensors: Iterable[Tensor]) -> None:
        """Says what tensors on the card are."""
        for tensor in tensors:
            if tensor.device == CARD and tensor.numel():
                number = self._add(tensor, kind)
                self.allocations[number] = replace(self.allocations[number], kind=kind)

    def empty_cache(self) -> None:
        self._note(EMPTY_CACHE)

    # --- what is counted

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.operators[func.name(), self.phase] += 1
        if func is aten._local_scalar_dense.default and args[0].device == CARD:
            return 1.0 if args[0].is_floating_point() else 1
        if func in (aten._to_copy.default, aten.copy_.default):
            out = self._copy(func, args, kwargs)
        elif func is torch.ops.bitsandbytes.gemm_4bit.default and args[0].device == CARD:
            return self._multiply_4bit(*args, **kwargs)
        elif not func.is_view and _large_on_host(args):
            return self._on_host(func, args, kwargs)
        else:
            args, kwargs = _on_one_device(func, (args, kwargs))
            out = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self.work[self.phase] += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor) and tensor.device == CARD:
                self._add(tensor, func.name())
        self.work_space(func, args)
        return out

    def _add(self, tensor: Tensor, operator: str) -> int:
        """The number of a tensor's storage, which counts from now on."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._numbers:
            return self._numbers[key][1]
        number, size = len(self.allocations) + 1, storage.nbytes()
        counts = self.counts and size > 0
        size = rounded(size, self.granularity)

        def freed(_):
            del self._numbers[key]
            if counts:
                self._note((-number, size))

        self._numbers[key] = ref(storage, freed), number
        module = self.modules[-1] if self.modules else ""
        dtype = str(tensor.dtype).removeprefix("torch.")
        self.allocations[number] = Allocation(size, self.phase, module, operator, dtype, tuple(tensor.shape))
        if counts:
            self._note((number, size))
        return number

    def _note(self, event: Event) -> None:
        self.events.append(event)
        self.phases.append(self.phase)
        self.live += event[1] if event[0] > 0 else -event[1]

    def hide(self, size: int, operator: str) -> None:
        """Counts what a kernel takes for itself while it runs, besides what it returns."""
        number, size = len(self.allocations) + 1, rounded(size, self.granularity)
        module = self.modules[-1] if self.modules else ""
        self.allocations[number] = Allocation(size, self.phase, module, operator, "uint8", (size,))
        self._note((number, size))
        self._note((-number, size))

    def work_space(self, func, args) -> None:
        """Flash attention's sums of the query's gradient in float32, so many times as it splits the keys.

        Its deterministic mode splits them among multiprocessors that have no head of their own (PyTorch's
        flash_api.cpp).
        """
        if func is aten._scaled_dot_product_flash_attention_backward.default:
            batch, heads, length, width = args[1].shape
            rows = rounded(length, 128)
            splits = -(-self.multiprocessors // (batch * heads))
            self.hide(4 * batch * heads * rows * (1 + splits * rounded(width, 32)), func.name())

    # --- what the device "meta" does otherwise than a card

    def _copy(self, func, args, kwargs):
        """Between the card and the computer's memory, which is not written to."""
        to_copy = func is aten._to_copy.default
        source = args[0] if to_copy else args[1]
        target = kwargs.get("device") or source.device if to_copy else args[0].device
        if source.device == torch.device(target):
            if source.device != CARD and source.nbytes >= LARGE:
                return self._on_host(func, args, kwargs)
            return func(*args, **kwargs)
        size = source.numel() * source.element_size()
        if target == CARD:
            if self.keeps_values and source.dtype in VALUES:
                return source.clone() if to_copy else args[0]
            self.to_card[self.phase] += size
            return func(*args, **kwargs)
        self.to_host[self.phase] += size
        return host_like(source, kwargs.get("dtype") or source.dtype) if to_copy else args[0]

    def _on_host(self, func, args, kwargs):
        """What the processor would compute: nothing is, and only the result's memory is promised."""
        with self.uncounted():
            moved = tree_map(lambda x: _like(x, CARD), args)
            out = func(*moved, **(kwargs | {"device": CARD} if "device" in kwargs else kwargs))
        if func._schema.is_mutable:
            return args[0]
        return tree_map(lambda x: host_like(x, x.dtype) if isinstance(x, Tensor) else x, out)

    def _multiply_4bit(self, x, _packed, shape, *_, bias=None, absmax_8bit=None, **kwargs):
        """As bitsandbytes does on a card with more than a few tokens: weights are unfolded, then `mm`."""
        with self:
            if absmax_8bit is not None:
                _scales = torch.empty_like(absmax_8bit, dtype=torch.float32) + kwargs["absmax_offset"]
            weight = torch.empty(shape, dtype=x.dtype, device=x.device)
            rows = x.reshape(-1, x.shape[-1])
            # Not `@`: below autograd, that is not taken apart.
            out = torch.mm(rows, weight.t()) if bias is None else torch.addmm(bias, rows, weight.t())
            return out.view(*x.shape[:-1], shape[0])


def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """As CUDA chooses: flash attention, and the memory-efficient one for a mask or a wide head."""
    if query.device != CARD:
        return SDPA(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if attn_mask is None and query.shape[-1] <= 256:
        return aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, False, scale=scale
        )[0]
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros(attn_mask.shape, dtype=query.dtype, device=query.device)
    grad = torch.is_grad_enabled() and query.requires_grad
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, grad, dropout_p, is_causal, scale=scale
    )[0]


def normalize(x, normalized_shape, weight=None, eps=None):
    """RMSNorm by CUDA's kernel."""
    return _FusedNorm.apply(x, weight) if x.device == CARD else RMS_NORM(x, normalized_shape, weight, eps)


class _FusedNorm(torch.autograd.Function):
    """RMSNorm with the bytes of CUDA's kernel: kept are the input and a number for each row."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device))
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx, grad):
        return torch.empty_like(ctx.saved_tensors[0], memory_format=torch.contiguous_format), None


def host_like(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor on the CPU of zeros that take no memory until they are written to."""
    zeros = torch.from_numpy(np.zeros(max(1, tensor.numel()) * dtype.itemsize, np.uint8))
    return zeros.view(dtype)[: tensor.numel()].view(tensor.shape)


def _large_on_host(args) -> bool:
    tensors = [x for x in args if isinstance(x, Tensor)]
    return all(x.device != CARD for x in tensors) and any(x.nbytes >= LARGE for x in tensors)


def _like(x, device: torch.device):
    return torch.empty_like(x, device=device) if isinstance(x, Tensor) and x.ndim else x


def _on_one_device(func, arguments):
    """Where an operator works on the card, what it gets from the CPU is there too; but for indices."""
    tensors = [x for x in tree_iter(arguments) if isinstance(x, Tensor)]
    if len({x.device for x in tensors}) < 2:
        return arguments
    stays = VALUES if func._overloadpacket in INDEXING else ()

    def moved(x):
        if isinstance(x, Tensor) and x.device != CARD and x.ndim and x.dtype not in stays:
            return _like(x, CARD)
        return x

    return tree_map(moved, arguments)


class _SetData(TorchFunctionMode):
    """Lets `.data` bring a weight to the card, or from it: where that is "meta", torch refuses."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func == torch.Tensor.data.__set__ and args[0].device != args[1].device:
            weight, data = args
            other = torch.Tensor._make_subclass(type(weight), data, weight.requires_grad)
            other.__dict__.update(weight.__dict__)
            torch.utils.swap_tensors(weight, other)
            return None
        return func(*args, **(kwargs or {}))


@contextmanager
def loading(ledger: Ledger) -> Iterator[None]:
    """Modules that are made on "meta" to be filled take nothing of a card, and nothing is kept on disk."""
    opened = {}

    def waiting(make):
        def made(*args, **options):
            with ledger.uncounted():
                return make(*args, **options)

        return made

    @contextmanager
    def empty(**options):
        with ledger.uncounted(), init_empty_weights(**options):
            yield

    @contextmanager
    def left_open(file, framework):  # to map gigabytes takes a hundredth of a second, for each tensor
        if file not in opened:
            opened[file] = safe_open(file, framework=framework).__enter__()
        yield opened[file]

    with ExitStack() as stack:
        for place, name, other in (
            (frozen, "init_empty_weights", empty),
            (frozen, "safe_open", left_open),
            (vision_language, "Qwen3VLModel", waiting(vision_language.Qwen3VLModel)),
            (Linear4bit, "__init__", waiting(Linear4bit.__init__)),
            (quantize, "Int8Linear", waiting(quantize.Int8Linear)),
            (Prepared, "read", lambda prepared: None),
            (Prepared, "write", lambda prepared, tensors: None),
        ):
            stack.enter_context(patch.object(place, name, other))
        stack.enter_context(_SetData())
        yield


@contextmanager
def as_on_a_card(ledger: Ledger) -> Iterator[None]:
    """What runs on "meta" is counted by the ledger, and allocates as on a CUDA card."""
    functional, data_ptr, keep_less = torch.nn.functional, torch.Tensor.data_ptr, phases.keep_less

    def address(x):
        return (id(x.untyped_storage()), x.storage_offset()) if x.device == CARD else data_ptr(x)

    def enter(module, _):
        ledger.modules.append(type(module).__name__)

    def leave(module, _, __):
        ledger.modules.pop()

    with ExitStack() as stack:
        for place, name, other in (
            (bitsandbytes.functional, "is_on_gpu", lambda tensors: True),
            (functional, "scaled_dot_product_attention", attend),
            # On "meta" every address is 0.
            (
                torch.Tensor,
                "data_ptr",
                lambda x: id(x.untyped_storage()) if x.device == CARD else data_ptr(x),
            ),
        ):
            stack.enter_context(patch.object(place, name, other))
        if ledger.cuda_kernels:
            stack.enter_context(patch.object(functional, "rms_norm", normalize))
            for_card = partial(keep_less, device=torch.device("cuda"))
            stack.enter_context(patch.object(phases, "keep_less", lambda x, device: for_card(x)))
        # What bitsandbytes keeps for the next call would be on "meta" for those outside, too.
        stack.enter_context(patch.dict(bitsandbytes.functional.name2qmap, clear=True))
        hooks = torch.nn.modules.module
        for hook in (
            hooks.register_module_forward_pre_hook(enter),
            hooks.register_module_forward_hook(leave, always_call=True),
        ):
            stack.callback(hook.remove)
        stack.enter_context(ledger)
        yield
