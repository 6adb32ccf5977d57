"""Encoded texts as a Parquet file, written in bounded memory and all or nothing.

    id      string
    text    string
    dense   fixed-size list of float32 (d)
    sparse_indices, sparse_values   lists of int32 and float32 of equal length
    multi   list of fixed-size lists of float16 (k), one per token but the first
    tokens  int32;  truncated  bool

The file's metadata (key `threefold`) names the model, its fingerprint and its sizes. Columns of representations that
were not asked for are absent.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from threefold.characters import clean_value
from threefold.errors import InputError
from threefold.replacing import replacing
from threefold.text.protocol import ModelCard, TextEncoder
from threefold.text.tokenizer import Truncate
from threefold.types import Encoded, Representation

#: Called after each block with (texts, tokens) written so far.
Progress = Callable[[int, int], None]


class Written(NamedTuple):
    """What a file holds."""

    texts: int
    tokens: int
    truncated: int


def write_parquet(
    path: Path,
    rows: Iterable[tuple[str, str]],
    encoder: TextEncoder,
    *,
    outputs: Sequence[Representation] | None = None,
    max_tokens: int | None = None,
    truncate: Truncate = "end",
    block: int = 1_024,
    progress: Progress | None = None,
) -> Written:
    """Encode (id, text) rows into `path`. The file appears when it is complete; an interrupted run leaves none.

    NUL and lone surrogates of ids and texts become U+FFFD before anything is encoded, so that the vectors are those of
    the texts in the file.
    """
    wanted = tuple(outputs) if outputs is not None else encoder.card.representations
    done = Written(0, 0, 0)
    try:
        with (
            replacing(path) as draft,
            pq.ParquetWriter(draft, _schema(encoder.card, wanted), compression="zstd") as writer,
        ):
            for ids, texts in _blocks(rows, block):
                encoded = encoder.encode_documents(texts, outputs=wanted, max_tokens=max_tokens, truncate=truncate)
                writer.write_batch(_record_batch(ids, texts, encoded, writer.schema))
                done = Written(
                    done.texts + len(texts),
                    done.tokens + int(encoded.tokens.sum()),
                    done.truncated + int(encoded.truncated.sum()),
                )
                if progress is not None:
                    progress(done.texts, done.tokens)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error}") from error
    return done


def read_parquet(path: Path) -> tuple[list[str], list[str], Encoded]:
    """Ids, texts and vectors of a file of `write_parquet` (multi vectors stay float16)."""
    try:
        table = pq.read_table(path).combine_chunks()
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    card = _card(path, table.schema)
    try:
        return table["id"].to_pylist(), table["text"].to_pylist(), _encoded(table, card)
    except (LookupError, TypeError, ValueError, AttributeError, pa.ArrowException, InputError) as error:
        raise _other_version(path, error) from error


def read_card(path: Path) -> ModelCard:
    """The model that wrote a file of `write_parquet`."""
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    return _card(path, schema)


def _card(path: Path, schema: pa.Schema) -> ModelCard:
    said = (schema.metadata or {}).get(b"threefold")
    if said is None:
        raise InputError(f"{path} was not written by threefold: it lacks the metadata key 'threefold'")
    try:
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(said).items()}
        card = ModelCard(**settings)
    except (AttributeError, TypeError, ValueError) as error:
        raise _other_version(path, error) from error
    sizes = (card.dense_dim, card.multi_dim, card.vocab, card.max_tokens)
    if not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise _other_version(path, f"sizes {sizes}")
    return card


def _other_version(path: Path, why: Exception | str) -> InputError:
    return InputError(
        f"{path} was written by another version of threefold, or by something else with the metadata key 'threefold' "
        f"({why}). Encode the texts again"
    )


def _encoded(table: pa.Table, card: ModelCard) -> Encoded:
    from threefold.types import Ragged, Sparse, offsets_of

    n = len(table)
    dense = sparse = multi = None
    if "dense" in table.column_names:
        dense = _flat(table, "dense", 1).reshape(n, card.dense_dim)
    if "sparse_indices" in table.column_names:
        lengths = [len(row) for row in table["sparse_indices"]]
        values = _flat(table, "sparse_values", 1)
        sparse = Sparse(_flat(table, "sparse_indices", 1), values, offsets_of(lengths), card.vocab)
    if "multi" in table.column_names:
        lengths = [len(row) for row in table["multi"]]
        multi = Ragged(_flat(table, "multi", 2).reshape(-1, card.multi_dim), offsets_of(lengths))
    return Encoded(dense, sparse, multi, table["tokens"].to_numpy(), table["truncated"].to_numpy())


def _flat(table: pa.Table, column: str, depth: int) -> Any:
    array = pa.chunked_array(table[column].chunks).combine_chunks() if len(table) else table[column].chunk(0)
    for _ in range(depth):
        array = array.flatten()
    return np.asarray(array)


def _blocks(rows: Iterable[tuple[str, str]], size: int) -> Iterator[tuple[list[str], list[str]]]:
    stream = iter(rows)
    while block := list(islice(stream, size)):
        yield clean_value([id for id, _ in block]), clean_value([text for _, text in block])


def _schema(card: ModelCard, wanted: Sequence[Representation]) -> pa.Schema:
    fields: list[Any] = [pa.field("id", pa.string()), pa.field("text", pa.string())]
    if "dense" in wanted:
        fields.append(pa.field("dense", pa.list_(pa.float32(), card.dense_dim)))
    if "sparse" in wanted:
        fields.append(pa.field("sparse_indices", pa.list_(pa.int32())))
        fields.append(pa.field("sparse_values", pa.list_(pa.float32())))
    if "multi" in wanted:
        fields.append(pa.field("multi", pa.list_(pa.list_(pa.float16(), card.multi_dim))))
    fields += [pa.field("tokens", pa.int32()), pa.field("truncated", pa.bool_())]
    return pa.schema(fields, metadata={"threefold": json.dumps(dataclasses.asdict(card))})


def _record_batch(ids: list[str], texts: list[str], encoded: Encoded, schema: pa.Schema) -> pa.RecordBatch:
    columns: list[Any] = [pa.array(ids), pa.array(texts)]
    if encoded.dense is not None:
        columns.append(pa.FixedSizeListArray.from_arrays(pa.array(encoded.dense.ravel()), encoded.dense.shape[1]))
    if encoded.sparse is not None:
        offsets = pa.array(encoded.sparse.offsets.astype(np.int32))
        columns.append(pa.ListArray.from_arrays(offsets, pa.array(encoded.sparse.indices)))
        columns.append(pa.ListArray.from_arrays(offsets, pa.array(encoded.sparse.values)))
    if encoded.multi is not None:
        rows = pa.array(encoded.multi.rows.astype(np.float16).ravel())
        vectors = pa.FixedSizeListArray.from_arrays(rows, encoded.multi.dim)
        columns.append(pa.ListArray.from_arrays(pa.array(encoded.multi.offsets.astype(np.int32)), vectors))
    columns += [pa.array(encoded.tokens.astype(np.int32)), pa.array(encoded.truncated)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
