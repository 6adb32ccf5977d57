"""A retrieval task: documents, queries, and who is relevant to whom, with everything odd about them counted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from threefold.errors import EvaluationError
from threefold.evaluate.measures import Qrels


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Documents, queries and judgements.

    documents             {id: text}, in the order of the corpus
    queries               {id: text}; only those with judgements
    qrels                 {query id: {document id: grade}}
    answers               {query id: strings}: a document is relevant if one of them occurs in it
                          (`threefold.evaluate.answers`); the qrels are then empty for every query. None: by qrels
    template              how title and text were joined, for the report
    ignore_identical_ids  drop the document with the query's own id from its run: right for ArguAna and Quora,
                          where the query is in the corpus, and wrong everywhere else (it cost MIRACL 1.4 points)
    language              of the documents and, but for MKQA, of the queries: an ISO 639-1 code for the stems and stop
                          words of `bm25-words`; empty: unknown
    warnings              what is odd about the data, and how often; copied to every report
    """

    name: str
    documents: Mapping[str, str]
    queries: Mapping[str, str]
    qrels: Qrels
    template: str = "{text}"
    ignore_identical_ids: bool = False
    warnings: Mapping[str, int] = field(default_factory=dict)
    answers: Mapping[str, tuple[str, ...]] | None = None
    language: str = ""

    def __post_init__(self) -> None:
        for name, part in (("documents", self.documents), ("queries", self.queries), ("judgements", self.qrels)):
            if not part:
                raise EvaluationError(f"task {self.name}: no {name}")
        unknown = next((query for query in self.qrels if query not in self.queries), None)
        if unknown is not None:
            raise EvaluationError(f"task {self.name}: the qrels judge query {unknown!r}, which is not in the queries")
        without = next((query for query in self.qrels if self.answers is not None and query not in self.answers), None)
        if without is not None:
            raise EvaluationError(f"task {self.name}: query {without!r} has no answers")

    def only(self, queries: Sequence[str], dropped: str = "") -> Task:
        """The same task with these queries. `dropped` names the rest in the warnings, with their number."""
        rest = len(self.qrels) - len(queries)
        return replace(
            self,
            queries={query: self.queries[query] for query in queries},
            qrels={query: self.qrels[query] for query in queries},
            answers=None if self.answers is None else {query: self.answers[query] for query in queries},
            warnings={**self.warnings, **({dropped: rest} if dropped and rest else {})},
        )

    def fingerprint(self) -> str:
        """Hash of all texts, ids and judgements, in order: equal for the same task wherever it was loaded from."""
        digest = hashlib.sha256()
        for part in (self.documents, self.queries):
            for id, text in part.items():
                _feed(digest, id, text)
            _feed(digest, "")
        for query, grades in self.qrels.items():
            for document, grade in grades.items():
                _feed(digest, query, document, str(grade))
        for query, answers in (self.answers or {}).items():
            _feed(digest, query, *answers)
        return digest.hexdigest()[:16]


def _feed(digest: hashlib._Hash, *texts: str) -> None:
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
