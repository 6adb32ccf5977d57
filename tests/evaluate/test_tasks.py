from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.evaluate import copies
from tests.fakes import FakeEncoder

from threefold.errors import EvaluationError
from threefold.evaluate import miracl, mkqa
from threefold.evaluate.published import published
from threefold.evaluate.task import Task
from threefold.evaluate.tasks import BENCHMARKS, is_name, named_tasks
from threefold.retrieve.experiment import run_task
from threefold.retrieve.papers import paper_protocol
from threefold.score import PUBLISHED


def load(text: str, data: Path, split: str | None = None) -> Task:
    (task,) = named_tasks(text)
    return task.load(split, data)


def test_miracl(tmp_path: Path) -> None:
    task = load("miracl:sw", copies.miracl(tmp_path))
    assert task.name == "miracl/sw"
    assert task.documents == {
        "1#0": "The\nquick brown fox",
        "2#0": "The lazy\ndog",
        "3#0": "\nfive dozen liquor jugs",
    }
    assert task.queries == {"1#0": "quick fox", "2#0": "lazy dog"}
    assert task.qrels == {"1#0": {"1#0": 1, "2#0": 0}, "2#0": {"2#0": 1}}
    assert not task.ignore_identical_ids
    assert task.warnings == {
        "passages fewer than the published 131,924": 131_921,
        "queries without judgements, not run": 1,
    }


def test_mldr(tmp_path: Path) -> None:
    task = load("mldr:hi", copies.mldr(tmp_path))
    assert task.documents == {"doc-1": "quick brown fox", "doc-2": "lazy dog"}
    assert task.qrels == {"q-1": {"doc-1": 0, "doc-2": 1}}
    assert task.warnings == {"documents fewer than the published 3,806": 3_804}


def test_mkqa(tmp_path: Path) -> None:
    task = load("mkqa:th", copies.mkqa(tmp_path))
    assert task.documents["doc1"] == "the dog's lazy\nday"
    assert task.queries == {"7": "quick fox", "8": "lazy dog"}
    assert task.answers == {"7": ("Brown Fox",), "8": ("cat", "the dog's")}


def test_questions_of_mkqa_that_no_file_can_hold(tmp_path: Path) -> None:
    archive = copies.mkqa(tmp_path) / "Shitao/bge-m3-data/MKQA_test-data.zip"
    for id, answer in (("7", '"fox\\ud800"'), ('"7\\ud800"', '"fox"'), ("9" * 5000, '"fox"')):
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("th.jsonl", f'{{"id": {id}, "question": "q\\ud800", "answers": [{answer}]}}')
        if id == "7":
            task = load("mkqa:th", tmp_path)
            assert (task.queries, task.answers) == ({"7": "q\ufffd"}, {"7": ("fox\ufffd",)})
            continue
        with pytest.raises(EvaluationError, match=r"th\.jsonl:1: (the id .* half a character|not JSON: Exceeds)"):
            load("mkqa:th", tmp_path)


def test_the_normaliser_of_mkqa_by_hand() -> None:
    assert mkqa.normalize("a‐b—c − d") == "a-b-c - d"
    assert mkqa.normalize("“x” ‘y’ 5′ 6″ 7‴ 8⁗ `z´") == "\"x\" 'y' 5' 6'' 7''' 8'''' 'z'"
    assert mkqa.normalize("so… wait . . . 1⁄2 soft\u00adhyphen\u0007\u0085end") == "so... wait ... 1/2 softhyphen end"


def test_narrativeqa(tmp_path: Path) -> None:
    task = load("narrativeqa", copies.narrativeqa(tmp_path))
    assert task.documents == {"a": "quick brown fox", "b": "lazy dog"}
    assert task.queries == {"0": "quick fox", "1": "lazy dog", "2": "the lazy dog"}
    assert task.qrels == {"0": {"a": 1}, "1": {"b": 1}, "2": {"b": 1}}


@pytest.mark.parametrize("judgements", ["tsv", "jsonl"])
def test_beir(tmp_path: Path, judgements: str) -> None:
    task = load("beir:arguana", copies.beir(tmp_path, judgements=judgements))
    assert task.name == "beir/arguana"
    assert task.documents == {"d1": "The quick brown fox", "d2": "lazy dog"}
    assert task.qrels == {"d1": {"d2": 1}}
    assert task.ignore_identical_ids


@pytest.mark.parametrize(
    ("name", "make", "measure"),
    [
        ("miracl:sw", copies.miracl, "nDCG@10"),
        ("mldr:hi", copies.mldr, "nDCG@10"),
        ("mkqa:th", copies.mkqa, "answer@20"),
        ("narrativeqa", copies.narrativeqa, "nDCG@10"),
        ("beir:arguana", copies.beir, "nDCG@10"),
    ],
)
def test_every_mode_runs_by_the_paper_and_finds_what_is_easy(
    tmp_path: Path, encoder: FakeEncoder, name: str, make: Callable[[Path], Path], measure: str
) -> None:
    """Each query shares its words with one document only, the relevant one, so every figure is 1."""
    make(tmp_path)
    (task,) = named_tasks(name)
    protocol = paper_protocol(task.benchmark, encoder.card)
    assert protocol.max_tokens == 512
    rows = run_task(task.load(data=tmp_path), encoder, protocol).rows
    assert len(rows) == 6
    assert {row.values[measure] for row in rows} == {1.0}


def test_names() -> None:
    assert [task.name for task in named_tasks("miracl: sw, yo")] == ["miracl/sw", "miracl/yo"]
    assert [task.name for task in named_tasks("narrativeqa")] == ["narrativeqa"]
    assert [len(list(named_tasks(name))) for name in BENCHMARKS] == [18, 13, 25, 1, 26]
    assert is_name("mldr:ar")
    assert not is_name("data/mldr")
    for benchmark in BENCHMARKS.values():
        assert {benchmark.weights, benchmark.dense_sparse} <= set(PUBLISHED)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("miracle", "'miracle' is not a benchmark; known are miracl, mldr"),
        ("miracl:sv", "miracl has no 'sv'; it has ar, bn"),
        ("miracl:ar", "does not exist; expected a copy of the data set miracl/miracl"),
    ],
)
def test_names_that_are_not_there(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        load(text, tmp_path)


def test_splits_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="miracl/sw has no split 'test'; it has dev, train"):
        load("miracl:sw", tmp_path, "test")
    with pytest.raises(EvaluationError, match="miracl:yo has no training split"):
        load("miracl:yo", tmp_path, "train")


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("miracl/miracl/miracl-v1.0-sw/topics/topics.miracl-v1.0-sw-dev.tsv", "1#0 x\n", "expected a query id, a tab"),
        ("miracl/miracl-corpus/miracl-corpus-v1.0-sw/docs-1.jsonl.gz", '{"docid": "1#0", "text": "x"}', "id twice"),
        ("miracl/miracl-corpus/miracl-corpus-v1.0-sw/docs-1.jsonl.gz", "{", "docs-1.jsonl.gz:1: not JSON"),
    ],
)
def test_broken_copies_are_refused_with_their_place(tmp_path: Path, path: str, text: str, message: str) -> None:
    copies.miracl(tmp_path)
    copies.write(tmp_path / path, text)
    with pytest.raises(EvaluationError, match=message):
        load("miracl:sw", tmp_path)


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    copies.miracl(tmp_path)
    path = tmp_path / "miracl/miracl-corpus/miracl-corpus-v1.0-sw/docs-1.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(EvaluationError, match=r"docs-1\.jsonl\.gz: cannot be read"):
        load("miracl:sw", tmp_path)
    copies.mkqa(tmp_path)
    (tmp_path / "Shitao/bge-m3-data/MKQA_test-data.zip").write_bytes(b"PK")
    with pytest.raises(EvaluationError, match=r"MKQA_test-data\.zip: cannot be read"):
        load("mkqa:th", tmp_path)


def test_a_missing_language_of_mkqa(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"expected one file ja\.jsonl in it, found 0"):
        load("mkqa:ja", copies.mkqa(tmp_path))


def test_published_figures() -> None:
    figures = {(one.system, one.mode): one.value for one in published("miracl/sw", "nDCG@10")}
    assert figures["bge-m3", "hybrid"] == pytest.approx(0.796)
    assert figures["BM25 (XLM-R tokens)", "bm25"] == pytest.approx(0.351)
    assert figures["BM25 Lucene analysers", ""] == pytest.approx(0.383)
    assert "2402.03216" in published("mkqa/th", "answer@100")[0].source
    assert [one.value for one in published("narrativeqa", "nDCG@10") if one.mode == "hybrid"] == [pytest.approx(0.617)]
    assert published("mine", "nDCG@10") == published("miracl/sw", "MRR@10") == published("miracl/xx", "nDCG@10") == []


@pytest.mark.parametrize(
    "table", ["miracl nDCG@10", "miracl Recall@100", "mldr nDCG@10", "mkqa answer@20", "mkqa answer@100"]
)
def test_published_means_are_the_means_of_their_rows(table: str) -> None:
    """A misplaced column would show here; the papers round each figure to 0.1, sometimes after averaging."""
    name, measure = table.split()
    subsets = BENCHMARKS[name].subsets
    rows: dict[tuple[str, str], list[float]] = {}
    for subset in subsets:
        for one in published(f"{name}/{subset}", measure):
            rows.setdefault((one.system, one.mode), []).append(one.value)
    for mean in published(name, measure):
        values = rows.get((mean.system, mean.mode), [])
        if len(values) == len(subsets):
            assert sum(values) / len(values) == pytest.approx(mean.value, abs=0.0011), mean


def test_every_language_of_miracl_has_a_size() -> None:
    assert len(miracl.PASSAGES) == 18
    assert sum(miracl.PASSAGES.values()) == pytest.approx(106_000_000, rel=0.01)
