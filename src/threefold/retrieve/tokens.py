"""Which token vector belongs to which characters of a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from threefold.text.protocol import TextEncoder
from threefold.text.tokenizer import Piece, Tokenizer
from threefold.types import Encoded, Floats


class Read(NamedTuple):
    """The tokens of a text that were read, and their vectors; the last row is that of the end token."""

    rows: Floats
    pieces: list[Piece]


def of_queries(encoder: TextEncoder, encoded: Encoded, texts: Sequence[str]) -> list[Read]:
    """The tokens of queries, without the prompt before them."""
    return _read(encoded, texts, encoder.tokenizer, lambda: encoder.encode_queries([""], outputs=("multi",)))


def of_documents(encoder: TextEncoder, encoded: Encoded, texts: Sequence[str]) -> list[Read]:
    """The tokens of documents or chunks, without the prompt before them."""
    return _read(encoded, texts, encoder.tokenizer, lambda: encoder.encode_documents([""], outputs=("multi",)))


def _read(encoded: Encoded, texts: Sequence[str], tokenizer: Tokenizer, empty: Callable[[], Encoded]) -> list[Read]:
    """Tokens and vectors are counted from the end of a text; if that was cut, from its beginning, after the prompt.

    empty  encodes a text that is the prompt alone
    """
    assert encoded.multi is not None  # it was asked for
    found = []
    for i, text in enumerate(texts):
        rows, pieces = encoded.multi[i], tokenizer.pieces(text)
        if encoded.truncated[i]:
            prompt = int(empty().tokens[0]) - tokenizer.overhead
            pieces = pieces[: max(len(rows) - 1 - prompt, 0)]
        found.append(Read(rows[len(rows) - 1 - len(pieces) :], pieces))
    return found
