"""What a filter means (`matches`), and how an engine is told (`translate`).

Equality is by type: text with text, numbers with numbers by value (1 equals 1.0), truth values only with truth values.
Larger and smaller are those of 64-bit floats; where a number has 16 digits and more, an engine may take it for the one
beside it in `gt` and `lt` (see `payload.EXACT_BELOW`).
A list matches when any of its items does; a missing field matches nothing, so `not` of it matches.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from threefold.config import Filter
from threefold.errors import ConfigError
from threefold.store.payload import NUMBER_FIELDS, TEXT_FIELDS, Scalar, exact_text, facet_key, facets_of
from threefold.types import Chunk

C = TypeVar("C")

_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}


def matches(where: Filter, chunk: Chunk) -> bool:
    """The definition: whether `chunk` satisfies `where`."""
    match where.operator:
        case "and":
            return all(matches(part, chunk) for part in where.parts)
        case "or":
            return any(matches(part, chunk) for part in where.parts)
        case "not":
            return not matches(where.parts[0], chunk)
        case "eq":
            return any(_equal(value, where.value) for value in _values(chunk, where.field))
        case "in":
            return any(_equal(value, item) for value in _values(chunk, where.field) for item in where.value)
    bound = _number(where.field, where.value)
    compare = _COMPARE[where.operator]
    return any(compare(float(value), bound) for value in _values(chunk, where.field) if _is_number(value))


def _values(chunk: Chunk, field: str) -> list[Scalar]:
    if field in TEXT_FIELDS or field in NUMBER_FIELDS:
        return [getattr(chunk, field)]
    return facets_of(chunk.metadata).get(field, [])


def _is_number(value: Scalar) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _equal(left: Scalar, right: Scalar) -> bool:
    if isinstance(left, str) or isinstance(right, str) or isinstance(left, bool) or isinstance(right, bool):
        return type(left) is type(right) and left == right
    return left == right


def _number(field: str, value: float) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    if number - number != 0.0:  # true for NaN and both infinities
        raise ConfigError(f"filter.{field}: {value!r} is not a finite 64-bit number")
    return number


class Dialect(Protocol[C]):
    """The few conditions that an engine must be able to say."""

    def every(self, parts: list[C]) -> C: ...

    def some(self, parts: list[C]) -> C:
        """At least one of the parts, of which there is at least one."""
        ...

    def no(self, part: C) -> C: ...

    def text(self, path: str, values: list[str]) -> C:
        """The text at `path`, or an item of the list there, is one of `values`; none of no values."""
        ...

    def number(self, path: str, bounds: Mapping[str, float]) -> C:
        """The number at `path`, or an item of the list there, is within `bounds` (gt, gte, lt, lte)."""
        ...


def translate(where: Filter, say: Dialect[C]) -> C:
    """`where` in the words of an engine, over the payload of `store.payload`."""
    match where.operator:
        case "and":
            return say.every([translate(part, say) for part in where.parts])
        case "or":
            return _some([translate(part, say) for part in where.parts], say)
        case "not":
            return say.no(translate(where.parts[0], say))
        case "eq":
            return _one_of(where.field, (where.value,), say)
        case "in":
            return _one_of(where.field, tuple(where.value), say)
    path = _path(where.field, "number")
    bounds: dict[str, float] = {where.operator: _number(where.field, where.value)}
    if not path:
        return _nothing(say)
    beyond = say.number(path, bounds)
    if where.operator in ("gt", "lt") or exact_text(where.value) is None:
        return beyond
    return say.some([beyond, _one_of(where.field, (where.value,), say)])


def _one_of(field: str, values: tuple[Scalar, ...], say: Dialect[C]) -> C:
    parts: list[C] = []
    texts: list[str] = []
    for value in values:
        if isinstance(value, str):
            texts.append(value)
            continue
        number = _number(field, value)
        if (exact := exact_text(value)) is not None:
            texts.append(exact)
        elif path := _path(field, "truth" if isinstance(value, bool) else "number"):
            parts.append(say.number(path, {"gte": number, "lte": number}))
    if texts and (path := _path(field, "text")):
        parts.append(say.text(path, texts))
    return _some(parts, say)


def _some(parts: list[C], say: Dialect[C]) -> C:
    return say.some(parts) if parts else _nothing(say)


def _nothing(say: Dialect[C]) -> C:
    return say.text("id", [])


def _path(field: str, kind: str) -> str:
    """Where values of this kind stand in the payload; empty when the field never has any."""
    if field in TEXT_FIELDS:
        return field if kind == "text" else ""
    if field in NUMBER_FIELDS:
        return field if kind == "number" else ""
    return f"facets.{kind}.{facet_key(field)}"
