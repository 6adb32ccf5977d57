"""Judgement by answer strings: a passage is relevant when one of the query's answers occurs in it.

The definition of DPR (arXiv 2004.04906, `SimpleTokenizer` and `has_answer`) that Contriever, RocketQA and the BGE-M3
paper use: text and answer in Unicode's NFD form are cut into words (runs of letters, digits and marks) and single
other signs, lower-cased, and the answer's tokens must follow each other in the passage. Chinese or Thai is cut at
punctuation only, so answers in them are rarely found inside a sentence; the MKQA of the paper searches English text.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Final

from threefold.errors import EvaluationError
from threefold.evaluate.measures import DEFAULT_MEASURES, Judgement, Measure, Run, judge, ranking
from threefold.evaluate.task import Task

#: What tasks with answers report.
ANSWER_MEASURES: Final = ("answer@20", "answer@100")

#: Stands between tokens: a control character, which is never part of one.
_BORDER = "\x1f"


def tokens(text: str) -> list[str]:
    """Lower-cased words and signs of a text, as DPR cuts it."""
    return [token.lower() for token in _pattern().findall(unicodedata.normalize("NFD", text))]


def contains(passage: str, answers: Iterable[str]) -> bool:
    """Whether one of the answers occurs in the passage, token by token."""
    bordered = _bordered(passage)
    return any(answer in bordered for answer in map(_bordered, answers) if answer)


def judge_task(task: Task, run: Run, measures: Sequence[str] = DEFAULT_MEASURES) -> Judgement:
    """The values of a run on a task, by its judgements or by its answer strings."""
    parsed = check_measures(task, measures)
    if task.answers is None:
        return judge(task.qrels, run, measures)
    return judge(_found(task, run, max(one.cutoff for one in parsed)), run, measures)


def check_measures(task: Task, measures: Sequence[str]) -> list[Measure]:
    """The measures, if the task can be judged by them."""
    return check_kind(task.name, task.answers is not None, measures)


def check_kind(name: str, by_answers: bool, measures: Sequence[str]) -> list[Measure]:
    """The measures, if a task of this kind can be judged by them: known before it is loaded."""
    parsed = [Measure.parse(text) for text in measures]
    wrong = [str(one) for one in parsed if (one.name == "answer") != by_answers]
    if wrong:
        has = "answer strings" if by_answers else "judgements"
        use = ANSWER_MEASURES if by_answers else DEFAULT_MEASURES
        raise EvaluationError(f"{name} is judged by {has}: {wrong[0]} cannot be measured; use {', '.join(use)}")
    return parsed


def without_tokens(answers: Iterable[Sequence[str]]) -> int:
    """How many answers have no token and so are never found (the reference finds them everywhere)."""
    return sum(not _bordered(answer) for some in answers for answer in some)


def _found(task: Task, run: Run, depth: int) -> dict[str, dict[str, int]]:
    """Judgements of the best documents of a run: 1 for those with an answer in them."""
    assert task.answers is not None
    return {
        query: {
            id: int(contains(task.documents[id], task.answers[query]))
            for id in ranking(run.get(query, {}), depth, query)
        }
        for query in task.qrels
    }


@lru_cache(maxsize=100_000)  # passages that many queries find, and the answers
def _bordered(text: str) -> str:
    """The tokens with a border before, between and after; "" without tokens."""
    found = tokens(text)
    return f"{_BORDER}{_BORDER.join(found)}{_BORDER}" if found else ""


@lru_cache(maxsize=1)
def _pattern() -> re.Pattern[str]:
    r"""``[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]``, which `re` cannot say: written out from Python's own Unicode tables."""
    return re.compile(f"[{_ranges('LNM')}]+|[^{_ranges('ZC')}]")


def _ranges(classes: str) -> str:
    """Every character of these general categories, as the inside of a character class."""
    chosen = groupby(range(sys.maxunicode + 1), key=lambda code: unicodedata.category(chr(code))[0] in classes)
    spans = [list(codes) for wanted, codes in chosen if wanted]
    return "".join(f"\\U{span[0]:08x}-\\U{span[-1]:08x}" for span in spans)
