"""JSON bodies: bounded before they are parsed, then read as a schema says. Knows no contract.

A parser holds the interpreter until it is done, and makes an object of every value: 16 MB of empty arrays are 5.6
million, which keep every other request waiting for seconds, also from a thread, and need a gigabyte. So values are
counted first, by looking at the bytes only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from threefold.serve.errors import TOO_LARGE, RequestError

Body = TypeVar("Body", bound=BaseModel)

#: Bytes that are parsed at once, in a few milliseconds; more is parsed in a thread.
SMALL = 65_536
#: Bytes that are looked at in one go.
PIECE = 262_144
#: Wrong things in a body up to which the first is named: a report of all of them is made before one can be read.
REPORTED = 10_000

#: Values that an array or object counts as: it takes so much longer to make than a number or a text.
CONTAINER = 10


def check_values(raw: bytes, most: int, what: str = "the body") -> None:
    """Refuse JSON with more values than `most`, in as little time as it takes to look at it."""
    if _values(raw) <= most:  # also what looks like values inside texts: most bodies have few enough
        return
    found = 0
    for piece in _outside_strings(raw):
        found += _values(piece)
        if found > most:
            how = f"an array or object counts as {CONTAINER}"
            message = f"{what} has more than {most:,} values (items and fields; {how}). Send less at once"
            raise RequestError(message, status=413, code=TOO_LARGE)


def _values(raw: bytes) -> int:
    """All but the first are behind a comma or a bracket."""
    return _marks(raw, b",") + CONTAINER * _marks(raw, b"[{")


def _marks(raw: bytes, which: bytes) -> int:
    return len(raw) - len(raw.translate(None, which))


def _outside_strings(raw: bytes) -> Iterator[bytes]:
    """What of JSON is in no string. Where it is not JSON, so until the first byte that is wrong."""
    inside, held = False, b""
    for start in range(0, len(raw), PIECE):
        piece = held + raw[start : start + PIECE]
        cut = len(piece) - (len(piece) - len(piece.rstrip(b"\\"))) % 2  # an escape that goes on in the next piece
        piece, held = piece[:cut], piece[cut:]
        parts = piece.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        yield b"".join(parts[inside::2])
        inside ^= len(parts) % 2 == 0


def parse(schema: type[Body], raw: bytes) -> Body:
    """JSON bytes as a schema; the first thing that is wrong is said, with its place and without its content."""
    try:
        return schema.model_validate_json(raw)
    except ValidationError as error:
        raise _refusal(schema, error) from None


def _refusal(schema: type[BaseModel], error: ValidationError) -> RequestError:
    if error.error_count() > REPORTED:
        return RequestError(f"{error.error_count():,} fields or items of the body are unknown or of a wrong type")
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    if first["type"] == "json_invalid":
        return RequestError(f"the body is not JSON: {first['ctx']['error']}", code="invalid_json")
    if first["type"] == "extra_forbidden":
        return RequestError(f"unknown field {place!r}; known are {', '.join(schema.model_fields)}", param=place)
    return RequestError(f"{place}: {first['msg']}" if place else first["msg"], param=place or None)


def parse_any(raw: bytes) -> dict[str, Any]:
    """A JSON object."""
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(found, dict):
        raise RequestError("the body must be a JSON object")
    return found
