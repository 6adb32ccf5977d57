"""Text -> sentences: the smallest parts that are worth quoting, with exact character offsets.

A sentence ends where `borders` say so, but for abbreviations; at the end of a paragraph; and before an entry of a list
or a row of a table. What is longer than `MOST` tokens (Thai knows no full stop, source code no sentences) is cut as
chunks are.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Final

from threefold.config import Chunking
from threefold.text.borders import borders_of
from threefold.text.chunks import Span, chunk_spans, trimmed
from threefold.text.tokenizer import Tokenizer

#: Tokens of a part at most, specials included: three times a sentence of XQuAD's English passages.
MOST: Final = 96
#: Entries of lists, rows of tables and headings begin a part.
_ENTRY = re.compile(r"\n[ \t]*+(?=[-*+•·|#]|\d{1,3}[.)][ \t])")
#: Characters of a heading at most: a line of text.
LONGEST_HEADING: Final = 80
_PARAGRAPH_ENDS = re.compile(r"[ \t\r]*+\n[ \t\r]*+\n\s*+\S")
#: A full stop that ends no sentence: after a single letter ("z. B.", "1878 г."), a day ("8. Februar") and what is
#: most often abbreviated in XQuAD's passages in eleven languages.
_ABBREVIATED = re.compile(
    r"(?:^|[\s(])(?:[^\W\d_]|\d{1,2}|St|Dr|Mr|Mrs|Ms|No|vs|cf|ca|etc|Inc|Vol|Mio|bzw|Sr|EE|núm|гг|кв|см|им|млн|μ)\.\s*$"
)
#: Characters before a border that are looked at for one.
_LOOK_BACK: Final = 12


def sentence_spans(text: str, tokenizer: Tokenizer, *, code: bool = False) -> list[Span]:
    """[start, end) of each sentence, in order and without white space around it; none for a text without words."""
    spans = chunk_spans(text, tokenizer, Chunking(MOST, 0), code=True) if code else _sentences(text, tokenizer)
    return [span for span in spans if _has_words(text, span)]


def _sentences(text: str, tokenizer: Tokenizer) -> list[Span]:
    borders = borders_of(text, code=False).sentences
    ends = (at for at in borders if not _ABBREVIATED.search(text, max(at - _LOOK_BACK, 0), at))
    entries = (match.end() for match in _ENTRY.finditer(text))
    edges = sorted({0, *ends, *entries, len(text)})
    spans = [trimmed(text, start, end) for start, end in pairwise(edges)]
    counts = tokenizer.count([text[start:end] for start, end in spans])
    return [part for span, count in zip(spans, counts, strict=True) for part in _parts(text, span, count, tokenizer)]


def is_heading(text: str, span: Span) -> bool:
    """Whether it is a heading of Markdown, or a line by itself above others that ends as no sentence does."""
    words = text[span.start : span.end]
    if words.startswith("#"):
        return True
    if len(words) > LONGEST_HEADING or "\n" in words or not (words[-1].isalnum() or words[-1] in "\"')]”’»"):
        return False
    return _begins_paragraph(text, span.start) and _PARAGRAPH_ENDS.match(text, span.end) is not None


def _begins_paragraph(text: str, at: int) -> bool:
    """Whether a blank line, or nothing, stands before. No character is looked at for more than one place."""
    breaks = 0
    while at > 0 and text[at - 1].isspace():
        at -= 1
        breaks += text[at] == "\n"
    return at == 0 or breaks > 1


def _has_words(text: str, span: Span) -> bool:
    return any(map(str.isalnum, text[span.start : span.end]))


def _parts(text: str, span: Span, count: int, tokenizer: Tokenizer) -> list[Span]:
    if count <= MOST:
        return [span]
    cut = chunk_spans(text[span.start : span.end], tokenizer, Chunking(MOST, 0))
    return [Span(span.start + start, span.start + end) for start, end in cut]
