from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from threefold.config import Manifest
from threefold.errors import ConfigError, InputError, NumericalError, ShapeError
from threefold.retrieve.stages import (
    Candidates,
    Diversify,
    Fuse,
    Group,
    Ranked,
    Rerank,
    Retriever,
    preset,
    run,
)
from threefold.score import TRAINING, Weights, dbsf, rrf
from threefold.store.memory import MemoryStore
from threefold.types import REPRESENTATIONS, Chunk, Encoded, Floats, Ragged, Representation, Sparse

#: id -> (dense vector, {term: weight}, token vectors, language). Two dimensions, so that scores can be read off.
DOCS: dict[str, tuple[list[float], dict[int, float], list[list[float]], str]] = {
    "a": ([1.0, 0.0], {}, [[0.0, 1.0]], "en"),  # dense 1.0, sparse 0.0, multi 0.0
    "b": ([0.8, 0.6], {1: 0.5}, [[0.6, 0.8]], "en"),  # dense 0.8, sparse 0.5, multi 0.6
    "c": ([0.0, 1.0], {1: 2.0, 2: 1.0}, [[1.0, 0.0], [0.0, 1.0]], "de"),  # dense 0.0, sparse 2.0, multi 1.0
}


def encoded(rows: list[tuple[list[float], dict[int, float], list[list[float]]]]) -> Encoded:
    multi = [np.array(tokens, np.float32) for _, _, tokens in rows]
    return Encoded(
        np.array([dense for dense, _, _ in rows], np.float32),
        Sparse.of([terms for _, terms, _ in rows], 10),
        Ragged.of(multi),
        np.array([len(tokens) for tokens in multi], np.int32),
        np.zeros(len(rows), np.bool_),
    )


QUERY = encoded([([1.0, 0.0], {1: 1.0}, [[1.0, 0.0]])])


@pytest.fixture
def store() -> MemoryStore:
    manifest = Manifest("m", "h", "t", dense_dim=2, multi_dim=2, vocab=10, multi_storage="float16")
    store = MemoryStore(manifest)
    chunks = [
        Chunk("d1", 0, 0, 1, "a", language="en"),
        Chunk("d1", 1, 1, 2, "b", language="en"),
        Chunk("d2", 0, 0, 1, "c", language="de"),
    ]
    store.upsert(chunks, encoded([doc[:3] for doc in DOCS.values()]))
    return store


NAMES = {"a": "d1#0", "b": "d1#1", "c": "d2#0"}


def ids(found: list[Ranked]) -> str:
    back = {id: name for name, id in NAMES.items()}
    return "".join(back[one.id] for one in found)


def both(**settings: Any) -> Retriever:
    return Retriever((Candidates("dense"), Candidates("sparse")), **settings)


# ---- candidates and fusion ------------------------------------------------------------------------------


def test_the_weighted_sum_computes_scores_that_a_list_lacks(store: MemoryStore) -> None:
    """Chunk a is in no sparse list, and multi has no list at all."""
    found = run(store, QUERY, both(fuse=Fuse(weights=Weights(1.0, 0.3, 1.0))))
    # c: (0 + 0.3 * 2 + 1) / 2.3; b: (0.8 + 0.3 * 0.5 + 0.6) / 2.3; a: (1 + 0 + 0) / 2.3
    assert ids(found) == "cba"
    assert [one.score for one in found] == pytest.approx([1.6 / 2.3, 1.55 / 2.3, 1.0 / 2.3])
    assert found[2].scores == pytest.approx({"dense": 1.0, "sparse": 0.0, "multi": 0.0})
    assert dict(found[2].ranks) == {"dense": 1}
    assert dict(found[0].ranks) == {"dense": 3, "sparse": 1}


def test_contributions_add_up_to_the_score(store: MemoryStore) -> None:
    for method in ("weighted", "rrf", "dbsf"):
        for one in run(store, QUERY, both(fuse=Fuse.from_dict({"method": method}))):
            assert sum(one.contributions.values()) == pytest.approx(one.score, abs=1e-6)


@pytest.mark.parametrize(
    ("mode", "expected"), [("dense", "abc"), ("sparse", "cb"), ("multi", "cba"), ("hybrid", "cba")]
)
def test_modes(store: MemoryStore, mode: Any, expected: str) -> None:
    assert ids(run(store, QUERY, preset(mode, REPRESENTATIONS))) == expected


@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_one_list_is_not_scored_again(store: MemoryStore, mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryStore, "score", None)
    found = run(store, QUERY, preset(mode, REPRESENTATIONS))
    assert [one.score for one in found] == [one.scores[mode] for one in found]
    assert [one.ranks[mode] for one in found] == list(range(1, len(found) + 1))


def test_rrf_and_dbsf_are_those_of_the_candidate_lists(store: MemoryStore) -> None:
    dense = [(NAMES[n], s) for n, s in (("a", 1.0), ("b", 0.8), ("c", 0.0))]
    sparse = [(NAMES[n], s) for n, s in (("c", 2.0), ("b", 0.5))]
    expected = rrf([[id for id, _ in dense], [id for id, _ in sparse]], k=10)
    found = run(store, QUERY, both(fuse=Fuse("rrf", rrf_k=10)))
    assert [(one.id, one.score) for one in found] == expected
    found = run(store, QUERY, both(fuse=Fuse("dbsf")))
    assert [one.id for one in found] == [id for id, _ in dbsf([dense, sparse])]
    assert [one.score for one in found] == pytest.approx([score for _, score in dbsf([dense, sparse])], abs=1e-6)


def test_filters_of_the_retriever_and_of_a_list_hold_together(store: MemoryStore) -> None:
    assert ids(run(store, QUERY, both(where={"language": "en"}))) == "ba"
    stages = Retriever((Candidates("dense", where={"number": 0}), Candidates("sparse", where={"language": "en"})))
    assert ids(run(store, QUERY, stages)) == "cba"
    stages = Retriever((Candidates("dense", where={"number": 0}),), where={"language": "en"})
    assert ids(run(store, QUERY, stages)) == "a"


def test_nothing_matches(store: MemoryStore) -> None:
    stages = both(where={"language": "xx"}, rerank=Rerank(), diversify=Diversify(), group=Group())
    assert run(store, QUERY, stages) == []


def test_k_cuts_the_end(store: MemoryStore) -> None:
    assert ids(run(store, QUERY, both(k=2))) == "cb"


def test_ties_break_by_id() -> None:
    store = MemoryStore(Manifest("m", "h", "t", dense_dim=2, multi_dim=0, vocab=0, multi_storage="none"))
    names = ["z", "b", "a"]
    rows = encoded([([1.0, 0.0], {}, [[1.0, 0.0]])] * 3)
    store.upsert([Chunk(name, 0, 0, 1, name) for name in names], rows)
    assert [one.id for one in run(store, QUERY, preset("dense", ["dense"]))] == ["a#0", "b#0", "z#0"]


# ---- later stages ---------------------------------------------------------------------------------------


def test_rerank_orders_the_best_by_one_score(store: MemoryStore) -> None:
    stages = Retriever((Candidates("dense"),), Fuse(weights=TRAINING.only("dense")), Rerank("multi", depth=2))
    found = run(store, QUERY, stages)
    assert ids(found) == "ba"
    assert [one.score for one in found] == pytest.approx([0.6, 0.0])
    assert found[0].scores == pytest.approx({"dense": 0.8, "multi": 0.6})
    assert stages.needs() == ("dense", "multi")


def test_rerank_by_cross_reads_the_texts_of_the_best(store: MemoryStore) -> None:
    read: list[list[str]] = []

    def judge(texts: Sequence[str]) -> Floats:
        read.append(list(texts))
        return np.array([{"a": -5.0, "b": 3.0}[text] for text in texts], np.float32)

    stages = Retriever((Candidates("dense"),), Fuse(weights=TRAINING.only("dense")), Rerank("cross", depth=2))
    found = run(store, QUERY, stages, judge)
    assert (ids(found), read) == ("ba", [["a", "b"]])
    assert [one.score for one in found] == [3.0, -5.0]
    assert found[0].scores == pytest.approx({"dense": 0.8, "cross": 3.0})
    assert found[0].contributions == {"cross": 3.0}
    assert stages.needs() == ("dense",)  # no representation of the query is needed for it
    assert Retriever.from_dict(json.loads(json.dumps(stages.to_dict()))) == stages


def test_rerank_by_cross_breaks_ties_by_id_and_takes_whole_numbers(store: MemoryStore) -> None:
    stages = both(rerank=Rerank("cross"))
    assert ids(run(store, QUERY, stages, lambda texts: np.ones(len(texts), int))) == "abc"


def test_rerank_by_cross_does_not_read_where_nothing_was_found(store: MemoryStore) -> None:
    def judge(texts: Sequence[str]) -> Floats:
        raise AssertionError

    assert run(store, QUERY, both(where={"language": "xx"}, rerank=Rerank("cross")), judge) == []


@pytest.mark.parametrize(
    ("judge", "error", "message"),
    [
        (None, InputError, "needs a cross-encoder"),
        (lambda _: np.zeros(2), ShapeError, r"scores of shape \(2,\) for 3 texts"),
        (lambda _: np.array([1.0, np.nan, 0.0]), NumericalError, "NaN or infinity"),
    ],
)
def test_a_reranker_that_does_not_answer(store: MemoryStore, judge: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        run(store, QUERY, both(rerank=Rerank("cross")), judge)


def test_diversify_prefers_what_is_unlike_those_above(store: MemoryStore) -> None:
    one_list = (Candidates("dense"),)
    fuse = Fuse(weights=TRAINING.only("dense"))
    assert ids(run(store, QUERY, Retriever(one_list, fuse, diversify=Diversify(relevance=1.0)))) == "abc"
    # a first; then b: 0.3 * 0.8 - 0.7 * 0.8 = -0.32, c: 0.3 * 0.0 - 0.7 * 0.0 = 0
    assert ids(run(store, QUERY, Retriever(one_list, fuse, diversify=Diversify(relevance=0.3)))) == "acb"
    assert ids(run(store, QUERY, Retriever(one_list, fuse, diversify=Diversify(depth=1, relevance=0.3)))) == "abc"


def test_diversify_when_all_scores_are_equal(store: MemoryStore) -> None:
    zero = encoded([([0.0, 0.0], {1: 1.0}, [[1.0, 0.0]])])
    fuse = Fuse(weights=TRAINING.only("dense"))
    assert len(run(store, zero, Retriever((Candidates("dense"),), fuse, diversify=Diversify()))) == 3


def test_group_keeps_the_best_chunks_of_a_document(store: MemoryStore) -> None:
    assert ids(run(store, QUERY, both(group=Group()))) == "cb"
    assert ids(run(store, QUERY, both(group=Group(2)))) == "cba"


@pytest.mark.parametrize(
    ("stage", "message"), [({"rerank": Rerank("multi")}, "no multi"), ({"diversify": Diversify()}, "no dense")]
)
def test_a_stage_whose_vectors_are_not_kept(stage: dict[str, Any], message: str) -> None:
    store = MemoryStore(Manifest("m", "h", "t", dense_dim=0, multi_dim=0, vocab=10, multi_storage="none"))
    store.upsert([Chunk("c", 0, 0, 1, "c")], encoded([DOCS["c"][:3]]))
    weights = Fuse(weights=TRAINING.only("sparse"))
    with pytest.raises(InputError, match=message):
        run(store, QUERY, Retriever((Candidates("sparse"),), weights, **stage))


# ---- presets and settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "lists", "weights"),
    [
        (("dense", "sparse", "multi"), ["dense", "sparse"], (1.0, 0.3, 1.0)),
        (("dense", "sparse"), ["dense", "sparse"], (1.0, 0.3, 0.0)),
        (("dense",), ["dense"], (1.0, 0.0, 0.0)),
        (("multi",), ["multi"], (0.0, 0.0, 1.0)),
    ],
)
def test_hybrid_is_everything_that_is_kept(
    kept: tuple[Representation, ...], lists: list[str], weights: tuple[float, float, float]
) -> None:
    stages = preset("hybrid", kept)
    assert [stage.representation for stage in stages.candidates] == lists
    assert stages.fuse.weights == Weights(*weights)


def test_a_preset_never_has_fewer_candidates_than_hits() -> None:
    assert preset("dense", REPRESENTATIONS, k=500, depth=100).candidates[0].k == 500


def test_unknown_and_unkept_modes_name_the_others() -> None:
    with pytest.raises(InputError, match="unknown mode 'best'; known are hybrid, dense, sparse, multi"):
        preset("best", REPRESENTATIONS)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="keeps dense, not sparse"):
        preset("sparse", ["dense"])


def test_a_retriever_is_json() -> None:
    stages = Retriever(
        (Candidates("dense", 50, {"language": "de"}), Candidates("sparse")),
        Fuse("rrf", rrf_k=20.0),
        Rerank(depth=30),
        Diversify(0.5),
        Group(2),
        {"year": {"gte": 2020}},
        7,
    )
    assert Retriever.from_dict(json.loads(json.dumps(stages.to_dict()))) == stages


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"candidates": []}, "at least one of dense, sparse, multi"),
        ({"candidates": [{"representation": "dense"}] * 2}, "one list per representation"),
        ({"candidates": [{"representation": "colbert"}]}, r"candidates\[0\].representation: 'colbert' is not one of"),
        ({"candidates": [{"representation": "dense", "k": 0}]}, r"candidates\[0\]: k must be at least 1; got 0"),
        ({"candidates": [{"representation": "dense"}], "k": 0}, "k must be at least 1"),
        ({"candidates": [{"representation": "dense"}], "rerank": {"depth": 0}}, "depth must be at least 1"),
        ({"candidates": [{"representation": "dense"}], "diversify": {"relevance": 2.0}}, "from 0 to 1; got 2.0"),
        ({"candidates": [{"representation": "dense"}], "group": {"per_document": 0}}, "per_document must be"),
        ({"candidates": [{"representation": "dense"}], "where": {"a": {"like": 1}}}, "unknown operator 'like'"),
        ({"candidates": [{"representation": "dense"}], "fuse": {"weights": {"colbert": 1.0}}}, "fuse.weights"),
        ({"candidates": [{"representation": "dense"}], "rank": 1}, "unknown setting 'rank'"),
    ],
)
def test_wrong_settings_are_refused_by_name(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Retriever.from_dict(data)
