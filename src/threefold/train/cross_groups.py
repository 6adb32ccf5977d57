"""Pre-tokenised pairs -> the candidates of every query, batches of them, and packed sequences of query and passage.

Pure functions of (table, settings, seed). Knows token ids, not models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from threefold.errors import ConfigError
from threefold.text.tokenizer import Tokenizer, Tokens
from threefold.train.batches import PairTable
from threefold.train.masks import Answers
from threefold.types import Bools, Floats, Ints, offsets_of

#: How often random passages are drawn again because some answer the query too, or are there already.
_TRIES = 20


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """The candidates of every pair of a table; the positive is the first of each.

    passages  (m,) numbers of passages, group after group: below n a positive of the table, from n on a hard negative
    offsets   (n + 1,) those of pair i are passages[offsets[i]:offsets[i + 1]]
    teacher   (m,) a teacher's scores; NaN: unknown
    """

    table: PairTable
    passages: Ints
    offsets: Ints
    teacher: Floats

    def __len__(self) -> int:
        return len(self.table)

    def passage(self, number: int) -> Ints:
        """Token ids, specials included."""
        n = len(self.table)
        return self.table.positive[number] if number < n else self.table.negative[number - n]

    @property
    def sizes(self) -> Ints:
        """(n,) tokens of each group: the query is read once with every candidate."""
        lengths = np.concatenate([self.table.positive.lengths, self.table.negative.lengths])
        sums = np.concatenate([[0], np.cumsum(lengths[self.passages])])[self.offsets]
        sizes: Ints = np.diff(sums) + np.diff(self.offsets) * self.table.query.lengths
        return sizes

    @property
    def taught(self) -> Bools:
        """(n,) pairs of which a teacher has scored the positive and another candidate: one score alone says nothing."""
        known = ~np.isnan(self.teacher)
        taught: Bools = known[self.offsets[:-1]] & (np.diff(offsets_of(known)[self.offsets]) > 1)
        return taught


def candidates(table: PairTable, most: int, seed: int) -> Groups:
    """Up to `most` candidates of every pair: the positive, its hard negatives, then passages of other pairs, drawn.

    None of them answers the query anywhere in the table. What is drawn does not mean the same either
    (`PairTable.meaning`), and no text is there twice; a pair that takes its own negatives only gets no others.
    """
    if most < 2:
        raise ConfigError(f"a query needs at least 2 candidates; got {most}")
    n = len(table)
    rng = np.random.default_rng((seed, n))
    answers = Answers(table)
    owner = np.repeat(np.arange(n), np.diff(table.negatives))
    wrong = ~answers.known(answers.query[owner], answers.negative)  # (m,) hard negatives that are ones
    passages: list[int] = []
    counts: list[int] = []
    for row in range(n):
        hard = np.arange(table.negatives[row], table.negatives[row + 1])
        _, first = np.unique(answers.negative[hard], return_index=True)
        hard = hard[np.sort(first)]
        hard = hard[wrong[hard]][: most - 1]
        drawn = [] if table.alone[row] else _draw(table, answers, row, most - 1 - len(hard), hard, rng)
        group = [row, *(hard + n).tolist(), *drawn]
        passages += group
        counts.append(len(group))
    numbers = np.array(passages, np.int64)
    owner = np.repeat(np.arange(n), counts)
    scores = np.concatenate([table.positive_score, table.negative_score])[numbers].astype(np.float32)
    scores[(numbers < n) & (numbers != owner)] = np.nan  # a score is of one query
    return Groups(table, numbers, offsets_of(counts), scores)


def _draw(table: PairTable, answers: Answers, row: int, wanted: int, hard: Ints, rng: np.random.Generator) -> list[int]:
    """Positives of other pairs, fewer than wanted where hardly any may be taken. `hard`: its hard negatives."""
    drawn: dict[int, int] = {}  # number of the text -> pair
    there = set(answers.negative[hard].tolist())
    for _ in range(_TRIES):
        if len(drawn) >= wanted:
            break
        others = rng.integers(len(table), size=wanted)
        free = table.meaning[others] != table.meaning[row]
        free &= ~answers.known(answers.query[row], answers.positive[others])
        for other in others[free].tolist():
            text = int(answers.positive[other])
            if text not in there:
                drawn.setdefault(text, other)
    return list(drawn.values())[:wanted]


def group_plan(groups: Groups, *, budget: int, window: int, seed: int, only_taught: bool = False) -> list[Ints]:
    """Batches of one pass: rows of the table with at least one negative, of similar length, up to `budget` tokens.

    only_taught  leave out what no teacher has judged (`Groups.taught`)
    """
    if min(budget, window) < 1:
        raise ConfigError(f"budget and window must be at least 1; got {budget} and {window}")
    rng = np.random.default_rng(seed)
    sizes = groups.sizes
    wanted = groups.taught if only_taught else np.diff(groups.offsets) > 1
    rows = rng.permutation(np.flatnonzero(wanted))
    batches: list[Ints] = []
    for part in np.array_split(rows, max(1, -(-len(rows) // window))):
        part = part[np.argsort(sizes[part], kind="stable")]
        start = 0
        while start < len(part):
            fits = int(np.searchsorted(np.cumsum(sizes[part[start:]]), budget, side="right"))
            batches.append(part[start : start + max(fits, 1)])
            start += max(fits, 1)
    return [batches[int(i)] for i in rng.permutation(len(batches))]


class Frame(NamedTuple):
    """What stands around a pair: `<s> query </s></s> text </s>` or `[CLS] query [SEP] text [SEP]`."""

    cls: int
    middle: tuple[int, ...]
    sep: int
    max_tokens: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, max_tokens: int) -> Frame:
        """As `Tokenizer.encode_pairs`."""
        twice = tokenizer.token(tokenizer.cls_id) == "<s>"
        return cls(tokenizer.cls_id, (tokenizer.sep_id,) * (2 if twice else 1), tokenizer.sep_id, max_tokens)


def pair_tokens(groups: Groups, rows: Ints, frame: Frame) -> Tokens:
    """The sequences of all candidates of these rows, row after row. What is too long loses the end of its text."""
    room_for_one = frame.max_tokens - len(frame.middle) - 3  # both ends, and one token of the text
    most = min(frame.max_tokens * 3 // 4, room_for_one)
    sequences: list[Ints] = []
    seconds: list[int] = []
    available: list[int] = []
    for row in rows.tolist():
        asked = groups.table.query[row][1:-1][:most]
        first = np.concatenate([[frame.cls], asked, frame.middle])
        room = frame.max_tokens - len(first) - 1
        for number in groups.passages[groups.offsets[row] : groups.offsets[row + 1]].tolist():
            said = groups.passage(number)[1:-1]
            sequences.append(np.concatenate([first, said[:room], [frame.sep]]))
            seconds.append(len(first))
            available.append(len(first) + len(said) + 1)
    ids = np.concatenate(sequences).astype(np.int32)
    offsets = offsets_of([len(sequence) for sequence in sequences])
    return Tokens(ids, offsets, np.array(available, np.int64), np.array(seconds, np.int64))
