"""Rows of data files: JSON lines (plain or gzip), Parquet, lines of text. Errors name the place."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from threefold.errors import EvaluationError

#: Rows of a Parquet file that are in memory at a time.
_BATCH = 64  # stories of NarrativeQA have up to two megabytes


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """(place for messages, line) of every line that is not empty; `.gz` is unpacked on the way."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{path}:{number}"
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise EvaluationError(f"{where}: not UTF-8: {error}") from error
                if text.strip():
                    yield where, text
    except (OSError, EOFError, zlib.error) as error:
        raise EvaluationError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(place for messages, parsed line)."""
    for where, line in lines(path):
        try:
            yield where, json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise EvaluationError(f"{where}: not JSON: {error}") from error


def parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place for messages, row) with these columns; "document.id" is a field of a column."""
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            missing = sorted({column.split(".")[0] for column in columns} - set(file.schema_arrow.names))
            if missing:
                raise EvaluationError(f"{path} lacks the column {missing[0]!r}; it has {file.schema_arrow.names}")
            for batch in file.iter_batches(_BATCH, columns=list(columns)):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (OSError, pa.ArrowException) as error:
        raise EvaluationError(f"{path}: cannot be read as Parquet: {error}") from error


def field(row: Any, key: str, where: str) -> str:
    """A text of a row."""
    if not isinstance(row, Mapping) or key not in row:
        raise EvaluationError(f'{where}: expected an object with "{key}", got {str(row)[:80]}')
    if not isinstance(row[key], str):
        raise EvaluationError(f'{where}: "{key}" must be text, got {row[key]!r}')
    return str(row[key])


def optional(row: Any, key: str, where: str) -> str:
    """A text of a row; empty where it is missing or null."""
    return "" if not isinstance(row, Mapping) or row.get(key) is None else field(row, key, where)


def put(texts: dict[str, str], id: str, text: str, where: str) -> None:
    """Add a text under an id that must be new."""
    if id in texts:
        raise EvaluationError(f"{where}: id twice: {id!r}")
    texts[id] = text
