"""A CUDA GPU that is not there: its tensors compute on the host, and what a real one would refuse is refused.

What a GPU asks of the code that drives it can be held against the code without one: that the tensors of one operation
are on one device, that kernels get the numbers they know, that the host waits only where it means to, that a result on
its way is not read before it is here, and that what is recorded in a graph neither waits nor copies from the host. How
fast it is, and how kernels round, only a GPU can tell.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

from threefold.encoder import attention

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
        self.waits: list[str] = []
        self.ops: list[str] = []
        self._late: deque[Callable[[], object]] = deque()  # copies to the host that are under way
        self.begun = self._arrived = 0  # such copies so far
        self.tape: Graph | None = None  # the graph that is being recorded
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
        if func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            with self:
                return func.decompose(*args, **kwargs)
        self.ops.append(str(func))
        self.at_operation(func, args)
        if func in (aten._to_copy.default, aten.copy_.default):
            return self._copy(func, args, kwargs)
        if func in _SHAPED_BY_NUMBERS or _by_mask(func, args):
            self._wait(str(func))
        _one_device(func, args, kwargs)
        return self._compute(func, args, kwargs)

    def _near(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        pin = kwargs.pop("pin_memory", None)
        made = func(*args, **kwargs)
        return _pinned(made) if pin else made

    def _compute(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        inner = _KERNELS.get(str(func), func)
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
            return args[0]
        if to_copy:
            return source.host.detach().clone().to(kwargs.get("dtype") or source.dtype)
        if free and pinned:  # written when it is waited for; until then it holds what nobody may read
            args[0].fill_(77)
            self._late.append(partial(args[0].copy_, source.host.clone()))
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


# ---- kernels that only a GPU has ---------------------------------------------------------------------


def _varlen(q: Tensor, k: Tensor, v: Tensor, borders: Tensor, of_keys: Tensor, longest: int, *rest: Any) -> Any:
    """What the kernel finds, as `scaled_dot_product_attention` finds it text by text, and what it asks for."""
    assert q.dtype in (torch.float16, torch.bfloat16), f"flash attention multiplies 16 bits, not {q.dtype}"
    assert borders.dtype == of_keys.dtype == torch.int32
    assert borders.is_contiguous()
    assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    assert q.shape[-1] % 8 == 0
    lengths = borders.diff().tolist()
    assert borders[[0, -1]].tolist() == [0, len(q)]
    assert max(lengths) == longest
    parts = [torch.split(part.transpose(0, 1), lengths, dim=1) for part in (q, k, v)]
    out = torch.cat([scaled_dot_product_attention(*text) for text in zip(*parts, strict=True)], dim=1).transpose(0, 1)
    return out, torch.zeros(q.shape[1], len(q)), torch.zeros(2, dtype=torch.uint64)


def _varlen_backward(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *rest: Any) -> Any:
    """Of softmax(q k' / sqrt(d)) v, written out, text by text."""
    lengths, root = rest[0].diff().tolist(), q.shape[-1] ** 0.5
    found = []
    for parts in zip(
        *(torch.split(each.transpose(0, 1).float(), lengths, dim=1) for each in (gradient, q, k, v)), strict=True
    ):
        g, mine, theirs, values = parts  # (heads, t, d) each
        p = (mine @ theirs.mT / root).softmax(-1)
        by_p = g @ values.mT
        scores = p * (by_p - (p * by_p).sum(-1, keepdim=True)) / root
        found.append((scores @ theirs, scores.mT @ mine, p.mT @ g))
    return tuple(torch.cat(each, 1).transpose(0, 1).to(q.dtype) for each in zip(*found, strict=True))


def _product(func: Any) -> Callable[..., Tensor]:
    """Sums of products of 16 bits have 32, as they have on a GPU. (And for float16 a CPU is a hundred times slower.)"""

    def run(*args: Any, **kwargs: Any) -> Tensor:
        dtype = args[-1].dtype
        wide = [each.float() if isinstance(each, Tensor) else each for each in args]
        made: Tensor = func(*(args if dtype.itemsize > 2 else wide), **kwargs)
        return made.to(dtype)

    return run


_KERNELS: dict[str, Callable[..., Any]] = {
    **{str(func): _product(func) for func in (aten.mm.default, aten.addmm.default, aten.bmm.default)},
    "torch_attn._varlen_attn.default": _varlen,
    "torch_attn._varlen_attn_backward.default": _varlen_backward,
}


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
    def wait_stream(self, other: Stream) -> None: ...


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


@contextmanager
def capture(
    graph: Graph, pool: object = None, stream: object = None, capture_error_mode: str = "global"
) -> Iterator[None]:
    Gpu.here.tape = graph
    try:
        yield
    finally:
        Gpu.here.tape = None


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
    forget = attention._has_varlen.cache_clear
    return [
        (forget, forget),
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
        "max_memory_reserved": lambda device=None: 2**20,
        "current_stream": lambda device=None: Stream(),
        "synchronize": lambda device=None: Gpu.here.waited("synchronize", Gpu.here.begun),
        "Event": Event,
        "Stream": Stream,
        "stream": _nothing,
        "device": _nothing,
        "CUDAGraph": Graph,
        "graph": capture,
        "graph_pool_handle": lambda: (0, 1),
    }
