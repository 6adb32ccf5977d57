"""Files of training data -> records with their places: JSON lines, csv and tsv, plain or packed by gzip or xz.

Streamed. Everything that is wrong is a `DataError` that names file and line; nothing is guessed or skipped.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from threefold.errors import DataError
from threefold.replacing import replacing

#: `.json` is read as JSON lines too, as the community's trainers write it.
SUFFIXES = (".jsonl", ".ndjson", ".json", ".tsv", ".csv")
_PACKED = {".gz": gzip.open, ".xz": lzma.open}
#: Longest field of a csv file in characters: the largest value that every platform's C long can hold.
_FIELD_LIMIT = 2**31 - 1

#: "file.jsonl:12" and the record of that line.
Record = tuple[str, Mapping[str, Any]]


def is_data(path: Path) -> bool:
    """Whether the name is that of a file that `records` reads."""
    return _format(path) in SUFFIXES


def stem(path: Path) -> str:
    """The name up to its first dot: `squad` for `squad.jsonl.xz`."""
    return path.name.split(".")[0] or path.name


def records(path: Path, columns: Sequence[str]) -> Iterator[Record]:
    """Every record of a file. `columns` are the names that the first line of a table may hold."""
    form = _format(path)
    if form not in SUFFIXES:
        raise DataError(f"{path}: not a file of training data; expected {', '.join(SUFFIXES)}, or these with .gz, .xz")
    if form in (".tsv", ".csv"):
        return _table(path, form, columns)
    return _json_lines(path)


def write_records(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write JSON lines, packed as the name says; returns their number. The file appears when it is complete."""
    count = 0
    try:
        with replacing(path) as draft, _written(draft, path.suffix.lower()) as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
                count += 1
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
    return count


@contextlib.contextmanager
def _written(path: Path, suffix: str) -> Iterator[IO[str]]:
    """A file to write text into, packed as `suffix` says. Equal texts are equal bytes: no time or name is packed."""
    with contextlib.ExitStack() as stack:
        file: Any = stack.enter_context(path.open("wb"))
        if suffix == ".gz":
            file = stack.enter_context(gzip.GzipFile("", "wb", fileobj=file, mtime=0))
        elif suffix == ".xz":
            file = stack.enter_context(lzma.open(file, "wb"))
        yield stack.enter_context(io.TextIOWrapper(file, encoding="utf-8", newline="\n"))


def text_lines(path: Path) -> Iterator[tuple[str, str]]:
    """(place, line) of every line that is not blank."""
    return ((f"{path}:{number}", line.rstrip("\r\n")) for number, line in _lines(path) if line.strip())


def _format(path: Path) -> str:
    return Path(path.stem).suffix.lower() if path.suffix.lower() in _PACKED else path.suffix.lower()


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text with its line end) of every line."""
    opened: Any = _PACKED.get(path.suffix.lower(), open)
    try:
        with opened(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path}:{number}: not UTF-8: {error.reason} at byte {error.start} of the line. "
                        "Save the file as UTF-8"
                    ) from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _json_lines(path: Path) -> Iterator[Record]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected one object per line, got {type(row).__name__}")
        yield where, row


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _table(path: Path, form: str, columns: Sequence[str]) -> Iterator[Record]:
    """A first line of known names is a header; without one there are two columns, query and positive."""
    names: list[str] = []
    for where, cells in _cells(path, form):
        if not any(cell.strip() for cell in cells):
            continue
        if not names:
            header = _header(cells, columns, where)
            names = header or ["query", "positive"]
            if header:
                continue
        if len(cells) != len(names):
            raise DataError(f"{where}: {len(cells)} columns, expected {len(names)}: {', '.join(names)}")
        yield where, {name: cell for name, cell in zip(names, cells, strict=True) if cell}


def _header(cells: Sequence[str], columns: Sequence[str], where: str) -> list[str]:
    """The names of a first line that has nothing but known names, in any case; [] for a first record."""
    names = [cell.strip().lower() for cell in cells]
    if "query" not in names or not set(names) <= set(columns):
        return []
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{where}: two columns are named {twice[0]!r}; give each a name of its own")
    return names


def _cells(path: Path, form: str) -> Iterator[tuple[str, list[str]]]:
    """(place of its first line, cells) of every record. Without `strict`, an open quote would swallow what follows."""
    csv.field_size_limit(_FIELD_LIMIT)
    quoting: Any = csv.QUOTE_NONE if form == ".tsv" else csv.QUOTE_MINIMAL  # in a tsv, a quote is a quote
    text = (line for _, line in _lines(path))
    reader = csv.reader(text, delimiter="\t" if form == ".tsv" else ",", quoting=quoting, strict=True)
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{where}: {error}, on line {reader.line_num}. A field that begins with a quote ends with one; "
                "inside of it, a quote is written twice"
            ) from error
        yield where, cells
