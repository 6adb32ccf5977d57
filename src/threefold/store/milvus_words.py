"""What we say to Milvus: the two collections of a collection, their rows and the filters.

    papers         one row per chunk: payload, dense and sparse vector, and what filters look at
    papers__parts  what a row has no room for, in pieces of text: token vectors (base64 of `token_bytes`), and texts
                   or metadata of more than 65,535 bytes

    version  of the write, and the first half of the names of its pieces: `version:t0`, `version:x0`
    facts    a digest of every (path, value) that a filter can ask for; equality is "contains"
    low, high  the least and the greatest number of each path; a list has a number above x if its greatest is

An expression says only digests, field names, numbers and texts of harmless characters: how a server reads quotes,
escapes and other alphabets is its own matter, and differs. Nor does it negate a comparison within JSON, where a missing
key is false for some servers and unknown for others: each condition is built with its opposite.
"""

from __future__ import annotations

import json
import math
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from pymilvus import DataType, MilvusClient

from threefold.config import Manifest
from threefold.errors import InputError
from threefold.store.check import stored
from threefold.store.payload import TEXT_FIELDS, point_id
from threefold.store.points import plain_vector
from threefold.store.token_bytes import from_bytes, to_bytes
from threefold.types import Encoded, Representation

#: Most bytes of a text field and of a JSON field (limits of Milvus), and items of an array.
MOST_TEXT, MOST_JSON, MOST_FACTS = 65_535, 65_536, 4_096

#: Characters of a piece: a multiple of 4, so that each is base64 by itself.
PIECE = 65_532

#: Fields of a row that make its payload.
PAYLOAD_FIELDS = ("id", *TEXT_FIELDS, "text", "number", "start", "end", "tokens", "truncated", "metadata")

#: Fields of a row that say where its pieces are.
PLACE_FIELDS = ("point", "version", "texts", "pieces")

#: Fields with an index of exact values. Milvus Lite has none for arrays, and needs none for so few.
INDEXED_FIELDS = ("document_id", "source", "language", "content_hash", "version", "facts")

#: A vector that nobody asks for: each collection of Milvus must have one.
NO_VECTOR = [0.0, 1.0]

_DIGEST_BYTES = 16

#: Said of a path that has a number.
_ANY = "any"

#: Larger and smaller than the number of any chunk, and still 64-bit integers.
_BEYOND = 2**62

_HARMLESS = re.compile(r"[A-Za-z0-9 _./:#@+=,;~!?()<>&*^|$-]*")


def parts_name(name: str) -> str:
    """The collection of the pieces."""
    return f"{name}__parts"


# ---- collections -------------------------------------------------------------------------------------------


def rows_schema(manifest: Manifest) -> Any:
    """The fields of a chunk."""
    schema = _schema("point", 36)
    for name in ("id", *TEXT_FIELDS, "text", "metadata"):
        schema.add_field(name, DataType.VARCHAR, max_length=MOST_TEXT)
    schema.add_field("version", DataType.VARCHAR, max_length=64)
    for name in ("number", "start", "end", "tokens", "truncated", "texts", "pieces"):
        schema.add_field(name, DataType.INT64)
    schema.add_field(
        "facts", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=MOST_FACTS, max_length=2 * _DIGEST_BYTES
    )
    schema.add_field("low", DataType.JSON)
    schema.add_field("high", DataType.JSON)
    for name in searched(manifest):
        if name == "sparse":
            schema.add_field(name, DataType.SPARSE_FLOAT_VECTOR)
        else:
            schema.add_field(name, DataType.FLOAT_VECTOR, dim=manifest.dense_dim if name == "dense" else len(NO_VECTOR))
    return schema


def rows_indexes(manifest: Manifest, *, local: bool) -> Any:
    """That of the server (HNSW, unless it says otherwise) for dense vectors, exact ones for all else.

    Milvus Lite searches dense vectors exactly without any; and one whose file a kill has cut, it cannot open again.
    """
    indexes = MilvusClient.prepare_index_params()
    for name in searched(manifest):
        if name == "sparse":
            indexes.add_index(name, index_name=name, index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
        elif not local:
            indexes.add_index(name, index_name=name, index_type="AUTOINDEX", metric_type="IP")
    for name in () if local else INDEXED_FIELDS:
        indexes.add_index(name, index_name=name, index_type="INVERTED")
    return indexes


def parts_schema() -> Any:
    """The fields of a piece."""
    schema = _schema("part", 96)
    schema.add_field("data", DataType.VARCHAR, max_length=MOST_TEXT)
    schema.add_field("nothing", DataType.FLOAT_VECTOR, dim=len(NO_VECTOR))
    return schema


def parts_indexes(*, local: bool, own: bool) -> Any:
    """What a server asks for before it loads; nobody searches there. Only a server of one's own has a choice."""
    indexes = MilvusClient.prepare_index_params()
    if not local:
        indexes.add_index("nothing", index_name="nothing", index_type="FLAT" if own else "AUTOINDEX", metric_type="IP")
    return indexes


def _schema(key: str, length: int) -> Any:
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field(key, DataType.VARCHAR, is_primary=True, max_length=length)
    return schema


def searched(manifest: Manifest) -> list[str]:
    """The vector fields of a row."""
    return [name for name in stored(manifest) if name != "multi"] or ["nothing"]


# ---- rows --------------------------------------------------------------------------------------------------


def check_fits(payload: Mapping[str, Any]) -> None:
    """Refuse a chunk that has no room in a row."""
    for name in ("id", *TEXT_FIELDS):
        if len(payload[name].encode("utf-8")) > MOST_TEXT:
            raise InputError(
                f"chunk {payload['id']:.80}: its {name} has more than the {MOST_TEXT:,} bytes that Milvus takes. "
                "Shorten it"
            )
    low, high = _bounds(payload)
    facts = _facts(payload)
    if len(facts) > MOST_FACTS or max(len(json.dumps(one)) for one in (low, high)) > MOST_JSON:
        raise InputError(
            f"chunk {payload['id']!r}: its metadata has {len(facts):,} values, {len(low):,} fields of numbers; Milvus "
            f"takes {MOST_FACTS:,}, and {MOST_JSON:,} bytes of the latter. Leave out what no filter needs"
        )


class Row(NamedTuple):
    """What is written for a chunk: a row, and the pieces by their names."""

    row: dict[str, Any]
    pieces: dict[str, str]


def to_row(manifest: Manifest, payload: Mapping[str, Any], vectors: Encoded, i: int, version: str) -> Row:
    """Text i as it is written, with every vector that the collection keeps."""
    row = {name: payload[name] for name in PAYLOAD_FIELDS}
    low, high = _bounds(payload)
    row |= {"point": point_id(payload["id"]), "version": version, "facts": _facts(payload), "low": low, "high": high}
    long: list[str] = []
    if max(len(row[name].encode("utf-8")) for name in ("text", "metadata")) > MOST_TEXT:
        long = _cut(json.dumps([row["text"], row["metadata"]]))  # ASCII: a character is a byte
        row |= {"text": "", "metadata": ""}
    tokens: list[str] = []
    if "multi" in stored(manifest) and vectors.multi is not None:
        tokens = _cut(b64encode(to_bytes(vectors.multi[i], manifest.multi_storage)).decode("ascii"))
    for name in searched(manifest):
        row[name] = NO_VECTOR if name == "nothing" else milvus_vector(_named(name), vectors, i)
    if row.get("sparse") == {}:
        row["sparse"] = {manifest.vocab: 1.0}  # not every server takes an empty one; no query has this term
    row |= {"texts": len(long), "pieces": len(tokens)}
    return Row(row, dict(zip(piece_names(row, "xt"), [*long, *tokens], strict=True)))


def piece_names(row: Mapping[str, Any], kinds: str) -> list[str]:
    """The pieces of a row: of `x`, long texts, or `t`, token vectors."""
    counts = {"x": row["texts"], "t": row["pieces"]}
    return [f"{row['version']}:{kind}{i}" for kind in kinds for i in range(counts[kind])]


def version_of(piece: str) -> str:
    """The write that a piece belongs to."""
    return piece.partition(":")[0]


def written_ms(piece: str) -> int:
    """When that was, in milliseconds since 1970."""
    return int(piece.partition("-")[0], 16)


def piece_row(name: str, data: str) -> dict[str, Any]:
    """What is written for a piece."""
    return {"part": name, "data": data, "nothing": NO_VECTOR}


def to_payload_of(row: Mapping[str, Any], pieces: Mapping[str, str]) -> dict[str, Any]:
    """The payload that a row was made of, but for its facets."""
    payload = {name: row[name] for name in PAYLOAD_FIELDS if name in row}
    if row["texts"] and "text" in row:
        payload["text"], payload["metadata"] = json.loads("".join(pieces[name] for name in piece_names(row, "x")))
    return payload


class SparseVector(NamedTuple):
    """As `unpack` takes it."""

    indices: list[int]
    values: list[float]


def stored_vector(manifest: Manifest, name: Representation, row: Mapping[str, Any], pieces: Mapping[str, str]) -> Any:
    """A vector as it is kept: a list, `SparseVector`, or (t, d) float32."""
    if name == "multi":
        data = b64decode("".join(pieces[one] for one in piece_names(row, "t")))
        return from_bytes(data, manifest.multi_dim, manifest.multi_storage)
    if name == "dense":
        return row["dense"]
    terms = sorted((int(term), weight) for term, weight in row["sparse"].items() if int(term) < manifest.vocab)
    return SparseVector([term for term, _ in terms], [weight for _, weight in terms])


def milvus_vector(representation: Representation, vectors: Encoded, i: int) -> Any:
    """One vector of text i, as it is searched with: (d,) or (t, d) floats, or {term: weight}."""
    if representation == "dense":
        return None if vectors.dense is None else vectors.dense[i]
    if representation == "multi":
        return None if vectors.multi is None else vectors.multi[i]
    return plain_vector("sparse", vectors, i, lambda ids, weights: dict(zip(ids, weights, strict=True)))


def sent_bytes(row: Mapping[str, Any]) -> int:
    """The most bytes that a row takes in a call: its texts, and 48 for anything else."""
    texts = sum(len(value.encode("utf-8")) for value in row.values() if isinstance(value, str))
    items = sum(1 if isinstance(value, int) else len(value) for value in row.values() if not isinstance(value, str))
    return texts + 48 * items


def _named(name: str) -> Representation:
    return "dense" if name == "dense" else "sparse"


def _cut(text: str) -> list[str]:
    return [text[start : start + PIECE] for start in range(0, len(text), PIECE)]


def _digest(path: str, value: str) -> str:
    return blake2b(f"{path}\x00{value}".encode(), digest_size=_DIGEST_BYTES).hexdigest()


def _key(path: str) -> str:
    """The name of a path in `low` and `high`."""
    return f"k{_digest(path, '')}"


def _facts(payload: Mapping[str, Any]) -> list[str]:
    facts = {_digest(name, payload[name]) for name in TEXT_FIELDS}
    for kind, by_key in payload["facets"].items():
        for key, values in by_key.items():
            path = f"facets.{kind}.{key}"
            facts.update(_digest(path, value if kind == "text" else _said(value)) for value in values)
            if kind == "number":
                facts.add(_digest(path, _ANY))
    return sorted(facts)


def _bounds(payload: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """The least and the greatest number of each path."""
    numbers = {_key(f"facets.number.{key}"): values for key, values in payload["facets"]["number"].items()}
    return {key: min(values) for key, values in numbers.items()}, {key: max(values) for key, values in numbers.items()}


def _said(number: float) -> str:
    return repr(float(number) + 0.0)  # no negative zero


# ---- filters -----------------------------------------------------------------------------------------------


class Condition(NamedTuple):
    """A condition and its opposite, both without negated comparisons."""

    yes: str
    no: str


NEVER = Condition('point == ""', 'point != ""')


class MilvusWords:
    """Filters as boolean expressions; a `Dialect`."""

    def every(self, parts: list[Condition]) -> Condition:
        if not parts:
            return self.no(NEVER)
        return Condition(_joined("and", [part.yes for part in parts]), _joined("or", [part.no for part in parts]))

    def some(self, parts: list[Condition]) -> Condition:
        return Condition(_joined("or", [part.yes for part in parts]), _joined("and", [part.no for part in parts]))

    def no(self, part: Condition) -> Condition:
        return Condition(part.no, part.yes)

    def text(self, path: str, values: list[str]) -> Condition:
        if not values:
            return NEVER
        if path in TEXT_FIELDS and all(map(_HARMLESS.fullmatch, values)):
            return _one_of(path, values)
        return _has([_digest(path, value) for value in values])

    def number(self, path: str, bounds: Mapping[str, float]) -> Condition:
        if path == "number":
            return _chunk_number(bounds)
        if len(bounds) == 2:  # of equals: `translate` says nothing else with two
            return _has([_digest(path, _said(bounds["gte"]))])
        ((operator, bound),) = bounds.items()
        field, says, opposite = {
            "gt": ("high", ">", "<="),
            "gte": ("high", ">=", "<"),
            "lt": ("low", "<", ">="),
            "lte": ("low", "<=", ">"),
        }[operator]
        value = f'{field}["{_key(path)}"]'
        none = _has([_digest(path, _ANY)]).no
        return Condition(f"{value} {says} {_said(bound)}", f"({none} or {value} {opposite} {_said(bound)})")


def _chunk_number(bounds: Mapping[str, float]) -> Condition:
    """Of the field `number`, which is whole."""
    yes, no = [], []
    for operator, bound in bounds.items():
        whole = math.ceil(bound) if operator in ("gte", "lt") else math.floor(bound)
        whole = max(-_BEYOND, min(_BEYOND, whole))
        says, opposite = {"gt": (">", "<="), "gte": (">=", "<"), "lt": ("<", ">="), "lte": ("<=", ">")}[operator]
        yes.append(f"number {says} {whole}")
        no.append(f"number {opposite} {whole}")
    return Condition(_joined("and", yes), _joined("or", no))


def _has(digests: Sequence[str]) -> Condition:
    one = f'array_contains(facts, "{digests[0]}")'
    says = one if len(digests) == 1 else f"array_contains_any(facts, {_listed(digests)})"
    return Condition(says, f"(not {says})")


def _one_of(field: str, values: Sequence[str]) -> Condition:
    return Condition(f"{field} in {_listed(values)}", f"{field} not in {_listed(values)}")


def one_of(field: str, values: Sequence[str]) -> str:
    """The rows whose field is one of these, which are of digits, letters and hyphens."""
    return _one_of(field, values).yes


def _listed(values: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{value}"' for value in values) + "]"


def _joined(word: str, parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else "(" + f" {word} ".join(parts) + ")"
