"""Pairs without labels: a few words cut out of a text, and the text. In every language that has text.

Teaches the sparse and multi heads to match words in languages without questions (the inverse cloze task, Lee et al.
2019, arXiv 1906.00300; crops as in Contriever, Izacard et al. 2022, arXiv 2112.09118). Half of the texts are made of
several lines of the language, so that the words have to be found inside a passage.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from corpus import Pair, read_mono, read_pairs

#: Crops per language: languages with much text, and the others.
MANY, FEW = 900, 150
#: Lines with fewer characters say too little; a language with more lines than this has much text.
SHORTEST, MUCH_TEXT = 40, 2_500
WORDS = (3, 9)
DROPPED = 0.2
LINES = (1, 1, 2, 3, 5, 9)
#: Scripts that do not put spaces between words: characters are cut instead.
UNSPACED = {"zh", "zh-Hant", "ja", "th", "lo", "km", "my", "yue", "bo", "dz", "gan", "wuu", "hak", "cdo"}
LONG_KINDS = {"qa", "heading", "faq"}


def crop_pairs(data: Path, seed: int) -> Iterator[Pair]:
    """For each language a sample of (words, text)."""
    lines: dict[str, list[str]] = defaultdict(list)
    for language, line in read_mono(data):
        if len(line) >= (SHORTEST // 3 if language in UNSPACED else SHORTEST):
            lines[language].append(line)
    passages: dict[str, set[str]] = defaultdict(set)
    for pair in read_pairs(data):
        if pair.kind in LONG_KINDS:
            passages[pair.positive_lang].add(pair.positive)
    rng = random.Random(seed)
    for language in sorted(lines):
        texts, wanted = lines[language], MANY if len(lines[language]) > MUCH_TEXT else FEW
        own = sorted(passages[language])
        for i in range(wanted):
            if own and rng.random() < 0.3:
                text = rng.choice(own)
            else:
                text = " ".join(rng.sample(texts, min(rng.choice(LINES), len(texts))))
            words = crop(text, language, rng)
            if words:
                yield Pair(words, text, language, language, "crop", "crop", f"{language}-{i}")


def crop(text: str, language: str, rng: random.Random) -> str:
    """Neighbouring words, some of them left out; characters where words are not marked."""
    if language in UNSPACED:
        size = rng.randint(6, 24)
        start = rng.randrange(max(1, len(text[:250]) - size))
        return text[start : start + size]
    words = text.split()[:120]
    size = rng.randint(*WORDS)
    start = rng.randrange(max(1, len(words) - size))
    return " ".join(word for word in words[start : start + size] if rng.random() >= DROPPED)
