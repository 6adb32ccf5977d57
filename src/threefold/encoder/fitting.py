"""Batches on their way through a device, and what becomes of those for which it has no memory: they are cut.

A GPU is shared with others, so what fitted before may not fit now. Then what is under way is finished, memory is given
back, and the texts of the batch are tried again in batches of half as many tokens, down to one text. Later batches are
no larger than what fitted. What a text gives does not depend on its batch, so results are as if nothing had happened.
Knows neither models nor results. On a CPU it is `transfer.ahead`, one batch after the other.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Final, Generic, NamedTuple, Self, TypeVar

import torch

from threefold.encoder.shortage import Short, give_back, tried
from threefold.encoder.transfer import depth_of
from threefold.errors import DeviceMemoryError
from threefold.text.packing import plan_batches
from threefold.text.tokenizer import Tokens
from threefold.types import Ints

#: The budget is not lowered below so many tokens: in bge-m3 their states need less than the 20 MiB that PyTorch asks
#: for at a time, so a GPU without room for them is full, not small. Others may leave it, and the encoder then goes on
#: with batches that are worth it.
LEAST: Final = 512

log = logging.getLogger(__name__)


class Lesson(NamedTuple):
    """What a batch that did not fit teaches, once its texts do.

    tokens  of that batch
    budget  of a batch from then on; None: as it is, but one batch at a time
    said    what PyTorch said
    """

    tokens: int
    budget: int | None
    said: str


@dataclass(frozen=True, slots=True, eq=False)
class Portion:
    """Texts that share a forward pass.

    tokens  of all texts of the call, or of the part of a stream
    rows    which of them these are
    last    whether they are the last ones of it
    lesson  of the batch in whose place they are tried
    """

    tokens: Tokens
    rows: Ints
    last: bool
    lesson: Lesson | None = None

    @property
    def lengths(self) -> Ints:
        offsets, rows = self.tokens.offsets, self.rows
        lengths: Ints = offsets[rows + 1] - offsets[rows]
        return lengths

    @property
    def count(self) -> int:
        """Tokens of the texts together."""
        return int(self.lengths.sum())

    def cut(self, budget: int) -> list[Self]:
        """The same texts in portions of at most so many tokens; a longer text is one of its own."""
        parts = plan_batches(self.lengths, budget)
        return [replace(self, rows=self.rows[part], last=self.last and part is parts[-1]) for part in parts]


def portions(tokens: Tokens, budget: int) -> list[Portion]:
    """All texts of a call, in batches."""
    batches = plan_batches(tokens.lengths, budget)
    return [Portion(tokens, rows, rows is batches[-1]) for rows in batches]


P = TypeVar("P", bound=Portion)
Begun = TypeVar("Begun")
Done = TypeVar("Done")


class Room:
    """How many tokens a forward pass may have on a device, as far as is known. It may be shared between threads."""

    def __init__(self, name: str, device: torch.device, budget: int) -> None:
        self._name, self._device, self._budget = name, device, budget
        self._alone = self._told = False
        self._lock = Lock()

    @property
    def budget(self) -> int:
        """Tokens of a batch at most."""
        return self._budget

    @property
    def depth(self) -> int:
        """Batches that are begun before the last one is finished."""
        return 0 if self._alone else depth_of(self._device)

    def planned(self, portion: P) -> list[P]:
        """The portion in batches of the budget, which may have been lowered since it was planned."""
        budget = self._budget
        return [portion] if portion.count <= budget or len(portion.rows) == 1 else portion.cut(budget)

    def again(self, portion: P, short: Short, beside: Sequence[int] = ()) -> list[P]:
        """What is tried in place of a portion that did not fit, as soon as nothing is under way: its texts in batches
        of at most half as many tokens. One text, or a small batch, is tried once more if others were under way.

        beside  tokens of each batch that was
        """
        tokens, budget = portion.count, self._budget
        if beside and (len(portion.rows) == 1 or budget <= LEAST):
            return [replace(portion, lesson=Lesson(tokens, None, short.said))]
        if len(portion.rows) == 1:
            raise DeviceMemoryError(
                f"{self._name}: a text of {tokens:,} tokens alone does not fit into the memory that is left on "
                f"{self._device}. Read less of it (max_tokens=), take bfloat16 or float16 if it is float32, another "
                f"device, or int8 on the CPU. PyTorch says: {short.said}"
            )
        mean = (tokens + sum(beside)) // (1 + len(beside))  # a small batch may have met the results of a large one
        lesson = Lesson(tokens, max(min(mean, budget) // 2, min(budget, LEAST)), short.said)
        return [replace(part, lesson=lesson) for part in portion.cut(max(tokens // 2, 1))]

    def learn(self, lesson: Lesson) -> None:
        """What was tried in place of a batch that did not fit has begun."""
        with self._lock:
            before = self._budget, self._alone, True
            if lesson.budget is None:
                self._alone = True
            else:
                self._budget = min(self._budget, lesson.budget)
            news = before != (self._budget, self._alone, self._told)
            self._told, budget, alone = True, self._budget, ", one at a time" if self._alone else ""
        if news:
            log.warning(
                "%s: %s had no memory for a batch of %s tokens; its texts fitted otherwise. From now on batches have "
                "at most %s tokens%s. PyTorch says: %s",
                *(self._name, self._device, f"{lesson.tokens:,}", f"{budget:,}", alone, lesson.said),
            )

    def give_back(self) -> None:
        """Give the device what PyTorch keeps for later."""
        give_back(self._device)


def fitted(
    source: Iterable[P], begin: Callable[[P], Begun], finish: Callable[[P, Begun], Done], room: Room
) -> Iterator[tuple[P, Done]]:
    """Each portion of the source and what `finish` makes of it, in order; one that does not fit comes in several.

    `room.depth` more have begun when one is finished. A portion that cannot be had or begun is an error after all that
    began before it.
    """
    flight = _Flight(source, begin, finish, room)
    while flight.begin_next() or flight.begun:
        while len(flight.begun) > flight.allowed:
            if (done := flight.finish_first()) is not None:
                yield done
        flight.settle()
    failed, flight.failed = flight.failed, None
    if failed is not None:
        try:
            raise failed
        finally:
            del failed  # its traceback holds this frame


class _Flight(Generic[P, Begun, Done]):
    """What is to be begun, and what the device was told."""

    def __init__(
        self, source: Iterable[P], begin: Callable[[P], Begun], finish: Callable[[P, Begun], Done], room: Room
    ) -> None:
        self._source = iter(source)
        self._begin, self._finish, self._room = begin, finish, room
        self._todo: deque[P] = deque()  # before what the source still has
        self._short = False
        self.begun: deque[tuple[P, Begun]] = deque()
        self.allowed = 0  # so many may stay under way
        self.failed: Exception | None = None

    def begin_next(self) -> bool:
        """Begin one more; False: there is none."""
        self.allowed = 0
        try:
            if (portion := self._next()) is None:
                return False
            found = tried(lambda: self._begin(portion))
            if isinstance(found, Short):
                self._try_again(portion, found, [batch for batch, _ in self.begun])
            else:
                self.begun.append((portion, found))
                if portion.lesson is not None:
                    self._room.learn(portion.lesson)
                self.allowed = self._room.depth
        except Exception as error:
            self.failed = error
            self._source = iter(())
            self._todo.clear()
        return True

    def finish_first(self) -> tuple[P, Done] | None:
        """The one that began first; None: it did not fit, and is to begin once more."""
        portion, found = self.begun.popleft()
        done = tried(lambda: self._finish(portion, found))
        if not isinstance(done, Short):
            return portion, done
        later = [batch for batch, _ in self.begun]
        self.begun.clear()
        self._todo.extendleft(reversed(later))
        self._try_again(portion, done, later)
        return None

    def settle(self) -> None:
        """Nothing is under way after a failure: what it held can be given back."""
        if self._short:
            self._room.give_back()
            self._short = False

    def _next(self) -> P | None:
        if not self._todo and (portion := next(self._source, None)) is not None:
            self._todo.append(portion)
        if self._todo:
            self._todo.extendleft(reversed(self._room.planned(self._todo.popleft())))
        return self._todo.popleft() if self._todo else None

    def _try_again(self, portion: P, short: Short, beside: Sequence[P]) -> None:
        self._short = True
        self._todo.extendleft(reversed(self._room.again(portion, short, [batch.count for batch in beside])))
