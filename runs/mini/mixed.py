"""Questions whose answer is in another language, for batches in which passages of all languages compete.

Where a batch has one language, or a collection has, nothing asks a model to put a foreign answer above a text in the
language of the question, and E5, which was trained so, does not. Here passages in the question's own language are among
the wrong ones. Questions are those of people (MLQA, AfriQA) and headings of documents that were translated: rows of one
group say the same in many languages, so each heading gets the section of another language.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator

from corpus import Pair

MIXED = "mixed"
SECTIONS = {"heading", "faq", "title", "command"}
#: Part of the translated headings that is taken: they are many, and of a narrow field.
TAKEN = 0.25
#: Questions whose passage is in their own language: else a foreign passage would always be the answer.
OWN = 0.15


def mixed_pairs(pairs: Iterable[Pair], seed: int) -> Iterator[Pair]:
    """Copies of pairs, and pairs made from translations. The group still says which of all pairs mean the same."""
    rng = random.Random(seed)
    sections: dict[tuple[str, str, str], list[Pair]] = defaultdict(list)
    for pair in pairs:
        if pair.kind in SECTIONS:
            sections[pair.source, pair.kind, pair.group].append(pair)
        elif pair.kind == "qa" and (pair.query_lang != pair.positive_lang or rng.random() < OWN):
            yield pair._replace(kind=MIXED)
    for same in sections.values():
        for pair in same:
            others = [other for other in same if other.positive_lang != pair.query_lang]
            if others and rng.random() < TAKEN:
                yield rng.choice(others)._replace(query=pair.query, query_lang=pair.query_lang, kind=MIXED)
