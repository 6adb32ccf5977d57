"""Encoded texts as a Parquet file, written in bounded memory and all or nothing.

    id      string
    text    string
    dense   fixed-size list of float32 (d)
    sparse_indices, sparse_values   lists of int32 and float32 of equal length
    multi   list of fixed-size lists of float16 (k), one per token but the first
    tokens  int32;  truncated  bool

The file's metadata (key `threefold`) names the model, its fingerprint and its sizes; the key `threefold.written` has
the totals and what the file was made of. Columns of representations that were not asked for are absent.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from threefold.characters import clean_value
from threefold.errors import InputError, NumericalError
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

    def plus(self, other: Written) -> Written:
        """The totals of both."""
        return Written(*(a + b for a, b in zip(self, other, strict=True)))


#: Key of a file's metadata with its totals.
_WRITTEN = "threefold.written"


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
    source: str = "",
) -> Written:
    """Encode (id, text) rows into `path`. The file appears when it is complete; an interrupted run leaves none.

    NUL and lone surrogates of ids and texts become U+FFFD before anything is encoded, so that the vectors are those of
    the texts in the file.

    source  what the rows are, for `read_written` to say again
    """
    wanted = tuple(outputs) if outputs is not None else encoder.card.representations
    done = Written(0, 0, 0)
    try:
        with replacing(path) as draft:
            with pq.ParquetWriter(draft, _schema(encoder.card, wanted), compression="zstd") as writer:
                for ids, texts in _blocks(rows, block):
                    encoded = encode_rows(encoder, ids, texts, outputs=wanted, max_tokens=max_tokens, truncate=truncate)
                    writer.write_batch(_record_batch(ids, texts, encoded, writer.schema))
                    done = done.plus(_counted(encoded))
                    if progress is not None:
                        progress(done.texts, done.tokens)
                writer.add_key_value_metadata({_WRITTEN: json.dumps({**done._asdict(), "source": source})})
            _sync(draft)  # else a power cut could leave a file that has its name and not its contents
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


def read_written(path: Path) -> tuple[Written, str]:
    """What `write_parquet` said when the file was complete: totals and `source`. Reads the end of the file only."""
    try:
        said = json.loads((pq.read_metadata(path).metadata or {})[_WRITTEN.encode()])
        return Written(said["texts"], said["tokens"], said["truncated"]), str(said["source"])
    except (OSError, pa.ArrowInvalid, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is damaged, or was not written by this version of threefold ({error!r}). Delete it, and the next "
            "run makes it again"
        ) from error


def encode_rows(
    encoder: TextEncoder,
    ids: Sequence[str],
    texts: Sequence[str],
    *,
    outputs: Sequence[Representation],
    max_tokens: int | None = None,
    truncate: Truncate = "end",
) -> Encoded:
    """`encoder.encode_documents`; an error over one of the texts says which, by its id."""

    def encode(some: Sequence[str]) -> Encoded:
        return encoder.encode_documents(some, outputs=outputs, max_tokens=max_tokens, truncate=truncate)

    try:
        return encode(texts)
    except (InputError, NumericalError):
        if _error_over(encode, "") is None:  # else it is over the options, and no text is to blame
            for id, text in zip(ids, texts, strict=True):
                if error := _error_over(encode, text):
                    why = f": {error}".replace(": text 0 has ", " has ", 1)
                    raise type(error)(f"the text with the id {id!r}{why}") from error
        raise


def _error_over(encode: Callable[[Sequence[str]], Encoded], text: str) -> InputError | NumericalError | None:
    try:
        encode([text])
    except (InputError, NumericalError) as error:
        return error
    return None


def vector_fields(card: ModelCard, wanted: Sequence[Representation]) -> list[pa.Field]:
    """The columns that encoding adds to a text."""
    fields: list[Any] = []
    if "dense" in wanted:
        fields.append(pa.field("dense", pa.list_(pa.float32(), card.dense_dim)))
    if "sparse" in wanted:
        fields.append(pa.field("sparse_indices", pa.list_(pa.int32())))
        fields.append(pa.field("sparse_values", pa.list_(pa.float32())))
    if "multi" in wanted:
        fields.append(pa.field("multi", pa.list_(pa.list_(pa.float16(), card.multi_dim))))
    return [*fields, pa.field("tokens", pa.int32()), pa.field("truncated", pa.bool_())]


def vector_columns(encoded: Encoded) -> list[pa.Array]:
    """The values of `vector_fields`."""
    columns: list[Any] = []
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
    return [*columns, pa.array(encoded.tokens.astype(np.int32)), pa.array(encoded.truncated)]


def card_metadata(card: ModelCard) -> dict[str, str]:
    """How a file, or a table, says which model made its vectors."""
    return {"threefold": json.dumps(dataclasses.asdict(card))}


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
    fields = [pa.field("id", pa.string()), pa.field("text", pa.string()), *vector_fields(card, wanted)]
    return pa.schema(fields, metadata=card_metadata(card))


def _record_batch(ids: list[str], texts: list[str], encoded: Encoded, schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(ids), pa.array(texts), *vector_columns(encoded)], schema=schema)


def _counted(encoded: Encoded) -> Written:
    return Written(len(encoded.tokens), int(encoded.tokens.sum()), int(encoded.truncated.sum()))


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
