from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from threefold.errors import EvaluationError
from threefold.evaluate.significance import Comparison, compare, holm, holm_p, interval


def table(values: list[float]) -> dict[str, float]:
    return {f"q{i}": value for i, value in enumerate(values)}


def test_comparison_worked_by_hand() -> None:
    """Six queries, a better by 1 on all: of the 64 sign patterns two are as far out."""
    found = compare(table([1.0] * 6), table([0.0] * 6))
    assert (found.difference, found.low, found.high) == (1.0, 1.0, 1.0)
    assert (found.wins, found.losses, found.queries) == (6, 0, 6)
    assert found.p == pytest.approx(2 / 64)


def test_queries_are_paired_by_id() -> None:
    found = compare({"a": 1.0, "b": 0.5}, {"b": 0.5, "a": 0.0})
    assert (found.difference, found.wins, found.losses) == (0.5, 1, 0)


def test_no_difference() -> None:
    assert compare(table([0.5, 0.25]), table([0.5, 0.25])).p == 1.0
    assert compare(table([0.5]), table([0.25])).p == 1.0


def test_agrees_with_the_t_test_where_that_holds() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.5, 0.2, 300), rng.normal(0.47, 0.2, 300)
    found = compare(table(a.tolist()), table(b.tolist()))
    assert found.p == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.02)
    half = 1.96 * (a - b).std(ddof=1) / np.sqrt(300)
    assert found.low == pytest.approx((a - b).mean() - half, abs=0.004)
    assert found.high == pytest.approx((a - b).mean() + half, abs=0.004)


def test_the_same_every_time() -> None:
    a, b = table([0.1 * i for i in range(30)]), table([0.1 * (i % 7) for i in range(30)])
    assert compare(a, b) == compare(a, b)


def test_other_queries_are_refused() -> None:
    with pytest.raises(EvaluationError, match="2 and 1 were given, 1 are in common"):
        compare(table([1.0, 2.0]), table([1.0]))
    with pytest.raises(EvaluationError, match="0 and 0"):
        compare({}, {})


def test_interval_of_one_value() -> None:
    assert interval(np.array([0.3])) == (0.3, 0.3)


def test_holm_worked_by_hand() -> None:
    # sorted .01 .02 .03 .04, times 4 3 2 1: .04 .06 .06 .04, kept rising: .04 .06 .06 .06
    assert holm_p([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm_p([0.9, 0.8]) == [1.0, 1.0]
    assert holm_p([]) == []
    one = Comparison(0.1, 0.0, 0.2, 0.02, 3, 1, 9)
    assert holm({"ar": one, "de": one})["de"].p == pytest.approx(0.04)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_p_and_keeps_the_order(p: list[float]) -> None:
    corrected = holm_p(p)
    assert all(before <= after <= 1 for before, after in zip(p, corrected, strict=True))
    order = np.argsort(p, kind="stable")
    assert np.all(np.diff(np.array(corrected)[order]) >= 0)
