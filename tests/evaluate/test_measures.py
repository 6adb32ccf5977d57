from __future__ import annotations

import math

import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from threefold.errors import EvaluationError
from threefold.evaluate.measures import DEFAULT_MEASURES, MAX_GRADE, Measure, judge, ranking

ONE = {"q": {"a": 1, "b": 1}}
#: a on rank 1, x on 2, b on 3
RUN = {"q": {"a": 3.0, "x": 2.0, "b": 1.0}}


def value(measure: str, qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]]) -> float:
    return judge(qrels, run, [measure]).means[str(Measure.parse(measure))]


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        # gains 1 on ranks 1 and 3 over gains 1 on ranks 1 and 2
        ("nDCG@10", (1 / math.log2(2) + 1 / math.log2(4)) / (1 / math.log2(2) + 1 / math.log2(3))),
        ("nDCG@1", 1.0),
        ("Recall@2", 1 / 2),
        ("Recall@10", 2 / 2),
        ("MRR@10", 1 / 1),
        ("accuracy@1", 1.0),
        ("Precision@2", 1 / 2),
        ("Precision@10", 2 / 10),
        ("MAP@10", (1 / 1 + 2 / 3) / 2),
    ],
)
def test_value_worked_by_hand(measure: str, expected: float) -> None:
    assert value(measure, ONE, RUN) == pytest.approx(expected)


def test_grades_are_gains() -> None:
    qrels = {"q": {"a": 3, "b": 1}}
    # grades are the gains themselves (trec_eval), not 2**grade - 1: 1 on rank 1, 3 on rank 2
    expected = (1 / math.log2(2) + 3 / math.log2(3)) / (3 / math.log2(2) + 1 / math.log2(3))
    assert value("nDCG@10", qrels, {"q": {"b": 2.0, "a": 1.0}}) == pytest.approx(expected)


def test_a_missing_query_scores_zero_and_counts() -> None:
    qrels = {"q": {"a": 1}, "lost": {"a": 1}, "nothing": {"a": 1}}
    run = {"q": {"a": 1.0}, "nothing": {}, "unjudged": {"a": 1.0}}
    judgement = judge(qrels, run)
    assert judgement.means == pytest.approx(dict.fromkeys(DEFAULT_MEASURES, 1 / 3))
    assert dict(judgement.values["MRR@10"]) == {"q": 1.0, "lost": 0.0, "nothing": 0.0}


def test_a_run_that_found_nothing() -> None:
    assert judge(ONE, {}).means == dict.fromkeys(DEFAULT_MEASURES, 0.0)


def test_a_query_without_relevant_documents_scores_zero_and_counts() -> None:
    assert value("nDCG@10", {"q": {"a": 0}, "p": {"a": 1}}, {"q": {"a": 1.0}, "p": {"a": 1.0}}) == 1 / 2


def test_ties_are_ordered_by_id_ascending() -> None:
    """trec_eval on the same scores would order them c, b, a."""
    run = {"q": {"c": 1.0, "b": 1.0, "a": 1.0}}
    assert value("MRR@10", {"q": {"a": 1}}, run) == 1.0
    assert value("MRR@10", {"q": {"c": 1}}, run) == pytest.approx(1 / 3)


def test_scores_closer_than_float32_are_still_ordered() -> None:
    assert value("accuracy@1", {"q": {"z": 1}}, {"q": {"a": 1.0, "z": 1.0 + 1e-12}}) == 1.0


SCORES = st.dictionaries(st.sampled_from([f"d{i}" for i in range(12)]), st.integers(0, 1000), min_size=1)


@given(
    st.lists(
        st.tuples(
            SCORES, st.dictionaries(st.sampled_from([f"d{i}" for i in range(15)]), st.integers(0, 3), min_size=1)
        ),
        min_size=1,
        max_size=4,
    )
)
def test_equals_trec_eval_where_scores_differ(queries: list[tuple[dict[str, int], dict[str, int]]]) -> None:
    """pytrec_eval directly, without ir-measures, on runs without ties."""
    run = {
        f"q{i}": {d: s + k / 100 for k, (d, s) in enumerate(scores.items())} for i, (scores, _) in enumerate(queries)
    }
    qrels = {f"q{i}": grades for i, (_, grades) in enumerate(queries)}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut_10", "recall_10", "recip_rank", "success_1"}).evaluate(
        run
    )
    ours = judge(qrels, run, ["nDCG@10", "Recall@10", "MRR@12", "accuracy@1"])
    names = ["ndcg_cut_10", "recall_10", "recip_rank", "success_1"]
    for (_, values), name in zip(ours.values.items(), names, strict=True):
        assert values == pytest.approx({query: theirs[query][name] for query in qrels}, abs=1e-9)


def test_ranking() -> None:
    assert ranking({"b": 1.0, "a": 1.0, "c": 2.0}, 2) == ["c", "a"]
    assert ranking({"c": 2.0, "b": 1.5, "a": 1.0}, 2) == ["c", "b"]
    assert ranking({}, 5) == []
    with pytest.raises(EvaluationError, match="query 'q': the score of document 'b' is not a number"):
        ranking({"a": 1.0, "b": math.nan}, 2, "q")


@given(st.dictionaries(st.text("abc", max_size=3), st.integers(-2, 2), max_size=20), st.integers(0, 21), st.booleans())
def test_ranking_equals_a_full_sort(scores: dict[str, int], depth: int, sort_first: bool) -> None:
    expected = sorted(scores, key=lambda id: (-scores[id], id))
    given_order = sorted(scores, key=lambda id: -scores[id]) if sort_first else list(scores)
    assert ranking({id: float(scores[id]) for id in given_order}, depth) == expected[:depth]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("ndcg@10", "nDCG@10"),
        (" R@100", "Recall@100"),
        ("RR@10", "MRR@10"),
        ("Success@1", "accuracy@1"),
        ("AP@5", "MAP@5"),
    ],
)
def test_names_of_measures(text: str, name: str) -> None:
    assert str(Measure.parse(text)) == name


@pytest.mark.parametrize("text", ["nDCG", "nDCG@", "nDCG@0", "nDCG@x", "BLEU@4", "", "nDCG@-1"])
def test_what_is_no_measure(text: str) -> None:
    with pytest.raises(EvaluationError, match="is not a measure; write NAME@CUTOFF with a name of nDCG, Recall"):
        Measure.parse(text)


def test_nothing_to_judge() -> None:
    with pytest.raises(EvaluationError, match="the qrels judge no query"):
        judge({}, RUN)
    with pytest.raises(EvaluationError, match="no measures"):
        judge(ONE, RUN, [])


@pytest.mark.parametrize(
    ("qrels", "run"),
    [
        ({"q": {"a\ud800": 1}}, {"q": {"a": 1.0}}),
        ({"q": {"a": 1}}, {"q": {"a\udfff": 1.0}}),
        ({"q\ud800": {"a": 1}}, {"q\ud800": {"a": 1.0}}),
    ],
    ids=["judged document", "found document", "query"],
)
def test_an_id_that_cannot_be_written_is_refused(
    qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]]
) -> None:
    """pytrec_eval ends the process on it."""
    with pytest.raises(EvaluationError, match=r"the id '\w\\ud.*' has half a character"):
        judge(qrels, run)


def test_a_grade_that_trec_eval_cannot_count_is_refused() -> None:
    """Beyond 31 bits it makes 0 of every figure, and far below that it takes gigabytes."""
    assert value("Recall@10", {"q": {"a": MAX_GRADE, "b": -MAX_GRADE}}, {"q": {"a": 1.0}}) == 1.0
    for grade in (MAX_GRADE + 1, -MAX_GRADE - 1, 2**31 - 1, 2**32 + 1, 10**5000):
        with pytest.raises(EvaluationError, match="query 'q', document 'a': the grade must be at most 1,000,000"):
            judge({"q": {"a": grade}}, {"q": {"a": 1.0}})
