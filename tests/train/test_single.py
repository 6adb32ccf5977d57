from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.train.small import model, tokens

from threefold.encoder.attention import Layout
from threefold.encoder.network import Batch
from threefold.errors import ConfigError
from threefold.train.batches import PairTable
from threefold.train.positions import extend_positions
from threefold.train.prepared import idf_of
from threefold.train.single import SHORTEST, cloze_pairs, crop_pairs

LENGTHS = st.lists(st.integers(0, 60), min_size=1, max_size=8)


def texts_of(lengths: list[int]) -> list[list[int]]:
    return [[0, *range(100 * i + 4, 100 * i + 4 + n), 2] for i, n in enumerate(lengths)]


def rows_of(table: PairTable) -> list[tuple[list[int], list[int]]]:
    return [(table.query[i].tolist(), table.positive[i].tolist()) for i in range(len(table))]


@settings(deadline=None, max_examples=30)
@given(lengths=LENGTHS, seed=st.integers(0, 9))
def test_crops_are_spans_of_their_text(lengths: list[int], seed: int) -> None:
    texts = texts_of(lengths)
    long = [text for text, n in zip(texts, lengths, strict=True) if n >= SHORTEST]
    table = crop_pairs(tokens(texts), seed)
    assert len(table) == len(long)
    assert table.symmetric.all()
    for text, pair in zip(long, rows_of(table), strict=True):
        for first, *inner, last in pair:
            assert (first, last) == (0, 2)
            start = text.index(inner[0])
            assert inner == text[start : start + len(inner)]
            assert 2 <= len(inner) <= len(text) / 2
    assert rows_of(crop_pairs(tokens(texts), seed)) == rows_of(table)


def test_a_cloze_question_is_taken_out_of_its_passage_nine_times_of_ten() -> None:
    texts = texts_of([40] * 500)
    stays = 0
    for text, (query, passage) in zip(texts, rows_of(cloze_pairs(tokens(texts), 0)), strict=True):
        inner = set(query[1:-1])
        assert inner | set(passage) == set(text)
        stays += bool(inner & set(passage))
    assert 25 <= stays <= 80  # a tenth of 500; 99.9 % of all seeds are within 30 to 72


def test_idf_by_hand() -> None:
    # 3 texts: token 5 in two of them (twice in one), 6 in one, 7 in none
    idf = idf_of(tokens([[5, 5], [5, 6], [4, 4]]), 8)
    assert idf[[5, 6, 7]] == pytest.approx(np.log([4 / 3, 4 / 2, 4 / 1]))


# ---- positions ---------------------------------------------------------------------------------------------


def states(network: torch.nn.Module, n: int) -> torch.Tensor:
    ids = np.arange(n) % 40 + 4
    with torch.no_grad():
        return network(Batch.of(ids, Layout.of(np.array([n])), 2, torch.device("cpu")))  # type: ignore[no-any-return]


def test_a_copied_table_says_the_same_about_short_texts() -> None:
    old, new = model(), model()
    extend_positions(new, 100, "copy")
    assert new.config.max_tokens == new.config.network.max_tokens == 100
    assert torch.equal(states(old.network, 38), states(new.network, 38))
    assert torch.isfinite(states(new.network, 100)).all()
    table = new.network.positions.weight
    assert torch.equal(table[2 + 38 : 2 + 76], table[2 : 2 + 38])
    assert table.requires_grad


def test_a_stretched_table_by_hand() -> None:
    old, new = model(), model()
    extend_positions(new, 75)  # 38 rows -> 75: every second one is an old one, the others are half way
    before, after = old.network.positions.weight[2:], new.network.positions.weight[2:]
    torch.testing.assert_close(after[::2], before)
    torch.testing.assert_close(after[1::2], (before[:-1] + before[1:]) / 2)
    assert torch.equal(old.network.positions.weight[:2], new.network.positions.weight[:2])


def test_fewer_positions_are_refused() -> None:
    with pytest.raises(ConfigError, match="has 38 positions already; max_tokens must be more, got 20"):
        extend_positions(model(), 20)
