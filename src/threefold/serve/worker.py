"""The worker thread: takes batches from the schedule, runs them, says what became of them. Never touches a request.

Between the layers of a batch of bulk texts it looks for queries, and runs them right there:

    bulk   layer 1 · layer 2 ·          · layer 3 · ...
                              ╰ queries ╯

So a query waits for one layer of what is running instead of for all of it: a batch of bulk may be so much larger, and a
text of 8,192 tokens, which takes a processor seconds, delays nobody. Queries get at most `PATIENCE` times the time that
the batch itself has had, so bulk work keeps its share. On a GPU layers are queued ahead of their computation and a
query waits for nearly a whole batch; so the warm-up measures how long a batch goes on without looking for queries.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Generic, Protocol, TypeVar

from threefold.serve.memory import Trimmer
from threefold.serve.runner import BrokenWorker, Runner, outcomes_of, unexpected
from threefold.serve.schedule import PATIENCE, Item, Lane, Pace, Schedule

R = TypeVar("R")
R_contra = TypeVar("R_contra", contravariant=True)

log = logging.getLogger(__name__)

#: Batches in a row of which every text failed, after which the worker counts as broken.
STRIKES = 3
#: Tokens of a batch on a slow device, at least.
LEAST_TOKENS = 128
#: The part of `batch_s` that a query waits at most for a layer of bulk. At 1 its p95 was 3.4 times that of an idle
#: server, at 1/2 it is 2.6 times, and bulk 4 % slower (docs/log.md, 2026-11-27).
WAIT = 1 / 2


@dataclass(slots=True, eq=False)
class Job:
    """A request, as the event loop and the worker see it."""

    lane: Lane
    future: asyncio.Future[None]
    arrived: float
    results: list[Any]
    left: int
    waiting: int  # tokens in the schedule
    started: float = 0.0
    closed: bool = False


@dataclass(slots=True)
class Shared:
    """What the event loop and the worker thread both touch, behind `condition`."""

    schedule: Schedule
    condition: threading.Condition = field(default_factory=threading.Condition)
    running: list[Item] = field(default_factory=list)
    running_since: float = 0.0
    stop: bool = False


class Desk(Protocol[R_contra]):
    """Who is told, on the event loop, what the worker has done."""

    def ready(self, tokens: int, seconds: float) -> None:
        """The model is loaded; a typical batch of so many tokens took so long."""
        ...

    def deliver(self, outcomes: Sequence[tuple[Item, R_contra | Exception]], seconds: float) -> None:
        """A batch is done."""
        ...

    def died(self, error: BaseException, running: Sequence[Item]) -> None:
        """The thread has ended, with these texts in its hands."""
        ...


class _NobodyWaits(BaseException):
    """Every client of the running batch has gone."""


class Worker(Generic[R]):
    """One thread and its model.

    make    builds the runner, in the thread
    batch   tokens of a batch at most, and seconds, about
    """

    def __init__(
        self,
        make: Callable[[], Runner[R]],
        shared: Shared,
        desk: Desk[R],
        pace: Pace,
        batch: tuple[int, float],
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
    ) -> None:
        self._make = make
        self._shared = shared
        self._desk = desk
        self._pace = pace
        self._most_tokens, self._most_s = batch
        self._loop = loop
        self._clock = clock
        self._strikes = 0
        self._pauses = 1
        self._trimmer = Trimmer(clock)
        self._thread = threading.Thread(target=self._work, name="threefold-worker", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def join(self) -> None:
        """Wait for the end of the thread."""
        self._thread.join()

    def _work(self) -> None:
        try:
            runner = self._make()
            self._tell(self._desk.ready, *self._warm_up(runner))
            while batch := self._wait():
                self._run(runner, batch)
                self._trimmer.after_batch()
        except BaseException as error:  # whatever it is: the loop must know that nobody works any more
            with self._shared.condition:
                running, self._shared.running = self._shared.running, []
            self._tell(self._desk.died, error, running)

    def _warm_up(self, runner: Runner[R]) -> tuple[int, float]:
        """Run the samples twice; the tokens and seconds of the second time. Learns how often `between` is called."""
        rows, wanted = runner.samples()
        runner.run(rows, wanted)
        times = [self._clock()]
        runner.run(rows, wanted, lambda: times.append(self._clock()))
        times.append(self._clock())
        seconds = times[-1] - times[0]
        longest = max(after - before for before, after in pairwise(times))
        self._pauses = max(round(WAIT * seconds / longest), 1) if longest > 0 else 1
        return sum(len(ids) for ids in rows), seconds

    def _budget(self, pauses: int = 1) -> int:
        """Tokens of a batch: what takes `batch_s`, so many times over where queries may pass so often."""
        return min(max(math.ceil(self._pace.rate * self._most_s * pauses), LEAST_TOKENS), self._most_tokens)

    def _wait(self) -> list[Item]:
        """The next batch, as soon as there is one; empty when the worker is to stop."""
        shared = self._shared
        with shared.condition:
            while not shared.stop:
                if batch := shared.schedule.take(self._budget(), bulk=self._budget(self._pauses)):
                    self._begin(batch)
                    return batch
                shared.condition.wait()
        return []

    def _begin(self, batch: list[Item]) -> None:
        now = self._clock()
        if not self._shared.running:
            self._shared.running_since = now
        self._shared.running = self._shared.running + batch
        for item in batch:
            job = item.owner
            assert isinstance(job, Job)
            job.waiting -= item.tokens
            job.started = job.started or now

    def _end(self, batch: list[Item]) -> None:
        done = set(batch)
        with self._shared.condition:
            self._shared.running = [item for item in self._shared.running if item not in done]

    def _run(self, runner: Runner[R], batch: list[Item]) -> None:
        began, lent = self._clock(), 0.0
        before = self._yields_to(batch)

        def between() -> None:
            nonlocal lent
            if all(item.owner.closed for item in batch):
                raise _NobodyWaits
            now = self._clock()
            if before is not None and lent <= PATIENCE * (now - began - lent) and (urgent := self._urgent(before)):
                self._run(runner, urgent)
                lent += self._clock() - now

        try:
            outcomes = outcomes_of(runner, batch, between)
        except _NobodyWaits:
            self._end(batch)
            return
        seconds = self._clock() - began - lent
        self._end(batch)
        self._tell(self._desk.deliver, list(zip(batch, outcomes, strict=True)), seconds)
        self._strikes = self._strikes + 1 if all(map(unexpected, outcomes)) else 0
        if self._strikes >= STRIKES:
            raise BrokenWorker(f"{self._strikes} batches in a row failed: {outcomes[0]!r}")

    def _yields_to(self, batch: Sequence[Item]) -> float | None:
        """The key below which a query goes before this batch; None if the batch is not interrupted.

        Bulk yields to every query; one long query, to those that would have gone before it had they been there. What
        may have killed a worker runs alone.
        """
        if any(item.tries for item in batch):
            return None
        if all(item.owner.lane == "bulk" for item in batch):
            return math.inf
        return batch[0].key if batch[0].tokens > self._budget() else None

    def _urgent(self, before: float) -> list[Item]:
        with self._shared.condition:
            if batch := self._shared.schedule.urgent(self._budget(), before):
                self._begin(batch)
        return batch

    def _tell(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:  # the loop is closed: nobody is left to be told
            log.debug("the event loop ended before the worker")
