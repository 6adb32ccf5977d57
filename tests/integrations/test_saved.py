from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.fakes import FakeEncoder
from tests.retrieve.test_experiment import make_task

from threefold.errors import InputError, MissingHeadError
from threefold.integrations.saved import SavedVectors
from threefold.retrieve.experiment import Protocol, available_modes, run_task
from threefold.shards import write_parquet
from threefold.text.tokenizer import Tokenizer


def test_saved_vectors_give_the_same_figures(encoder: FakeEncoder, tmp_path: Path) -> None:
    task = make_task()
    write_parquet(tmp_path / "docs.parquet", task.documents.items(), encoder)
    write_parquet(tmp_path / "queries.parquet", task.queries.items(), encoder)
    saved = SavedVectors(tmp_path / "docs.parquet", tmp_path / "queries.parquet")
    assert saved.card == replace(encoder.card, tokenizer_hash="")
    protocol = Protocol(modes=("dense", "sparse", "multi", "hybrid", "bm25-words"), multi_depth=10)
    ours, theirs = run_task(task, saved, protocol), run_task(task, encoder, protocol)
    for mode in protocol.modes:
        for query in task.queries:
            assert dict(ours.runs[mode][query]) == pytest.approx(dict(theirs.runs[mode][query]), abs=2e-3)


def test_one_file_for_both(encoder: FakeEncoder, tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", [("1", "quick fox"), ("2", "lazy dog")], encoder, outputs=["dense"])
    saved = SavedVectors(tmp_path / "x.parquet")
    assert saved.card.representations == ("dense",)
    found = saved.encode_queries(["lazy dog"])
    assert found.dense is not None
    expected = encoder.encode(["lazy dog"]).dense
    assert expected is not None
    np.testing.assert_array_equal(found.dense, expected)
    with pytest.raises(InputError, match="has no vectors of the text 'unseen'"):
        saved.encode(["unseen"])
    with pytest.raises(MissingHeadError, match="the saved vectors have no multi"):
        saved.encode(["lazy dog"], outputs=["multi"])
    with pytest.raises(InputError, match="without a tokenizer"):
        run_task(make_task(), saved, Protocol(modes=("bm25",)))
    assert available_modes(saved.card) == ("dense",)


def test_a_folder_of_files(encoder: FakeEncoder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    for i, text in enumerate(["quick fox", "lazy dog"]):
        write_parquet(tmp_path / f"part-{i}.parquet", [(str(i), text)], encoder)
    found = SavedVectors(tmp_path).encode(["lazy dog", "quick fox"], outputs=["dense"]).dense
    expected = encoder.encode(["lazy dog", "quick fox"]).dense
    assert found is not None
    assert expected is not None
    np.testing.assert_array_equal(found, expected)
    write_parquet(tmp_path / "part-2.parquet", [("2", "fox")], FakeEncoder(tokenizer, name="other"))
    with pytest.raises(InputError, match=r"part-0\.parquet was made by fake .*part-2\.parquet by other"):
        SavedVectors(tmp_path)


def test_lengths_that_the_vectors_do_not_have_are_refused(encoder: FakeEncoder, tmp_path: Path) -> None:
    write_parquet(tmp_path / "whole.parquet", [("1", "quick fox")], encoder, outputs=["dense"])
    write_parquet(tmp_path / "cut.parquet", [("1", "quick fox")], encoder, outputs=["dense"], max_tokens=3)
    whole, cut = SavedVectors(tmp_path / "whole.parquet"), SavedVectors(tmp_path / "cut.parquet")
    read = int(whole.encode(["quick fox"], max_tokens=512, truncate="none").tokens[0])
    with pytest.raises(InputError, match=f"vectors of {read} tokens of a text, which max_tokens=3 does not give"):
        whole.encode(["quick fox"], max_tokens=3)
    assert cut.encode_queries(["quick fox"], max_tokens=3).tokens.tolist() == [3]
    with pytest.raises(InputError, match=r"vectors of 3 tokens .* max_tokens=512 does not give"):
        cut.encode_queries(["quick fox"], max_tokens=512)
    with pytest.raises(InputError, match="has texts that were cut; truncate='none' is refused"):
        cut.encode(["quick fox"], truncate="none")


def test_texts_with_half_a_character_are_found(encoder: FakeEncoder, tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", [("1", "\ud800 fox"), ("2", "nul \0")], encoder, outputs=["dense"])
    saved = SavedVectors(tmp_path / "x.parquet")
    assert len(saved.encode(["\ud800 fox", "\ufffd fox", "nul \0"])) == 3
    with pytest.raises(InputError, match="expected a list of texts"):
        saved.encode("fox")


def test_files_of_different_models_are_refused(encoder: FakeEncoder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [("1", "fox")], encoder)
    write_parquet(tmp_path / "b.parquet", [("1", "fox")], FakeEncoder(tokenizer, name="other"))
    with pytest.raises(InputError, match=r"a\.parquet was made by fake .* by other"):
        SavedVectors(tmp_path / "a.parquet", tmp_path / "b.parquet")
