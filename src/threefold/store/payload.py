"""Chunks as the payload of a point, and back, exactly. The same layout in every engine.

    id, document_id, source, title, language, content_hash, text   text
    number, start, end, tokens                                     integers
    truncated                                                      0 or 1
    metadata     JSON text: what the user gave comes back exactly, whatever the engine can hold
    facets       {"text": {key: [..]}, "number": {key: [..]}, "truth": {key: [0 or 1]}}, for filters only; a number
                 with a fraction, or of 2^49 and more, is in "text" too, where equality is exact

Filters do not run on the metadata as it is: the embedded engine takes a condition `true` for the integer 1,
tells 1 from 1.0, and its paths cannot say every key. Facets have one type each and keys that need no quotes.
"""

from __future__ import annotations

import json
import math
import re
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from threefold.errors import InputError, StoreCorruptError
from threefold.types import Chunk

Scalar = str | int | float | bool

#: Namespace of point ids: engines take only integers and UUIDs, so a point is named uuid5(POINTS, chunk.id).
POINTS = uuid.UUID("6f4a4c62-3a0c-5c1b-9e0e-2d6b1b0f3c57")

#: Fields of a chunk that filters reach by name; anything else is a key of the metadata.
TEXT_FIELDS = ("document_id", "source", "title", "language", "content_hash")
NUMBER_FIELDS = ("number",)

#: Whole numbers below this are read back by every engine as they were written. The embedded one reads JSON numbers of
#: 16 digits and more to the last bit or the one beside it, and writes whole ones with a digit more: ".0".
EXACT_BELOW = 2**49

#: Fields with an index of exact values.
INDEXED_FIELDS = ("document_id", "source", "language", "content_hash")

_STORED_FIELDS = (*TEXT_FIELDS, "text", "number", "start", "end")


def point_id(chunk_id: str) -> str:
    """The engine's id of a chunk."""
    return str(uuid.uuid5(POINTS, chunk_id))


def facets_of(metadata: Mapping[str, Any]) -> dict[str, list[Scalar]]:
    """Metadata as flat lists: nested keys joined by dots, lists spread, None left out.

    {"author": {"name": "Li"}, "tags": ["a", "b"]} gives {"author.name": ["Li"], "tags": ["a", "b"]}.
    """
    found: dict[str, list[Scalar]] = {}
    for key, value in _leaves("", metadata):
        found.setdefault(key, []).append(value)
    return found


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Scalar]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InputError(f"metadata{path and '.' + path}: key {key!r} is not text. Use text keys")
            yield from _leaves(f"{path}.{key}" if path else key, item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(path, item)
    elif isinstance(value, str | bool):
        yield path, value
    elif isinstance(value, int | float):
        _check_number(path, value)
        yield path, value
    elif value is not None:
        raise InputError(
            f"metadata.{path}: {value!r} is a {type(value).__name__}; metadata holds text, numbers, truth values, "
            "None, lists and tables of these. Convert it, dates for example to ISO text"
        )


def _check_number(path: str, value: float) -> None:
    try:
        finite = math.isfinite(value)
    except OverflowError:
        finite = False
    if not finite:
        raise InputError(f"metadata.{path}: {value!r} is not a finite 64-bit number. Leave it out or store it as text")


def facet_key(key: str) -> str:
    """A metadata key as letters, digits and underscores, one to one: `author.name` is `author_2e_name`."""
    return re.sub(r"[^A-Za-z0-9]", lambda match: f"_{ord(match[0]):x}_", key)


def to_payload(chunk: Chunk, tokens: int, truncated: bool) -> dict[str, Any]:
    """The payload of a chunk; what cannot be stored is an error that names the chunk."""
    try:
        payload: dict[str, Any] = {name: getattr(chunk, name) for name in _STORED_FIELDS}
        spread = facets_of(chunk.metadata)  # first: it names what JSON cannot hold
        payload["metadata"] = json.dumps(_plain(chunk.metadata), ensure_ascii=False)
        for name in (*TEXT_FIELDS, "text", "metadata"):
            payload[name].encode("utf-8")  # half a surrogate pair is text in Python and nowhere else
        facets: dict[str, dict[str, list[Any]]] = {"text": {}, "number": {}, "truth": {}}
        for key, values in spread.items():
            for value in values:
                for kind, stored in _facets(value):
                    facets[kind].setdefault(facet_key(key), []).append(stored)
    except (InputError, UnicodeEncodeError) as error:
        raise InputError(f"chunk {chunk.id!r}: {error}") from None
    return payload | {"id": chunk.id, "tokens": tokens, "truncated": int(truncated), "facets": facets}


def _facets(value: Scalar) -> Iterator[tuple[str, str | float]]:
    if isinstance(value, bool):
        yield "truth", int(value)
    elif isinstance(value, str):
        yield "text", value
    else:
        yield "number", float(value)
        if (exact := exact_text(value)) is not None:
            yield "text", exact


def exact_text(value: float) -> str | None:
    """A number that engines do not tell from its neighbours, as a text that no metadata has; else None.

    Engines keep numbers as 64-bit floats, some of them but nearly, and ids of 19 digits are common.
    """
    whole = int(value)
    if value != whole:
        return f"\x1f{float(value)!r}"
    return f"\x1f{whole}" if abs(whole) >= EXACT_BELOW else None


def _plain(value: Any) -> Any:
    """Mappings of any kind as dict, for JSON."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def from_payload(payload: Mapping[str, Any]) -> Chunk:
    """The chunk of a payload; tuples in the metadata have become lists."""
    try:
        fields = {name: payload[name] for name in _STORED_FIELDS}
        return Chunk(**fields, metadata=json.loads(payload["metadata"]))
    except (LookupError, TypeError, ValueError) as error:
        raise StoreCorruptError(
            f"a stored chunk is not whole ({error!r}): files of the collection are missing or damaged. "
            "Restore it from a snapshot, or delete it and add the documents again"
        ) from error
