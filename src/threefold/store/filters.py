"""What a filter means (`matches`), and how an engine is told (`translate`).

Equality is by type: text with text, numbers with numbers by value (1 equals 1.0), truth values only with truth values.
Larger and smaller are exact, whole numbers of 64 bits included. Longer ones compare as floats, and near a bound of that
size an engine may miss some. Engines take numbers of 16 digits and more for the one beside them
(`payload.EXACT_BELOW`): they are asked for what is well beyond a bound, and for what is near it by its exact text. Of a
short whole bound, such as a year, that would double the time for fractions that differ from it in the 16th digit.
A list matches when any of its items does; a missing field matches nothing, so `not` of it matches.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, TypeGuard, TypeVar

from threefold.config import Filter
from threefold.errors import ConfigError
from threefold.store.payload import NUMBER_FIELDS, TEXT_FIELDS, Scalar, exact_text, facet_key, facets_of
from threefold.types import Chunk

C = TypeVar("C")

#: Floats on one side of a bound within which an engine is not believed: it reads a stored number to the one beside it,
#: and a server the bound as well.
_FAR = 2
#: From here on not every whole number is a float; from here on those between two floats are not looked for.
_WHOLE, _LONG = 2**53, 2**64

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
    _number(where.field, where.value)
    bound, compare = _comparable(where.value), _COMPARE[where.operator]
    return any(compare(_comparable(value), bound) for value in _values(chunk, where.field) if _is_number(value))


def _values(chunk: Chunk, field: str) -> list[Scalar]:
    if field in TEXT_FIELDS or field in NUMBER_FIELDS:
        return [getattr(chunk, field)]
    return facets_of(chunk.metadata).get(field, [])


def _is_number(value: Scalar) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _comparable(value: float) -> int | float:
    """A number as it is compared with others. Those of Python are exact, also of an int and a float."""
    return value if abs(value) < _LONG else float(value)


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
    number, path = _number(where.field, where.value), _path(where.field, "number")
    if not path:
        return _nothing(say)
    if exact_text(where.value) is None:
        return say.number(path, {where.operator: number})
    above, equal = where.operator in ("gt", "gte"), where.operator in ("gte", "lte")
    far = _steps(number, above)[_FAR]
    near = [*_near(where.value, number, above), *([where.value] if equal else [])]
    return say.some([say.number(path, {"gt" if above else "lt": far}), _one_of(where.field, tuple(near), say)])


def _steps(number: float, above: bool) -> list[float]:
    """The number and the floats beside it, in one direction; none is infinite."""
    most = sys.float_info.max if above else -sys.float_info.max
    found = [number]
    for _ in range(2 * _FAR):
        found.append(math.nextafter(found[-1], most))
    return found


def _near(bound: float, number: float, above: bool) -> Iterator[int | float]:
    """All numbers beyond the bound, in one direction, that are too near to it for an engine to tell: `_FAR` floats, and
    as many again that it may take for those; whole ones between them as well.

    number  the bound as a float
    """
    beyond: Callable[[float, float], bool] = operator.gt if above else operator.lt
    steps = _steps(number, above)
    yield from (step for step in dict.fromkeys(steps) if beyond(step, _comparable(bound)))
    if abs(bound) < _LONG and max(abs(bound), abs(steps[-1])) > _WHOLE:
        half = int(abs(steps[-1] - steps[-2])) // 2  # of the integers beyond the last, some are that float as well
        first, last = int(bound), int(steps[-1])
        span = range(first + 1, last + half + 1) if above else range(last - half, first)
        floats = {int(step) for step in steps}
        yield from (whole for whole in span if whole not in floats)


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
