"""How a tensor lies in a file: as numbers, as one byte per number with a scale per row, or as half a byte per number.

Knows tensors only. Reading stays lazy: a stored tensor shares the mapped pages of its file until it is converted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from threefold.errors import ShapeError

#: Suffix of the scales of a tensor that is stored in int8, one per row, or in four bits, one per block.
SCALE = ".scale"
#: Neighbouring numbers of a row that share a scale in four bits, as in "Q4_0" of ggml.
BLOCK = 32


class Stored(NamedTuple):
    """A tensor as it is kept.

    tensor  float of any width, (r, c) int8, or (r, c / 2) uint8: two numbers of four bits in a byte
    scale   (r,) float32 where `tensor` is int8: row i stands for scale[i] * tensor[i]; (r, c / BLOCK) float16 where it
            is uint8, see `quantise_blocks`
    """

    tensor: Tensor
    scale: Tensor | None = None

    def float(self) -> Tensor:
        """In float32; no copy where it is that already."""
        return _exact(self.tensor, self.scale)

    def to(self, dtype: torch.dtype) -> Tensor:
        """In numbers of this type, by the shortest way."""
        return self.tensor.to(dtype) if self.scale is None else self.float().to(dtype)

    def rows(self, ids: Tensor) -> Tensor:
        """(n, c) float32: these rows (n,) alone."""
        return _exact(self.tensor[ids], None if self.scale is None else self.scale[ids])

    def int8(self) -> tuple[Tensor, Tensor]:
        """(r, c) int8 and (r,) scales; as stored where they are that already."""
        if self.scale is not None and self.tensor.dtype == torch.int8:
            return self.tensor, self.scale
        return quantise_rows(self.float())


#: The stored tensor of a parameter, by the name that the parameter has in our network.
Reader = Callable[[str], Stored]


def quantise_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(r, c) float -> (r, c) int8 and (r,) float32 scales: symmetric, the largest of each row becomes 127."""
    matrix = matrix.float()
    scale = matrix.abs().amax(dim=1).clamp_min(1e-12) / 127.0
    return torch.round(matrix / scale[:, None]).to(torch.int8), scale


def quantise_blocks(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(r, c) float -> (r, c / 2) uint8 and (r, c / BLOCK) float16 scales: four bits for each number.

    The largest of each block becomes -8, the others whole numbers from -8 to 7 (Q4_0 of ggml). Byte k of a row has
    number k, plus 8, in its lower half and number k + c / 2 in its upper half. A matrix that was stored so once stays
    as it is.
    """
    rows, columns = matrix.shape
    if columns % BLOCK:
        raise ShapeError(f"four bits need rows of a multiple of {BLOCK} numbers; got {columns}")
    blocks = matrix.float().reshape(rows, -1, BLOCK)
    largest = blocks.gather(2, blocks.abs().argmax(dim=2, keepdim=True))
    scale = (largest / -8.0).half()
    steps = torch.where(scale == 0, torch.ones_like(scale), scale).float()
    numbers = (torch.round(blocks / steps).clamp(-8, 7) + 8).to(torch.uint8).reshape(rows, columns)
    lower, upper = numbers[:, : columns // 2], numbers[:, columns // 2 :]
    return lower | (upper << 4), scale.squeeze(2)


def _exact(tensor: Tensor, scale: Tensor | None) -> Tensor:
    """(r, c) float32 of rows as they are stored."""
    if scale is None:
        return tensor.float()
    if tensor.dtype == torch.int8:
        return tensor.float() * scale[:, None]
    numbers = torch.cat([tensor & 15, tensor >> 4], dim=1).float() - 8.0
    return (numbers.reshape(*scale.shape, BLOCK) * scale.float()[..., None]).reshape(len(tensor), -1)


def stack(parts: Sequence[Stored]) -> Stored:
    """One below the other: queries, keys and values of others are one matrix of ours."""
    if len(parts) == 1:
        return parts[0]
    scales = [part.scale for part in parts if part.scale is not None]
    if len(scales) == len(parts) and len({part.tensor.dtype for part in parts}) == 1:
        return Stored(torch.cat([part.tensor for part in parts]), torch.cat(scales))
    if scales or len({part.tensor.dtype for part in parts}) > 1:
        return Stored(torch.cat([part.float() for part in parts]))
    return Stored(torch.cat([part.tensor for part in parts]))
