"""Copies between the host and a GPU that nobody waits for, and work that is begun before the last is looked at.

A plain copy stops the host until the GPU has done all that it was told, so the GPU idles while the host cuts, packs and
sorts. Copies out of and into pinned memory only take their turn (PyTorch, "A guide on good usage of `non_blocking` and
`pin_memory()`"). Large results have a stream of their own: in that of the layers the next batch would stand still until
they are across (268 MB for the token vectors of 65,536 tokens of bge-m3). On other devices everything here is the
plain thing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Final, TypeVar

import numpy as np
import torch
from torch import Tensor

from threefold.encoder.shortage import is_short
from threefold.types import Floats

Item = TypeVar("Item")
Begun = TypeVar("Begun")
Done = TypeVar("Done")

#: Results of so many bytes travel beside the next batch; for those of a query another stream costs more than it gives.
LARGE: Final = 1 << 20


def to_device(array: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """The array on a device; a CUDA GPU fetches it in its own time."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class OnTheWay:
    """Tensors of one device that travel to the host, behind what the device still computes."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._ready: torch.cuda.Event | None = None
        self._finite: Tensor | None = None
        self._leaving: tuple[Tensor, ...] = ()
        device = next((tensor.device for tensor in tensors.values()), torch.device("cpu"))
        if device.type == "cuda":
            # looked at by the GPU, which has nothing else to do with them; a core of the host would take as long as the
            # GPU for a whole batch
            finite = torch.stack([tensor.isfinite().all() for tensor in tensors.values()])
            stream = told = torch.cuda.current_stream(device)
            if sum(tensor.nbytes for tensor in tensors.values()) >= LARGE:
                stream = _beside(device)
                stream.wait_stream(told)
                # kept: their memory would be that of the next batch, which does not wait for the copies
                self._leaving = finite, *tensors.values()
            with torch.cuda.stream(stream):
                self._finite = _pinned(finite)
                self._host = {name: _pinned(tensor) for name, tensor in tensors.items()}
            self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._ready.record(stream)
        else:
            self._host = {name: tensor.cpu() for name, tensor in tensors.items()}

    def arrays(self) -> dict[str, Floats]:
        """The arrays, as soon as they are here. From a GPU they are in pinned memory: copy what is kept for long."""
        if self._ready is not None:
            self._ready.synchronize()
            self._ready, self._leaving = None, ()
        return {name: tensor.numpy() for name, tensor in self._host.items()}

    def finite(self) -> bool:
        """Whether every number of them is."""
        arrays = self.arrays()
        if self._finite is not None:
            return bool(self._finite.all())
        return all(np.isfinite(array).all() for array in arrays.values())


@cache
def _beside(device: torch.device) -> torch.cuda.Stream:
    """The stream of a GPU in which large results leave it."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _pinned(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def ahead(
    items: Iterable[Item], begin: Callable[[Item], Begun], finish: Callable[[Begun], Done], depth: int
) -> Iterator[Done]:
    """`finish(begin(item))` of each, in order; up to `depth` more have begun when one is finished.

    An item that cannot be had or begun is an error after all that began before it, as if nothing were done early.
    """
    begun: deque[Begun] = deque()
    source, failed = iter(items), None
    while failed is None:
        try:
            begun.append(begin(next(source)))
        except StopIteration:
            break
        except Exception as error:
            failed = error
            break
        if len(begun) > depth:
            yield finish(begun.popleft())
    while begun:
        yield finish(begun.popleft())
    if failed is not None:
        raise failed


def ahead_in_thread(items: Iterable[Item], work: Callable[[Item], Done]) -> Iterator[Done]:
    """`work(item)` of each, in order, in a thread of its own, which has begun the next one when one is asked for."""
    with ThreadPoolExecutor(1, "ahead") as thread:
        yield from ahead(items, lambda item: thread.submit(work, item), lambda begun: begun.result(), 1)


def depth_of(device: torch.device) -> int:
    """Batches that are worth beginning early: the work of a CPU is done when a call returns."""
    return 1 if device.type == "cuda" else 0


def is_lost(error: BaseException) -> bool:
    """Whether the GPU can do nothing more for this process: after an illegal address or a failed assertion every call
    fails, until the process ends (pytorch#2300). Out of memory is not such an error, nor is it in the words of cuBLAS
    or of pinned memory."""
    if is_short(error):
        return False
    named = getattr(torch, "AcceleratorError", None)  # since PyTorch 2.8
    return (named is not None and isinstance(error, named)) or (
        isinstance(error, RuntimeError) and "CUDA error:" in str(error)
    )
