"""Runs and judgements in the formats of TREC, so that other tools can judge ours and we theirs.

run      query Q0 document rank score tag
qrels    query iteration document grade
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from threefold.errors import EvaluationError
from threefold.evaluate.measures import Qrels, Run, ranking
from threefold.evaluate.rows import read_grade
from threefold.replacing import replacing

V = TypeVar("V")


def write_run(path: Path, run: Run, tag: str = "threefold") -> None:
    """Write a run, best first, ties by document id; replaces the file in one step."""
    _check_word(path, "tag", tag)

    def lines() -> Iterator[str]:
        for query, scores in run.items():
            _check_word(path, "query id", query)
            for rank, document in enumerate(ranking(scores, len(scores), query), start=1):
                _check_word(path, "document id", document)
                yield f"{query} Q0 {document} {rank} {float(scores[document])!r} {tag}\n"

    _write(path, lines())


def write_qrels(path: Path, qrels: Qrels) -> None:
    """Write judgements; replaces the file in one step."""

    def lines() -> Iterator[str]:
        for query, grades in qrels.items():
            _check_word(path, "query id", query)
            for document, grade in grades.items():
                _check_word(path, "document id", document)
                yield f"{query} 0 {document} {grade}\n"

    _write(path, lines())


def check_ids(path: Path, documents: Iterable[str], queries: Iterable[str]) -> None:
    """Whether runs with these ids can be written: to be asked before hours of work."""
    for what, ids in (("document id", documents), ("query id", queries)):
        for id in ids:
            _check_word(path, what, id)


def read_run(path: Path) -> dict[str, dict[str, float]]:
    """{query: {document: score}}; the rank column is not used, as in trec_eval."""
    run: dict[str, dict[str, float]] = {}
    for where, (query, _, document, _, text, _) in _rows(path, 6, "query Q0 document rank score tag"):
        try:
            score = float(text)
        except ValueError:
            score = math.nan
        if math.isnan(score):
            raise EvaluationError(f"{where}: the score must be a number, got {text!r}")
        _put(run, query, document, score, where)
    return run


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """{query: {document: grade}}; the iteration column is not used."""
    qrels: dict[str, dict[str, int]] = {}
    for where, (query, _, document, grade) in _rows(path, 4, "query iteration document grade"):
        _put(qrels, query, document, read_grade(grade, where), where)
    return qrels


def _rows(path: Path, columns: int, layout: str) -> Iterator[tuple[str, list[str]]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                cells = line.split()
                if cells and len(cells) != columns:
                    raise EvaluationError(f"{path}:{number}: expected {columns} columns ({layout}), got {len(cells)}")
                if cells:
                    yield f"{path}:{number}", cells
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path}: not UTF-8: {error}") from error
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be read: {error.strerror}") from error


def _put(table: dict[str, dict[str, V]], query: str, document: str, value: V, where: str) -> None:
    row = table.setdefault(query, {})
    if document in row:
        raise EvaluationError(f"{where}: document {document!r} is twice under query {query!r}")
    row[document] = value


def _check_word(path: Path, what: str, text: str) -> None:
    if not text or text.split() != [text]:
        raise EvaluationError(f"{path}: {what} {text!r} is empty or has a space, which the TREC format cannot hold")


def _write(path: Path, lines: Iterator[str]) -> None:
    try:
        with replacing(path) as draft, draft.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(lines)
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be written: {error.strerror}") from error
