"""Read a sentencepiece unigram model file without the sentencepiece package.

The file is one protobuf message (sentencepiece_model.proto): field 1 repeats the pieces (1 text, 2 score,
3 type), field 3 is the normaliser (2 character map), field 2 the trainer (35 byte fallback).
Knows the wire format of protobuf and nothing else; `tokenizer.py` turns the result into a tokenizer.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from threefold.errors import CheckpointError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(slots=True)
class UnigramModel:
    """Pieces with their log probabilities, in the order of the file, and the character map of the normaliser."""

    pieces: list[tuple[str, float]] = field(default_factory=list)
    character_map: bytes = b""
    byte_fallback: bool = False


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of one message; fixed-width values as their bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(data):
            raise ValueError("truncated message")
        yield number, data[at : at + size]
        at += size


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return value
    raise ValueError("a number where bytes were expected")


def read_unigram(data: bytes, name: str) -> UnigramModel:
    """Parse the content of a `.model` file; `name` is for error messages."""
    model = UnigramModel()
    try:
        for number, value in _fields(data):
            if number == 1:
                piece = dict(_fields(_bytes(value)))
                (score,) = struct.unpack("<f", _bytes(piece.get(2, b"\0\0\0\0")))
                model.pieces.append((_bytes(piece[1]).decode("utf-8"), score))
            elif number == 2:
                model.byte_fallback = bool(dict(_fields(_bytes(value))).get(35, 0))
            elif number == 3:
                model.character_map = _bytes(dict(_fields(_bytes(value))).get(2, b""))
    except (ValueError, IndexError, KeyError, struct.error) as error:
        raise CheckpointError(f"{name} is not a sentencepiece model: {error}") from error
    if not model.pieces:
        raise CheckpointError(f"{name} is not a sentencepiece model: it has no pieces")
    return model
