"""Examples -> the arrays of a `PairTable` on disk, block by block. Every positive of an example makes one pair.

Knows texts and token ids; `shards.py` says where the arrays are and when they are made again.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from threefold.config import Settings
from threefold.errors import ConfigError, DataError
from threefold.text.tokenizer import Tokenizer, Tokens
from threefold.train.checks import check_numbers
from threefold.train.columns import Columns, read_column, read_tokens, write_columns
from threefold.train.examples import Example
from threefold.train.masks import repeated_pairs, text_numbers
from threefold.types import offsets_of

#: Pairs and characters that are tokenised at a time; tokens of a block take about 100 bytes per character.
BLOCK_PAIRS: Final = 4_096
BLOCK_CHARACTERS: Final = 1 << 21
#: Language pairs of a source with fewer pairs share batches: alone they would make a batch too small, or none.
FEWEST: Final = 32

#: Called after each block with (pairs, tokens) so far.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Limits(Settings):
    """What of a record becomes tokens.

    max_query, max_passage  tokens, specials included; longer texts are cut at the end, and counted
    negatives               hard negatives of a pair; where there are more, so many are drawn
    seed                    of that drawing
    """

    max_query: int = 128
    max_passage: int = 512
    negatives: int = 7
    seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(self, not_negative=("seed",))
        if min(self.max_query, self.max_passage) < 3 or self.negatives < 0:
            raise ConfigError(
                "max_query and max_passage must be at least 3 and negatives at least 0; "
                f"got {self.max_query}, {self.max_passage} and {self.negatives}"
            )


class Group(NamedTuple):
    """Pairs that may share a batch. The languages are `*` where several are too small to be alone."""

    source: str
    kind: str = ""
    query_lang: str = ""
    positive_lang: str = ""


class Made(NamedTuple):
    """What was written. `pairs` is the number of each group; `counts` are tokens, cut texts and what is odd."""

    groups: tuple[Group, ...]
    pairs: tuple[int, ...]
    negatives: int
    counts: dict[str, int]


class _Pair(NamedTuple):
    """One row of the table, as texts. Scores are NaN where they are unknown."""

    query: str
    positive: str
    negatives: tuple[str, ...]
    positive_score: float
    negative_scores: tuple[float, ...]
    example: Example


def write_table(
    folder: Path,
    examples: Iterable[Example],
    tokenizer: Tokenizer,
    limits: Limits,
    found: Counter[str],
    progress: Progress | None = None,
) -> Made:
    """Write all arrays into `folder`, in memory that does not grow with the number of examples but for a few bytes
    of each. `found` counts what is odd, and goes on from what the reading of the examples counts.
    """
    groups = Counter[Group]()
    with write_columns(folder) as columns:
        writer = _Writer(columns, tokenizer, limits, found)
        for block in _blocks(_pairs(examples, limits)):
            numbers = _count_groups(block, groups)
            writer.add(block, numbers)
            if progress is not None:
                progress(groups.total(), writer.tokens)
        negatives = writer.negatives
    kept, pairs = _join_small_groups(folder, groups)
    query, positive = read_tokens(folder, "query"), read_tokens(folder, "positive")
    _name_meanings(folder, positive)
    counts = dict(sorted(found.items()))
    if repeated := repeated_pairs(query, positive):
        counts["pairs that were there before"] = repeated
    return Made(kept, pairs, negatives, {"tokens": writer.tokens} | counts)


# ---- examples -> pairs ------------------------------------------------------------------------------------


def _pairs(examples: Iterable[Example], limits: Limits) -> Iterator[_Pair]:
    number = 0
    for example in examples:
        for i, positive in enumerate(example.positives):
            chosen = _drawn(example, number, limits)
            if example.alone and not chosen:  # the reader has refused records that have none
                raise DataError(
                    f"{example.where}: limits.negatives is {limits.negatives}, and negatives of other records must not "
                    "be taken: it teaches nothing. Raise it, or leave the record out"
                )
            yield _Pair(
                example.asked,
                example.said(positive),
                tuple(example.said(example.negatives[j]) for j in chosen),
                example.positive_scores[i] if example.positive_scores else math.nan,
                tuple(example.negative_scores[j] if example.negative_scores else math.nan for j in chosen),
                example,
            )
            number += 1


def _drawn(example: Example, number: int, limits: Limits) -> Sequence[int]:
    """Which hard negatives the pair of this number takes, in the order of the record."""
    most = min(limits.negatives, 1) if example.kind == "only_1neg" else limits.negatives
    there = len(example.negatives)
    if there <= most:
        return range(there)
    drawn: list[int] = np.random.default_rng((limits.seed, number)).choice(there, most, replace=False).tolist()
    return sorted(drawn)


def _blocks(pairs: Iterable[_Pair]) -> Iterator[list[_Pair]]:
    block: list[_Pair] = []
    characters = 0
    for pair in pairs:
        block.append(pair)
        characters += len(pair.query) + len(pair.positive) + sum(map(len, pair.negatives))
        if len(block) == BLOCK_PAIRS or characters >= BLOCK_CHARACTERS:
            yield block
            block, characters = [], 0
    if block:
        yield block


# ---- pairs -> arrays --------------------------------------------------------------------------------------


class _Writer:
    """The arrays of a table, growing."""

    def __init__(self, columns: Columns, tokenizer: Tokenizer, limits: Limits, found: Counter[str]) -> None:
        self._tokenizer, self._limits, self._found = tokenizer, limits, found
        self.tokens, self.negatives = 0, 0
        self._texts = {name: columns.tokens(name) for name in ("query", "positive", "negative")}
        self._ends = columns.column("negatives", np.int64)
        self._ends.extend([0])
        wide = {"source": np.int64, "meaning": np.int64, "positive_score": np.float32, "negative_score": np.float32}
        self._rest = {name: columns.column(name, kind) for name, kind in wide.items()}
        self._rest |= {name: columns.column(name, np.bool_) for name in ("symmetric", "alone")}
        self._rest["teacher"] = columns.column("teacher", np.int8)

    def add(self, block: list[_Pair], groups: list[int]) -> None:
        """Put these pairs at the end; `groups` are the numbers of theirs."""
        self._put("query", [pair.query for pair in block], self._limits.max_query)
        self._put("positive", [pair.positive for pair in block], self._limits.max_passage)
        self._put("negative", [text for pair in block for text in pair.negatives], self._limits.max_passage)
        self._ends.extend(offsets_of([len(pair.negatives) for pair in block])[1:] + self.negatives)
        self.negatives += sum(len(pair.negatives) for pair in block)
        examples = [pair.example for pair in block]
        values: dict[str, Sequence[float]] = {
            "source": groups,
            "meaning": [_group_number(one) for one in examples],
            "positive_score": [pair.positive_score for pair in block],
            "negative_score": [score for pair in block for score in pair.negative_scores],
            "symmetric": [one.symmetric for one in examples],
            "alone": [one.alone for one in examples],
            "teacher": [1] * len(block),
        }
        for name, column in self._rest.items():
            column.extend(values[name])

    def _put(self, name: str, texts: list[str], limit: int) -> None:
        tokens: Tokens = self._tokenizer.encode(texts, max_tokens=limit)
        self._texts[name].extend(tokens)
        self.tokens += len(tokens.ids)
        if cut := int(tokens.truncated.sum()):
            self._found[f"{name} texts of more than {limit} tokens, cut"] += cut


def _count_groups(block: list[_Pair], groups: Counter[Group]) -> list[int]:
    """The number of each pair's group, in the order in which groups were first met."""
    keys = [Group(one.source, one.kind, one.query_lang, one.positive_lang) for one in (p.example for p in block)]
    groups.update(keys)
    places = {group: number for number, group in enumerate(groups)}
    return [places[key] for key in keys]


def _group_number(example: Example) -> int:
    """A number of 63 bits for the example's group; 0 where it has none."""
    if not example.group:
        return 0
    named = f"{example.source}\0{example.group}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(named, digest_size=8).digest(), "big") >> 1 | 1


# ---- when all pairs are there -----------------------------------------------------------------------------


def _join_small_groups(folder: Path, groups: Counter[Group]) -> tuple[tuple[Group, ...], tuple[int, ...]]:
    """Language pairs with fewer than `FEWEST` pairs become one group of their source. Rewrites `source`."""
    joined = {
        group: group if count >= FEWEST else Group(group.source, group.kind, "*", "*")
        for group, count in groups.items()
    }
    kept = sorted(set(joined.values()))
    numbers = np.array([kept.index(joined[group]) for group in groups], np.int64)
    source = numbers[read_column(folder, "source")]
    np.save(folder / "source.npy", source)
    return tuple(kept), tuple(np.bincount(source, minlength=len(kept)).tolist())


def _name_meanings(folder: Path, positive: Tokens) -> None:
    """Pairs without a group mean what their positive says. Rewrites `meaning`."""
    meaning = read_column(folder, "meaning")
    np.save(
        folder / "meaning.npy",
        np.where(meaning == 0, (text_numbers(positive) >> np.uint64(1)).astype(np.int64), meaning),
    )
