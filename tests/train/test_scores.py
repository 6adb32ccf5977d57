from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from threefold.encoder.attention import Layout
from threefold.encoder.heads import gather_multi, gather_sparse
from threefold.score import dense_scores, maxsim, sparse_scores
from threefold.train.scores import Side, dense_matrix, multi_matrix, sparse_matrix

VOCAB, SPECIAL = 12, (0, 1, 2, 3)
LENGTHS = st.lists(st.integers(2, 7), min_size=1, max_size=6)


def side(lengths: list[int], seed: int, *, gradients: bool = False) -> Side:
    """Random texts: `<s>`, a few ids that repeat, `</s>`; some weights are 0."""
    rng = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    ids = torch.randint(4, VOCAB, (total,), generator=rng)
    layout = Layout.of(np.array(lengths))
    ids[torch.as_tensor(layout.offsets[:-1])], ids[torch.as_tensor(layout.offsets[1:] - 1)] = 0, 2
    weights = torch.rand(total, generator=rng).sub(0.3).relu() * (ids > 3)
    dense = torch.nn.functional.normalize(torch.randn(len(lengths), 5, generator=rng), dim=1)
    multi = torch.nn.functional.normalize(torch.randn(total, 4, generator=rng), dim=1)
    for tensor in (dense, weights, multi):
        tensor.requires_grad_(gradients)
    return Side(dense, weights, multi, ids, layout)


@settings(deadline=None, max_examples=50)
@given(queries=LENGTHS, passages=LENGTHS, seed=st.integers(0, 99), chunk=st.sampled_from([1, 30, 4_000_000]))
def test_equal_to_the_definitions(queries: list[int], passages: list[int], seed: int, chunk: int) -> None:
    q, p = side(queries, seed), side(passages, seed + 1000)
    dense, sparse, multi = dense_matrix(q, p), sparse_matrix(q, p), multi_matrix(q, p, chunk)
    assert dense.shape == sparse.shape == multi.shape == (len(queries), len(passages))
    sparse_q, sparse_p = (gather_sparse(s.weights.numpy(), s.ids.numpy(), s.layout, VOCAB, SPECIAL) for s in (q, p))
    multi_q, multi_p = (gather_multi(s.multi.numpy(), s.layout) for s in (q, p))
    for i in range(len(queries)):
        np.testing.assert_allclose(dense[i], dense_scores(q.dense[i].numpy(), p.dense.numpy()), atol=1e-6)
        np.testing.assert_allclose(sparse[i], sparse_scores(sparse_q[i], sparse_p), atol=1e-6)
        np.testing.assert_allclose(multi[i], maxsim(multi_q[i], multi_p), atol=1e-6)


def test_multi_by_hand() -> None:
    """Rows: `<s>` (left out), then east and north; the passage has north and south-west."""
    root = 0.5**0.5
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    passage = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-root, -root]])
    layout, ids, nothing = Layout.of(np.array([3])), torch.zeros(3, dtype=torch.int64), torch.zeros(3)
    q, p = (Side(torch.zeros(1, 1), nothing, m, ids, layout) for m in (rows, passage))
    assert multi_matrix(q, p).item() == pytest.approx((0.0 + 1.0) / 2)


def test_only_negative_similarities_stay_negative() -> None:
    """No pad row of zeros may win the maximum (trap I18), next to a longer passage either."""
    layout = Layout.of(np.array([2, 4]))
    east = Side(torch.zeros(1, 1), torch.zeros(2), torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.zeros(2).long(),
                Layout.of(np.array([2])))  # fmt: skip
    west = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], *[[-0.6, 0.8]] * 3])
    p = Side(torch.zeros(2, 1), torch.zeros(6), west, torch.zeros(6).long(), layout)
    assert multi_matrix(east, p).tolist() == [[-1.0, pytest.approx(-0.6)]]


def test_sparse_by_hand() -> None:
    """Texts `5 6 5` and `5 7`: the larger weight of 5 counts, and 6 and 7 are not shared."""
    q = Side(torch.zeros(1, 1), torch.tensor([0.2, 0.9, 0.5]), torch.zeros(3, 1), torch.tensor([5, 6, 5]),
             Layout.of(np.array([3])))  # fmt: skip
    p = Side(torch.zeros(1, 1), torch.tensor([0.4, 0.8]), torch.zeros(2, 1), torch.tensor([5, 7]),
             Layout.of(np.array([2])))  # fmt: skip
    assert sparse_matrix(q, p).item() == pytest.approx(0.5 * 0.4)


def test_gradients_reach_the_winning_tokens_only() -> None:
    q, p = side([4, 5, 3], 3, gradients=True), side([6, 4], 4, gradients=True)
    for matrix in (dense_matrix, sparse_matrix, multi_matrix):
        matrix(q, p).sum().backward()  # type: ignore[no-untyped-call]
    assert q.dense.grad is not None
    assert q.weights.grad is not None
    assert q.multi.grad is not None
    assert p.multi.grad is not None
    assert torch.equal(q.dense.grad[0], p.dense.detach().sum(dim=0))
    assert (q.weights.grad[q.ids <= 3] == 0).all()
    firsts = torch.as_tensor(q.layout.offsets[:-1])
    assert (q.multi.grad[firsts] == 0).all()
    inner = torch.ones(len(q.ids), dtype=torch.bool)
    inner[firsts] = False
    assert (q.multi.grad[inner].abs().sum(dim=1) > 0).all()


def test_gradients_equal_finite_differences() -> None:
    q, p = side([3, 4], 5), side([4, 3], 6)

    def total(weights: torch.Tensor, multi: torch.Tensor) -> torch.Tensor:
        moved = Side(q.dense.double(), weights, multi, q.ids, q.layout)
        fixed = Side(p.dense.double(), p.weights.double(), p.multi.double(), p.ids, p.layout)
        return torch.stack([sparse_matrix(moved, fixed), multi_matrix(moved, fixed)])

    weights, multi = (q.weights.double() + 0.01).requires_grad_(), q.multi.double().requires_grad_()
    assert torch.autograd.gradcheck(total, (weights, multi))
