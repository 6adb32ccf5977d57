"""Candidates of queries, batches of them, and the sequences that a cross-encoder reads."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from tests.train.small import table, tokens

from threefold.text.tokenizer import Tokenizer
from threefold.train.batches import PairTable
from threefold.train.cross_groups import Frame, candidates, group_plan, pair_tokens
from threefold.types import Floats, Ints, offsets_of

NAN = math.nan


def with_negatives() -> PairTable:
    """Four pairs; 0 and 1 mean the same; 0 has two hard negatives, 3 has one and takes no others."""
    texts = tokens([[0, 10 + i, 2] for i in range(4)])
    hard = tokens([[0, 20, 21, 2], [0, 22, 2], [0, 23, 2]])
    zeros = np.zeros(4, np.int64)
    return PairTable(
        tokens([[0, 4 + i, 2] for i in range(4)]), texts, zeros, np.array([7, 7, 8, 9]), zeros, zeros.astype(bool),
        negative=hard, negatives=offsets_of([2, 0, 0, 1]),
        positive_score=np.array([3.0, 2.0, NAN, 1.0], np.float32),
        negative_score=np.array([0.5, NAN, -1.0], np.float32), alone=np.array([False, False, False, True]),
    )  # fmt: skip


def of(values: Ints | Floats, offsets: Ints, i: int) -> list[Any]:
    found: list[Any] = values[offsets[i] : offsets[i + 1]].tolist()
    return found


def test_candidates_are_the_positive_the_hard_negatives_and_others() -> None:
    groups = candidates(with_negatives(), 4, seed=0)
    first = of(groups.passages, groups.offsets, 0)
    assert first[:3] == [0, 4, 5]
    assert first[3] in (2, 3)  # 1 means the same
    assert of(groups.passages, groups.offsets, 3) == [3, 6]  # alone
    assert sorted(of(groups.passages, groups.offsets, 1)) == [1, 2, 3]
    scores = of(groups.teacher, groups.offsets, 0)
    assert scores[:2] == [3.0, 0.5]
    assert np.isnan(scores[2:]).all()  # that of a drawn passage is of another query
    assert groups.passage(4).tolist() == [0, 20, 21, 2]
    assert groups.sizes[0] == 4 * 3 + 3 + 4 + 3 + 3
    again, other = candidates(with_negatives(), 4, seed=0), candidates(table(), 3, seed=1)
    assert again.passages.tolist() == groups.passages.tolist()
    assert other.passages.tolist() != candidates(table(), 3, seed=2).passages.tolist()
    assert of(candidates(with_negatives(), 2, 0).passages, np.array([0, 2]), 0) == [0, 4]


def test_answers_of_the_query_are_no_candidates() -> None:
    """Of one record with two answers, of two records, and where another record calls an answer a hard negative."""
    paris, town, madrid = [0, 10, 2], [0, 11, 12, 2], [0, 13, 2]
    texts, zeros = tokens([paris, town, madrid, madrid]), np.zeros(4, np.int64)
    asked = tokens([[0, 4, 2], [0, 4, 2], [0, 5, 2], [0, 6, 2]])
    pairs = PairTable(
        asked, texts, zeros, np.array([1, 2, 3, 3]), zeros, zeros.astype(bool),
        negative=tokens([town, [0, 14, 2], [0, 14, 2]]), negatives=offsets_of([3, 0, 0, 0]),
    )  # fmt: skip
    for seed in range(5):
        groups = candidates(pairs, 5, seed)
        found = [
            [groups.passage(number).tolist() for number in of(groups.passages, groups.offsets, i)] for i in range(4)
        ]
        assert found[0] == [paris, [0, 14, 2], madrid]  # once, though two records have it
        assert found[1] == [town, madrid]
        assert sorted(found[2]) == sorted(found[3]) == sorted([madrid, paris, town])


def test_plan_takes_every_query_once_within_the_budget() -> None:
    groups = candidates(table(), 4, seed=0)
    plan = group_plan(groups, budget=150, window=20, seed=0)
    assert sorted(np.concatenate(plan).tolist()) == list(range(60))
    assert max(groups.sizes[rows].sum() for rows in plan if len(rows) > 1) <= 150
    assert any(len(rows) > 1 for rows in plan)
    only = PairTable(
        *(getattr(table(1), name) for name in ("query", "positive", "source", "meaning", "teacher", "symmetric"))
    )
    assert group_plan(candidates(only, 4, 0), budget=100, window=10, seed=0) == []


@pytest.mark.parametrize("limit", [64, 14], ids=["whole", "cut"])
def test_sequences_are_those_of_the_tokenizer(tokenizer: Tokenizer, wordpiece: Tokenizer, limit: int) -> None:
    queries = ["quick fox", "wie wird der Kopf trainiert, und von wem?"]
    passages = ["The lazy dog jumps over the box", "dense and sparse"]
    for each in (tokenizer, wordpiece):
        q, p = (each.encode(texts, max_tokens=100) for texts in (queries, passages))
        two = np.arange(2)
        groups = candidates(PairTable(q, p, two * 0, two, two * 0, two > 5), 2, seed=0)
        made = pair_tokens(groups, two, Frame.of(each, limit))
        pairs = [(queries[i], passages[j]) for i, j in ((0, 0), (0, 1), (1, 1), (1, 0))]
        oracle = each.encode_pairs(*zip(*pairs, strict=True), max_tokens=limit)
        assert oracle.truncated.any() == (limit == 14)
        np.testing.assert_array_equal(made.ids, oracle.ids)
        np.testing.assert_array_equal(made.offsets, oracle.offsets)
        np.testing.assert_array_equal(made.seconds, oracle.seconds)


def test_what_no_teacher_has_judged_is_left_out_where_only_the_teacher_teaches() -> None:
    """The positive and another candidate need a score: of pair 0 they have one, of 1 and 3 the positive alone has."""
    pairs = with_negatives()
    groups = candidates(pairs, 4, seed=0)
    assert groups.taught.tolist() == [True, False, False, True]
    plan = group_plan(groups, budget=100, window=10, seed=0, only_taught=True)
    assert sorted(np.concatenate(plan).tolist()) == [0, 3]
    assert sorted(np.concatenate(group_plan(groups, budget=100, window=10, seed=0)).tolist()) == [0, 1, 2, 3]
