"""The teacher of threefold-mini: the dense vectors of multilingual-e5-small with its whole vocabulary, remembered.

What they say about the language of a text is taken from them: the main directions in which the mean vectors of
languages differ for sentences that say the same (Yang et al. 2021, arXiv 2109.04727). In a collection of many languages
E5 finds texts in the language of the question first; without these directions it hardly does, and loses little
elsewhere (docs/log.md).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from corpus import read_pairs
from vocabulary import LANGUAGES

from threefold.encoder.encoder import Encoder
from threefold.types import Floats

MAX_TOKENS, WIDTH = 256, 384
#: Directions taken away, and the sentences read in each language.
DIRECTIONS, SENTENCES = 16, 60
FILE = "languages.npy"


class Teacher:
    """Unit vectors (n, WIDTH) of texts; each distinct text is read once.

    languages  (DIRECTIONS, WIDTH) orthonormal, taken away from every vector
    """

    def __init__(self, encoder: Encoder, languages: Floats) -> None:
        self.encoder, self.languages = encoder, languages
        self.known: dict[str, Floats] = {}

    @classmethod
    def load(cls, folder: Path) -> Teacher:
        return cls(Encoder(folder, precision="bfloat16"), np.load(folder / FILE))

    def vectors(self, texts: Sequence[str]) -> Floats:
        new = sorted(set(texts) - self.known.keys())
        if new:
            neutral = without(dense(self.encoder, new), self.languages)
            self.known.update(zip(new, neutral.astype(np.float16), strict=True))
        return np.array([self.known[text] for text in texts], np.float32).reshape(len(texts), WIDTH)


def dense(encoder: Encoder, texts: Sequence[str]) -> Floats:
    """(n, WIDTH) unit vectors."""
    found = encoder.encode(list(texts), outputs=("dense",), max_tokens=MAX_TOKENS).dense
    assert found is not None
    return found


def without(vectors: Floats, directions: Floats) -> Floats:
    """Unit vectors that have nothing in these orthonormal directions."""
    rest: Floats = vectors - (vectors @ directions.T) @ directions
    return rest / np.maximum(np.linalg.norm(rest, axis=1, keepdims=True), 1e-9)


def language_directions(encoder: Encoder, data: Path) -> Floats:
    """(DIRECTIONS, WIDTH) in which the languages' mean vectors of the same sentences differ most."""
    said: dict[str, dict[str, str]] = defaultdict(dict)
    for pair in read_pairs(data, "sib200"):
        if pair.query_lang in LANGUAGES:
            said[pair.positive][pair.query_lang] = pair.query
    most = max(map(len, said.values()))
    common = [english for english, known in said.items() if len(known) >= 0.95 * most][:SENTENCES]
    languages = sorted(set.intersection(*(set(said[english]) for english in common)))
    texts = [said[english][language] for language in languages for english in common]
    means = dense(encoder, texts).reshape(len(languages), len(common), WIDTH).mean(axis=1)
    _, _, directions = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)
    print(f"{DIRECTIONS} directions of {len(languages)} languages, {len(common)} sentences each")
    return np.asarray(directions[:DIRECTIONS], np.float32)
