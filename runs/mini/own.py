"""Questions in the language of their passage, from data that have them in other languages only.

MLQA's files pair a question in one language with a passage in another. Rows of one group are about passages that say
the same, so where a group has one passage in a language, a question of the group in that language is asked of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from corpus import Pair

SOURCE, OWN = "mlqa", "mlqa_own"


def own_language_pairs(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """Groups with several questions or passages in a language are left out: which belongs to which is not said."""
    groups: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        if pair.source == SOURCE:
            groups[pair.group].append(pair)
    for group in groups.values():
        asked, said = defaultdict(set), defaultdict(set)
        for pair in group:
            asked[pair.query_lang].add(pair.query)
            said[pair.positive_lang].add(pair.positive)
        for language in sorted(asked.keys() & said.keys()):
            if len(asked[language]) == len(said[language]) == 1:
                (query,), (positive,) = asked[language], said[language]
                yield Pair(query, positive, language, language, "qa", OWN, group[0].group)
