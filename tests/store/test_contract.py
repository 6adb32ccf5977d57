"""What every engine promises, with the exact one as the oracle."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.store.conftest import Make
from tests.store.corpus import DIM, VOCAB, chunk, chunks, encoded, ids_of, manifest, unit, with_dense

from threefold.config import Filter, MultiStorage
from threefold.errors import InputError, NumericalError, ShapeError, StoreError
from threefold.store.edge import EdgeStore
from threefold.store.memory import MemoryStore
from threefold.store.protocol import Store
from threefold.types import REPRESENTATIONS, Encoded, Ragged, Representation, Sparse

N = 40

#: qdrant-client without a server says that it has no indexes and ignores search parameters.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect"),
    pytest.mark.filterwarnings("ignore:Local mode performs exact"),
]

#: |score - exact score| of unit vectors at 16 dimensions, by storage. Dense is float16 in every engine on disk.
#: The client's local mode keeps float32 whatever it is told.
TOLERANCE: dict[MultiStorage, float] = {"float16": 5e-4, "int8": 5e-3, "int4": 0.12}


@pytest.fixture
def store(make: Make) -> Store:
    filled = make(manifest())
    filled.upsert(chunks(N), encoded(N))
    return filled


@pytest.fixture
def exact() -> MemoryStore:
    oracle = MemoryStore(manifest())
    oracle.upsert(chunks(N), encoded(N))
    return oracle


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("where", [None, {"language": "de"}, {"year": {"gte": 2035}}], ids=["all", "de", "recent"])
def test_search_is_the_exact_search(
    store: Store, exact: MemoryStore, representation: Representation, where: dict[str, object] | None
) -> None:
    query = encoded(1, seed=7)
    found = store.search(representation, query, 5, Filter.parse(where))
    expected = exact.search(representation, query, 5, Filter.parse(where))
    assert ids_of(found) == ids_of(expected)
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=TOLERANCE["float16"])


def test_values_worked_by_hand(make: Make) -> None:
    store = make(manifest(dense_dim=2, multi_dim=2, vocab=4))
    vectors = Encoded(
        np.array([[1, 0], [0, 1]], np.float32),
        Sparse.of([{0: 0.5, 2: 0.25}, {1: 1.0}], 4),
        Ragged.of([np.array([[1, 0]], np.float32), np.array([[1, 0], [0, 1]], np.float32)]),
        np.array([2, 3], np.int32),
        np.array([False, False]),
    )
    store.upsert([chunk("a"), chunk("b")], vectors)
    query = Encoded(
        np.array([[0.5, 0.25]], np.float32),
        Sparse.of([{0: 0.5, 2: 1.0}], 4),
        Ragged.of([np.array([[1, 0], [0, 1]], np.float32)]),
        np.array([3], np.int32),
        np.array([False]),
    )
    scores = store.score(query, ["b#0", "a#0"])
    assert scores["dense"] == pytest.approx([0.25, 0.5], abs=1e-3)
    assert scores["sparse"] == pytest.approx([0.0, 0.5 * 0.5 + 0.25 * 1.0])
    assert scores["multi"] == pytest.approx([(1 + 1) / 2, (1 + 0) / 2], abs=1e-3)  # the mean, not the sum
    (found,) = store.search("sparse", query, 5)  # b shares no term
    assert found.id == "a#0"
    assert found.score == pytest.approx(0.5)


@pytest.mark.parametrize("storage", ["float16", "int8", "int4"])
def test_scores_are_within_the_stated_tolerance(make: Make, exact: MemoryStore, storage: MultiStorage) -> None:
    store = make(manifest(storage))
    store.upsert(chunks(N), encoded(N))
    ids = ids_of(chunks(N))
    for seed in range(5):
        query = encoded(1, seed=100 + seed)
        scores, expected = store.score(query, ids), exact.score(query, ids)
        assert set(scores) == set(REPRESENTATIONS)
        np.testing.assert_allclose(scores["dense"], expected["dense"], atol=TOLERANCE["float16"])
        np.testing.assert_allclose(scores["sparse"], expected["sparse"], atol=1e-6)
        np.testing.assert_allclose(scores["multi"], expected["multi"], atol=TOLERANCE[storage])
        assert all(one.dtype == np.float32 for one in scores.values())


def test_score_keeps_the_order_of_the_ids_and_repeats(store: Store) -> None:
    query = encoded(1, seed=3)
    once = store.score(query, ["d0#0", "d1#1"])
    again = store.score(query, ["d1#1", "d0#0", "d1#1"])
    for name in REPRESENTATIONS:
        assert again[name] == pytest.approx(once[name][[1, 0, 1]], abs=1e-6)


def test_score_of_nothing_is_empty(store: Store) -> None:
    assert {name: len(scores) for name, scores in store.score(encoded(1), []).items()} == dict.fromkeys(
        REPRESENTATIONS, 0
    )


def test_score_has_what_both_sides_have(make: Make, store: Store) -> None:
    assert set(store.score(encoded(1).only("sparse"), ["d0#0"])) == {"sparse"}
    without_multi = make(manifest("none"))
    without_multi.upsert(chunks(4), encoded(4))
    assert set(without_multi.score(encoded(1), ["d0#0"])) == {"dense", "sparse"}
    with pytest.raises(StoreError, match="keeps dense, sparse, not multi"):
        without_multi.search("multi", encoded(1), 3)


@pytest.mark.parametrize("kept", [{"vocab": VOCAB}, {"multi_dim": DIM}, {"dense_dim": DIM}], ids=str)
def test_a_collection_of_one_representation(make: Make, kept: dict[str, int]) -> None:
    nothing: dict[str, Any] = {"dense_dim": 0, "multi_dim": 0, "vocab": 0}
    store = make(manifest(**{**nothing, **kept}))
    store.upsert(chunks(N), encoded(N))
    query = encoded(1, seed=5)
    (name,) = store.score(query, ["d0#0"])
    assert len(store.search(name, query, 3)) == 3
    back = store.vectors(["d3#2"])
    assert [other for other in REPRESENTATIONS if getattr(back, other) is not None] == [name]
    with pytest.raises(InputError, match="no chunk 'x#0'"):
        store.score(query, ["d0#0", "x#0"])


def test_a_query_without_terms_finds_nothing(store: Store) -> None:
    query = encoded(1)
    query = Encoded(query.dense, Sparse.of([{}], VOCAB), query.multi, query.tokens, query.truncated)
    assert store.search("sparse", query, 3) == []
    assert store.score(query, ["d0#0"])["sparse"].tolist() == [0.0]


@pytest.mark.parametrize("k", [1, 7, 30])
def test_ties_break_by_id(make: Make, k: int) -> None:
    store, n = make(manifest()), 60
    same = encoded(1, seed=2).take([0] * n)
    order = np.random.default_rng(0).permutation(n)
    store.upsert([chunk(f"x{i:02}") for i in order], same)
    for representation in REPRESENTATIONS:
        found = store.search(representation, encoded(1, seed=2), k)
        assert ids_of(found) == [f"x{i:02}#0" for i in range(k)], representation


def test_k_may_exceed_the_collection(store: Store) -> None:
    assert len(store.search("dense", encoded(1), 1000)) == N
    with pytest.raises(InputError, match="k must be at least 1; got 0"):
        store.search("dense", encoded(1), 0)


def test_fetch_gives_back_exactly_what_was_given(make: Make) -> None:
    store = make(manifest())
    odd = {"a.b": 1, 'q"': [1.5, None, True], "big": 2**70, "deep": {"x": {"y": "z"}}, "": "empty key", "é [0]": "ü"}
    given = [
        chunk("päper/1#x", 3, odd, text="Zeile\n\t\x00 𝄞", source="s", title="t", language="de", content_hash="h"),
        chunk("d", 0),
    ]
    store.upsert(given, encoded(2))
    assert store.fetch(["d#0", "päper/1#x#3"]) == given[::-1]
    assert store.fetch([]) == []
    with pytest.raises(InputError, match="no chunk 'nothing#9'"):
        store.fetch(["d#0", "nothing#9"])


def test_vectors_come_back(store: Store) -> None:
    back: Any = store.vectors([ids_of(chunks(N))[i] for i in (5, 0, 5)])
    want: Any = encoded(N).take([5, 0, 5])
    np.testing.assert_allclose(back.dense, want.dense, atol=1e-3)
    assert [back.sparse.row(i) for i in range(3)] == [want.sparse.row(i) for i in range(3)]
    np.testing.assert_allclose(back.multi.rows, want.multi.rows, atol=1e-3)
    assert back.multi.offsets.tolist() == want.multi.offsets.tolist()
    assert back.tokens.tolist() == want.tokens.tolist()
    assert back.truncated.tolist() == want.truncated.tolist()
    assert back.dense.dtype == np.float32


def test_only_the_vectors_that_are_named_come_back(store: Store) -> None:
    ids = ids_of(chunks(N))[:3]
    want: Any = encoded(N).take([0, 1, 2])
    back: Any = store.vectors(ids, ["sparse"])
    assert back.dense is None
    assert back.multi is None
    assert [back.sparse.row(i) for i in range(3)] == [want.sparse.row(i) for i in range(3)]
    none = store.vectors(ids, [])
    assert (none.dense, none.sparse, none.multi) == (None, None, None)
    assert none.tokens.tolist() == want.tokens.tolist()


def test_upsert_replaces(store: Store) -> None:
    store.upsert([chunk("d0", 0, {"year": 1}, text="new")], encoded(1, seed=50))
    assert store.count() == N
    assert store.fetch(["d0#0"])[0].text == "new"
    assert store.count(Filter.parse({"year": 2000})) == 0
    assert store.search("dense", encoded(1, seed=50), 1)[0].id == "d0#0"


def test_upsert_of_nothing_is_nothing(make: Make) -> None:
    store = make(manifest())
    store.upsert([], encoded(0))
    assert store.count() == 0
    assert store.search("dense", encoded(1), 3) == []
    assert list(store.scroll()) == []


def test_delete_counts_and_removes(store: Store) -> None:
    german = Filter.parse({"language": "de"})
    assert german is not None
    assert store.delete(german) == N // 2
    assert store.delete(german) == 0
    assert store.count() == N // 2
    assert store.count(german) == 0
    assert {one.language for one in store.scroll()} == {"en"}
    for representation in REPRESENTATIONS:
        found = store.search(representation, encoded(1), N)
        assert all(store.fetch([one.id])[0].language == "en" for one in found)


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_scroll_sees_every_chunk_once(store: Store, batch: int) -> None:
    assert sorted(ids_of(list(store.scroll(batch=batch)))) == sorted(ids_of(chunks(N)))
    where = Filter.parse({"source": "s1"})
    assert sorted(ids_of(list(store.scroll(where, batch)))) == sorted(c.id for c in chunks(N) if c.source == "s1")


def test_optimize_changes_no_result(store: Store) -> None:
    queries = [encoded(1, seed=seed) for seed in range(5)]
    before = [store.search(name, query, 10) for query in queries for name in REPRESENTATIONS]
    store.optimize()
    after = [store.search(name, query, 10) for query in queries for name in REPRESENTATIONS]
    assert [ids_of(found) for found in after] == [ids_of(found) for found in before]
    store.upsert(chunks(4, "later"), encoded(4, seed=9))
    assert store.count() == N + 4


def test_snapshot_opens_as_a_collection(store: Store, tmp_path: Path) -> None:
    store.snapshot(tmp_path / "copy")
    store.delete(Filter("in", "language", ("en", "de")))
    with EdgeStore.open(tmp_path / "copy") as copy:
        assert sorted(ids_of(list(copy.scroll()))) == sorted(ids_of(chunks(N)))
        assert copy.manifest.model == "tiny"
        assert len(copy.search("multi", encoded(1), 5)) == 5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_nan_is_refused_by_name_and_nothing_is_stored(make: Make, representation: str, bad: float) -> None:
    store = make(manifest())
    vectors: Any = encoded(8)
    assert len(vectors.sparse[5][0]) > 0
    if representation == "dense":
        vectors.dense[5, 2] = bad
    elif representation == "multi":
        vectors.multi[5][-1, 2] = bad
    else:
        vectors.sparse.values[vectors.sparse.offsets[5]] = bad
    with pytest.raises(NumericalError, match=rf"chunk 'd1#1': NaN or infinity in its {representation}"):
        store.upsert(chunks(8), vectors)
    assert store.count() == 0


def test_a_query_with_nan_is_refused(store: Store) -> None:
    query = encoded(1)
    assert query.dense is not None
    query.dense[0, 0] = math.nan
    with pytest.raises(NumericalError, match="the query: NaN"):
        store.search("dense", query, 3)
    with pytest.raises(NumericalError, match="the query: NaN"):
        store.score(query, ["d0#0"])


def test_other_dimensions_are_refused_with_both(store: Store) -> None:
    narrow = with_dense(encoded(2), unit(np.ones((2, 3), np.float32)))
    with pytest.raises(ShapeError, match=r"shape \(2, 3\), the collection keeps 16 dimensions"):
        store.upsert(chunks(2), narrow)
    with pytest.raises(ShapeError, match=r"shape \(1, 3\), the collection keeps 16 dimensions"):
        store.search("dense", narrow.take([0]), 3)
    other = Encoded(None, Sparse.of([{1: 1.0}], 99), None, np.array([2]), np.array([False]))
    with pytest.raises(ShapeError, match="over 99 terms, the collection keeps 50"):
        store.score(other, ["d0#0"])


def test_calls_that_do_not_fit_are_refused(store: Store) -> None:
    with pytest.raises(ShapeError, match="2 chunks but vectors of 3 texts"):
        store.upsert(chunks(2), encoded(3))
    with pytest.raises(ShapeError, match="keeps sparse vectors, but none were given"):
        store.upsert(chunks(2), encoded(2).only("dense", "multi"))
    with pytest.raises(ShapeError, match="a query is one text; got 2"):
        store.search("dense", encoded(2), 3)
    with pytest.raises(ShapeError, match="the query has no multi vector"):
        store.search("multi", encoded(1).only("dense"), 3)
    with pytest.raises(InputError, match="chunk 'd0#1' is in this call 2 times"):
        store.upsert([*chunks(2), chunks(2)[1]], encoded(3))
    with pytest.raises(InputError, match="at least one id"):
        store.vectors([])
    assert store.count() == N


@pytest.mark.parametrize(("terms", "weights"), [([3, 3], [0.5, 0.5]), ([3, 1], [0.5, 0.5]), ([1, 2], [0.5, -0.5])])
def test_sparse_rows_that_are_not_well_formed_are_refused(make: Make, terms: list[int], weights: list[float]) -> None:
    good = encoded(2)
    broken = Sparse(
        np.array([4, *terms], np.int32), np.array([1, *weights], np.float32), np.array([0, 1, 3], np.int64), VOCAB
    )
    vectors = Encoded(good.dense, broken, good.multi, good.tokens, good.truncated)
    with pytest.raises(ShapeError, match="chunk 'd0#1': sparse ids must rise"):
        make(manifest()).upsert(chunks(2), vectors)


def test_a_text_without_tokens_is_refused(make: Make) -> None:
    good = encoded(2)
    empty = Ragged.of([np.ones((1, DIM), np.float32), np.ones((0, DIM), np.float32)])
    vectors = Encoded(good.dense, good.sparse, empty, good.tokens, good.truncated)
    with pytest.raises(ShapeError, match="chunk 'd0#1': no token vectors"):
        make(manifest()).upsert(chunks(2), vectors)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"when": object()}, "metadata.when: .* is a object"),
        ({"x": {"y": math.nan}}, "metadata.x.y: nan is not a finite"),
        ({"x": 10**400}, "metadata.x: 1.* is not a finite"),
        ({"x": {1: 2}}, "key 1 is not text"),
        ({"x": "\ud800"}, "surrogates not allowed"),
    ],
    ids=["object", "nan", "huge", "key", "surrogate"],
)
def test_metadata_that_cannot_be_stored_is_refused_by_name(
    make: Make, metadata: dict[str, object], message: str
) -> None:
    store = make(manifest())
    with pytest.raises(InputError, match=rf"chunk 'b#0': .*{message}"):
        store.upsert([chunk("a"), chunk("b", 0, metadata)], encoded(2))
    assert store.count() == 0


def test_a_closed_store_refuses(store: Store) -> None:
    store.close()
    store.close()
    for call in (store.count, store.optimize, lambda: store.search("dense", encoded(1), 1), lambda: store.fetch(["a"])):
        with pytest.raises(StoreError, match="closed"):
            call()
