"""What searches are asked with, checked before anything is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from threefold.characters import clean, clean_value
from threefold.config import Filter
from threefold.errors import InputError


def condition_of(where: Mapping[str, Any] | None) -> Filter | None:
    """A filter with its texts cleaned as those of the documents are: as they were given, they would not be found."""
    Filter.parse(where)  # refuses what is nested too deeply, before it is cleaned
    return Filter.parse(clean_value(where))


def check_count(name: str, value: int) -> int:
    """A number of things that was asked for."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be a whole number of at least 1; got {value!r}")
    return value


def check_query(query: str) -> str:
    """A query as it is encoded."""
    if not isinstance(query, str):
        raise InputError(f"a query is one text; got {type(query).__name__}")
    if not query.strip():
        raise InputError("the query is empty. Type what you are looking for")
    return clean(query)
