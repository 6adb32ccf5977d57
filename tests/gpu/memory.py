"""The memory of the pretended GPU: what its tensors hold, and that there is no more than so much of it."""

from __future__ import annotations

import weakref
from collections import Counter

import torch
from torch import Tensor


class Memory:
    """Bytes of all tensors that are there; views have those of what they show.

    most     that there may be; None: as many as anybody wants
    peak     that there were at most
    refused  tensors for which there was no memory
    emptied  bytes that were held when PyTorch's cache was emptied, each time
    """

    def __init__(self) -> None:
        self.held = self.peak = self.refused = 0
        self.most: int | None = None
        self.emptied: list[int] = []
        self._owners: Counter[int] = Counter()

    def take(self, tensor: Tensor, host: Tensor) -> None:
        """A tensor with this storage is there, until it is collected."""
        if host.is_sparse or not (key := host.untyped_storage().data_ptr()):
            return
        size = host.untyped_storage().nbytes()
        if not self._owners[key]:
            if self.most is not None and self.held + size > self.most:
                self.refused += 1
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes.\nMore is said here.")
            self.held += size
            self.peak = max(self.peak, self.held)
        self._owners[key] += 1
        weakref.finalize(tensor, self._drop, key, size).atexit = False

    def limit(self, most: int | None) -> None:
        self.most = most

    def empty(self) -> None:
        """What `torch.cuda.empty_cache` does: here nothing is kept for later."""
        self.emptied.append(self.held)

    def _drop(self, key: int, size: int) -> None:
        self._owners[key] -= 1
        if not self._owners[key]:
            self.held -= size
