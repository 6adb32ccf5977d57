from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from threefold.config import Settings
from threefold.encoder.attention import Layout
from threefold.encoder.heads import Heads, HeadsConfig, Pooling, gather_multi, gather_sparse, pool
from threefold.errors import ConfigError

SPECIAL = (0, 1, 2, 3)
#: Texts as (id, weight) of every token; few ids, so that they repeat.
TEXTS = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.floats(0, 1, width=16)), min_size=2, max_size=9), min_size=1, max_size=6
)


def by_the_definition(text: list[tuple[int, float]]) -> dict[int, float]:
    best: dict[int, float] = {}
    for id, weight in text:
        if id not in SPECIAL and weight > 0:
            best[id] = max(weight, best.get(id, 0.0))
    return best


@given(texts=TEXTS)
def test_sparse_is_the_largest_weight_of_every_id(texts: list[list[tuple[int, float]]]) -> None:
    ids = np.array([id for text in texts for id, _ in text], np.int32)
    weights = np.array([weight for text in texts for _, weight in text], np.float32)
    sparse = gather_sparse(weights, ids, Layout.of(np.array([len(text) for text in texts])), 10, SPECIAL)
    assert len(sparse) == len(texts)
    assert sparse.vocab == 10
    for i, text in enumerate(texts):
        assert sparse.row(i) == by_the_definition(text)
        assert np.all(np.diff(sparse[i][0]) > 0)


def test_sparse_by_hand() -> None:
    # <s> a b a </s>: a has 0.5 and 0.7, b has 0: only a stays, with 0.7
    ids, weights = np.array([0, 7, 8, 7, 2]), np.array([0.9, 0.5, 0.0, 0.7, 0.9], np.float32)
    sparse = gather_sparse(weights, ids, Layout.of(np.array([5])), 10, SPECIAL)
    assert sparse.row(0) == {7: pytest.approx(0.7)}


def test_sparse_of_a_large_vocabulary_does_not_overflow() -> None:
    n = 20_000  # 20,000 texts x 250,002 ids is above 2 ** 32
    ids = np.tile(np.array([0, 250_001], np.int32), n)
    sparse = gather_sparse(np.ones(2 * n, np.float32), ids, Layout.of(np.full(n, 2)), 250_002, SPECIAL)
    assert set(sparse.indices.tolist()) == {250_001}
    assert np.all(np.diff(sparse.offsets) == 1)


@given(lengths=st.lists(st.integers(2, 6), min_size=1, max_size=8))
def test_multi_drops_the_first_token_of_every_text_and_keeps_the_last(lengths: list[int]) -> None:
    rows = np.arange(sum(lengths), dtype=np.float32)[:, None]
    ragged = gather_multi(rows, Layout.of(np.array(lengths)))
    starts = np.cumsum([0, *lengths])
    for i, length in enumerate(lengths):
        assert ragged[i][:, 0].tolist() == list(range(starts[i] + 1, starts[i] + length))


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("cls", [[1.0, 0.0], [5.0, 6.0]]),
        ("last", [[3.0, 4.0], [7.0, 0.0]]),
        ("mean", [[4.0 / 2, 4.0 / 2], [12.0 / 2, 6.0 / 2]]),
    ],
)
def test_pooling_by_hand(pooling: Pooling, expected: list[list[float]]) -> None:
    hidden = torch.tensor([[1.0, 0.0], [3.0, 4.0], [5.0, 6.0], [7.0, 0.0]])
    assert pool(hidden, Layout.of(np.array([2, 2])), pooling).tolist() == expected


def test_mean_pooling_of_different_lengths() -> None:
    hidden = torch.tensor([[1.0], [3.0], [2.0], [4.0], [9.0]])
    assert pool(hidden, Layout.of(np.array([2, 3])), "mean").tolist() == [[4.0 / 2], [15.0 / 3]]


def test_heads_by_hand() -> None:
    heads = Heads(HeadsConfig(multi_dim=2), 2)
    assert heads.sparse is not None
    assert heads.multi is not None
    with torch.no_grad():
        heads.sparse.weight.copy_(torch.tensor([[1.0, -2.0]]))
        heads.sparse.bias.fill_(0.5)
        heads.multi.weight.copy_(torch.eye(2))
        heads.multi.bias.copy_(torch.tensor([0.0, 1.0]))
    hidden = torch.tensor([[3.0, 4.0], [3.0, 0.0]])
    assert heads.dense_vectors(hidden, Layout.of(np.array([1, 1]))).tolist() == [pytest.approx([0.6, 0.8]), [1.0, 0.0]]
    assert heads.sparse_weights(hidden).tolist() == [0.0, 3.5]  # max(0, 3 - 8 + .5), max(0, 3 - 0 + .5)
    root = np.sqrt(34.0)
    assert heads.multi_vectors(hidden)[0].tolist() == pytest.approx([3 / root, 5 / root])


def test_a_pooling_that_is_not_known_is_refused() -> None:
    assert issubclass(HeadsConfig, Settings)
    with pytest.raises(ConfigError, match="'max' is not one of 'cls', 'mean', 'last'"):
        HeadsConfig.from_dict({"pooling": "max"})
