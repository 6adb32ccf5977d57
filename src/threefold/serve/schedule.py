"""What runs next: texts wait in two lanes and leave in batches under a token budget.

A data structure. Time and speed are arguments, so that it can be tested without either; it knows no thread, no model
and no request beyond its lane and whether it is still wanted.

Order within a lane: by the time of arrival plus `AGEING` times the time that the text itself will take. So a short
text overtakes a long one that came little earlier, and every text waits at most so much longer than first come, first
served: nothing that comes later than its key can overtake it.

Between the lanes: interactive before bulk; bulk joins an interactive batch only as far as that costs it little. After
`PATIENCE` batches without bulk it is bulk's turn: it cannot starve. While a batch of bulk runs, queries are `urgent`:
the worker runs them between two of its layers.
"""

from __future__ import annotations

import heapq
import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from threefold.types import Ints

Lane = Literal["interactive", "bulk"]

#: A text yields to shorter ones that arrive within so many times its own computing time.
AGEING = 4.0
#: Batches in a row that may go without the waiting bulk lane.
PATIENCE = 3
#: The part of a batch up to which bulk joins interactive texts.
JOIN = 1 / 8
#: Texts that are tried after the first one that does not fit into a batch any more.
LOOKAHEAD = 32


class Owner(Protocol):
    """The request that a text belongs to."""

    lane: Lane
    closed: bool  # nobody waits for it any more


@dataclass(slots=True, eq=False)
class Item:
    """One text that waits.

    ids     (t,) token ids, special ones included
    wanted  what is wanted of it; opaque here
    tries   how often a worker died with it; then it runs alone
    key     its place in the order of its lane: seconds
    """

    owner: Owner
    index: int
    ids: Ints
    wanted: Any
    tries: int = 0
    key: float = 0.0

    @property
    def tokens(self) -> int:
        return len(self.ids)


class Schedule:
    """The texts that wait. Not safe for threads: the caller holds a lock."""

    def __init__(self) -> None:
        self._heaps: dict[Lane, list[tuple[float, int, Item]]] = {"interactive": [], "bulk": []}
        self._waiting: dict[Lane, int] = {"interactive": 0, "bulk": 0}  # tokens of owners that are not closed
        self._counter = itertools.count()  # equal keys: first come, first served
        self._retries: list[Item] = []
        self._without_bulk = 0

    @property
    def tokens(self) -> int:
        """Tokens that wait in both lanes."""
        return sum(self._waiting.values())

    def ahead_of(self, lane: Lane) -> int:
        """Tokens that a new text of this lane finds before it, at most."""
        return self.tokens if lane == "bulk" else self._waiting["interactive"]

    def push(self, item: Item, now: float, rate: float) -> None:
        """Take a text in. `rate` is in tokens per second."""
        item.key = now + AGEING * item.tokens / rate
        heapq.heappush(self._heaps[item.owner.lane], (item.key, next(self._counter), item))
        self._waiting[item.owner.lane] += item.tokens

    def push_back(self, item: Item) -> None:
        """Take in a text with which a worker died: it runs next, and alone."""
        self._retries.append(item)
        self._waiting[item.owner.lane] += item.tokens

    def close(self, owner: Owner, tokens: int) -> None:
        """Nobody waits for this owner any more; `tokens` of it still did. Its texts are dropped when they come up."""
        if not owner.closed:
            owner.closed = True
            self._waiting[owner.lane] -= tokens

    def take(self, budget: int, bulk: int = 0) -> list[Item]:
        """The next batch; empty if nothing waits. A text longer than the budget is a batch of its own.

        bulk  tokens of a batch of bulk alone, where that may be larger than others
        """
        while self._retries:
            item = self._retries.pop()
            if not item.owner.closed:
                self._waiting[item.owner.lane] -= item.tokens
                return [item]
        batch: list[Item] = []
        if self._without_bulk < PATIENCE:
            self._fill("interactive", batch, budget)
        self._fill("bulk", batch, int(budget * JOIN) if batch else max(budget, bulk))
        if not batch:  # bulk's turn, but what waited has been given up
            self._fill("interactive", batch, budget)
        served = any(item.owner.lane == "bulk" for item in batch)
        self._without_bulk = 0 if served or not self._waiting["bulk"] else self._without_bulk + 1
        return batch

    def urgent(self, budget: int, before: float) -> list[Item]:
        """The queries that a running batch yields to: those whose key is below `before`."""
        batch: list[Item] = []
        self._fill("interactive", batch, budget, before)
        return batch

    def _fill(self, lane: Lane, batch: list[Item], budget: int, before: float = math.inf) -> None:
        """Add texts of a lane, in order, as long as they fit; the first text of a batch always does."""
        heap = self._heaps[lane]
        skipped: list[tuple[float, int, Item]] = []
        used = sum(item.tokens for item in batch)
        while heap and heap[0][0] < before and (not batch or used < budget) and len(skipped) <= LOOKAHEAD:
            entry = heapq.heappop(heap)
            item = entry[2]
            if item.owner.closed:
                continue
            if batch and used + item.tokens > budget:
                skipped.append(entry)
                continue
            batch.append(item)
            used += item.tokens
            self._waiting[lane] -= item.tokens
        for entry in skipped:
            heapq.heappush(heap, entry)


class Pace:
    """Measured tokens per second of one worker, as a decaying mean over the time that it was busy.

    Small batches say little about throughput (most of their time is overhead): they count only until a larger one
    has been seen.
    """

    #: Batches below this many tokens are small.
    SMALL = 256
    #: Busy seconds after which a measurement counts 1/2.
    HALF_LIFE_S = 10.0
    #: What is assumed before anything was measured.
    GUESS = 1_000.0

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0
        self._large = False

    @property
    def rate(self) -> float:
        """Tokens per second, never 0."""
        return max(self._tokens / self._seconds, 1.0) if self._seconds > 0 else self.GUESS

    def add(self, tokens: int, seconds: float) -> None:
        """One batch."""
        large = tokens >= self.SMALL
        if tokens <= 0 or seconds <= 0 or (self._large and not large):
            return
        if large and not self._large:
            self._tokens = self._seconds = 0.0
            self._large = True
        fade = 0.5 ** (seconds / self.HALF_LIFE_S)
        self._tokens = self._tokens * fade + tokens
        self._seconds = self._seconds * fade + seconds
