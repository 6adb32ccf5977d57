from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.fakes import FakeEncoder
from tests.retrieve.test_experiment import make_task

from threefold.errors import InputError
from threefold.opening import manifest_for
from threefold.retrieve.experiment import Protocol, run_task
from threefold.retrieve.through_store import run_through_store
from threefold.store.edge import EdgeStore


def test_a_store_keeps_what_exact_scores_find(encoder: FakeEncoder, tmp_path: Path) -> None:
    task, protocol = make_task(), Protocol(modes=("dense", "sparse", "multi", "bm25"))
    manifest = manifest_for(encoder, None, "float16")
    rows, runs = run_through_store(task, encoder, protocol, manifest, lambda m: EdgeStore.create(tmp_path / "s", m))
    assert [row.mode for row in rows] == ["dense (store)", "sparse (store)", "multi (store)"]
    exact = run_task(task, encoder, Protocol(modes=("dense",))).runs["dense"]
    for query in task.queries:
        assert dict(runs["dense (store)"][query]) == pytest.approx(dict(exact[query]), abs=1e-3)  # float16 in the store
    for row in rows:
        assert row.values["kept@100"] == 1.0
        assert row.values["kept@10"] > 0.9  # float16 may swap documents of equal texts
        assert set(row.seconds) == {"fill", "search"}


def test_own_documents_and_modes_that_no_store_has(encoder: FakeEncoder, tmp_path: Path) -> None:
    task = replace(make_task(), ignore_identical_ids=True)
    task = replace(task, queries={"d00": "quick"}, qrels={"d00": {"d01": 1}})
    manifest = manifest_for(encoder, None, None)
    protocol = Protocol(modes=("dense",), depth=5, measures=("nDCG@5",))
    rows, runs = run_through_store(task, encoder, protocol, manifest, lambda m: EdgeStore.create(tmp_path / "s", m))
    assert "d00" not in runs["dense (store)"]["d00"]
    assert len(runs["dense (store)"]["d00"]) == 5
    assert rows[0].values["kept@10"] == 1.0
    lexical = Protocol(modes=("bm25",))
    with pytest.raises(InputError, match="compared in the modes dense, sparse and multi"):
        run_through_store(task, encoder, lexical, manifest, lambda m: EdgeStore.create(tmp_path / "t", m))
