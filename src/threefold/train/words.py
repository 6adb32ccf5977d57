"""The word vectors of a batch, and their gradient where the gradient of the table lies.

A table of 250,002 x 768 numbers has a gradient of 768 MB, of which a batch touches a thousand rows. Autograd makes a
new one each time that the table is read, twice a step; the memory comes fresh from the system and is cleared page by
page. On a CPU that was 1.6 s of a step of 11 s (docs/log.md). Here the rows are added to the gradient that is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding

#: Gradients of so many bytes are cleared and kept between steps, smaller ones are given back: glibc returns memory
#: above 32 MiB (`M_MMAP_THRESHOLD_MAX`) to the system whenever it is freed.
KEPT_BYTES = 32 << 20


def word_vectors(table: Tensor, ids: Tensor) -> Tensor:
    """(T, d) the rows of these ids, with a gradient down to the table.

    On a GPU memory is kept anyway, and adding rows there has no fixed order.
    """
    if table.device.type != "cpu" or not (table.requires_grad and torch.is_grad_enabled()):
        return embedding(ids, table)
    read: Callable[[Tensor, Tensor], Tensor] = _Rows.apply
    return read(table, ids)


def clear_gradients(parameters: Iterable[Tensor]) -> None:
    """No gradient but zeros is left; on a CPU the memory of large ones stays."""
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None and gradient.device.type == "cpu" and gradient.nbytes >= KEPT_BYTES:
            gradient.detach_().zero_()
        else:
            parameter.grad = None


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor) -> Tensor:
        ctx.table = table
        ctx.save_for_backward(ids)
        return embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        """Adds to the gradient of the table, and tells autograd of none: it would make one of the table's size."""
        (ids,) = ctx.saved_tensors
        table = ctx.table
        if table.grad is None:
            table.grad = torch.zeros_like(table)
        table.grad.index_add_(0, ids, gradients[0].to(table.dtype))
        return None, None
