"""Tiny copies of published data sets, in their own layout: `FOLDER/owner/name/...`."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = Mapping[str, Any]


def json_lines(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")


def miracl(data: Path, language: str = "sw") -> Path:
    """Three passages in two files, two judged queries and one that is not."""
    name = f"miracl-v1.0-{language}"
    judged, corpus = data / "miracl/miracl" / name, data / f"miracl/miracl-corpus/miracl-corpus-v1.0-{language}"
    write(judged / f"topics/topics.{name}-dev.tsv", "1#0\tquick fox\n2#0\tlazy dog\n3#0\tnobody judged\n")
    write(judged / f"qrels/qrels.{name}-dev.tsv", "1#0\tQ0\t1#0\t1\n1#0\tQ0\t2#0\t0\n2#0\tQ0\t2#0\t1\n")
    rows = [
        {"docid": "1#0", "title": "The", "text": "quick brown fox"},
        {"docid": "2#0", "title": "The lazy", "text": "dog"},
        {"docid": "3#0", "title": "", "text": "five dozen liquor jugs"},
    ]
    write(corpus / "docs-0.jsonl.gz", json_lines(rows[:2]))
    write(corpus / "docs-1.jsonl.gz", json_lines(rows[2:]))
    return data


def mldr(data: Path, language: str = "hi") -> Path:
    folder = data / f"Shitao/MLDR/mldr-v1.0-{language}"
    documents = [{"docid": "doc-1", "text": "quick brown fox"}, {"docid": "doc-2", "text": "lazy dog"}]
    write(folder / "corpus.jsonl.gz", json_lines(documents))
    queries = [
        {
            "query_id": "q-1",
            "query": "lazy dog",
            "positive_passages": documents[1:],
            "negative_passages": documents[:1],
        }
    ]
    write(folder / "test.jsonl.gz", json_lines(queries))
    return data


def mkqa(data: Path, language: str = "th") -> Path:
    """Two questions; the passage of the second has the answer in other spelling."""
    rows = [
        {"id": 7, "question": "quick fox", "answers": ["Brown Fox"]},
        {"id": 8, "question": "lazy dog", "answers": ["cat", "the dog's"]},
    ]
    archive = data / "Shitao/bge-m3-data/MKQA_test-data.zip"
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(f"{language}.jsonl", json_lines(rows))
    passages = [
        {"_id": "doc0", "title": "The quick", "text": "brown fox jumps"},
        {"_id": "doc1", "title": "The dog’s lazy", "text": "day"},
        {"_id": "doc2", "title": "", "text": "five dozen liquor jugs"},
    ]
    write(data / "mteb/nq/corpus.jsonl", json_lines(passages))
    return data


def narrativeqa(data: Path) -> Path:
    stories = {"a": "quick brown fox", "b": "lazy dog"}
    rows = [
        {"document": {"id": id, "kind": "gutenberg", "text": stories[id]}, "question": {"text": text, "tokens": []}}
        for id, text in (("a", "quick fox"), ("b", "lazy dog"), ("b", "the lazy dog"))
    ]
    folder = data / "deepmind/narrativeqa/data"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows[:2]), folder / "test-00000-of-00002.parquet")
    pq.write_table(pa.Table.from_pylist(rows[2:]), folder / "test-00001-of-00002.parquet")
    return data


def beir(data: Path, name: str = "arguana", *, judgements: str = "tsv") -> Path:
    folder = data / "mteb" / name
    rows = [
        {"_id": "d1", "title": "The quick", "text": "brown fox"},
        {"_id": "d2", "title": "", "text": "lazy dog"},
    ]
    write(folder / "corpus.jsonl", json_lines(rows))
    write(folder / "queries.jsonl", json_lines([{"_id": "d1", "text": "lazy dog"}]))
    if judgements == "tsv":
        write(folder / "qrels/test.tsv", "query-id\tcorpus-id\tscore\nd1\td2\t1\n")
    else:
        write(folder / "qrels/test.jsonl", json_lines([{"query-id": "d1", "corpus-id": "d2", "score": 1.0}]))
    return data
