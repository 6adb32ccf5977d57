"""A collection as a component of Haystack that retrieves (extra `haystack`).

    pipeline.add_component("retriever", retriever(papers, k=5))
    pipeline.run({"retriever": {"query": "how is the sparse head trained?", "top_k": 3}})

Haystack itself sends statistics of its use, unless HAYSTACK_TELEMETRY_ENABLED=false is set before it is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from threefold.errors import InputError, MissingExtraError
from threefold.integrations.hits import KEY, Searchable, found, found_async, metadata_of
from threefold.store.payload import NUMBER_FIELDS, TEXT_FIELDS

_COMPARE: Final = {">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}
_NEGATED: Final = {"!=": "==", "not in": "in"}
#: Fields of Haystack's documents that no filter of ours can speak of.
_NOT_OURS: Final = frozenset({"id", "content", "blob", "meta", "score", "embedding", "sparse_embedding"})


def retriever(collection: Searchable, **search: Any) -> Any:
    """A component over a collection, of this process or of a server; what its documents say: `metadata_of`.

    Its inputs are `query`, `top_k` (takes the place of `k`) and `filters` (of Haystack; they hold beside `where`), its
    output is `documents`. It cannot be written to a file with its pipeline.

    search  how passages are searched, as for `Collection.search`
    """
    return _component()(collection, search)


def where_of(filters: Mapping[str, Any]) -> dict[str, Any]:
    """A filter of Haystack as one of ours: `{"field": "meta.year", "operator": ">=", "value": 2020}`, AND, OR, NOT."""
    operator = filters.get("operator")
    if "conditions" in filters:
        parts = [where_of(part) for part in filters["conditions"]]
        if operator in ("AND", "OR"):
            return {operator.lower(): parts}
        if operator == "NOT":
            return {"not": {"and": parts}}
    elif "field" in filters and "value" in filters:
        field, value = _field(filters["field"]), filters["value"]
        if operator in _NEGATED:
            return {"not": where_of({**filters, "operator": _NEGATED[operator]})}
        if operator == "==":
            return {field: value}
        if operator == "in" or operator in _COMPARE:
            return {field: {_COMPARE.get(operator, "in"): value}}
    raise InputError(f"filters: not a condition of Haystack: {dict(filters)!r}")


def _field(name: str) -> str:
    """`meta.year` is `year`, `meta.threefold.number` is `number`."""
    plain = name.removeprefix("meta.")
    field = plain.removeprefix(f"{KEY}.")
    if name in _NOT_OURS or (field != plain and field not in (*TEXT_FIELDS, *NUMBER_FIELDS)):
        raise InputError(f"filters: {name!r} is not a field that a collection can filter by; the metadata's own are")
    return field


def _options(search: Mapping[str, Any], top_k: int | None, filters: Mapping[str, Any] | None) -> dict[str, Any]:
    options = dict(search)
    if top_k is not None:
        options["k"] = top_k
    if filters:
        asked, own = where_of(filters), search.get("where")
        options["where"] = {"and": [own, asked]} if own else asked
    return options


@cache
def _component() -> Any:
    try:
        from haystack import Document, component
    except ImportError as error:
        raise MissingExtraError("haystack-ai", "haystack", "a component of Haystack") from error

    def documents(hits: Any) -> dict[str, Any]:
        return {"documents": [Document(hit.id, hit.text, meta=metadata_of(hit), score=hit.score) for hit in hits]}

    @component
    class ThreefoldRetriever:
        """The chunks of a collection as documents."""

        def __init__(self, collection: Any, search: dict[str, Any]) -> None:
            self._collection, self._search = collection, search

        @component.output_types(documents=list[Document])
        def run(self, query: str, top_k: int | None = None, filters: dict[str, Any] | None = None) -> dict[str, Any]:
            return documents(found(self._collection, query, _options(self._search, top_k, filters)))

        @component.output_types(documents=list[Document])
        async def run_async(
            self, query: str, top_k: int | None = None, filters: dict[str, Any] | None = None
        ) -> dict[str, Any]:
            return documents(await found_async(self._collection, query, _options(self._search, top_k, filters)))

        def to_dict(self) -> dict[str, Any]:
            """Refused: an open collection, or a connection with its key, is nothing that a file can have."""
            raise InputError(
                "a pipeline with a threefold retriever cannot be written to a file: its collection is open in this "
                "process. Write the pipeline without it, and add and connect it after loading"
            )

    return ThreefoldRetriever
