"""A CUDA GPU that is not there: its tensors compute on the host, and what a real one would refuse is refused.

What a GPU asks of the code that drives it can be held against the code without one: that the tensors of one operation
are on one device, that kernels get the numbers they know, that the host waits only where it means to, that a result on
its way is not read before it is here, that a stream reads nothing of another one for which it has not waited, and that
what is recorded in a graph neither waits nor copies from the host. How fast it is, and how kernels round, only a GPU
can tell.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from tests.gpu.kernels import KERNELS
from tests.gpu.memory import Memory
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

from threefold.encoder import attention, transfer

aten = torch.ops.aten

#: Their results have a shape that only the numbers tell, so the host waits for them.
_SHAPED_BY_NUMBERS = (
    aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.unique_dim.default,
    aten.unique_consecutive.default, aten.bincount.default, aten.equal.default, aten._local_scalar_dense.default,
)  # fmt: skip


class Far(Tensor):
    """A tensor of the pretended GPU. `host` holds its numbers."""

    host: Tensor

    @staticmethod
    def __new__(cls: type[Far], host: Tensor) -> Far:
        where: dict[str, Any] = {"dtype": host.dtype, "device": torch.device("cuda", 0), "layout": host.layout}
        if not host.is_sparse:
            where |= {"strides": host.stride(), "storage_offset": host.storage_offset()}
        return Tensor._make_wrapper_subclass(cls, host.shape, **where)

    def __init__(self, host: Tensor) -> None:
        self.host = host
        self.told_by = Gpu.here.stream.stamp()
        Gpu.here.memory.take(self, host)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Far({self.host})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.host.__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return Gpu.here.run(func, args, kwargs or {})


class Gpu(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The device. `waits` names every operation at which the host would have stood still."""

    here: ClassVar[Gpu]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.memory = Memory()
        self.waits: list[str] = []
        self.ops: list[str] = []
        self._late: deque[Callable[[], object]] = deque()  # copies to the host that are under way
        self.begun = self._arrived = 0  # such copies so far
        self.tape: Graph | None = None  # the graph that is being recorded
        self.stream = Stream()  # that in which what is told now takes its turn
        self.copied_by: list[Stream] = []  # of every copy to the host that nobody waited for
        self.at_wait: Callable[[], object] = lambda: None
        self.at_operation: Callable[[Any, Any], object] = lambda func, args: None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        flat = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
        device = kwargs.get("device")
        far = any(isinstance(each, Far) for each in flat)
        if func is aten.is_pinned.default:
            return getattr(args[0], "is_pinned_here", False)
        if func in (aten.pin_memory.default, aten._pin_memory.default):
            return _pinned(args[0].clone())
        if not far and (device is None or torch.device(device).type != "cuda"):
            return self._near(func, args, kwargs)
        self.stream.reads(flat)
        if func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            with self:
                return func.decompose(*args, **kwargs)
        self.ops.append(str(func))
        self.at_operation(func, args)
        if func in (aten._to_copy.default, aten.copy_.default):
            return self._copy(func, args, kwargs)
        if func in _SHAPED_BY_NUMBERS or _by_mask(func, args) or _by_sum(func, kwargs):
            self._wait(str(func))
        _one_device(func, args, kwargs)
        return self._compute(func, args, kwargs)

    def _near(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        pin = kwargs.pop("pin_memory", None)
        made = func(*args, **kwargs)
        return _pinned(made) if pin else made

    def _compute(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        inner = KERNELS.get(str(func), func)
        kwargs = {name: value for name, value in kwargs.items() if name != "pin_memory"}
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        host_args, host_kwargs = tree_map(_host, (args, kwargs))
        made = inner(*host_args, **host_kwargs)
        if self.tape is not None:
            self.tape.steps.append(_again(inner, host_args, host_kwargs, made))
        wrapped = tree_map(_far, made)
        if self.tape is not None:
            self.tape.uses(args, kwargs, wrapped)
        if inner is not func:
            return wrapped
        return return_and_correct_aliasing(func, args, kwargs, wrapped)  # type: ignore[no-untyped-call]

    def _copy(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        to_copy = func is aten._to_copy.default
        free = kwargs.get("non_blocking", False) or (not to_copy and len(args) > 2 and args[2])
        source = args[0] if to_copy else args[1]
        target = torch.device(kwargs.get("device") or source.device) if to_copy else args[0].device
        if source.device.type == target.type:
            return self._compute(func, args, kwargs)
        near = source if target.type == "cuda" else None if to_copy else args[0]
        pinned = near is not None and getattr(near, "is_pinned_here", False)
        if not (free and pinned) and source.ndim + (target.type == "cpu"):  # a number travels with the call
            self._wait(f"copy to {target.type}")
        if self.tape is not None:
            raise RuntimeError(f"a graph cannot record a copy to {target.type}")
        if target.type == "cuda":
            if to_copy:
                return _far(source.detach().clone().to(kwargs.get("dtype") or source.dtype))
            args[0].host.copy_(source)
            args[0].told_by = self.stream.stamp()
            return args[0]
        if to_copy:
            return source.host.detach().clone().to(kwargs.get("dtype") or source.dtype)
        if free and pinned:  # written when it is waited for; until then it holds what nobody may read
            args[0].fill_(77)
            self._late.append(_copy_later(args[0], source, self.stream))
            self.copied_by.append(self.stream)
            self.begun += 1
        else:
            args[0].copy_(source.host)
        return args[0]

    def _wait(self, name: str) -> None:
        if self.tape is not None:
            raise RuntimeError(f"a graph cannot record {name}, for which the host waits")
        self.waited(name, self.begun)

    @torch.inference_mode()
    def waited(self, name: str, count: int) -> None:
        """The host stands still until the first so many copies of all are here."""
        self.waits.append(name)
        self.at_wait()
        while self._arrived < count:
            self._late.popleft()()
            self._arrived += 1


def _copy_later(target: Tensor, source: Far, stream: Stream) -> Callable[[], object]:
    """In a stream of its own a copy may come after the memory was given to what is told next, unless it is kept."""
    numbers, kept, beside = source.host.clone(), weakref.ref(source), source.told_by[0] is not stream
    wanted = weakref.ref(target)

    def arrive() -> None:
        if (here := wanted()) is None:  # nobody will look at it
            return
        if beside and kept() is None:
            raise RuntimeError(f"the memory of {tuple(here.shape)} was given away before it was copied")
        here.copy_(numbers)

    return arrive


def _host(value: Any) -> Any:
    return value.host if isinstance(value, Far) else value


def _far(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    with torch.inference_mode(value.is_inference()):  # a view of weights is not of inference, as they are not
        return Far(value)


def _pinned(tensor: Tensor) -> Tensor:
    tensor.is_pinned_here = True  # type: ignore[attr-defined]
    return tensor


def _by_mask(func: Any, args: Any) -> bool:
    """Whether rows are chosen by truth: how many, only the numbers tell."""
    if func not in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
        return False
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])


def _by_sum(func: Any, kwargs: dict[str, Any]) -> bool:
    """Whether the length of the result is the sum of numbers, and nobody said it."""
    return func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None


def _one_device(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """As PyTorch: numbers of no dimension may come from the host. (So may the rows of an index there, at a wait for
    them: here they may not.)"""
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
    strangers = [each for each in tensors if not isinstance(each, Far) and each.ndim]
    if strangers:
        raise RuntimeError(f"{func}: tensors on cuda:0 and cpu {tuple(strangers[0].shape)}")


def _again(inner: Any, args: Any, kwargs: Any, made: Any) -> Callable[[], None]:
    """The same work on the same buffers once more."""

    def play() -> None:
        for old, new in zip(tree_flatten(made)[0], tree_flatten(inner(*args, **kwargs))[0], strict=True):
            if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                old.copy_(new)

    return play


# ---- torch.cuda --------------------------------------------------------------------------------------


class Event:
    """What had been told before it was recorded has happened once it is waited for."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        self._count: int | None = None

    def record(self, stream: object = None) -> None:
        self._count = Gpu.here.begun

    def synchronize(self) -> None:
        assert self._count is not None
        Gpu.here.waited("event", self._count)


class Stream:
    """What is told to it happens in this order; of another stream only what it was told to wait for has happened."""

    def __init__(self, *args: object) -> None:
        self._told = 0
        self._after: dict[Stream, int] = {}

    def __deepcopy__(self, memo: object) -> Stream:
        return self  # a copied tensor is of the same stream

    def stamp(self) -> tuple[Stream, int]:
        """The place of what is told now."""
        self._told += 1
        return self, self._told

    def wait_stream(self, other: Stream) -> None:
        for stream, told in (*other._after.items(), (other, other._told)):
            self._after[stream] = max(told, self._after.get(stream, 0))

    def reads(self, tensors: list[Tensor]) -> None:
        for each in tensors:
            if isinstance(each, Far):
                stream, told = each.told_by
                if stream is not self and self._after.get(stream, 0) < told:
                    raise RuntimeError(f"{tuple(each.shape)} is read while another stream may still write it")


class Graph:
    """Records what is computed under `capture`, and computes it again into the same buffers.

    A real one knows the addresses of what it reads, and reads whatever is there now: here that is an error.
    """

    def __init__(self) -> None:
        self.steps: list[Callable[[], None]] = []
        self._made: set[int] = set()  # storages of the graph's own memory, which stays its own
        self._read: dict[int, tuple[weakref.ref[Far], torch.Size]] = {}
        self._kept: list[Any] = []

    def uses(self, args: Any, kwargs: Any, made: Any) -> None:
        for each in tree_flatten((args, kwargs))[0]:
            if isinstance(each, Far) and each.host.data_ptr() not in self._made:
                self._read[id(each)] = weakref.ref(each), each.shape
        for each in tree_flatten(made)[0]:
            if isinstance(each, Far):
                self._made.add(each.host.data_ptr())
                self._kept.append(each)

    def replay(self) -> None:
        for each, shape in self._read.values():
            if each() is None:
                raise RuntimeError(f"a graph reads a tensor {tuple(shape)} that is no more")
        for step in self.steps:
            step()
        for each in self._kept:
            each.told_by = Gpu.here.stream.stamp()


@contextmanager
def capture(
    graph: Graph, pool: object = None, stream: Stream | None = None, capture_error_mode: str = "global"
) -> Iterator[None]:
    assert stream is not None
    Gpu.here.tape = graph
    try:
        with in_stream(stream):
            yield
    finally:
        Gpu.here.tape = None


@contextmanager
def in_stream(stream: Stream) -> Iterator[None]:
    before, Gpu.here.stream = Gpu.here.stream, stream
    try:
        yield
    finally:
        Gpu.here.stream = before


@contextmanager
def _nothing(*args: object) -> Iterator[None]:
    yield


@contextmanager
def pretended(capability: tuple[int, int] = (9, 0)) -> Iterator[Gpu]:
    """A GPU of this compute capability: (9, 0) is an H100 or H200."""
    Gpu.here = Gpu()
    with ExitStack() as stack:
        for name, value in _cuda(capability).items():
            stack.enter_context(patch.object(torch.cuda, name, value))
        stack.enter_context(patch.object(torch.backends.cuda, "is_flash_attention_available", lambda: True))
        for there, back in _switches():
            there()
            stack.callback(back)
        yield stack.enter_context(Gpu.here)


def _switches() -> list[tuple[Callable[[], object], Callable[[], object]]]:
    """What must be set, and how it is undone."""
    convert, lift = torch.__future__.set_overwrite_module_params_on_conversion, torch._C._set_only_lift_cpu_tensors
    forget, part = attention._has_varlen.cache_clear, transfer._beside.cache_clear
    return [
        (forget, forget),
        (part, part),
        (partial(convert, True), partial(convert, False)),  # `.data =` would lose the class of the tensor
        (partial(lift, True), partial(lift, False)),  # `torch.tensor(..., device=)`: made on the host, copied by name
    ]


def _cuda(capability: tuple[int, int]) -> dict[str, Any]:
    """What stands in for the functions of `torch.cuda`."""
    return {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "is_bf16_supported": lambda including_emulation=True: including_emulation or capability >= (8, 0),
        "get_device_capability": lambda device=None: capability,
        "get_device_properties": lambda device=None: SimpleNamespace(name="pretended", total_memory=80 * 2**30),
        "max_memory_reserved": lambda device=None: 2**20,
        "max_memory_allocated": lambda device=None: 2**20,
        "reset_peak_memory_stats": lambda device=None: None,
        "set_per_process_memory_fraction": lambda part, device=None: Gpu.here.memory.limit(int(part * 80 * 2**30)),
        "memory_reserved": lambda device=None: Gpu.here.memory.held,
        "empty_cache": lambda: Gpu.here.memory.empty(),
        "set_sync_debug_mode": lambda mode: None,
        "current_stream": lambda device=None: Gpu.here.stream,
        "synchronize": lambda device=None: Gpu.here.waited("synchronize", Gpu.here.begun),
        "Event": Event,
        "Stream": Stream,
        "stream": in_stream,
        "device": _nothing,
        "CUDAGraph": Graph,
        "graph": capture,
        "graph_pool_handle": lambda: (0, 1),
    }
