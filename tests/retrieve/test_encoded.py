from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.fakes import FakeEncoder

from threefold.errors import EvaluationError, StoreError
from threefold.retrieve.encoded import Recent, Role, Unique, encode_unique
from threefold.text.tokenizer import Tokenizer
from threefold.types import REPRESENTATIONS, Representation

TEXTS = ["quick fox", "lazy dog", "quick fox", ""]


def encode(
    encoder: FakeEncoder,
    cache: Path | None = None,
    texts: Sequence[str] = TEXTS,
    role: Role = "documents",
    outputs: Sequence[Representation] = REPRESENTATIONS,
    max_tokens: int | None = None,
) -> Unique:
    encoder.calls.clear()
    return encode_unique(encoder, texts, role, outputs, max_tokens=max_tokens, cache=cache)


def test_equal_texts_share_a_row(encoder: FakeEncoder) -> None:
    unique = encode(encoder)
    assert encoder.calls == [["quick fox", "lazy dog", ""]]
    assert unique.rows.tolist() == [0, 1, 0, 2]
    assert not unique.distinct
    assert encode(encoder, texts=["a", "b"]).distinct


def test_truncated_texts_are_counted_as_often_as_they_were_given(encoder: FakeEncoder) -> None:
    assert encode(encoder, texts=["quick fox jumps"] * 3 + ["a"], max_tokens=4).truncated == 3


@pytest.mark.parametrize("outputs", [("dense",), ("sparse",), ("multi",), REPRESENTATIONS])
def test_the_cache_gives_back_what_was_encoded(
    encoder: FakeEncoder, tmp_path: Path, outputs: Sequence[Representation]
) -> None:
    fresh, cached = (encode(encoder, tmp_path, outputs=outputs).encoded for _ in range(2))
    assert len(encoder.calls[0]) == 1
    for name in REPRESENTATIONS:
        assert (getattr(fresh, name) is None) == (getattr(cached, name) is None) == (name not in outputs)
    if fresh.dense is not None and cached.dense is not None:
        np.testing.assert_array_equal(fresh.dense, cached.dense)
    if fresh.sparse is not None and cached.sparse is not None:
        assert [fresh.sparse.row(i) for i in range(3)] == [cached.sparse.row(i) for i in range(3)]
        assert fresh.sparse.vocab == cached.sparse.vocab
    if fresh.multi is not None and cached.multi is not None:
        np.testing.assert_array_equal(fresh.multi.rows, cached.multi.rows)
        np.testing.assert_array_equal(fresh.multi.offsets, cached.multi.offsets)
    np.testing.assert_array_equal(fresh.tokens, cached.tokens)
    np.testing.assert_array_equal(fresh.truncated, cached.truncated)


def test_whatever_changes_the_vectors_is_another_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    one, other = FakeEncoder(tokenizer), FakeEncoder(tokenizer, name="other")
    encode(one, tmp_path)
    changes: list[dict[str, Any]] = [
        {"texts": TEXTS[::-1]},
        {"role": "queries"},
        {"outputs": ("dense",)},
        {"max_tokens": 6},
    ]
    for change in changes:
        encode(one, tmp_path, **change)
        assert len(one.calls[0]) == 3
    encode(other, tmp_path)
    assert len(other.calls[0]) == 3
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("outputs", [("dense",), ("sparse",), ("multi",)])
def test_another_prompt_is_noticed(tokenizer: Tokenizer, tmp_path: Path, outputs: Sequence[Representation]) -> None:
    """The model card does not name prompts, so the key is the same."""
    encode(FakeEncoder(tokenizer), tmp_path, outputs=outputs)
    prompted = FakeEncoder(tokenizer, prompt="over ")
    encode(prompted, tmp_path, outputs=outputs)
    assert [len(texts) for texts in prompted.calls] == [1, 3]
    encode(prompted, tmp_path, outputs=outputs)
    assert [len(texts) for texts in prompted.calls] == [1]


def test_a_damaged_file_is_named(encoder: FakeEncoder, tmp_path: Path) -> None:
    encode(encoder, tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for damaged in (b"", b"x" * 99, whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(damaged)
        with pytest.raises(EvaluationError, match=f"{path.name}: damaged cache file .*; delete it and run again"):
            encode(encoder, tmp_path)


def test_a_folder_that_cannot_be_written(encoder: FakeEncoder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="the cache cannot be written"):
        encode(encoder, tmp_path / "file" / "cache")


def test_sets_of_one_run_share_what_was_encoded(encoder: FakeEncoder) -> None:
    recent = Recent()

    def given(texts: Sequence[str], role: Role) -> Unique:
        return encode_unique(encoder, texts, role, REPRESENTATIONS, recent=recent)

    first = given(TEXTS, "documents")
    again = given([*TEXTS, "lazy dog"], "documents")
    assert again.encoded is first.encoded
    assert again.rows.tolist() == [0, 1, 0, 2, 1]
    assert len(encoder.calls) == 1
    given(TEXTS, "queries")  # may have another prompt
    given(TEXTS[:2], "documents")
    assert len(encoder.calls) == 3


def test_recent_forgets_the_oldest_and_never_keeps_more_than_its_limit(encoder: FakeEncoder) -> None:
    a, b, c = (encoder.encode([text], outputs=("dense",)) for text in "abc")
    assert a.dense is not None
    size = a.dense.nbytes + a.tokens.nbytes + a.truncated.nbytes
    recent = Recent(2 * size)
    recent.keep("a", a)
    recent.keep("b", b)
    assert recent.find("a") is a  # b is now the oldest
    recent.keep("c", c)
    assert recent.find("b") is None
    assert (recent.find("a"), recent.find("c")) == (a, c)
    recent.keep("large", encoder.encode(["a", "b", "c"], outputs=("dense",)))
    assert recent.find("large") is None
    assert recent.find("a") is a
