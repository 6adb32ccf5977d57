"""Document -> chunks: pieces of it under a token budget, with exact character offsets.

Cuts are made at headings always, and where the budget demands it at the best border within reach: paragraph, then
sentence, then line, then word, then token. Knows the tokenizer's count; knows nothing of vectors.

Own code, because offsets must be exact, a document must be tokenized as a whole (chonkie and semantic-text-splitter
count every candidate piece anew), and the budget must hold for the chunk's text alone, specials included.

A document is tokenized once for the borders, and its chunks once more to prove that they fit: a cut inside a word
may change how its rest is tokenized. The text of a chunk does not contain the title; callers who want it in the
vector put it there.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from threefold.config import Chunking
from threefold.errors import ConfigError
from threefold.text.borders import Borders, borders_of, is_code
from threefold.text.tokenizer import Tokenizer
from threefold.types import Chunk, Document, Ints

#: A border of this level is taken only if the chunk is then at least so full; else a lower level is tried.
#: Levels are those of `Borders`: paragraph, sentence, line, word (code: definition, paragraph, line, word).
#: Tried on prose with headings over long paragraphs: without it a heading stands alone in its chunk.
FULL_ENOUGH = (0.5, 0.25, 0.25, 0.0)

#: When a chunk turns out too long, it is cut again with this part of the budget, and so on.
_TIGHTER = 0.8


class Span(NamedTuple):
    """Characters [start, end) of a text."""

    start: int
    end: int


def chunk_document(document: Document, tokenizer: Tokenizer, chunking: Chunking) -> list[Chunk]:
    """The chunks of a document, in order; none for a text without visible characters.

    No chunk has more than `chunking.max_tokens` tokens, but for a single character that has more by itself
    (U+FDFA is written out as 18 letters).
    """
    spans = chunk_spans(document.text, tokenizer, chunking, code=is_code(document.source))
    return [
        Chunk(
            document.id,
            number,
            start,
            end,
            document.text[start:end],
            document.source,
            document.title,
            document.language,
            document.metadata,
            document.content_hash,
        )
        for number, (start, end) in enumerate(spans)
    ]


def chunk_spans(text: str, tokenizer: Tokenizer, chunking: Chunking, *, code: bool = False) -> list[Span]:
    """Where the chunks of a text are. Without overlap they cover each visible character exactly once."""
    if chunking.max_tokens <= tokenizer.overhead:
        raise ConfigError(
            f"max_tokens must be above the {tokenizer.overhead} special tokens; got {chunking.max_tokens}"
        )
    whole = trimmed(text, 0, len(text))
    if whole.start == whole.end:
        return []
    pieces = tokenizer.pieces(text[whole.start : whole.end])
    starts = np.fromiter((piece.start + whole.start for piece in pieces), np.int64, len(pieces))
    borders = borders_of(text, code=code)
    if not borders.sections and len(pieces) + tokenizer.overhead <= chunking.max_tokens:
        return [whole]
    room = chunking.max_tokens - tokenizer.overhead
    cutter = _Cutter(text, np.sort(starts), borders, room, min(chunking.overlap, room - 1))
    spans = cutter.cut(whole)
    while (proven := _advancing(text, _proven(cutter, spans, tokenizer, chunking.max_tokens))) != spans:
        spans = proven
    return spans


def _proven(cutter: _Cutter, spans: list[Span], tokenizer: Tokenizer, max_tokens: int) -> list[Span]:
    """The spans, those that are too long when they stand alone cut again."""
    counts = tokenizer.count([cutter.text[start:end] for start, end in spans])
    if (counts <= max_tokens).all():
        return spans
    proven: list[Span] = []
    tighter = cutter.tighter()
    for span, count in zip(spans, counts, strict=True):
        if count <= max_tokens or span.end - span.start == 1:
            proven.append(span)
        else:
            parts = tighter.cut(span)
            proven += _proven(tighter, parts if len(parts) > 1 else _halves(cutter.text, span), tokenizer, max_tokens)
    return proven


def _advancing(text: str, spans: list[Span]) -> list[Span]:
    """Each span begins and ends after the one before. An overlapping chunk that was cut again can break this: the
    next one then gives up its overlap."""
    kept: list[Span] = []
    for span in spans:
        if kept and span.start <= kept[-1].start:
            span = trimmed(text, min(kept[-1].end, span.end), span.end)
        if span.start < span.end and (not kept or span.end > kept[-1].end):
            kept.append(span)
    return kept


def _halves(text: str, span: Span) -> list[Span]:
    """One token of the document that is too long when it stands alone: cut it by characters."""
    middle = (span.start + span.end) // 2
    return [
        part for part in (trimmed(text, span.start, middle), trimmed(text, middle, span.end)) if part.start < part.end
    ]


def trimmed(text: str, start: int, end: int) -> Span:
    """[start, end) without white space at both ends."""
    part = text[start:end]
    return Span(start + len(part) - len(part.lstrip()), start + len(part.rstrip())) if part.strip() else Span(end, end)


@dataclass(frozen=True, slots=True)
class _Cutter:
    """One text, the characters at which its tokens begin, its borders, and how many tokens go into a chunk."""

    text: str
    tokens: Ints
    borders: Borders
    room: int
    overlap: int

    def tighter(self) -> _Cutter:
        room = min(int(self.room * _TIGHTER), self.room - 1)
        return _Cutter(self.text, self.tokens, self.borders, max(room, 1), 0)

    def cut(self, span: Span) -> list[Span]:
        """Sections begin a chunk; within one, chunks are filled from the front."""
        first, last = bisect_right(self.borders.sections, span.start), bisect_left(self.borders.sections, span.end)
        edges = pairwise([span.start, *self.borders.sections[first:last], span.end])
        return [chunk for a, b in edges for chunk in self._cut_section(trimmed(self.text, a, b))]

    def _cut_section(self, section: Span) -> list[Span]:
        chunks: list[Span] = []
        start = at = section.start  # the chunk begins at `start`; everything before `at` is in an earlier chunk
        while at < section.end:
            end = self._end(start, section.end)
            if end <= at and start < at:  # the overlap left no room for anything new
                start = at
                continue
            chunks.append(trimmed(self.text, start, end))
            at = trimmed(self.text, end, section.end).start
            start = self._step_back(chunks[-1], at)
        return chunks

    def _end(self, start: int, stop: int) -> int:
        """Where the chunk that begins at `start` ends: the best border within reach."""
        first = bisect_left(self.tokens, start)
        cut_word = start > 0 and not self.text[start - 1].isspace()
        room = max(self.room - cut_word, 1)  # a word that is cut may need a token for its new beginning
        if first + room >= bisect_left(self.tokens, stop):
            return stop
        limit = max(int(self.tokens[first + room]), start + 1)
        for level, full in zip(self.borders.levels, FULL_ENOUGH, strict=True):
            border = _last(level, start, limit)
            if border and bisect_left(self.tokens, border) - first >= full * room:
                return border
        return limit

    def _step_back(self, chunk: Span, at: int) -> int:
        """Where the next chunk begins: `at`, or sentences earlier, as many as fit into the overlap."""
        if not self.overlap:
            return at
        last = bisect_left(self.tokens, at)
        sentences = self.borders.sentences
        for border in sentences[bisect_right(sentences, chunk.start) : bisect_left(sentences, at)]:
            if last - bisect_left(self.tokens, border) <= self.overlap:
                return border
        return at


def _last(level: Sequence[int], start: int, limit: int) -> int:
    """The last border in (start, limit], or 0."""
    found = bisect_right(level, limit) - 1
    return level[found] if found >= 0 and level[found] > start else 0
