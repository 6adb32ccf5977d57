"""The devices that train together: one, or those that `torchrun` started.

Every device holds the whole model. What they exchange is explicit: representations before the loss, their gradients
after it, and the gradients of the parameters before the update. All sums are sums over the devices, so the result is
that of one device with the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from threefold.errors import ConfigError


class World:
    """`size` processes, of which this is number `rank`."""

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0) -> None:
        self.rank, self.size, self.local = rank, size, local

    @classmethod
    def from_environment(cls, device: torch.device | None = None) -> World:
        """The processes of `torchrun` (RANK, WORLD_SIZE, LOCAL_RANK), or this one alone."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        missing = [name for name in names if name not in os.environ]
        if missing:
            raise ConfigError(f"WORLD_SIZE is set but {missing[0]} is not; start the processes with torchrun")
        if not dist.is_initialized():
            on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
            dist.init_process_group("nccl" if on_gpu else "gloo")
        return cls(*(int(os.environ[name]) for name in names))

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and reports."""
        return self.rank == 0

    def close(self) -> None:
        """Leave the group; nothing to do for one process."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()

    # ---- exchanges -----------------------------------------------------------------------------------

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def share(self, count: int, device: torch.device) -> float:
        """The part of a mean over all processes that `count` items of this one make: 1 for one process."""
        if self.size == 1:
            return 1.0 if count else 0.0
        total = float(self.sum(torch.tensor(float(count), dtype=torch.float64, device=device)))
        return count / total if total else 0.0

    def from_first(self, value: float, device: torch.device) -> float:
        """The first process's value, such as its clock: all must decide alike."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=device)
        dist.broadcast(tensor, 0)
        return float(tensor)

    def gather(self, own: Tensor, rows: Sequence[int]) -> Tensor:
        """The tensors of all processes end to end. They have `rows` first dimensions, which every process knows."""
        if self.size == 1:
            return own
        padded = own.new_zeros(max(rows), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, rows, strict=True)])

    def own_gradient(self, gradient: Tensor, rows: Sequence[int]) -> Tensor:
        """The backward pass of `gather`: what all processes' losses want of this process's part."""
        before = sum(rows[: self.rank])
        return self.sum(gradient)[before : before + rows[self.rank]]

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add up the gradients of all processes, in blocks of about 64 MB. Parameters without one have zeros."""
        if self.size == 1:
            return
        block: list[Tensor] = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            block.append(parameter.grad)
            if sum(gradient.numel() for gradient in block) >= 16_000_000:
                self._sum_together(block)
                block = []
        if block:
            self._sum_together(block)

    def _sum_together(self, gradients: list[Tensor]) -> None:
        flat = self.sum(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))
