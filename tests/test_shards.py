from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.fakes import FakeEncoder

from threefold.errors import InputError
from threefold.shards import read_card, read_parquet, write_parquet


def rewritten(path: Path, said: str | None) -> Path:
    """The same file with another key `threefold`."""
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({} if said is None else {"threefold": said}), path)
    return path


@pytest.fixture
def written(encoder: FakeEncoder, tmp_path: Path) -> Path:
    write_parquet(tmp_path / "x.parquet", [("1", "quick fox"), ("2", "lazy dog")], encoder)
    return tmp_path / "x.parquet"


def test_what_is_read_is_what_was_written(encoder: FakeEncoder, written: Path) -> None:
    ids, texts, encoded = read_parquet(written)
    assert (ids, texts) == (["1", "2"], ["quick fox", "lazy dog"])
    np.testing.assert_array_equal(encoded.dense, encoder.encode(texts).dense)
    assert read_card(written) == encoder.card


def test_half_characters_do_not_end_the_work(encoder: FakeEncoder, tmp_path: Path) -> None:
    """The vectors are of the texts that the file holds, and not of what they were before."""
    done = write_parquet(
        tmp_path / "x.parquet", [("a", "fox"), ("\ud800", "\ud800 dog"), ("b", "nul \0")], encoder, block=1
    )
    ids, texts, encoded = read_parquet(tmp_path / "x.parquet")
    assert done.texts == 3
    assert (ids, texts) == (["a", "\ufffd", "b"], ["fox", "\ufffd dog", "nul \ufffd"])
    np.testing.assert_array_equal(encoded.dense, encoder.encode(texts).dense)
    assert encoder.calls[:3] == [["fox"], ["\ufffd dog"], ["nul \ufffd"]]


@pytest.mark.parametrize(
    "said",
    [
        "no json",
        "[]",
        "{}",
        '{"version": 1}',
        json.dumps(
            dict.fromkeys(("name", "hash", "tokenizer_hash", "dense_dim", "multi_dim", "vocab", "max_tokens"), "1")
        ),
    ],
)
def test_a_foreign_key_is_refused_by_name(written: Path, said: str) -> None:
    rewritten(written, said)
    for read in (read_parquet, read_card):
        with pytest.raises(
            InputError, match=r"x\.parquet was written by another version of threefold, or by something"
        ):
            read(written)


def test_no_key_and_no_file(written: Path) -> None:
    rewritten(written, None)
    for read in (read_parquet, read_card):
        with pytest.raises(InputError, match="lacks the metadata key 'threefold'"):
            read(written)
        with pytest.raises(InputError, match=r"cannot read .*absent\.parquet"):
            read(written.with_name("absent.parquet"))


@pytest.mark.parametrize("change", [{"dense_dim": 15}, {"vocab": 1}])
def test_columns_that_do_not_fit_the_card(written: Path, change: dict[str, Any]) -> None:
    said = json.loads(pq.read_schema(written).metadata[b"threefold"])
    with pytest.raises(InputError, match="was written by another version of threefold"):
        read_parquet(rewritten(written, json.dumps(said | change)))


def test_columns_that_are_missing(written: Path) -> None:
    pq.write_table(pq.read_table(written).drop_columns(["tokens"]), written)
    with pytest.raises(InputError, match=r"was written by another version of threefold.*tokens"):
        read_parquet(written)
