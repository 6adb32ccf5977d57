"""Encoded texts as Parquet files, each written in bounded memory and all or nothing.

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
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from threefold.characters import clean, clean_value, listed
from threefold.errors import InputError, NumericalError
from threefold.replacing import replacing
from threefold.text.protocol import ModelCard, TextEncoder
from threefold.text.tokenizer import Truncate
from threefold.types import REPRESENTATIONS, Encoded, Ints, Ragged, Representation, Sparse, offsets_of

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


#: What a file with other columns than ours, or damaged ones, comes to.
_ODD = (LookupError, TypeError, ValueError, AttributeError, pa.ArrowException, InputError)
#: Rows of a row group: what a reader of single rows has to read at once (60 MB of token vectors of bge-m3's size).
_GROUP = 128
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
    with _writer(path, _schema(encoder.card, wanted)) as writer:
        for ids, texts in _blocks(rows, block):
            encoded = encode_rows(encoder, ids, texts, outputs=wanted, max_tokens=max_tokens, truncate=truncate)
            writer.write_batch(_record_batch(ids, texts, encoded, writer.schema), _GROUP)
            done = done.plus(_counted(encoded))
            if progress is not None:
                progress(done.texts, done.tokens)
        writer.add_key_value_metadata(_totals(done, source))
    return done


def write_vectors(
    path: str | Path, ids: Sequence[str], texts: Sequence[str], encoded: Encoded, card: ModelCard
) -> None:
    """Vectors that are there already, such as another library's of the same model, into a file of `write_parquet`.

    Ids and texts with NUL or lone surrogates are refused: the vectors would be of other texts than the file has.
    """
    if not len(ids) == len(texts) == len(encoded):
        raise InputError(f"{len(ids)} ids and {len(texts)} texts, but vectors of {len(encoded)}")
    for id, text in zip(ids, texts, strict=True):
        if clean(id) != id or clean(text) != text:
            raise InputError(f"the id {id!r} or its text has NUL or half of a character in it; clean them first")
    wanted = [name for name in REPRESENTATIONS if getattr(encoded, name) is not None]
    _check_sizes(encoded, card)
    _check_numbers(encoded)
    with _writer(Path(path), _schema(card, wanted)) as writer:
        writer.write_batch(_record_batch(list(ids), list(texts), encoded, writer.schema), _GROUP)
        writer.add_key_value_metadata(_totals(_counted(encoded), ""))


@contextmanager
def _writer(path: Path, schema: pa.Schema) -> Iterator[Any]:
    """The file appears when the block ends well."""
    try:
        with replacing(path) as draft:
            with pq.ParquetWriter(draft, schema, compression="zstd") as writer:
                yield writer
            _sync(draft)  # else a power cut could leave a file that has its name and not its contents
    except OSError as error:
        raise InputError(f"cannot write {path}: {error}") from error


def _totals(written: Written, source: str) -> dict[str, str]:
    return {_WRITTEN: json.dumps({**written._asdict(), "source": source})}


def _check_sizes(encoded: Encoded, card: ModelCard) -> None:
    dense, sparse, multi = encoded.dense, encoded.sparse, encoded.multi
    sizes = {
        "dense": (card.dense_dim, card.dense_dim if dense is None else dense.shape[1]),
        "sparse": (card.vocab, card.vocab if sparse is None else sparse.vocab),
        "multi": (card.multi_dim, card.multi_dim if multi is None else multi.dim),
    }
    for name, (ours, theirs) in sizes.items():
        if ours != theirs:
            raise InputError(f"{name} vectors of size {theirs}, but {card.name} has {ours}: they are of another model")


def _check_numbers(encoded: Encoded) -> None:
    """Refuse NaN and infinity, which no collection can search."""
    dense, sparse, multi = encoded.dense, encoded.sparse, encoded.multi
    numbers = {
        "dense": dense,
        "sparse": None if sparse is None else sparse.values,
        "multi": None if multi is None else multi.rows,
    }
    for name, values in numbers.items():
        if values is not None and not np.isfinite(values).all():
            raise InputError(f"the {name} vectors have NaN or infinity among them")


def read_parquet(path: Path) -> tuple[list[str], list[str], Encoded]:
    """Ids, texts and vectors of a file of `write_parquet` (multi vectors stay float16)."""
    try:
        table = pq.read_table(path).combine_chunks()
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    card = _card(path, table.schema)
    try:
        return table["id"].to_pylist(), table["text"].to_pylist(), _encoded(table, card)
    except _ODD as error:
        raise _other_version(path, error) from error


def files_in(place: Path) -> list[Path]:
    """The file, or those of a folder, by name; but for drafts, which are hidden."""
    files = [place]
    if place.is_dir():
        files = sorted(file for file in place.glob("*.parquet") if not file.name.startswith("."))
    if not files:
        raise InputError(f"{place} has no Parquet files")
    return files


class Group(NamedTuple):
    """Some rows of a file that are read together."""

    path: Path
    number: int

    def lengths(self, reader: Reader) -> tuple[list[str], Ints, Any]:
        """Texts of the rows, how many tokens each has, and whether it was cut."""
        table = reader.read(self, ["text", "tokens", "truncated"])
        try:
            texts = listed(table["text"].to_pylist())
            return texts, table["tokens"].to_numpy().astype(np.int64), table["truncated"].to_numpy().astype(bool)
        except _ODD as error:
            raise _other_version(self.path, error) from error

    def vectors(self, reader: Reader, card: ModelCard, wanted: Sequence[Representation]) -> tuple[list[str], Encoded]:
        """Texts and vectors of the rows (multi vectors stay float16)."""
        names = [field.name for field in vector_fields(card, wanted)]
        table = reader.read(self, ["text", *names]).combine_chunks()
        try:
            return table["text"].to_pylist(), _encoded(table, card)
        except _ODD as error:
            raise _other_version(self.path, error) from error


class About(NamedTuple):
    """What a file says of itself: the model that wrote it, the representations that it has, and all of its rows."""

    card: ModelCard
    has: tuple[Representation, ...]
    groups: list[Group]


class Reader:
    """Reads groups. The file of the last one stays open: opening a file reads where each of its groups is."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file: Any = None

    def about(self, path: Path) -> About:
        """A file of `write_parquet`."""
        with self._opened(path) as file:
            schema, groups = file.schema_arrow, file.num_row_groups
        columns = {"dense": "dense", "sparse": "sparse_indices", "multi": "multi"}
        has = tuple(name for name in REPRESENTATIONS if columns[name] in schema.names)
        place = Path(os.path.abspath(path))  # where it stays, whatever the current folder is later
        return About(_card(path, schema), has, [Group(place, number) for number in range(groups)])

    def read(self, group: Group, columns: Sequence[str]) -> pa.Table:
        """The columns of the rows, as they are in the file."""
        with self._opened(group.path) as file:
            return file.read_row_group(group.number, columns=list(columns))

    @contextmanager
    def _opened(self, path: Path) -> Iterator[Any]:
        place = Path(os.path.abspath(path))
        try:
            if self._path != place:
                self._path = None
                self._file, self._path = pq.ParquetFile(place), place
            yield self._file
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"cannot read {path}: {error}") from error


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
    n = len(table)
    dense = sparse = multi = None
    if "dense" in table.column_names:
        dense = _flat(table, "dense", 1).reshape(n, card.dense_dim)
    if "sparse_indices" in table.column_names:
        lengths = _lengths(table, "sparse_indices")
        values = _flat(table, "sparse_values", 1)
        sparse = Sparse(_flat(table, "sparse_indices", 1), values, offsets_of(lengths), card.vocab)
    if "multi" in table.column_names:
        lengths = _lengths(table, "multi")
        multi = Ragged(_flat(table, "multi", 2).reshape(-1, card.multi_dim), offsets_of(lengths))
    return Encoded(dense, sparse, multi, table["tokens"].to_numpy(), table["truncated"].to_numpy())


def _lengths(table: pa.Table, column: str) -> Ints:
    lengths: Ints = pc.list_value_length(table[column]).to_numpy()
    return lengths


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
