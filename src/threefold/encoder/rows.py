"""Hidden states -> one row per text, where texts of one batch want different outputs.

Each head runs over the tokens of the texts that asked for it and no others. Knows nothing of queues and requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from threefold.encoder.attention import Layout
from threefold.encoder.heads import Heads, gather_multi, gather_sparse
from threefold.encoder.transfer import to_device
from threefold.types import Bools, Floats, Ints, Output, Row

#: What must be computed for an output: `sparse` is made of the weights of its tokens.
_MADE_OF: dict[Output, Output] = {"sparse": "weights"}

Wanted = Sequence[Sequence[Output]]


def head_tensors(heads: Heads, hidden: Tensor, layout: Layout, wanted: Wanted) -> dict[str, Tensor]:
    """The numbers of each output, over the texts that need it, in their order.

    hidden  (T, d) states of the last layer
    """
    found: dict[str, Tensor] = {}
    for name in ("dense", "weights", "multi", "hidden"):
        asked = _asked(wanted, name)
        if not asked.any():
            continue
        states, part = _part(hidden, layout, asked)
        if name == "dense":
            found[name] = heads.dense_vectors(states, part)
        elif name == "weights":
            found[name] = heads.sparse_weights(states)
        else:
            found[name] = heads.multi_vectors(states) if name == "multi" else states.float()
    return found


def assemble(
    arrays: dict[str, Floats], ids: Ints, layout: Layout, wanted: Wanted, vocab: int, special: tuple[int, ...]
) -> list[Row]:
    """The arrays of `head_tensors`, cut into one row per text.

    ids  (T,) of the batch
    """
    rows = [Row() for _ in wanted]
    lengths = np.diff(layout.offsets)
    for name, array in arrays.items():
        asked = _asked(wanted, name)
        places = np.flatnonzero(asked)
        part = Layout.of(lengths[asked])
        if name == "dense":
            values: dict[str, Sequence[Any]] = {"dense": list(array)}
        elif name == "weights":
            inner = ids[np.repeat(asked, lengths)]
            values = {"sparse": list(gather_sparse(array, inner, part, vocab, special)), "weights": _cut(array, part)}
        else:
            values = {name: list(gather_multi(array, part)) if name == "multi" else _cut(array, part)}
        for output, column in values.items():
            for place, value in zip(places.tolist(), column, strict=True):
                if output in wanted[place]:
                    rows[place] = rows[place]._replace(**{output: value})
    return rows


def _asked(wanted: Wanted, name: str) -> Bools:
    return np.array([any(_MADE_OF.get(output, output) == name for output in outputs) for outputs in wanted], dtype=bool)


def _part(hidden: Tensor, layout: Layout, asked: Bools) -> tuple[Tensor, Layout]:
    """States and layout of some of the texts; no copy where it is all of them."""
    if asked.all():
        return hidden, layout
    lengths = np.diff(layout.offsets)
    rows = np.flatnonzero(np.repeat(asked, lengths))
    return hidden[to_device(rows, hidden.device)], Layout.of(lengths[asked])


def _cut(array: Floats, layout: Layout) -> list[Floats]:
    return np.split(array, layout.offsets[1:-1])
