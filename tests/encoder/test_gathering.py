"""Batches in any order give what all texts together would have given."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tests.encoder.test_encoder import same

from threefold.encoder.gathering import Gathering
from threefold.text.packing import plan_batches, restore_order
from threefold.text.tokenizer import Tokens
from threefold.types import Encoded, Ragged, Sparse, offsets_of


def found(lengths: list[int], kinds: set[str]) -> Encoded:
    rng, n = np.random.default_rng(0), len(lengths)
    offsets = offsets_of(np.array(lengths, np.int64) - 1)
    rows = rng.normal(size=(int(offsets[-1]), 3)).astype(np.float16)
    return Encoded(
        rng.normal(size=(n, 4)).astype(np.float32) if "dense" in kinds else None,
        Sparse.of([{7: 1.0, int(i): 0.5} for i in rng.integers(10, 90, n)], 100) if "sparse" in kinds else None,
        Ragged(rows, offsets) if "multi" in kinds else None,
        np.array(lengths, np.int32),
        np.zeros(n, bool),
    )


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    kinds=st.sets(st.sampled_from(["dense", "sparse", "multi"])),
    budget=st.integers(1, 30),
    data=st.data(),
)
def test_every_text_gets_its_place(lengths: list[int], kinds: set[str], budget: int, data: st.DataObject) -> None:
    whole = found(lengths, kinds)
    batches = data.draw(st.permutations(plan_batches(np.array(lengths), budget)))
    offsets = offsets_of(lengths)
    gathering = Gathering(Tokens(np.zeros(offsets[-1], np.int32), offsets, np.array(lengths)))
    for texts in batches:
        part = whole.take(texts)
        multi = None if part.multi is None else (part.multi.rows, part.multi.offsets[:-1])
        gathering.add(texts, dense=part.dense, sparse=part.sparse, multi=multi)
    same(gathering.result(), whole, 0.0)
    one = Encoded.concat([whole.take(texts) for texts in batches]).take(restore_order(batches))
    same(gathering.result(), one, 0.0)
