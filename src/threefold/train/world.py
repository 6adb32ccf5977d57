"""The devices that train together: one, or those that `torchrun` started.

Every device holds the whole model. What they exchange is explicit: representations before the loss, their gradients
after it, and the gradients of the parameters before the update. All sums are sums over the devices, so the result is
that of one device with the whole batch.

Tensors are exchanged by what is fastest on the device (NCCL or Gloo), numbers of the host always by Gloo: no device has
to be waited for, and nobody gives up while the first process reads data or measures the model. NCCL would, after ten
minutes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor

from threefold.errors import ConfigError

#: How long the others wait for the first process. One that ends is noticed at once.
PATIENCE: Final = timedelta(days=7)


def processes() -> int:
    """How many processes `torchrun` started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class World:
    """`size` processes, of which this is number `rank`, on its machine number `local`.

    hosts  the group in which they exchange numbers
    """

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0, hosts: dist.ProcessGroup | None = None) -> None:
        self.rank, self.size, self.local, self._hosts = rank, size, local, hosts

    @classmethod
    def from_environment(cls, device: torch.device) -> World:
        """The processes of `torchrun` (RANK, WORLD_SIZE, LOCAL_RANK), or this one alone; each on a device like this."""
        if processes() == 1:
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        missing = [name for name in names if name not in os.environ]
        if missing:
            raise ConfigError(f"WORLD_SIZE is set but {missing[0]} is not; start the processes with torchrun")
        rank, size, local = (int(os.environ[name]) for name in names)
        if device.type == "cuda":
            if local >= (count := torch.cuda.device_count()):
                raise ConfigError(f"process {local} of this machine has no GPU: PyTorch sees {count}; start {count}")
            torch.cuda.set_device(local)  # before NCCL, which takes the current one
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        hosts = dist.new_group(backend="gloo", timeout=PATIENCE)
        return cls(rank, size, local, hosts)

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
            dist.barrier(group=self._hosts)

    # ---- exchanges -----------------------------------------------------------------------------------

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def numbers(self, parts: Mapping[str, Tensor]) -> dict[str, float]:
        """The sums over all processes of numbers that tensors hold; one wait for the device."""
        values = torch.stack([part.detach() for part in parts.values()]).cpu().double()
        if self.size > 1:
            dist.all_reduce(values, group=self._hosts)
        return dict(zip(parts, values.tolist(), strict=True))

    def total(self, count: int) -> int:
        """The sum over all processes of a number of the host."""
        total = torch.tensor(count)
        if self.size > 1:
            dist.all_reduce(total, group=self._hosts)
        return int(total)

    def share(self, count: int) -> float:
        """The part of a mean over all processes that `count` items of this one make: 1 for one process."""
        return count / max(self.total(count), 1)

    def from_first(self, value: float) -> float:
        """The first process's value, such as its clock: all must decide alike."""
        if self.size == 1:
            return value
        number = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(number, 0, group=self._hosts)
        return float(number)

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
