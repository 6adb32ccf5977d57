"""Short texts on a GPU: the network recorded once per length, then started by one call.

For a query of a dozen tokens the GPU is done with an operation before the host has told it the next one. A CUDA graph
holds all of them (PyTorch notes, "CUDA Graphs"), but for one shape, so there is one per length, of one text: nothing is
padded, and the result is that of the network.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Final

import numpy as np
import torch
from torch import Tensor

from threefold.encoder.attention import Layout
from threefold.encoder.network import Batch, Network
from threefold.encoder.transfer import to_device
from threefold.types import Ints

#: Longest text that is recorded: with more tokens the work itself takes longer than telling it.
LONGEST: Final = 64
#: Runs before a recording, in which kernels are chosen and buffers made (the number of PyTorch's own example).
WARM: Final = 3

#: One recording at a time in this process: while one begins, PyTorch waits for the whole device, and that would spoil
#: another one (also of a second encoder).
_RECORDING = Lock()

#: Work on fixed buffers -> what does that work again into the same buffers and returns its result.
Record = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]


class Recorded:
    """A network on one GPU, for single texts of at most `LONGEST` tokens."""

    def __init__(self, network: Network, device: torch.device, record: Record | None = None) -> None:
        self._network, self._device = network, device
        self._record = Recorder(device) if record is None else record
        self._known: dict[int, tuple[Batch, Callable[[], Tensor]]] = {}
        self._lock = Lock()

    def takes(self, layout: Layout) -> bool:
        """Whether this batch is one short text."""
        return len(layout.offsets) == 2 and 0 < layout.longest <= LONGEST

    def __call__(self, ids: Ints, layout: Layout) -> Tensor:
        """(T, d) hidden states of the one text with these ids (T,), as the network makes them."""
        with self._lock:  # the buffers of a recording are of all who play it
            if len(ids) not in self._known:
                self._known[len(ids)] = self._recording(layout)
            batch, play = self._known[len(ids)]
            batch.ids.copy_(to_device(ids.astype(np.int64), self._device), non_blocking=True)
            return play().clone()

    def _recording(self, layout: Layout) -> tuple[Batch, Callable[[], Tensor]]:
        """The batch whose ids change, and the recorded work on it. All of it must be kept: a graph reads positions and
        borders where they were, whether they are still there or not."""
        first = self._network.config.first_position
        batch = Batch.of(np.zeros(layout.longest, np.int64), layout, first, self._device)
        with _RECORDING:
            return batch, self._record(lambda: self._network(batch))


class Recorder:
    """Makes CUDA graphs, all in one pool of memory: one plays at a time, and what it made is copied before the next.

    They have a stream of their own: that of `torch.cuda.graph` belongs to the device on which it was used first, and
    cuBLAS keeps a buffer for every stream that ever multiplied.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(WARM):
                    work()
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # thread_local: what other threads tell the GPU meanwhile is neither recorded nor an error
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                made = work()

        def play() -> Tensor:
            graph.replay()
            return made

        return play
