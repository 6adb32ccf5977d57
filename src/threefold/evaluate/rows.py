"""Rows of data files: JSON lines (plain or gzip), Parquet, lines of text. Errors name the place.

Texts are read as everywhere in threefold: NUL and lone surrogates become U+FFFD. Ids stay what they are, so one with a
lone surrogate, which no file and no judge of runs can hold, is refused.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from threefold.characters import clean
from threefold.errors import EvaluationError
from threefold.evaluate.measures import MAX_GRADE, unwritable

#: Rows of a Parquet file that are in memory at a time.
_BATCH = 64  # stories of NarrativeQA have up to two megabytes
#: Digits of a grade at most, leading zeros among them: int() refuses thousands.
_LONGEST = 1_000
_WHOLE = re.compile(r"[+-]?\d+")


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
        yield where, parsed(line, where)


def parsed(line: str, where: str) -> Any:
    """One line of JSON. NaN stays legal: tables that were written by Python have it in fields that nobody reads."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a ValueError
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
    """A text of a row, cleaned."""
    return clean(_string(row, key, where))


def identifier(row: Any, key: str, where: str) -> str:
    """An id of a row."""
    return checked_id(_string(row, key, where), where)


def checked_id(id: str, where: str) -> str:
    """The id, if it can be written."""
    if unwritable(id):
        raise EvaluationError(f"{where}: the id {id!r} has half a character (a lone surrogate); write it as UTF-8")
    return id


def read_grade(text: str, where: str, what: str = "grade") -> int:
    """A judgement, from its text."""
    if not _WHOLE.fullmatch(text):
        raise EvaluationError(f"{where}: the {what} must be a whole number, got {text[:60]!r}")
    if len(text) > _LONGEST or abs(int(text)) > MAX_GRADE:
        raise EvaluationError(f"{where}: the {what} must be at most {MAX_GRADE:,} on either side of 0, got {text[:60]}")
    return int(text)


def optional(row: Any, key: str, where: str) -> str:
    """A text of a row; empty where it is missing or null."""
    return "" if not isinstance(row, Mapping) or row.get(key) is None else field(row, key, where)


def put(texts: dict[str, str], id: str, text: str, where: str) -> None:
    """Add a text under an id that must be new."""
    if id in texts:
        raise EvaluationError(f"{where}: id twice: {id!r}")
    texts[id] = text


def _string(row: Any, key: str, where: str) -> str:
    if not isinstance(row, Mapping) or key not in row:
        raise EvaluationError(f'{where}: expected an object with "{key}", got {str(row)[:80]}')
    if not isinstance(row[key], str):
        raise EvaluationError(f'{where}: "{key}" must be text, got {row[key]!r}')
    return str(row[key])
