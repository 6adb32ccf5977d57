"""Pairs whose query is in one language and whose text is in another, made of what has been translated.

Two kinds: the heading, title or description in one language and the section in another (rows of one group say the
same in many languages); and one sentence in one language and in another the paragraph that it stands in, made of
neighbouring sentences. The second is the inverse cloze task (Lee et al. 2019, arXiv 1906.00300) across languages: no
words are shared, and what has to be found is longer than what it is found by, as with a question and its passage.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
from corpus import Pair
from translate import JOINED

KIND = "crossing"
SECTIONS = {"heading", "faq", "title", "command"}
#: Sources whose neighbouring sentences belong together: stories, documentation, news, chapters.
STORIES = {"asp_stories", "bible", "fastapi_docs", "milvus_docs", "ms_azd", "ms_edgeai", "sib200"}
#: Of the languages that a paragraph has, the part in which it is taken; and how often it is taken in English.
LANGUAGES, ENGLISH = 0.5, 0.3


def crossing_pairs(pairs: Iterable[Pair], seed: int) -> Iterator[Pair]:
    """In random order of languages; the group says which pairs mean the same."""
    rng = random.Random(seed)
    sections: dict[tuple[str, str, str], list[Pair]] = defaultdict(list)
    # by source, English text and language
    sentences: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for pair in pairs:
        if pair.kind in SECTIONS:
            sections[pair.source, pair.kind, pair.group].append(pair)
        elif pair.source in STORIES and (pair.kind, pair.positive_lang) == ("parallel", "en"):
            sentences[pair.source][pair.positive][pair.query_lang] = pair.query
    for same in sections.values():
        yield from across(same, rng)
    for source, translated in sentences.items():
        yield from inside(source, translated, rng)


def across(same: list[Pair], rng: random.Random) -> Iterator[Pair]:
    """Each query of a group with the text of another language."""
    for pair in same:
        others = [other for other in same if other.positive_lang != pair.query_lang]
        if others:
            other = rng.choice(others)
            group = f"{KIND}/{pair.kind}/{pair.group}"
            yield other._replace(query=pair.query, query_lang=pair.query_lang, kind=KIND, group=group)


def inside(source: str, translated: dict[str, dict[str, str]], rng: random.Random) -> Iterator[Pair]:
    """A sentence and the paragraph around it, each paragraph in several languages."""
    english = list(translated)
    ends = np.cumsum(np.random.default_rng(rng.randrange(2**32)).integers(*JOINED, size=len(english)))
    for start, end in pairwise([0, *ends[ends < len(english)].tolist(), len(english)]):
        run = [{"en": text} | translated[text] for text in english[start:end]]
        known = sorted({language for sentence in run for language in sentence})
        for _ in range(round(LANGUAGES * len(known))):
            asked = rng.choice(run)
            theirs = "en" if rng.random() < ENGLISH else rng.choice(known)
            ours = rng.choice(sorted(asked.keys() - {theirs}))
            paragraph = " ".join(sentence[theirs] for sentence in run if theirs in sentence)
            if theirs in asked:
                yield Pair(asked[ours], paragraph, ours, theirs, KIND, source, f"{KIND}/{english[start]}")
