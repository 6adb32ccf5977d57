"""Vectors of a corpus in files, for corpora whose vectors do not fit in memory: written block by block, read as maps.

A folder of the cache per corpus and model, one raw array per file:

    dense        float32, n rows           tokens, truncated          int32 and uint8, n
    indices      int32, values float32     terms    int32, n: how many of them each text has
    multi        float16, all token rows   vectors  int32, n: how many of them each text has
    state.json   texts that are finished, and the size of every file then

A call that was interrupted goes on after the last finished block. Texts that occur twice are encoded twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from threefold.errors import EvaluationError, StoreError
from threefold.retrieve.encoded import Unique, cache_key, same_first
from threefold.text.protocol import ModelCard, TextEncoder
from threefold.types import Encoded, Ragged, Representation, Sparse, offsets_of

#: Texts between two marks of progress.
BLOCK_TEXTS: Final = 8_192

_TYPES: Final[Mapping[str, Any]] = {
    "dense": np.float32,
    "indices": np.int32,
    "values": np.float32,
    "terms": np.int32,
    "multi": np.float16,
    "vectors": np.int32,
    "tokens": np.int32,
    "truncated": np.uint8,
}


def encode_blocks(
    encoder: TextEncoder,
    texts: Collection[str],
    outputs: Sequence[Representation],
    *,
    max_tokens: int | None,
    cache: Path,
) -> Unique:
    """The documents as maps of files in the cache; encodes what is not there yet."""
    folder = cache / f"{cache_key(encoder, texts, 'documents', outputs, max_tokens)}.blocks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        done = _finished(folder)
        if done < len(texts):
            stream = islice(texts, done, None)
            while block := list(islice(stream, BLOCK_TEXTS)):
                encoded = encoder.encode_documents(block, outputs=outputs, max_tokens=max_tokens)
                done += len(block)
                _append(folder, encoded, done)
    except OSError as error:
        raise StoreError(f"{folder}: the cache cannot be written: {error.strerror}") from error
    known = _open(folder, encoder.card, outputs, len(texts))
    if not same_first(known, encoder.encode_documents(list(islice(texts, 1)), outputs=outputs, max_tokens=max_tokens)):
        raise EvaluationError(f"{folder}: made by this model with other settings; delete it and run again")
    return Unique(known, np.arange(len(texts)))


def _arrays(encoded: Encoded) -> Iterator[tuple[str, Any]]:
    if encoded.dense is not None:
        yield "dense", encoded.dense
    if (sparse := encoded.sparse) is not None:
        yield from (("indices", sparse.indices), ("values", sparse.values), ("terms", np.diff(sparse.offsets)))
    if (multi := encoded.multi) is not None:
        yield from (("multi", multi.rows), ("vectors", multi.lengths))
    yield from (("tokens", encoded.tokens), ("truncated", encoded.truncated))


def _append(folder: Path, encoded: Encoded, done: int) -> None:
    """Add a block to every file, then say that it is there: a kill in between loses the block, nothing else."""
    sizes = {}
    for name, array in _arrays(encoded):
        with (folder / name).open("ab") as file:
            np.ascontiguousarray(array, dtype=_TYPES[name]).tofile(file)
            file.flush()
            os.fsync(file.fileno())
            sizes[name] = file.tell()
    temporary = folder / "state.tmp"
    temporary.write_text(json.dumps({"texts": done, "sizes": sizes}))
    temporary.replace(folder / "state.json")


def _finished(folder: Path) -> int:
    """Texts that are there; cuts off what an interrupted block left behind."""
    path = folder / "state.json"
    if not path.is_file():
        for name in _TYPES:
            (folder / name).unlink(missing_ok=True)
        return 0
    try:
        state = json.loads(path.read_text())
        sizes, done = dict(state["sizes"]), int(state["texts"])
    except (ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{path}: damaged ({error}); delete the folder and run again") from error
    for name, size in sizes.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size < size:
            raise EvaluationError(f"{file}: shorter than {path.name} says; delete the folder and run again")
        os.truncate(file, size)
    return done


def _open(folder: Path, card: ModelCard, outputs: Sequence[Representation], n: int) -> Encoded:
    def array(name: str) -> Any:
        path = folder / name
        if not path.stat().st_size:
            return np.zeros(0, _TYPES[name])
        return np.memmap(path, dtype=_TYPES[name], mode="r")

    dense = array("dense").reshape(-1, card.dense_dim) if "dense" in outputs else None
    sparse = multi = None
    if "sparse" in outputs:
        sparse = Sparse(array("indices"), array("values"), offsets_of(np.asarray(array("terms"))), card.vocab)
    if "multi" in outputs:
        rows = array("multi").reshape(-1, card.multi_dim)
        multi = Ragged(rows, offsets_of(np.asarray(array("vectors"))))
    tokens, truncated = np.asarray(array("tokens")), np.asarray(array("truncated")).astype(np.bool_)
    if len(tokens) != n:
        raise EvaluationError(f"{folder}: has {len(tokens)} texts, expected {n}; delete it and run again")
    return Encoded(dense, sparse, multi, tokens, truncated)
