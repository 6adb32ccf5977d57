from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.train.small import tokens

from threefold.train import masks
from threefold.train.batches import PairTable
from threefold.train.masks import FalseNegatives, repeated_pairs, text_numbers
from threefold.types import offsets_of

#: Texts of two tokens each.
A, B, C, D, E, F = ([0, i, 2] for i in range(10, 16))


def table(
    pairs: list[tuple[list[int], list[int], list[list[int]]]], meaning: list[int] | None = None, **more: Any
) -> PairTable:
    """(query, positive, hard negatives) per pair; every pair has its own meaning unless it is said."""
    n = len(pairs)
    flags = np.zeros(n, np.int8)
    return PairTable(
        tokens([query for query, _, _ in pairs]), tokens([positive for _, positive, _ in pairs]),
        flags, np.array(meaning or range(n)), flags, flags.astype(bool),
        negative=tokens([text for _, _, hard in pairs for text in hard]),
        negatives=offsets_of([len(hard) for _, _, hard in pairs]), **more,
    )  # fmt: skip


def marked(data: PairTable, rows: list[int], *, swapped: bool = False, margin: float = 0.0) -> list[list[int]]:
    """Columns that are left out, by query."""
    found = FalseNegatives(data, margin=margin)(np.array(rows), swapped=swapped)
    assert found.shape == (len(rows), len(rows) + len(data.negatives_of(np.array(rows))))
    return [np.flatnonzero(row).tolist() for row in found]


def test_different_pairs_mark_nothing() -> None:
    assert marked(table([(A, B, [E]), (C, D, [F])]), [0, 1]) == [[], []]


def test_equal_positives_are_no_negatives_of_each_other() -> None:
    assert marked(table([(A, B, []), (C, B, []), (D, E, [])]), [0, 1, 2]) == [[1], [0], []]


def test_equal_meanings_are_no_negatives_of_each_other() -> None:
    assert marked(table([(A, B, []), (C, D, []), (E, F, [])], meaning=[7, 8, 7]), [0, 1, 2]) == [[2], [], [0]]


def test_other_answers_of_the_query_are_no_negatives_wherever_they_come_from() -> None:
    # A is answered by B and by C; C is the positive of D's pair and a hard negative of E's. Pair 1 is not in the batch.
    data = table([(A, B, []), (A, C, []), (D, C, []), (E, F, [C])])
    assert marked(data, [0, 2, 3]) == [[1, 3], [3], []]
    assert marked(data, [0, 1]) == [[1], [0]]


def test_a_teacher_may_take_out_own_hard_negatives() -> None:
    data = table(
        [(A, B, [C, D, E]), (D, F, [A])],
        positive_score=np.array([1.0, np.nan]), negative_score=np.array([0.9, 1.0, 1.1, 5.0]),
    )  # fmt: skip
    # columns: B, F, then C, D, E of the first pair and A of the second
    assert marked(data, [0, 1]) == [[4], []]
    assert marked(data, [0, 1], margin=0.05) == [[3, 4], []]
    assert marked(data, [1, 0]) == [[], [5]]


def test_pairs_that_are_alone_see_only_their_own_passages() -> None:
    data = table([(A, B, [C]), (D, E, [F])], alone=np.array([True, False]))
    # columns: B, E, C, F
    assert marked(data, [0, 1]) == [[1, 3], []]


def test_swapped_sides() -> None:
    data = table([(A, B, [E]), (A, D, []), (C, B, [])])
    # queries B, D, B; passages A, A, C, then E: A is the answer of B and of D, C of B
    assert marked(data, [0, 1, 2], swapped=True) == [[1, 2], [0], [0, 1]]


@given(
    rows=st.lists(
        st.tuples(*[st.integers(10, 13)] * 2, st.lists(st.integers(10, 15), max_size=2)), min_size=1, max_size=8
    ),
    meaning=st.lists(st.integers(0, 3), min_size=8, max_size=8),
)
def test_the_masks_are_their_definition(rows: list[tuple[int, int, list[int]]], meaning: list[int]) -> None:
    data = table([([q], [p], [[h] for h in hard]) for q, p, hard in rows], meaning=meaning[: len(rows)])
    found = FalseNegatives(data)(np.arange(len(rows)))
    answers = {pair for q, p, _ in rows for pair in ((q, p), (p, q))}
    passages = [p for _, p, _ in rows] + [h for _, _, hard in rows for h in hard]
    for i, j in product(range(len(rows)), range(len(passages))):
        same = j < len(rows) and meaning[i] == meaning[j]
        assert found[i, j] == (i != j and (same or (rows[i][0], passages[j]) in answers))


# ---- numbers of texts ------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(0, 2), max_size=4), max_size=30))
def test_numbers_are_equal_for_equal_texts_and_only_for_those(rows: list[list[int]]) -> None:
    """Ids 0, lengths and order count: [0], [0, 0] and [] are three texts."""
    numbers = text_numbers(tokens(rows)).tolist()
    assert len(set(zip(numbers, map(tuple, rows), strict=True))) == len(set(numbers)) == len(set(map(tuple, rows)))


def test_numbers_do_not_depend_on_neighbours_or_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [[1, 2, 3], [], [9] * 50, [1, 2, 3], [4]]
    alone = [int(text_numbers(tokens([row]))[0]) for row in rows]
    assert text_numbers(tokens(rows)).tolist() == alone
    monkeypatch.setattr(masks, "_BLOCK", 4)
    assert text_numbers(tokens(rows)).tolist() == alone


def test_repeated_pairs_are_counted() -> None:
    data = table([(A, B, []), (A, C, []), (A, B, []), (B, A, []), (A, B, [])])
    assert repeated_pairs(data.query, data.positive) == 2
