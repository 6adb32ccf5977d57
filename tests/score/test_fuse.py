from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.errors import ConfigError, InputError, NumericalError, ShapeError
from threefold.score import PUBLISHED, TRAINING, Weights, dbsf, rrf, weighted_sum
from threefold.score.fuse import BGE_M3_DEFAULT, BGE_M3_README
from threefold.types import Floats, Representation

IDS = st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=8)


def arrays(dense: float, sparse: float, multi: float) -> dict[Representation, Floats]:
    return {"dense": np.array([dense]), "sparse": np.array([sparse]), "multi": np.array([multi])}


def assert_ranking(got: list[tuple[str, float]], expected: dict[str, float]) -> None:
    """Same ids in the same order, same scores up to rounding."""
    assert [id for id, _ in got] == list(expected)
    assert [score for _, score in got] == pytest.approx(list(expected.values()), abs=1e-9)


# ---- weights --------------------------------------------------------------------------------------------


def test_weights_are_settings() -> None:
    assert Weights.from_dict({"sparse": 1}) == Weights(1.0, 1.0, 1.0)
    assert Weights.from_dict(BGE_M3_README.to_dict()) == BGE_M3_README
    with pytest.raises(ConfigError, match="unknown setting 'colbert'"):
        Weights.from_dict({"colbert": 1.0})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.0, 0.0, 0.0), "all weights are 0"),
        ((-1.0, 1.0, 1.0), "weight of dense must be a finite number >= 0; got -1.0"),
        ((1.0, math.nan, 1.0), "weight of sparse"),
        ((1.0, 1.0, math.inf), "weight of multi"),
        ((1e308, 1e308, 1e308), "too large to be added"),
    ],
)
def test_weights_that_mean_nothing_are_refused(values: tuple[float, float, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Weights(*values)


@pytest.mark.parametrize(
    ("data", "message"),
    [({"dense": 10**400}, "dense: a whole number of 1329 bits is too large"), ({1: 2, "x": 3}, "unknown setting 1")],
)
def test_settings_that_json_can_say_and_we_cannot_read(data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Weights.from_dict(data)


def test_only() -> None:
    assert TRAINING.only("dense", "sparse") == Weights(1.0, 0.3, 0.0)
    assert TRAINING.only("multi").used == ("multi",)
    with pytest.raises(ConfigError, match="all weights are 0"):
        Weights(1.0, 0.0, 0.0).only("sparse")


def test_published_sets_are_as_published() -> None:
    assert {name: (w.dense, w.sparse, w.multi) for name, w in PUBLISHED.items()} == {
        "default": (1, 1, 1),
        "readme": (0.4, 0.2, 0.4),
        "training": (1, 0.3, 1),
        "miracl": (1, 0.3, 1),
        "miracl-dense+sparse": (1, 0.3, 0),
        "mkqa": (1, 0.3, 1),
        "mkqa-alternative": (1, 0.1, 1),
        "mkqa-dense+sparse": (1, 0.3, 0),
        "mldr": (0.15, 0.5, 0.35),
        "mldr-alternative": (0.2, 0.4, 0.4),
        "mldr-dense+sparse": (0.2, 0.8, 0),
    }


# ---- weighted sum ---------------------------------------------------------------------------------------


def test_weighted_sum_worked_by_hand() -> None:
    # (0.4 * 0.5 + 0.2 * 0.25 + 0.4 * 0.75) / 1.0 = 0.2 + 0.05 + 0.3
    assert weighted_sum(arrays(0.5, 0.25, 0.75), BGE_M3_README) == pytest.approx([0.55])
    # (1 * 0.5 + 0.3 * 0.25) / 1.3
    assert weighted_sum(arrays(0.5, 0.25, 0.75), TRAINING.only("dense", "sparse")) == pytest.approx([0.575 / 1.3])


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (BGE_M3_README, [0.6013619304, 0.3255828023, 0.3208931983, 0.6232916117]),
        (BGE_M3_README.only("dense", "sparse"), [0.4825032055, 0.2345402986, 0.2332356721, 0.5122477412]),
    ],
)
def test_weighted_sum_equals_the_published_example(weights: Weights, expected: list[float]) -> None:
    """Scores and fused scores as printed in the README of FlagEmbedding (fp16 on a GPU)."""
    scores: dict[Representation, Floats] = {
        "dense": np.array([0.6259765625, 0.347412109375, 0.349853515625, 0.67822265625]),
        "sparse": np.array([0.195556640625, 0.00879669189453125, 0.0, 0.1802978515625]),
        "multi": np.array([0.7796499730, 0.4621465802, 0.4523794651, 0.7898575068]),
    }
    assert weighted_sum(scores, weights) == pytest.approx(expected, abs=1e-6)


def test_a_score_that_counts_must_be_there() -> None:
    with pytest.raises(InputError, match=r"weight 0\.3 for sparse, but it was not scored"):
        weighted_sum({"dense": np.ones(2), "multi": np.ones(2)}, TRAINING)


def test_a_score_of_weight_zero_is_not_looked_at() -> None:
    scores: dict[Representation, Floats] = {"dense": np.array([0.5]), "multi": np.array([-np.inf])}
    assert weighted_sum(scores, Weights(1.0, 0.0, 0.0)) == pytest.approx([0.5])
    assert weighted_sum(scores, Weights(1.0, 0.0, 1.0)).tolist() == [-np.inf]


def test_scores_of_different_candidates_are_refused() -> None:
    with pytest.raises(ShapeError, match="different shapes"):
        weighted_sum({"dense": np.ones(2), "sparse": np.ones(3), "multi": np.ones(2)}, BGE_M3_DEFAULT)


UNIT = st.floats(-1, 1, width=32)


@given(st.tuples(UNIT, UNIT, UNIT), st.floats(0.0, 1.0), st.floats(0.1, 8))
def test_a_better_score_never_lowers_the_sum_and_scale_does_not_matter(
    scores: tuple[float, float, float], more: float, scale: float
) -> None:
    weights = Weights(0.4, 0.2, 0.4)
    before = weighted_sum(arrays(*scores), weights)[0]
    after = weighted_sum(arrays(scores[0], scores[1] + more, scores[2]), weights)[0]
    assert after >= before - 1e-6
    scaled = weighted_sum(arrays(*scores), Weights(0.4 * scale, 0.2 * scale, 0.4 * scale))[0]
    assert scaled == pytest.approx(before, abs=1e-5)
    assert min(scores) - 1e-6 <= before <= max(scores) + 1e-6


# ---- reciprocal rank fusion -----------------------------------------------------------------------------


def test_rrf_worked_by_hand() -> None:
    assert_ranking(rrf([["b", "a"], ["a", "c"]]), {"a": 1 / 62 + 1 / 61, "b": 1 / 61, "c": 1 / 62})
    assert_ranking(rrf([["a"]], k=0), {"a": 1.0})


def test_rrf_breaks_ties_by_id() -> None:
    assert [id for id, _ in rrf([["b", "a"], ["a", "b"]])] == ["a", "b"]
    assert [id for id, _ in rrf([["z"], ["y"], ["x"]])] == ["x", "y", "z"]


@given(st.lists(IDS, max_size=4))
def test_rrf_does_not_depend_on_the_order_of_the_lists(lists: list[list[str]]) -> None:
    assert rrf(lists) == rrf(lists[::-1])
    assert {id for id, _ in rrf(lists)} == {id for ids in lists for id in ids}


def test_rrf_edges() -> None:
    assert rrf([]) == []
    assert_ranking(rrf([[], ["a"]]), {"a": 1 / 61})
    with pytest.raises(InputError, match="'a' is twice in one ranking"):
        rrf([["a", "b", "a"]])
    for k in (-1, math.nan):
        with pytest.raises(InputError, match=f"must be >= 0; got {k}"):
            rrf([["a"]], k=k)


# ---- distribution based fusion --------------------------------------------------------------------------


def test_dbsf_worked_by_hand() -> None:
    # 1, 2, 3: mean 2, sigma 1 (n - 1), so -1 -> 0 and 5 -> 1: (1 + 1) / 6, (2 + 1) / 6, (3 + 1) / 6
    three = [("a", 3.0), ("b", 2.0), ("c", 1.0)]
    assert_ranking(dbsf([three]), {"a": 4 / 6, "b": 3 / 6, "c": 2 / 6})
    # the second list adds 0.5 to c, its only hit
    assert_ranking(dbsf([three, [("c", 99.0)]]), {"c": 2 / 6 + 0.5, "a": 4 / 6, "b": 3 / 6})


@pytest.mark.parametrize("scores", [[], [7.0], [7.0, 7.0], [0.1, 0.1, 0.1]], ids=repr)
def test_dbsf_without_a_spread(scores: list[float]) -> None:
    pairs = list(zip("abc", scores, strict=False))
    assert_ranking(dbsf([pairs]), dict.fromkeys("abc"[: len(scores)], 0.5))


def test_dbsf_does_not_clamp() -> None:
    """19 zeros and a one: z = 0.95 / 0.2236 = 4.25 sigma, beyond the limit of 3, as in Qdrant."""
    pairs = [(f"{i:02}", 0.0) for i in range(19)] + [("best", 1.0)]
    id, score = dbsf([pairs])[0]
    assert id == "best"
    assert score == pytest.approx((4.2485 + 3) / 6, abs=1e-4)


@given(st.lists(st.integers(-99, 99), unique=True, min_size=2, max_size=9), st.floats(0.5, 2), st.floats(-3, 3))
def test_dbsf_keeps_order_and_ignores_scale_and_shift(scores: list[int], scale: float, shift: float) -> None:
    pairs = [(str(i), score) for i, score in enumerate(scores)]
    moved = [(id, score * scale + shift) for id, score in pairs]
    before, after = dict(dbsf([pairs])), dict(dbsf([moved]))
    for id, score in pairs:
        assert after[id] == pytest.approx(before[id], abs=1e-9)
        assert all(before[id] >= before[other] for other, value in pairs if value < score)


def test_dbsf_refuses_what_has_no_mean() -> None:
    with pytest.raises(NumericalError, match="finite scores"):
        dbsf([[("a", 1.0), ("b", -math.inf)]])
    with pytest.raises(NumericalError, match="too far apart"):
        dbsf([[("a", 1e308), ("b", -1e308)]])
    with pytest.raises(InputError, match="'a' is twice"):
        dbsf([[("a", 1.0), ("a", 2.0)]])
