"""Texts encoded once: equal texts share one row, and rows are kept on disk by what made them.

With a cache folder, trying other weights or depths on the same corpus costs seconds. A cached file is believed only
if the encoder still gives its first text the same representations: a model card does not name prompts. Without one,
`Recent` keeps what the sets of one run have in common, such as the English passages of every xx-en.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from threefold.errors import EvaluationError, StoreError
from threefold.replacing import replacing
from threefold.text.protocol import TextEncoder
from threefold.types import Encoded, Ints, Ragged, Representation, Sparse

Role = Literal["queries", "documents"]

#: Part of every key: a new layout of the files never reads an old one.
_FORMAT = 1
#: Largest difference of a number between two runs of one encoder: what bfloat16 rounds, and less than a prompt moves.
_TOLERANCE = 0.02
#: Bytes that `Recent` keeps.
RECENT_BYTES: Final = 1 << 29


@dataclass(frozen=True, slots=True, eq=False)
class Unique:
    """Representations of n texts of which u are different.

    encoded  of the u different texts, in order of first appearance
    rows     (n,) int64: text i is row rows[i] of `encoded`
    """

    encoded: Encoded
    rows: Ints

    @property
    def truncated(self) -> int:
        """How many of the n texts had more tokens than were read."""
        return int(self.encoded.truncated[self.rows].sum())

    def part(self, texts: range) -> tuple[Encoded, Ints | None]:
        """Representations of consecutive texts, and the row of each (None: text i is row i). Views where possible."""
        if self.distinct:
            return slice_of(self.encoded, texts.start, texts.stop), None
        if len(texts) == len(self.rows):
            return self.encoded, self.rows
        wanted, rows = np.unique(self.rows[texts.start : texts.stop], return_inverse=True)
        return self.encoded.take(wanted), rows

    @property
    def distinct(self) -> bool:
        """Whether no text was given twice, so that `rows` is 0, 1, ..., n - 1."""
        return len(self.encoded) == len(self.rows)


class Recent:
    """What one encoder made of the last lists of texts, in memory; beyond `limit` bytes the oldest are forgotten."""

    def __init__(self, limit: int = RECENT_BYTES) -> None:
        self._limit, self._kept = limit, dict[str, Encoded]()

    def find(self, key: str) -> Encoded | None:
        """What is kept under a `cache_key`; it counts as new again."""
        encoded = self._kept.pop(key, None)
        if encoded is not None:
            self._kept[key] = encoded
        return encoded

    def keep(self, key: str, encoded: Encoded) -> None:
        """Keep it, unless it alone is more than the limit."""
        if _bytes(encoded) <= self._limit:
            self._kept[key] = encoded
            while sum(map(_bytes, self._kept.values())) > self._limit:
                del self._kept[next(iter(self._kept))]


def encode_unique(
    encoder: TextEncoder,
    texts: Sequence[str],
    role: Role,
    outputs: Sequence[Representation],
    *,
    max_tokens: int | None = None,
    cache: Path | None = None,
    recent: Recent | None = None,
) -> Unique:
    """Encode every different text once, or take what was made of this list before: from memory or the cache folder."""
    places: dict[str, int] = {}
    rows = np.array([places.setdefault(text, len(places)) for text in texts], dtype=np.int64)
    different = list(places)
    known = None
    key = cache_key(encoder, different, role, outputs, max_tokens) if cache or recent else ""
    if recent is not None:
        known = recent.find(key)
    if known is None:
        path = cache / f"{key}.npz" if cache else None
        known = _encoded(encoder, different, role, outputs, max_tokens, path)
        if recent is not None:
            recent.keep(key, known)
    return Unique(known, rows)


def _encoded(
    encoder: TextEncoder,
    texts: Sequence[str],
    role: Role,
    outputs: Sequence[Representation],
    max_tokens: int | None,
    path: Path | None,
) -> Encoded:
    """From the file where there is one, else by the encoder and into the file."""
    encode = encoder.encode_queries if role == "queries" else encoder.encode_documents
    if path is not None and path.is_file():
        known = _read(path, len(texts))
        if same_first(known, encode(texts[:1], outputs=outputs, max_tokens=max_tokens)):
            return known
    encoded = encode(texts, outputs=outputs, max_tokens=max_tokens)
    if path is not None:
        _write(path, encoded)
    return encoded


def _bytes(encoded: Encoded) -> int:
    sparse, multi = encoded.sparse, encoded.multi
    size = encoded.tokens.nbytes + encoded.truncated.nbytes
    size += 0 if encoded.dense is None else encoded.dense.nbytes
    size += 0 if sparse is None else sparse.indices.nbytes + sparse.values.nbytes + sparse.offsets.nbytes
    return size + (0 if multi is None else multi.rows.nbytes + multi.offsets.nbytes)


def slice_of(encoded: Encoded, start: int, stop: int) -> Encoded:
    """The texts [start, stop) as views."""
    sparse, multi = encoded.sparse, encoded.multi
    if sparse is not None:
        offsets = sparse.offsets[start : stop + 1]
        span = slice(offsets[0], offsets[-1])
        sparse = Sparse(sparse.indices[span], sparse.values[span], offsets - offsets[0], sparse.vocab)
    if multi is not None:
        offsets = multi.offsets[start : stop + 1]
        multi = Ragged(multi.rows[offsets[0] : offsets[-1]], offsets - offsets[0])
    return Encoded(
        None if encoded.dense is None else encoded.dense[start:stop],
        sparse,
        multi,
        encoded.tokens[start:stop],
        encoded.truncated[start:stop],
    )


def cache_key(
    encoder: TextEncoder,
    texts: Iterable[str],
    role: Role,
    outputs: Sequence[Representation],
    max_tokens: int | None,
) -> str:
    """Hash of everything that decides the numbers, as far as a model card tells."""
    made_by = {
        "format": _FORMAT,
        "card": dataclasses.asdict(encoder.card),
        "role": role,
        "outputs": sorted(outputs),
        "max_tokens": max_tokens,
    }
    digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode())
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:32]


def _write(path: Path, encoded: Encoded) -> None:
    arrays: dict[str, Any] = {"tokens": encoded.tokens, "truncated": encoded.truncated}
    if encoded.dense is not None:
        arrays["dense"] = encoded.dense
    if (sparse := encoded.sparse) is not None:
        arrays |= {"indices": sparse.indices, "values": sparse.values, "terms": sparse.offsets}
        arrays["vocab"] = np.int64(sparse.vocab)
    if (multi := encoded.multi) is not None:
        arrays |= {"multi": multi.rows, "vectors": multi.offsets}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft, draft.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise StoreError(f"{path}: the cache cannot be written: {error.strerror}") from error


def _read(path: Path, n: int) -> Encoded:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            part = {name: file[name] for name in file.files}
        encoded = Encoded(
            part.get("dense"),
            Sparse(part["indices"], part["values"], part["terms"], int(part["vocab"])) if "indices" in part else None,
            Ragged(part["multi"], part["vectors"]) if "multi" in part else None,
            part["tokens"],
            part["truncated"],
        )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise EvaluationError(f"{path}: damaged cache file ({error}); delete it and run again") from error
    if len(encoded) != n:
        raise EvaluationError(f"{path}: the cache file has {len(encoded)} texts, expected {n}; delete it")
    return encoded


def same_first(known: Encoded, again: Encoded) -> bool:
    """Whether the first text of `known` is what the encoder makes of it now."""
    if not len(again):
        return True
    first = known.take([0])
    differences = [np.float32(abs(int(first.tokens[0]) - int(again.tokens[0])))]
    if first.dense is not None and again.dense is not None:
        differences.append(np.abs(first.dense - again.dense).max())
    if first.sparse is not None and again.sparse is not None:
        differences.append(abs(first.sparse.to_scipy() - again.sparse.to_scipy()).max())
    if first.multi is not None and again.multi is not None and len(first.multi.rows) == len(again.multi.rows):
        differences.append(np.abs(first.multi.rows - again.multi.rows).max(initial=0))
    return bool(max(differences) <= _TOLERANCE)
