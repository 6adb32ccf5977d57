"""Long documents of the BGE-M3 paper: MLDR in 13 languages and NarrativeQA.

MLDR. Looked up in its loading script (data set `Shitao/MLDR`, `MLDR.py`) and in FlagOpen/FlagEmbedding
(`FlagEmbedding/evaluation/mldr`): `mldr-v1.0-LL/corpus.jsonl.gz` ("docid", "text") and `mldr-v1.0-LL/SPLIT.jsonl.gz`
("query_id", "query", "positive_passages" and "negative_passages", each a list of {"docid", "text"}); positives have
grade 1, negatives 0. Queries are read to 512 tokens, documents to 8,192. No commit is known to us, so the newest is
taken.

NarrativeQA. The test questions of `deepmind/narrativeqa`, whole stories as documents: the pipeline of
jina-embeddings-v2, which is mteb's `NarrativeQARetrieval`, whose revision and columns are used here
(`data/test-*.parquet`, "question"."text", "document"."id" and "document"."text").
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from threefold.errors import EvaluationError
from threefold.evaluate.hub import HubFiles, fetch, matches
from threefold.evaluate.rows import field, identifier, json_rows, parquet_rows, put
from threefold.evaluate.task import Task
from threefold.evaluate.texts import Texts

#: Documents per language (M3-Embedding, arXiv 2402.03216, table 8).
MLDR_DOCUMENTS: Final = {
    "ar": 7_607, "de": 10_000, "en": 200_000, "es": 9_551, "fr": 10_000, "hi": 3_806, "it": 10_000, "ja": 10_000,
    "ko": 6_176, "pt": 6_569, "ru": 10_000, "th": 10_000, "zh": 200_000,
}  # fmt: skip
MLDR_LANGUAGES: Final = tuple(MLDR_DOCUMENTS)
NARRATIVEQA: Final = HubFiles(
    "deepmind/narrativeqa", "2e643e7363944af1c33a652d1c87320d0871c4e4", ("data/test-*.parquet",)
)
#: Stories and questions of its test split (mteb's descriptive statistics).
STORIES: Final = 355


def load_mldr(language: str, split: str, data: Path | None = None) -> Task:
    """One language of MLDR; the split is "test", "dev" or "train"."""
    corpus, asked = f"mldr-v1.0-{language}/corpus.jsonl.gz", f"mldr-v1.0-{language}/{split}.jsonl.gz"
    folder = fetch(HubFiles("Shitao/MLDR", "main", (corpus, asked)), data)
    documents = Texts()
    for where, row in json_rows(folder / corpus):
        documents.add(identifier(row, "docid", where), field(row, "text", where), where)
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    for where, row in json_rows(folder / asked):
        id = identifier(row, "query_id", where)
        put(queries, id, field(row, "query", where), where)
        negatives = dict.fromkeys(_passages(row, "negative_passages", where), 0)
        qrels[id] = negatives | dict.fromkeys(_passages(row, "positive_passages", where), 1)
    return Task(
        name=f"mldr/{language}",
        documents=documents,
        queries=queries,
        qrels=qrels,
        language=language,
        warnings=_odd(documents, qrels, MLDR_DOCUMENTS[language]),
    )


def load_narrativeqa(subset: str, split: str, data: Path | None = None) -> Task:
    """All test questions; there is one subset."""
    folder = fetch(NARRATIVEQA, data)
    documents: dict[str, str] = {}
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    for path in matches(folder, NARRATIVEQA):
        for where, row in parquet_rows(path, ["document.id", "document.text", "question.text"]):
            id, query = identifier(row["document"], "id", where), str(len(queries))
            documents.setdefault(id, field(row["document"], "text", where))
            queries[query] = field(row["question"], "text", where)
            qrels[query] = {id: 1}
    return Task(
        name="narrativeqa",
        documents=documents,
        queries=queries,
        qrels=qrels,
        language="en",
        warnings=_odd(documents, qrels, STORIES),
    )


def _passages(row: Any, key: str, where: str) -> list[str]:
    passages = row.get(key)
    if not isinstance(passages, list):
        raise EvaluationError(f'{where}: "{key}" must be a list, got {str(passages)[:80]}')
    return [identifier(passage, "docid", where) for passage in passages]


def _odd(documents: Mapping[str, str], qrels: dict[str, dict[str, int]], published: int) -> dict[str, int]:
    counts = {
        f"documents fewer than the published {published:,}": published - len(documents),
        "judged documents that are not in the corpus, never found": sum(
            document not in documents for grades in qrels.values() for document in grades
        ),
        "documents without text": sum(not text.strip() for text in documents.values()),
    }
    return {what: count for what, count in counts.items() if count}
