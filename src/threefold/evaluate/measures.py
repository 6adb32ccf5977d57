"""Measures as values ("nDCG@10"), computed by ir-measures (trec_eval's own code behind it).

The denominator is every judged query: one that the run lacks scores 0. Equal scores are ordered by document id
ascending, as everywhere in threefold (trec_eval itself orders them by id descending, and reads scores as float32).
"""

from __future__ import annotations

import math
import operator
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import ir_measures

from threefold.errors import EvaluationError

#: {query id: {document id: grade}}; a grade of at least 1 is relevant.
Qrels = Mapping[str, Mapping[str, int]]
#: {query id: {document id: score}}.
Run = Mapping[str, Mapping[str, float]]

#: The largest grade, and the least with a minus. trec_eval keeps a count for every grade up to the largest of a query,
#: which takes a gigabyte for a hundred million, and makes 0 of every figure, without a word, from 2**31 - 1 on.
MAX_GRADE: Final = 1_000_000

#: What `threefold evaluate` reports. "accuracy@1" is the share of queries with a relevant document on rank 1.
DEFAULT_MEASURES: Final = ("nDCG@10", "Recall@10", "Recall@100", "MRR@10", "accuracy@1")

#: Our names of the measures, and what ir-measures calls them. "answer@100", for tasks with answer strings, is the
#: share of queries with an answer in the best 100 passages; the papers on MKQA call it Recall@100.
NAMES: Final[Mapping[str, str]] = {
    "nDCG": "nDCG",
    "Recall": "R",
    "MRR": "RR",
    "accuracy": "Success",
    "Precision": "P",
    "MAP": "AP",
    "answer": "Success",
}
_ALIASES = {name.lower(): name for name in NAMES} | {
    "r": "Recall",
    "rr": "MRR",
    "success": "accuracy",
    "acc": "accuracy",
    "p": "Precision",
    "ap": "MAP",
}
_SYNTAX = re.compile(r"([A-Za-z]+)@([1-9][0-9]{0,5})")


@dataclass(frozen=True, slots=True, order=True)
class Measure:
    """What is measured: a name of `NAMES`, and how many results it looks at."""

    name: str
    cutoff: int

    @classmethod
    def parse(cls, text: str) -> Measure:
        """From "nDCG@10"; capitals do not matter, and trec_eval's names (R, RR, Success, P, AP) are understood."""
        match = _SYNTAX.fullmatch(text.strip())
        name = _ALIASES.get(match[1].lower()) if match else None
        if match is None or name is None:
            raise EvaluationError(f"{text!r} is not a measure; write NAME@CUTOFF with a name of {', '.join(NAMES)}")
        return cls(name, int(match[2]))

    def __str__(self) -> str:
        return f"{self.name}@{self.cutoff}"

    @property
    def _theirs(self) -> Any:
        return getattr(ir_measures, NAMES[self.name]) @ self.cutoff  # their parser needs names that Python 3.14 lacks


@dataclass(frozen=True, slots=True)
class Judgement:
    """The value of every measure for every judged query."""

    values: Mapping[str, Mapping[str, float]]  # {measure: {query id: value}}, queries in the order of the qrels

    @property
    def means(self) -> dict[str, float]:
        """The mean of every measure over all judged queries."""
        return {name: math.fsum(by.values()) / len(by) for name, by in self.values.items()}


def judge(qrels: Qrels, run: Run, measures: Iterable[str] = DEFAULT_MEASURES) -> Judgement:
    """Value of every measure for every query of the qrels; a query that the run lacks scores 0."""
    wanted = [Measure.parse(text) for text in measures]
    if not wanted:
        raise EvaluationError(f"no measures; give some, for example {', '.join(DEFAULT_MEASURES)}")
    if not qrels:
        raise EvaluationError("the qrels judge no query, so there is nothing to average over")
    deepest = max(measure.cutoff for measure in wanted)
    _check_grades(qrels)
    ranks = {query: _as_ranks(ranking(run[query], deepest, query)) for query in qrels if run.get(query)}
    theirs = {measure._theirs: str(measure) for measure in wanted}
    values = {str(measure): dict.fromkeys(qrels, 0.0) for measure in wanted}
    graded = {query: dict(grades) for query, grades in qrels.items()}
    _check_ids(graded, ranks)
    for metric in ir_measures.iter_calc(list(theirs), graded, ranks) if ranks else ():
        values[theirs[metric.measure]][metric.query_id] = float(metric.value)
    return Judgement(values)


def ranking(scores: Mapping[str, float], depth: int, query: str = "") -> list[str]:
    """The best `depth` ids, by score descending, ties by id ascending. `query` is for the error message."""
    values = list(scores.values())
    if any(map(math.isnan, values)):
        worst = next(id for id, score in scores.items() if math.isnan(score))
        raise EvaluationError(f"query {query!r}: the score of document {worst!r} is not a number")
    if not values or depth < 1:
        return []
    falling = sorted(values, reverse=True)
    border = falling[min(depth, len(falling)) - 1]  # whatever is tied at the border stays in until the sort by id
    if falling == values:
        head = list(islice(scores.items(), bisect_right(falling, -border, key=operator.neg)))
    else:
        head = [pair for pair in scores.items() if pair[1] >= border]
    head.sort(key=lambda pair: (-pair[1], pair[0]))
    return [id for id, _ in head[:depth]]


def unwritable(text: str) -> bool:
    """Whether a text has a lone surrogate, which UTF-8 cannot write and on which pytrec_eval ends the process."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _check_ids(*tables: Mapping[str, Mapping[str, Any]]) -> None:
    for table in tables:
        for query, row in table.items():
            if unwritable(query) or unwritable("".join(row)):
                odd = next(id for id in (query, *row) if unwritable(id))
                raise EvaluationError(f"the id {odd!r} has half a character (a lone surrogate); write it as UTF-8")


def _check_grades(qrels: Qrels) -> None:
    for query, grades in qrels.items():
        for document, grade in grades.items():
            if abs(grade) > MAX_GRADE:
                raise EvaluationError(
                    f"query {query!r}, document {document!r}: the grade must be at most {MAX_GRADE:,} on either side "
                    "of 0, and is beyond"
                )


def _as_ranks(ids: Sequence[str]) -> dict[str, float]:
    """Scores that trec_eval cannot tie or round: n, n - 1, ..., 1."""
    return {id: float(len(ids) - place) for place, id in enumerate(ids)}
