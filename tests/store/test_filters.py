"""Filters of every engine against their definition, on awkward metadata and random trees."""

from __future__ import annotations

import math
from collections.abc import Iterator
from operator import ge, gt, le, lt
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.store.conftest import MILVUS, make_milvus
from tests.store.corpus import chunk, encoded, ids_of, manifest

from threefold.config import Filter, Manifest
from threefold.errors import ConfigError
from threefold.retrieve.asked import condition_of
from threefold.store.edge import EdgeStore
from threefold.store.filters import matches
from threefold.store.memory import MemoryStore
from threefold.store.payload import facet_key, facets_of
from threefold.store.protocol import Store

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect")  # says the client without a server

LONG = [
    2**52 - 1,
    2**52,
    2**53 - 2,
    2**53 - 1,
    2**53,
    2**53 + 1,
    -(2**53) - 1,
    1_450_000_000_000_000_001,
    1_450_000_000_000_000_002,
    1e16,
    2_024_444_734_275_901,
    1_732_852_438.6257203,
    1_732_852_438.6390681,
]
VALUES: list[Any] = ["", "a", "b", "1", "true", True, False, 0, 1, 1.0, -1, 1.5, *LONG, "ü"]
KEYS = ["k", "year", "a.b", "a b", "q\"'", "e[0]", "é", "_", "2020", "number"]
TEXT_KEYS = ["document_id", "source", "title", "language", "content_hash"]

METADATA: list[dict[str, Any]] = [
    *({key: value} for key in KEYS[:3] for value in VALUES),
    *({key: "a"} for key in KEYS),
    {"a": {"b": "a"}},
    {"a": [{"b": 1}, {"b": True}, {"b": ["a", "b"]}]},
    {"k": ["a", 1, True, None, [1.5]]},
    {"k": None, "year": []},
    {},
]
CORPUS = [
    chunk(
        f"d{i}", i % 3, metadata, source=("", "a", "1")[i % 3], language=("a", "b")[i % 2], title="é", content_hash="a"
    )
    for i, metadata in enumerate(METADATA)
]


def _usual(folder: Path, small: Manifest) -> dict[str, Store]:
    stores: dict[str, Store] = {"memory": MemoryStore(small), "edge": EdgeStore.create(folder / "c", small)}
    try:
        from qdrant_client import QdrantClient

        from threefold.store.qdrant import QdrantStore

        stores["qdrant"] = QdrantStore.create(QdrantClient(":memory:"), "filters", small)
    except ImportError:
        pass  # extra `cluster` is not installed: the other two are still compared
    return stores


@pytest.fixture(scope="module", params=["usual", MILVUS])
def engines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Store]]:
    small, folder = manifest("none", vocab=0), tmp_path_factory.mktemp("filters")
    stores: dict[str, Store] = {}
    if request.param == "usual":
        stores = _usual(folder, small)
    else:
        stores["milvus"] = make_milvus(small, folder)
    for store in stores.values():
        store.upsert(CORPUS, encoded(len(CORPUS)))
    yield stores
    for store in stores.values():
        store.close()


def _leaves() -> st.SearchStrategy[Filter]:
    field = st.sampled_from([*KEYS, *TEXT_KEYS])
    value = st.sampled_from(VALUES)
    number = st.sampled_from([-1, 0, 0.5, 1, 1.5, 2, *LONG])
    return st.one_of(
        st.builds(Filter, st.just("eq"), field, value),
        st.builds(Filter, st.just("in"), field, st.lists(value, max_size=3).map(tuple)),
        st.builds(Filter, st.sampled_from(["gt", "gte", "lt", "lte"]), field, number),
    )


def _trees() -> st.SearchStrategy[Filter]:
    def combine(parts: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
        several = st.lists(parts, max_size=3).map(tuple)
        return st.one_of(
            st.builds(Filter, st.sampled_from(["and", "or"]), parts=several),
            st.builds(Filter, st.just("not"), parts=st.tuples(parts)),
        )

    return st.recursive(_leaves(), combine, max_leaves=5)


@settings(max_examples=150, deadline=None)
@given(where=_trees())
def test_engines_agree_with_the_definition(engines: dict[str, Store], where: Filter) -> None:
    expected = sorted(one.id for one in CORPUS if matches(where, one))
    for name, store in engines.items():
        assert sorted(ids_of(list(store.scroll(where)))) == expected, name
        assert store.count(where) == len(expected), name


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"k": True}, [True]),
        ({"k": 1}, [1, 1.0]),
        ({"k": "1"}, ["1"]),
        ({"k": {"gt": 1}}, [1.5, *(number for number in LONG if number > 1)]),
        ({"k": 2**53}, [2**53]),
        ({"k": 1e16}, [1e16]),
        ({"k": 10**16}, [1e16]),
        ({"k": {"in": ["a", 0, False]}}, ["a", False, 0]),
        ({"k": {"in": []}}, []),
        ({"k": {"gte": 0, "lt": 1.5}}, [0, 1, 1.0]),
    ],
    ids=str,
)
def test_equality_is_by_type(data: dict[str, Any], expected: list[Any]) -> None:
    where = Filter.parse(data)
    assert where is not None
    found = [value for value in VALUES if matches(where, chunk("d", 0, {"k": value}))]
    assert [(type(value), value) for value in found] == [(type(value), value) for value in expected]


def test_long_numbers_are_told_apart(engines: dict[str, Store]) -> None:
    """64-bit floats take ids of 19 digits for each other, and the embedded engine some fractions of 16."""
    for store in engines.values():
        for number in LONG:
            found = [one.metadata["k"] for one in store.scroll(Filter.parse({"k": number}))]
            assert found == [number] * max(1, len(found))
            assert store.count(Filter.parse({"k": {"in": [number, "no"]}})) == len(found) > 0
            assert number in [one.metadata["k"] for one in store.scroll(Filter.parse({"k": {"gte": number}}))]
            assert number in [one.metadata["k"] for one in store.scroll(Filter.parse({"k": {"lte": number}}))]


@pytest.mark.parametrize(
    "bound",
    [
        2**53 - 1,
        -(2**53) - 2,
        2**53 + 1,
        1_450_000_000_000_000_001,
        2**63 - 1,
        2**64 - 1,
        1_732_852_438.6257203,
        0.1,
        1e300,
    ],
)
def test_larger_and_smaller_are_exact(bound: float, tmp_path: Path) -> None:
    """Python's own comparison of ints and floats is the oracle; every neighbour is tried, also within a list."""
    whole, one = int(bound), math.ulp(bound)
    floats = [bound + step * one for step in range(-6, 7)] if abs(bound) < 2**53 or bound > 2**65 else []
    wholes = [whole + step for step in (*range(-4, 5), -3 * int(one), 3 * int(one))] if 1 < abs(bound) < 2**65 else []
    numbers = sorted({*floats, *wholes, -1.5, 0, bound})
    small = manifest("none", vocab=0)
    for name, store in _usual(tmp_path, small).items():
        store.upsert(
            [chunk(f"d{i}", 0, {"k": ["x", number]}) for i, number in enumerate(numbers)], encoded(len(numbers))
        )
        for operator, compare in (("gt", gt), ("gte", ge), ("lt", lt), ("lte", le)):
            where = Filter.parse({"k": {operator: bound}})
            found = sorted(one.metadata["k"][1] for one in store.scroll(where))
            assert found == [number for number in numbers if compare(number, bound)], (name, operator)
        store.close()


def test_a_missing_field_matches_only_its_negation() -> None:
    assert not matches(Filter("eq", "nothing", "a"), chunk("d"))
    assert matches(Filter("not", parts=(Filter("eq", "nothing", "a"),)), chunk("d"))


def test_an_infinite_bound_is_refused(engines: dict[str, Store]) -> None:
    for store in engines.values():
        for bound in (float("nan"), float("inf"), 10**400):
            with pytest.raises(ConfigError, match="not a finite 64-bit number"):
                store.count(Filter("gt", "k", bound))


def test_conditions_that_are_nested_too_deeply_are_refused() -> None:
    data: dict[str, Any] = {"k": 1}
    for _ in range(60):
        data = {"not": data}
    assert Filter.parse(data) is not None
    for _ in range(400):
        data = {"or": [data]}
    for parse in (Filter.parse, condition_of):
        with pytest.raises(ConfigError, match="nested more than 64 deep"):
            parse(data)


def test_nested_metadata_is_flat_for_filters() -> None:
    assert facets_of({"author": {"name": "Li"}, "tags": ["a", ["b"]], "no": None}) == {
        "author.name": ["Li"],
        "tags": ["a", "b"],
    }


@given(st.text(max_size=8), st.text(max_size=8))
def test_facet_keys_are_one_to_one(left: str, right: str) -> None:
    assert (facet_key(left) == facet_key(right)) == (left == right)
    assert facet_key(left).replace("_", "").isalnum() or left == ""
