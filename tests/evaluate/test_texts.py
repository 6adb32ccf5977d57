from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.fakes import FakeEncoder
from tests.retrieve.test_experiment import make_task

from threefold.errors import EvaluationError
from threefold.evaluate.texts import Texts
from threefold.retrieve.experiment import Protocol, run_task

ROWS = {"a": "quick fox", "b": "", "c": "今天天气很好", "d": "half \ud800 pair"}


@pytest.mark.parametrize("limit", [0, 10, 1_000])
def test_a_mapping_wherever_it_is(limit: int) -> None:
    texts = Texts(limit)
    for id, text in ROWS.items():
        texts.add(id, text, "here")
        assert texts[id] == text
    assert texts.on_disk is (limit < 1_000)
    assert dict(texts) == ROWS
    assert list(texts) == list(ROWS)
    assert len(texts) == 4
    assert "c" in texts
    assert "x" not in texts
    with pytest.raises(KeyError):
        texts["x"]
    with pytest.raises(EvaluationError, match="file:7: id twice: 'a'"):
        texts.add("a", "again", "file:7")


def test_a_corpus_in_a_file_gives_the_same_task_and_runs(encoder: FakeEncoder, tmp_path: Path) -> None:
    task = make_task()
    texts = Texts(20)
    for id, text in task.documents.items():
        texts.add(id, text, "here")
    on_disk = replace(task, documents=texts)
    assert texts.on_disk
    assert on_disk.fingerprint() == task.fingerprint()
    protocol = Protocol(modes=("dense", "sparse", "bm25"))
    found = run_task(on_disk, encoder, protocol, cache=tmp_path, stream=True)
    assert found.runs["sparse"] == run_task(task, encoder, protocol).runs["sparse"]
