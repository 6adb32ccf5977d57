"""How a tensor lies in a file: as numbers, or as one byte per number with a scale per row.

Knows tensors only. Reading stays lazy: a stored tensor shares the mapped pages of its file until it is converted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: Suffix of the scales of a tensor that is stored in int8, one per row.
SCALE = ".scale"


class Stored(NamedTuple):
    """A tensor as it is kept.

    tensor  float of any width, or (r, c) int8
    scale   (r,) float32 where `tensor` is int8: row i stands for scale[i] * tensor[i]
    """

    tensor: Tensor
    scale: Tensor | None = None

    def float(self) -> Tensor:
        """In float32; no copy where it is that already."""
        exact = self.tensor.float()
        return exact if self.scale is None else exact * self.scale[:, None]

    def to(self, dtype: torch.dtype) -> Tensor:
        """In numbers of this type, by the shortest way."""
        return self.tensor.to(dtype) if self.scale is None else self.float().to(dtype)

    def rows(self, ids: Tensor) -> Tensor:
        """(n, c) float32: these rows (n,) alone."""
        chosen = self.tensor[ids].float()
        return chosen if self.scale is None else chosen * self.scale[ids, None]

    def int8(self) -> tuple[Tensor, Tensor]:
        """(r, c) int8 and (r,) scales; as stored where they are that already."""
        return quantise_rows(self.tensor) if self.scale is None else (self.tensor, self.scale)


#: The stored tensor of a parameter, by the name that the parameter has in our network.
Reader = Callable[[str], Stored]


def quantise_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(r, c) float -> (r, c) int8 and (r,) float32 scales: symmetric, the largest of each row becomes 127."""
    matrix = matrix.float()
    scale = matrix.abs().amax(dim=1).clamp_min(1e-12) / 127.0
    return torch.round(matrix / scale[:, None]).to(torch.int8), scale


def stack(parts: Sequence[Stored]) -> Stored:
    """One below the other: queries, keys and values of others are one matrix of ours."""
    if len(parts) == 1:
        return parts[0]
    scales = [part.scale for part in parts if part.scale is not None]
    if len(scales) == len(parts):
        return Stored(torch.cat([part.tensor for part in parts]), torch.cat(scales))
    if scales or len({part.tensor.dtype for part in parts}) > 1:
        return Stored(torch.cat([part.float() for part in parts]))
    return Stored(torch.cat([part.tensor for part in parts]))
