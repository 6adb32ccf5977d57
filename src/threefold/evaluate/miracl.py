"""MIRACL (arXiv 2210.09984): 18 languages, passages of Wikipedia, judged by people who speak the language.

Looked up at project-miracl/miracl, in FlagOpen/FlagEmbedding (`FlagEmbedding/evaluation/miracl`), and in two programs
that pin the files: the data set `miracl/miracl` holds `miracl-v1.0-LL/topics/topics.miracl-v1.0-LL-SPLIT.tsv` (query
id, text) and `miracl-v1.0-LL/qrels/qrels.miracl-v1.0-LL-SPLIT.tsv` (TREC qrels); `miracl/miracl-corpus` holds
`miracl-corpus-v1.0-LL/docs-*.jsonl.gz` ("docid", "title", "text"). German and Yoruba have no training split. The
judgements of the test splits were never published.

A passage is its title and its text, joined by a newline (FlagEmbedding issue 653; the packaged evaluator joins by a
space). No id is ignored: versions 1 to 3 of the BGE-M3 paper dropped passages with the id of the query, which cost 1.4
points.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from threefold.errors import EvaluationError
from threefold.evaluate.hub import HubFiles, fetch, matches
from threefold.evaluate.rows import field, identifier, json_rows, lines, optional, put
from threefold.evaluate.task import Task
from threefold.evaluate.texts import Texts
from threefold.evaluate.trec import read_qrels

#: Passages per language (project-miracl/miracl README; German and Yoruba from the paper).
PASSAGES: Final = {
    "ar": 2_061_414, "bn": 297_265, "en": 32_893_221, "es": 10_373_953, "fa": 2_207_172, "fi": 1_883_509,
    "fr": 14_636_953, "hi": 506_264, "id": 1_446_315, "ja": 6_953_614, "ko": 1_486_752, "ru": 9_543_918,
    "sw": 131_924, "te": 518_079, "th": 542_166, "zh": 4_934_368, "de": 15_866_222, "yo": 49_043,
}  # fmt: skip
LANGUAGES: Final = tuple(PASSAGES)
QUERIES_REVISION: Final = "5be20db9509754dadad47689368639fcec739c00"
CORPUS_REVISION: Final = "d921ec7e349ce0d28daf30b2da9da5ee698bef0d"
TEMPLATE: Final = "{title}\n{text}"


def load(language: str, split: str, data: Path | None = None) -> Task:
    """One language; the split is "dev" or "train"."""
    if split == "train" and language in ("de", "yo"):
        raise EvaluationError(f"miracl:{language} has no training split")
    name = f"miracl-v1.0-{language}"
    topics, qrels = f"{name}/topics/topics.{name}-{split}.tsv", f"{name}/qrels/qrels.{name}-{split}.tsv"
    judged = fetch(HubFiles("miracl/miracl", QUERIES_REVISION, (topics, qrels)), data)
    corpus = HubFiles("miracl/miracl-corpus", CORPUS_REVISION, (f"miracl-corpus-v1.0-{language}/docs-*.jsonl.gz",))
    folder = fetch(corpus, data)
    documents = Texts()
    for path in matches(folder, corpus):
        for where, row in json_rows(path):
            title, text = optional(row, "title", where), field(row, "text", where)
            documents.add(identifier(row, "docid", where), TEMPLATE.format(title=title, text=text), where)
    grades = read_qrels(judged / qrels)
    queries = _topics(judged / topics)
    odd = {
        f"passages fewer than the published {PASSAGES[language]:,}": PASSAGES[language] - len(documents),
        "queries without judgements, not run": sum(query not in grades for query in queries),
        "judged documents that are not in the corpus, never found": sum(
            document not in documents for judged_documents in grades.values() for document in judged_documents
        ),
    }
    return Task(
        name=f"miracl/{language}",
        documents=documents,
        queries={query: text for query, text in queries.items() if query in grades},
        qrels=grades,
        template=TEMPLATE,
        language=language,
        warnings={what: count for what, count in odd.items() if count},
    )


def _topics(path: Path) -> dict[str, str]:
    queries: dict[str, str] = {}
    for where, line in lines(path):
        id, tab, text = line.partition("\t")
        if not tab:
            raise EvaluationError(f"{where}: expected a query id, a tab and a text")
        put(queries, id.strip(), text.strip(), where)
    return queries
