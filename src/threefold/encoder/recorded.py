"""Short texts on a GPU: the network recorded once per length, then started by one call.

For a query of a dozen tokens the GPU is done with an operation before the host has told it the next one. A CUDA graph
holds all of them (PyTorch notes, "CUDA Graphs"), but for one shape, so there is one per length, of one text: nothing is
padded, and the result is that of the network.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Lock
from typing import Final

import numpy as np
import torch
from torch import Tensor

from threefold.encoder.attention import Layout
from threefold.encoder.network import Batch, Network
from threefold.encoder.shortage import RECORDING, Short, give_back, tried
from threefold.encoder.transfer import to_device
from threefold.types import Ints

log = logging.getLogger(__name__)

#: Longest text that is recorded: with more tokens the work itself takes longer than telling it.
LONGEST: Final = 64
#: Runs before a recording, in which kernels are chosen and buffers made (the number of PyTorch's own example).
WARM: Final = 3

#: Work on fixed buffers -> what does that work again into the same buffers and returns its result.
Record = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]


class Recorded:
    """A network on one GPU, for single texts of at most `LONGEST` tokens. A length for whose recording there was no
    memory runs as all other texts do."""

    def __init__(self, network: Network, device: torch.device, record: Record | None = None) -> None:
        self._network, self._device = network, device
        self._record = Recorder(device) if record is None else record
        self._known: dict[int, tuple[Batch, Callable[[], Tensor]] | None] = {}
        self._lock = Lock()

    def takes(self, layout: Layout) -> bool:
        """Whether this batch is one short text."""
        return len(layout.offsets) == 2 and 0 < layout.longest <= LONGEST

    def __call__(self, ids: Ints, layout: Layout) -> Tensor:
        """(T, d) hidden states of the one text with these ids (T,), as the network makes them."""
        with self._lock:  # the buffers of a recording are of all who play it
            if len(ids) not in self._known:
                self._known[len(ids)] = self._recorded(layout)
            if (known := self._known[len(ids)]) is not None:
                batch, play = known
                batch.ids.copy_(to_device(ids.astype(np.int64), self._device), non_blocking=True)
                return play().clone()
        plain: Tensor = self._network(Batch.of(ids, layout, self._network.config.first_position, self._device))
        return plain

    def _recorded(self, layout: Layout) -> tuple[Batch, Callable[[], Tensor]] | None:
        """The recording of a length; None: there was no memory for it, which is said."""
        recording = tried(lambda: self._recording(layout))
        if not isinstance(recording, Short):
            return recording
        log.warning(
            "%s had no memory to record texts of %d tokens; they run as longer ones do. PyTorch says: %s",
            *(self._device, layout.longest, recording.said),
        )
        give_back(self._device)
        return None

    def _recording(self, layout: Layout) -> tuple[Batch, Callable[[], Tensor]]:
        """The batch whose ids change, and the recorded work on it. All of it must be kept: a graph reads positions and
        borders where they were, whether they are still there or not."""
        first = self._network.config.first_position
        batch = Batch.of(np.zeros(layout.longest, np.int64), layout, first, self._device)
        with RECORDING:
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
        # a recording that ends in an error leaves its stream as the current one: the outer `stream` puts that right
        with torch.cuda.device(self._device), torch.cuda.stream(torch.cuda.current_stream(self._device)):
            self._stream.wait_stream(torch.cuda.current_stream())
            try:
                with torch.cuda.stream(self._stream):
                    for _ in range(WARM):
                        work()
            finally:  # what was told reads the batch, whose memory is that of others once there is an error
                torch.cuda.current_stream().wait_stream(self._stream)
            graph, made = self._captured(work)

        def play() -> Tensor:
            graph.replay()
            return made

        return play

    def _captured(self, work: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        graph, made = torch.cuda.CUDAGraph(), None
        try:
            # thread_local: what other threads tell the GPU meanwhile is neither recorded nor an error
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                made = tried(work)
        except RuntimeError:
            if not isinstance(made, Short):  # else it is only that a broken recording cannot be ended
                raise
        if isinstance(made, Short):
            raise torch.OutOfMemoryError(made.said)
        assert made is not None
        return graph, made
