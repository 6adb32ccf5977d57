"""Bytes of a file -> text. Wrong bytes are an error that names the file and the byte; nothing is guessed.

Read are UTF-8 (with or without a byte order mark) and UTF-16 with a byte order mark.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from threefold.errors import DocumentError

#: How much of a file decides whether it is binary.
SNIFF_BYTES = 8192

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def has_mark(data: bytes) -> bool:
    """Whether the text begins with the byte order mark of UTF-8 or UTF-16."""
    return data.startswith((codecs.BOM_UTF8, *_UTF16))


def is_binary(head: bytes) -> bool:
    """Whether a file that begins with these bytes is binary: a NUL in the first 8 KiB, and not UTF-16."""
    if head.startswith(codecs.BOM_UTF32_LE):  # begins like UTF-16, and no file of text is written so
        return True
    return not head.startswith(_UTF16) and b"\0" in head[:SNIFF_BYTES]


def decode(data: bytes, name: str) -> str:
    """The text of a whole file; `name` is for messages. NUL and lone surrogates stay (see `characters.clean`)."""
    if data.startswith(_UTF16):
        return _decode(data, "utf-16", "UTF-16", name, 0)
    return _decode(data.removeprefix(codecs.BOM_UTF8), "utf-8", "UTF-8", name, _bom_length(data))


def read_text(path: Path) -> str:
    """The text of a file, with line ends as they are."""
    return decode(path.read_bytes(), str(path))


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a file with their ends, in bounded memory (UTF-16 is read whole)."""
    with path.open("rb") as file:
        yield from lines_of(file, str(path))


def lines_of(file: BinaryIO, name: str) -> Iterator[str]:
    """`read_lines` of what is open, which may be a pipe; `name` is for messages."""
    at = 0
    for line in file:
        if not at and line.startswith(_UTF16):
            yield from io.StringIO(decode(line + file.read(), name))
            return
        start = 0 if at else _bom_length(line)
        yield _decode(line[start:], "utf-8", "UTF-8", name, at + start)
        at += len(line)


def _bom_length(head: bytes) -> int:
    return len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0


def _decode(data: bytes, codec: str, shown: str, name: str, offset: int) -> str:
    try:
        return data.decode(codec)
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"{name} is not valid {shown}: {error.reason} at byte {error.start + offset:,}. Save it as UTF-8"
        ) from error
