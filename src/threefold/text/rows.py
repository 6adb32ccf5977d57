"""Files of records -> one record per row: csv, tsv, jsonl, json. Rows are streamed; only json is read whole.

A bad row is a `BadRow` in its place and the rows after it still come, unless its bytes are not text at all: what
follows might be anything, and the error says where. Fields of csv and tsv stay text.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from threefold.errors import DocumentError
from threefold.text.decode import read_lines, read_text

ROW_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")

#: Longest field of a csv file in characters: the largest value that every platform's C long can hold.
_FIELD_LIMIT = 2**31 - 1


class BadRow(NamedTuple):
    """A row that cannot be read, and why."""

    reason: str


Row = Mapping[str, Any] | BadRow


def read_rows(path: Path, text_field: str) -> Iterator[tuple[int, Row]]:
    """(row number from 1, record) of every row that is not blank."""
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _read_table(path, "\t" if suffix == ".tsv" else ",", text_field)
    if suffix == ".json":
        return _read_json(path, text_field)
    return _read_json_lines(path)


def scalar(value: Any, field: str) -> Any:
    """The value of a field that is to become text; a list or a record would become how Python writes it."""
    if isinstance(value, dict | list):
        raise DocumentError(f"the field {field!r} is neither text nor a number")
    return value


def _read_table(path: Path, delimiter: str, text_field: str) -> Iterator[tuple[int, Row]]:
    rows = _cells(path, delimiter)
    header = _header(path, next(rows, []), text_field)
    for number, fields in enumerate(rows, start=1):
        if isinstance(fields, BadRow):
            yield number, fields
        elif len(fields) == len(header):
            yield number, dict(zip(header, fields, strict=True))
        else:
            yield number, BadRow(f"the row has {len(fields)} fields, the header has {len(header)}")


def _header(path: Path, fields: list[str] | BadRow, text_field: str) -> list[str]:
    if isinstance(fields, BadRow):
        raise DocumentError(f"{path}: {fields.reason}")
    header = [name.strip() for name in fields]
    if header and text_field not in header:
        lacks = f"{path} has no column {text_field!r}; "
        for mark, shown in ((";", "';'"), ("\t", "tabs")):
            if len(header) == 1 and mark in header[0]:
                raise DocumentError(f"{lacks}it is separated by {shown}: save it with commas, or with tabs as .tsv")
        raise DocumentError(
            f"{lacks}its columns are {', '.join(header)}. Name the one that holds the text: text_field (--text-field)"
        )
    twice = sorted(name for name, count in Counter(header).items() if name and count > 1)
    if twice:
        raise DocumentError(f"{path} has more than one column {twice[0]!r}; give each a name of its own")
    return header


def _cells(path: Path, delimiter: str) -> Iterator[list[str] | BadRow]:
    """The fields of every row that is not blank. Without `strict`, an open quote would swallow all rows after it."""
    csv.field_size_limit(_FIELD_LIMIT)
    last = ""

    def lines() -> Iterator[str]:
        nonlocal last
        for part in read_lines(path):
            for line in io.StringIO(part, newline=""):  # "\r" ends a row as well, or csv raises at what follows it
                last = line
                yield line

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    while True:
        first = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if reader.line_num > first:  # which of these lines are rows, nobody can tell
                raise DocumentError(
                    f"{path}, line {first}: {error}, on line {reader.line_num}. A field that begins with a quote ends "
                    "with one; inside of it, a quote is written twice"
                ) from error
            if last.count('"') % 2:
                yield BadRow(f"line {first}: {error}")
            else:  # a quoted word at the beginning of a field, as people write it: "foo" bar
                yield from csv.reader([last], delimiter=delimiter)
            continue
        if fields:
            yield fields


def _read_json_lines(path: Path) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            yield number, _record(_parse(line))
        except (ValueError, RecursionError) as error:
            yield number, BadRow(f"the line is not JSON: {error}")


def _read_json(path: Path, text_field: str) -> Iterator[tuple[int, Row]]:
    try:
        data = _parse(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{path} is not JSON: {error}") from error
    if isinstance(data, dict) and text_field in data:
        data = [data]
    if not isinstance(data, list):
        raise DocumentError(f"{path} is neither a list of records nor a record with the field {text_field!r}")
    for number, item in enumerate(data, start=1):
        yield number, _record(item)


def _parse(text: str) -> Any:
    """JSON as the standard has it: NaN and Infinity, which Python would read, are refused."""
    return json.loads(text, parse_constant=_refuse)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _record(item: Any) -> Row:
    return item if isinstance(item, dict) else BadRow(f"the row is not a record but {type(item).__name__}")
