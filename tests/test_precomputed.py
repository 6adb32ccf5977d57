"""Vectors that were computed before: found by their text, the others encoded; nothing that is not the model's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fakes import FakeEncoder

from threefold import precomputed, shards
from threefold.collection import Collection
from threefold.errors import InputError, MissingHeadError, ThreefoldError
from threefold.opening import manifest_for
from threefold.precomputed import PrecomputedEncoder
from threefold.shards import write_parquet, write_vectors
from threefold.store.memory import MemoryStore
from threefold.text.tokenizer import Tokenizer
from threefold.types import Document, Encoded

TEXTS = ["quick fox", "lazy dog", "the fox and the dog", "a dog", "fox fox fox"]


def same(found: Encoded, expected: Encoded) -> None:
    """Equal, token vectors as far as float16 goes."""
    for name in ("dense", "sparse", "multi"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours is None) == (theirs is None)
    if found.dense is not None and expected.dense is not None:
        np.testing.assert_array_equal(found.dense, expected.dense)
    if found.sparse is not None and expected.sparse is not None:
        np.testing.assert_array_equal(found.sparse.to_scipy().toarray(), expected.sparse.to_scipy().toarray())
    if found.multi is not None and expected.multi is not None:
        assert found.multi.rows.dtype == np.float32
        np.testing.assert_array_equal(found.multi.offsets, expected.multi.offsets)
        np.testing.assert_allclose(found.multi.rows, expected.multi.rows, atol=5e-4)  # float16 of at most 1
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.truncated, expected.truncated)


def files(folder: Path, encoder: FakeEncoder, texts: list[str], per_file: int = 2, **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for start in range(0, len(texts), per_file):
        rows = [(str(start + i), text) for i, text in enumerate(texts[start : start + per_file])]
        write_parquet(folder / f"part-{start:03}.parquet", rows, encoder, **options)
    encoder.calls.clear()
    return folder


def test_what_is_there_is_not_encoded_again(encoder: FakeEncoder, tmp_path: Path) -> None:
    place = files(tmp_path / "v", encoder, TEXTS)
    ours = PrecomputedEncoder(encoder, place)
    asked = [TEXTS[i] for i in (3, 0, 0, 4, 2, 1)]
    found = ours.encode_documents(asked)
    assert encoder.calls == [["quick fox"], ["a dog"], ["fox fox fox"]]  # one of each file, to compare
    same(found, encoder.encode(asked))
    assert (ours.found, ours.encoded) == (6, 0)


def test_what_is_not_there_is_encoded_and_said_once(encoder: FakeEncoder, tmp_path: Path) -> None:
    said: list[str] = []
    ours = PrecomputedEncoder(encoder, files(tmp_path / "v", encoder, TEXTS[:3]), say=said.append)
    ours.encode_documents(TEXTS[:2])
    assert said == []
    encoder.calls.clear()
    same(
        ours.encode_documents(["new", TEXTS[1], "newer", TEXTS[0]]),
        encoder.encode(["new", TEXTS[1], "newer", TEXTS[0]]),
    )
    assert encoder.calls[0] == ["new", "newer"]
    ours.encode_documents(["newest"])
    assert [line.startswith("2 of the first 4 chunks are not among the vectors") for line in said] == [True]
    assert (ours.found, ours.encoded) == (4, 3)


def test_it_is_a_warning_where_nobody_else_is_told(
    encoder: FakeEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    PrecomputedEncoder(encoder, files(tmp_path / "v", encoder, TEXTS[:3])).encode_documents(["new"])
    assert "1 of the first 1 chunks are not among the vectors" in caplog.text


def test_queries_and_plain_texts_are_encoded(encoder: FakeEncoder, tmp_path: Path) -> None:
    ours = PrecomputedEncoder(encoder, files(tmp_path / "v", encoder, TEXTS))
    same(ours.encode_queries(TEXTS[:2], outputs=("dense",)), encoder.encode(TEXTS[:2], outputs=("dense",)))
    same(ours.encode(TEXTS[:2], max_tokens=4), encoder.encode(TEXTS[:2], max_tokens=4))
    assert encoder.calls[0] == encoder.calls[2] == TEXTS[:2]
    assert ours.tokenizer is encoder.tokenizer


def test_nothing_is_asked(encoder: FakeEncoder, tmp_path: Path) -> None:
    ours = PrecomputedEncoder(encoder, files(tmp_path / "v", encoder, TEXTS))
    same(ours.encode_documents([]), encoder.encode([]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(
    kept=st.lists(st.text("abc d", min_size=1, max_size=6), max_size=12),
    asked=st.lists(st.text("abc d", min_size=1, max_size=6), max_size=12),
    group=st.integers(1, 5),
    block=st.integers(1, 7),
    outputs=st.sampled_from([None, ("dense",), ("sparse", "multi")]),
)
def test_as_if_all_were_encoded(
    tokenizer: Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
    kept: list[str],
    asked: list[str],
    group: int,
    block: int,
    outputs: Any,
) -> None:
    encoder, place = FakeEncoder(tokenizer), tmp_path_factory.mktemp("v") / "x.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_GROUP", group)
        write_parquet(place, [(str(i), text) for i, text in enumerate(kept)], encoder, block=block)
    ours = PrecomputedEncoder(encoder, place, say=lambda _: None)
    same(ours.encode_documents(asked, outputs=outputs), encoder.encode(asked, outputs=outputs))
    assert ours.found == sum(text in kept for text in asked)


@pytest.mark.parametrize(("groups", "reads"), [(1, 6), (2, 4), (3, 3)])
def test_groups_are_read_again_only_where_memory_ends(
    encoder: FakeEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: int, reads: int
) -> None:
    texts = ["fox dog", "dog fox", "fox fox"]  # of equal length
    ours = PrecomputedEncoder(encoder, files(tmp_path / "v", encoder, texts, 1))
    monkeypatch.setattr(precomputed, "_KEPT_TOKENS", groups * int(encoder.encode(texts[:1]).tokens[0]))
    read: list[Path] = []
    vectors = shards.Group.vectors

    def counted(one: Any, *how: Any) -> Any:
        read.append(one.path)
        return vectors(one, *how)

    monkeypatch.setattr(shards.Group, "vectors", counted)
    for i in (0, 1, 0, 2, 1, 2, 2):
        same(ours.encode_documents([texts[i]]), encoder.encode([texts[i]]))
    assert len(read) == reads


def test_equal_hashes_are_no_equal_texts(encoder: FakeEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precomputed, "_hash", lambda text: len(text) % 2)
    ours = PrecomputedEncoder(encoder, files(tmp_path / "v", encoder, TEXTS), say=lambda _: None)
    same(ours.encode_documents(TEXTS), encoder.encode(TEXTS))
    assert (ours.found, ours.encoded) == (2, 3)


def test_lengths(encoder: FakeEncoder, tmp_path: Path) -> None:
    """A text that was cut is not found, and one that is to be cut neither."""
    long = " ".join(TEXTS)
    ours = PrecomputedEncoder(encoder, files(tmp_path / "v", encoder, [long, "fox"], max_tokens=6), say=lambda _: None)
    same(ours.encode_documents([long, "fox"]), encoder.encode([long, "fox"]))
    assert (ours.found, ours.encoded) == (1, 1)
    ours = PrecomputedEncoder(encoder, files(tmp_path / "w", encoder, [long, "fox"]), say=lambda _: None)
    same(ours.encode_documents([long, "fox"], max_tokens=6), encoder.encode([long, "fox"], max_tokens=6))
    assert (ours.found, ours.encoded) == (1, 1)


def test_a_collection_is_the_same(encoder: FakeEncoder, tmp_path: Path) -> None:
    documents = [Document(f"d{i}", text) for i, text in enumerate(TEXTS)]
    ours = PrecomputedEncoder(
        encoder, [files(tmp_path / "v", encoder, TEXTS[:2]), files(tmp_path / "w", encoder, TEXTS[2:])]
    )
    kept, plain = (Collection.over(MemoryStore(manifest_for(one)), one) for one in (ours, encoder))
    with kept, plain:
        assert kept.add(documents).chunks == plain.add(documents).chunks == 5
        assert ours.encoded == 0
        for mode in ("dense", "sparse", "multi", "hybrid"):
            found, expected = kept.search("fox dog", mode=mode), plain.search("fox dog", mode=mode)
            assert [hit.id for hit in found] == [hit.id for hit in expected]
            assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=2e-3)


def test_the_precision_is_that_of_the_files(encoder: FakeEncoder, tmp_path: Path) -> None:
    place = files(tmp_path / "v", encoder, TEXTS)
    written = encoder.card
    object.__setattr__(encoder, "card", dataclasses.replace(written, precision="bfloat16"))
    assert PrecomputedEncoder(encoder, place).card == written
    files(tmp_path / "w", encoder, TEXTS)
    assert (
        PrecomputedEncoder(encoder, [place, tmp_path / "w"]).card.precision == "bfloat16"
    )  # they differ: the encoder's


def test_another_model_is_refused_by_name(encoder: FakeEncoder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    place = files(tmp_path / "v", FakeEncoder(tokenizer, name="other"), TEXTS)
    with pytest.raises(InputError, match=r"part-000\.parquet was made by other \(.*\), and this is fake"):
        PrecomputedEncoder(encoder, place)


def test_vectors_of_other_texts_are_refused(encoder: FakeEncoder, tmp_path: Path) -> None:
    """As when ids, texts and vectors of another library were joined in the wrong order."""
    shuffled = encoder.encode(TEXTS[::-1])
    write_vectors(tmp_path / "x.parquet", list("abcde"), TEXTS, shuffled, encoder.card)
    ours = PrecomputedEncoder(encoder, tmp_path / "x.parquet")
    for _ in range(2):
        with pytest.raises(InputError, match=r"has another vector of the text 'quick fox' than fake \(cosine 0\.\d+\)"):
            ours.encode_documents(TEXTS)


def test_vectors_of_another_library(encoder: FakeEncoder, tmp_path: Path) -> None:
    write_vectors(tmp_path / "x.parquet", list("abcde"), TEXTS, encoder.encode(TEXTS), encoder.card)
    ours = PrecomputedEncoder(encoder, str(tmp_path / "x.parquet"))
    same(ours.encode_documents(TEXTS), encoder.encode(TEXTS))
    assert (ours.found, ours.encoded) == (5, 0)
    assert shards.read_written(tmp_path / "x.parquet")[0].texts == 5


def test_a_head_that_the_files_lack(encoder: FakeEncoder, tmp_path: Path) -> None:
    ours = PrecomputedEncoder(encoder, files(tmp_path / "v", encoder, TEXTS, outputs=("sparse",)))
    same(ours.encode_documents(TEXTS[:1], outputs=("sparse",)), encoder.encode(TEXTS[:1], outputs=("sparse",)))
    with pytest.raises(MissingHeadError, match=r"part-000\.parquet has no dense vectors"):
        ours.encode_documents(TEXTS[:1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ids": ["a"]}, "1 ids and 5 texts, but vectors of 5"),
        ({"texts": ["nul \0", *TEXTS[1:]]}, "the id 'a' or its text has NUL"),
        ({"dim": 8}, "dense vectors of size 8, but fake has 16"),
    ],
)
def test_vectors_that_do_not_fit(
    encoder: FakeEncoder, tokenizer: Tokenizer, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    made = FakeEncoder(tokenizer, dim=change.get("dim", 16)).encode(TEXTS)
    ids, texts = change.get("ids", list("abcde")), change.get("texts", TEXTS)
    with pytest.raises(InputError, match=said):
        write_vectors(tmp_path / "x.parquet", ids, texts, made, encoder.card)
    assert not list(tmp_path.iterdir())


def test_each_file_is_compared(encoder: FakeEncoder, tmp_path: Path) -> None:
    """The rows of the second file are in another order."""
    place = files(tmp_path / "v", encoder, TEXTS[:2])
    write_vectors(place / "more.parquet", list("abc"), TEXTS[2:], encoder.encode(TEXTS[:1:-1]), encoder.card)
    ours = PrecomputedEncoder(encoder, place)
    ours.encode_documents(TEXTS[:2])
    with pytest.raises(InputError, match=r"more\.parquet has another vector of the text 'the fox and the dog'"):
        ours.encode_documents(TEXTS)
    again = PrecomputedEncoder(encoder, place)
    again.encode_documents(TEXTS[:1], outputs=("sparse",))  # nothing to compare
    with pytest.raises(InputError, match=r"more\.parquet has another vector"):
        again.encode_documents(TEXTS[2:])


@pytest.mark.parametrize("factor", [20.0, 0.05])
def test_vectors_of_another_length_are_refused(encoder: FakeEncoder, tmp_path: Path, factor: float) -> None:
    """As by `normalize_embeddings=False` of another library: inner products of the two could not be compared."""
    made = encoder.encode(TEXTS)
    assert made.dense is not None
    longer = dataclasses.replace(made, dense=factor * made.dense)
    write_vectors(tmp_path / "x.parquet", list("abcde"), TEXTS, longer, encoder.card)
    with pytest.raises(
        InputError, match=rf"has a vector of length {factor:g} of the text .*, and fake makes it 1 long"
    ):
        PrecomputedEncoder(encoder, tmp_path / "x.parquet").encode_documents(TEXTS)


@pytest.mark.parametrize("name", ["dense", "sparse", "multi"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_vectors_without_numbers_are_not_written(encoder: FakeEncoder, tmp_path: Path, name: str, bad: float) -> None:
    made = encoder.encode(TEXTS)
    assert made.dense is not None
    assert made.sparse is not None
    assert made.multi is not None
    numbers = {"dense": made.dense, "sparse": made.sparse.values, "multi": made.multi.rows}[name]
    numbers.reshape(-1)[-1] = bad
    with pytest.raises(InputError, match=f"the {name} vectors have NaN or infinity"):
        write_vectors(tmp_path / "x.parquet", list("abcde"), TEXTS, made, encoder.card)
    assert not list(tmp_path.iterdir())


def test_drafts_of_a_job_that_runs_are_passed_over(encoder: FakeEncoder, tmp_path: Path) -> None:
    place = files(tmp_path / "v", encoder, TEXTS)
    (place / ".4711.part-004.parquet").write_bytes(b"PAR1")
    ours = PrecomputedEncoder(encoder, place)
    same(ours.encode_documents(TEXTS), encoder.encode(TEXTS))
    assert ours.encoded == 0


def test_a_file_is_not_opened_for_each_group(
    encoder: FakeEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each opening reads the places of all groups: of a million texts, eight thousand times eight thousand."""
    monkeypatch.setattr(shards, "_GROUP", 1)
    place = files(tmp_path / "v", encoder, TEXTS, len(TEXTS))
    opened: list[Path] = []

    class Counted(pq.ParquetFile):  # type: ignore[misc]
        def __init__(self, path: Path) -> None:
            opened.append(path)
            super().__init__(path)

    monkeypatch.setattr(pq, "ParquetFile", Counted)
    ours = PrecomputedEncoder(encoder, place)
    same(ours.encode_documents(TEXTS), encoder.encode(TEXTS))
    assert (opened, ours.encoded) == ([place / "part-000.parquet"], 0)


def test_a_relative_place_stays_where_it_was(
    encoder: FakeEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files(tmp_path / "v", encoder, TEXTS)
    monkeypatch.chdir(tmp_path)
    ours = PrecomputedEncoder(encoder, "v")
    (tmp_path / "w").mkdir()
    monkeypatch.chdir(tmp_path / "w")
    same(ours.encode_documents(TEXTS), encoder.encode(TEXTS))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert PrecomputedEncoder(encoder, "~/v").encode_documents(TEXTS[:1]).tokens[0] > 0


def test_a_file_that_is_another_one_by_now(encoder: FakeEncoder, tmp_path: Path) -> None:
    place = files(tmp_path / "v", encoder, TEXTS, 3)
    ours = PrecomputedEncoder(encoder, place, say=lambda _: None)
    ours.encode_documents(TEXTS[3:])
    write_parquet(place / "part-000.parquet", [("x", TEXTS[1])], encoder)
    same(ours.encode_documents(TEXTS), encoder.encode(TEXTS))
    assert (ours.found, ours.encoded) == (4, 3)


def test_no_files(encoder: FakeEncoder) -> None:
    ours = PrecomputedEncoder(encoder, [], say=lambda _: None)
    same(ours.encode_documents(TEXTS), encoder.encode(TEXTS))
    assert ours.card == encoder.card


def test_arguments_are_checked_as_by_the_encoder(encoder: FakeEncoder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    ours = PrecomputedEncoder(encoder, files(tmp_path / "v", encoder, TEXTS))
    with pytest.raises(InputError, match="expected a list of texts, got one text"):
        ours.encode_documents(TEXTS[0])
    with pytest.raises(InputError, match="text 1 must be a string; got int"):
        ours.encode_documents([TEXTS[0], 3])  # type: ignore[list-item]
    same(ours.encode_documents(iter(TEXTS)), encoder.encode(TEXTS))  # type: ignore[arg-type]
    dense = FakeEncoder(tokenizer, heads=("dense",))
    had = PrecomputedEncoder(dense, files(tmp_path / "w", dense, TEXTS))
    had.encode_documents(TEXTS)
    with pytest.raises(MissingHeadError):
        had.encode_documents(TEXTS, outputs=("dense", "multi"))


@pytest.mark.parametrize("lost", ["text", "tokens", "truncated", "sparse_values", "null", "dense"])
def test_files_that_are_not_as_we_write_them(encoder: FakeEncoder, tmp_path: Path, lost: str) -> None:
    files(tmp_path, encoder, TEXTS, 5)
    path = tmp_path / "part-000.parquet"
    table = pq.read_table(path)
    if lost == "null":
        table = table.set_column(1, "text", pa.array([None, *TEXTS[1:]], pa.string()))
    elif lost == "dense":
        at = table.column_names.index("dense")
        table = table.set_column(at, "dense", pa.array([[1.0]] * 5, pa.list_(pa.float32())))
    else:
        table = table.drop([lost])
    pq.write_table(table, path)
    with pytest.raises(InputError, match=r"part-000\.parquet was written by another version of threefold, or by"):
        PrecomputedEncoder(encoder, path).encode_documents(TEXTS)


@pytest.mark.parametrize("place", ["absent.parquet", "empty", "text.parquet"])
def test_places_without_vectors(encoder: FakeEncoder, tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.parquet").write_text("no vectors")
    with pytest.raises(ThreefoldError, match=place):
        PrecomputedEncoder(encoder, tmp_path / place)
