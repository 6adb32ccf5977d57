"""Words that say what a group of texts is about: class-based TF-IDF, with the model's term weights for counts.

    tf(t, c) * log(1 + A / f(t))        Grootendorst, "BERTopic" (arXiv 2203.05794), equation 2

tf(t, c) is the weight of word t in group c, f(t) its weight in all groups, A the mean weight of all words in a group.
Counts would need lists of stop words for each language; learned weights are small for such words in all of them.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from threefold.errors import ShapeError
from threefold.text.tokenizer import Piece, Tokenizer
from threefold.text.words import is_unspaced
from threefold.types import Sparse

#: Keywords of a group.
TOP = 8
#: Words of a text that count, its heaviest: below these, the words that every text of a language has add up.
PER_TEXT = 12
#: Characters of a text in which words are looked for, ten pages: a book takes seconds.
LONGEST = 20_000
#: Characters of a word: what is longer is a code or a file, and says nothing to people.
WORD = 50

_WORD = re.compile(r"\w")


def keywords(
    tokenizer: Tokenizer, groups: Sequence[Sequence[str]], weights: Sequence[Sparse], top: int = TOP
) -> list[tuple[str, ...]]:
    """The words that set each group apart from the others, best first.

    groups   the texts of each group
    weights  their term weights
    """
    if [len(texts) for texts in groups] != [len(rows) for rows in weights]:
        raise ShapeError("keywords: each group needs as many rows of weights as it has texts")
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    counts = []
    for texts, rows in zip(groups, weights, strict=True):
        total: dict[str, float] = defaultdict(float)
        for i, text in enumerate(texts):
            text = text[:LONGEST]
            for word, weight in _heaviest(words(tokenizer.pieces(text), text, rows.row(i))):
                key = unicodedata.normalize("NFKC", word).casefold()
                total[key] += weight
                spellings[key][word] += 1
        counts.append(total)
    usual = {key: seen.most_common(1)[0][0] for key, seen in spellings.items()}
    return [tuple(usual[key] for key in best[:top]) for best in map(_ranked, ctfidf(counts))]


def _heaviest(weights: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(weights.items(), key=lambda pair: (-pair[1], pair[0]))[:PER_TEXT]


def ctfidf(groups: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """The score of every word in every group, from its weight in each.

    >>> ctfidf([{"a": 1.0}, {"a": 1.0, "b": 2.0}])  # A = (1 + 3) / 2 = 2, f(a) = 2, f(b) = 2
    [{'a': 0.6931471805599453}, {'a': 0.6931471805599453, 'b': 1.3862943611198906}]
    """
    everywhere: dict[str, float] = defaultdict(float)
    for group in groups:
        for word, weight in group.items():
            everywhere[word] += weight
    mean = sum(everywhere.values()) / max(len(groups), 1)
    return [{word: weight * math.log1p(mean / everywhere[word]) for word, weight in group.items()} for group in groups]


def words(pieces: Sequence[Piece], text: str, weights: Mapping[int, float]) -> dict[str, float]:
    """The words of a text, each with the largest weight of its pieces.

    Pieces that touch are one word, but not in scripts without spaces, where a piece is the best word there is.
    """
    found: dict[str, float] = {}
    for start, end, ids in _joined(pieces, text):
        word = text[start:end]
        weight = max((weights.get(id, 0.0) for id in ids), default=0.0)
        if weight > 0 and len(word) <= WORD and sum(map(str.isalnum, word)) > (0 if is_unspaced(word) else 1):
            found[word] = max(weight, found.get(word, 0.0))
    return found


def _joined(pieces: Sequence[Piece], text: str) -> Iterator[tuple[int, int, list[int]]]:
    """(start, end, ids) of every word."""
    start, end, ids = 0, 0, list[int]()
    for piece in pieces:
        left, right = _trimmed(text, piece.start, piece.end)
        if left >= right:
            continue
        joins = ids and left == end and not is_unspaced(text[left:right]) and not is_unspaced(text[end - 1])
        if ids and not joins:
            yield start, end, ids
        if not joins:
            start, ids = left, []
        end = right
        ids.append(piece.id)
    if ids:
        yield start, end, ids


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """A piece without the spaces and signs around it: both end a word."""
    while start < end and not _WORD.match(text[start]):
        start += 1
    while start < end and not _WORD.match(text[end - 1]):
        end -= 1
    return start, end


def _ranked(scores: Mapping[str, float]) -> list[str]:
    return [word for word, _ in sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))]
