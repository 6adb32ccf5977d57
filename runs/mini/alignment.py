"""Which English pieces translate a piece, from pairs of sentences: IBM model 1 in both directions.

Brown et al. 1993, "The Mathematics of Statistical Machine Translation", section 4.3, by expectation maximisation over
sets of pieces; the product of both directions keeps what they agree on (Liang et al. 2006, "Alignment by Agreement",
is the same idea inside the loop). Against one pass of co-occurrence, EM takes away what frequent words owe to being
everywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from threefold.text.tokenizer import Tokens
from threefold.types import Ints

ROUNDS = 6
#: Pairs with more pieces on one side say little about single words.
LONGEST = 40


def translations(foreign: Tokens, english: Tokens, vocab: int, known: NDArray[np.bool_]) -> csr_array:
    """(vocab, vocab) agreement of each foreign piece (row) with each English piece (column), from pairs of texts.

    known  (vocab,) English pieces that may translate something
    """
    left, right, owner = _links(foreign, english, vocab, known)
    print(f"{len(left):,} links", flush=True)
    pairs, link = _numbered(left * vocab + right)
    rows, columns = pairs // vocab, pairs % vocab
    forward = _model_1(link, rows, owner * vocab + right, len(pairs))
    backward = _model_1(link, columns, owner * (vocab + 1) + left, len(pairs))
    kept = rows < vocab  # the last row is the empty word, which takes what nothing translates
    return csr_array(((forward * backward)[kept], (rows[kept], columns[kept])), shape=(vocab, vocab))


def _links(foreign: Tokens, english: Tokens, vocab: int, known: NDArray[np.bool_]) -> tuple[Ints, Ints, Ints]:
    """Every (foreign piece, English piece, pair) of every pair of texts, the empty word (id `vocab`) included."""
    lefts, rights, owners = [], [], []
    longest = np.maximum(foreign.lengths, english.lengths)
    for i in np.flatnonzero(longest <= LONGEST):
        left = np.append(np.unique(foreign[i][1:-1]), vocab)
        right = np.unique(english[i][1:-1])
        right = right[known[right]]
        lefts.append(np.repeat(left, len(right)))
        rights.append(np.tile(right, len(left)))
        owners.append(np.full(len(left) * len(right), i))
    return tuple(np.concatenate(part).astype(np.int64) for part in (lefts, rights, owners))  # type: ignore[return-value]


def _numbered(keys: Ints) -> tuple[Ints, NDArray[np.int32]]:
    """Distinct keys, and for each key which of them it is."""
    distinct, number = np.unique(keys, return_inverse=True)
    return distinct, number.astype(np.int32)


def _model_1(link: Ints, given: Ints, explained: Ints, size: int) -> NDArray[np.float64]:
    """(size,) p(explained piece | given piece) of each pair of pieces.

    link       (l,) which pair of pieces each link is
    given      (size,) the piece of each pair that the probabilities are given
    explained  (l,) the occurrence that each link may explain: its links share one unit of count
    """
    _, occurrence = _numbered(explained)
    probability = np.ones(size)
    for _ in range(ROUNDS):
        weight = probability[link]
        weight /= np.bincount(occurrence, weight)[occurrence]
        count = np.bincount(link, weight, minlength=size)
        probability = count / np.bincount(given, count)[given]
    return probability
