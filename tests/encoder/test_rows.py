"""A batch whose texts want different outputs gives each text what it would get alone."""

from __future__ import annotations

import numpy as np
import pytest
from torch import Tensor

from threefold.encoder.encoder import Encoder
from threefold.encoder.heads import Heads
from threefold.errors import InputError, MissingHeadError
from threefold.types import Output, Row

TEXTS = ["The quick brown fox", "a", "", "搜索引擎把文档切成段落。", "dense, sparse and multi-vector scores " * 5]


def test_rows_are_what_encode_says(m3: Encoder) -> None:
    tokens = m3.tokenizer.encode(TEXTS, max_tokens=64)
    whole = m3.encode(TEXTS, max_tokens=64)
    assert whole.dense is not None
    assert whole.sparse is not None
    assert whole.multi is not None
    rows = m3.encode_tokens(tokens, [("dense", "sparse", "multi")] * len(TEXTS))
    for i, row in enumerate(rows):
        assert row.dense is not None
        assert row.sparse is not None
        assert row.multi is not None
        np.testing.assert_allclose(row.dense, whole.dense[i], atol=1e-6)
        np.testing.assert_array_equal(row.sparse[0], whole.sparse[i][0])
        np.testing.assert_allclose(row.sparse[1], whole.sparse[i][1], atol=1e-6)
        np.testing.assert_allclose(row.multi, whole.multi[i], atol=1e-6)
        assert row.hidden is None
        assert row.weights is None


def test_each_text_gets_what_it_asked_for_and_nothing_else(m3: Encoder) -> None:
    wanted: list[tuple[Output, ...]] = [
        ("dense",),
        ("sparse",),
        ("multi",),
        ("hidden", "weights"),
        ("dense", "weights"),
    ]
    tokens = m3.tokenizer.encode(TEXTS, max_tokens=64)
    for row, outputs in zip(m3.encode_tokens(tokens, wanted), wanted, strict=True):
        assert {name for name in Row._fields if getattr(row, name) is not None} == set(outputs)


def test_between_two_layers_something_else_can_run(m3: Encoder) -> None:
    """Before every layer once; and what runs there changes nothing."""
    tokens, other = m3.tokenizer.encode(TEXTS, max_tokens=64), m3.tokenizer.encode(["a fox"], max_tokens=64)
    inner: list[Row] = []
    rows = m3.encode_tokens(
        tokens, [("dense",)] * len(TEXTS), between=lambda: inner.extend(m3.encode_tokens(other, [("dense",)]))
    )
    alone = m3.encode(["a fox"]).dense
    expected = m3.encode(TEXTS, max_tokens=64).dense
    assert expected is not None
    assert alone is not None
    assert len(inner) == m3._config.network.layers
    for row, dense in zip([*rows, *inner], [*expected, *[alone[0]] * len(inner)], strict=True):
        assert row.dense is not None
        np.testing.assert_allclose(row.dense, dense, atol=1e-6)


def test_raw_outputs_are_per_token_specials_included(m3: Encoder) -> None:
    tokens = m3.tokenizer.encode(TEXTS, max_tokens=64)
    for i, row in enumerate(m3.encode_tokens(tokens, [("hidden", "weights", "sparse")] * len(TEXTS))):
        assert row.hidden is not None
        assert row.weights is not None
        assert row.sparse is not None
        assert row.hidden.shape == (len(tokens[i]), m3.card.dense_dim)
        best: dict[int, float] = {}
        for id, weight in zip(tokens[i].tolist(), row.weights.tolist(), strict=True):
            if weight > 0 and id not in m3.tokenizer.special_ids:
                best[id] = max(weight, best.get(id, 0.0))
        assert dict(zip(row.sparse[0].tolist(), row.sparse[1].tolist(), strict=True)) == pytest.approx(best)


def test_a_head_sees_only_the_tokens_of_those_who_asked(m3: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = Heads.multi_vectors

    def spy(self: Heads, hidden: Tensor) -> Tensor:
        seen.append(len(hidden))
        return original(self, hidden)

    monkeypatch.setattr(Heads, "multi_vectors", spy)
    tokens = m3.tokenizer.encode(TEXTS, max_tokens=64)
    m3.encode_tokens(tokens, [("dense",), ("dense", "multi"), ("dense",), ("sparse",), ("sparse",)])
    assert seen == [len(tokens[1])]


def test_what_cannot_be_made_is_refused(m3: Encoder, st_folder: object) -> None:
    tokens = m3.tokenizer.encode(["a", "b"], max_tokens=8)
    with pytest.raises(InputError, match="2 texts but 1 sets"):
        m3.encode_tokens(tokens, [("dense",)])
    with pytest.raises(InputError, match="got 'bogus'"):
        m3.encode_tokens(tokens, [("dense", "bogus"), ()])  # type: ignore[list-item]
    with pytest.raises(InputError, match="as a list; got 'dense'"):
        m3.encode_tokens(tokens, ["dense", "dense"])  # type: ignore[list-item]
    plain = Encoder(str(st_folder), device="cpu", precision="float32")
    few = plain.tokenizer.encode(["a"], max_tokens=8)
    with pytest.raises(MissingHeadError, match="sparse"):
        plain.encode_tokens(few, [("weights",)])
    assert plain.encode_tokens(plain.tokenizer.encode([], max_tokens=8), []) == []
