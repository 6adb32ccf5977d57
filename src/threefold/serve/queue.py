"""The engine: texts of many requests, one worker thread, one forward pass at a time.

    tokens of a request ─► admission ─► schedule ─► worker thread ─► results of the request
                            │ 429                    │ dies: its texts run once more, alone, by a new worker

No timer: a worker that is free takes what waits at that moment. Admission is bounded in tokens and refuses what
cannot be answered in time. A batch that fails is halved until the text that is to blame stands alone. Knows neither
HTTP nor models: a `Runner` turns token ids into results.

All of it belongs to the event loop; the thread is that of `worker.py`, and what both touch is behind one lock.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from threefold.config import Settings
from threefold.errors import (
    ConfigError,
    DeadlineError,
    InputFailedError,
    OverloadedError,
    ThreefoldError,
    UnavailableError,
)
from threefold.serve.runner import DeviceLost, Runner
from threefold.serve.schedule import Item, Lane, Pace, Schedule
from threefold.serve.worker import Job, Shared, Worker
from threefold.types import Ints

R = TypeVar("R")

State = Literal["starting", "ready", "restarting", "draining", "stopped"]

log = logging.getLogger(__name__)

#: Seconds before a dead worker is started again: the first time, and at most (it doubles).
RESTART_S, RESTART_MOST_S = 0.5, 30.0


#: Longest time that a limit may be: thirty years. Tokens in that time can still be counted.
LONGEST_S = 1e9


def too_late(deadline_s: float) -> DeadlineError:
    """What a caller is told at its deadline."""
    return DeadlineError(f"no answer within {deadline_s:g} s; send less at once, or allow more time")


@asynccontextmanager
async def ends_within(deadline_s: float | None) -> AsyncIterator[None]:
    """What is done inside ends at its deadline, with that error; None: it has none."""
    try:
        async with asyncio.timeout(deadline_s):
            yield
    except TimeoutError:
        assert deadline_s is not None
        raise too_late(deadline_s) from None


class TextFailedError(InputFailedError):
    """The model failed on one text. What the client calls it, each contract says in its own words.

    index  its place among the rows that were run
    """

    def __init__(self, what: str, index: int, why: str) -> None:
        super().__init__(f"{what}: {why}")
        self.index = index
        self._why = why

    def of(self, what: str) -> TextFailedError:
        """The same of a text that the client knows by another name."""
        return TextFailedError(what, self.index, self._why)


@dataclass(frozen=True, slots=True)
class Limits(Settings):
    """How much may wait, and for how long.

    batch_tokens        tokens of one forward pass, at most
    batch_s             seconds of one forward pass, about: what a query waits for when the model is busy. A pass of
                        bulk alone yields to queries between its layers, and may take half as long for each layer
    queued_tokens       tokens that may wait; more is refused with 429 (one request alone may be larger)
    interactive_tokens  requests up to this size are interactive, larger ones bulk, if they do not say
    deadline_s          seconds after which a request is given up, if it does not say
    stall_s             seconds after which a batch that is still running turns readiness red
    """

    batch_tokens: int = 16_384
    batch_s: float = 0.02
    queued_tokens: int = 2_000_000
    interactive_tokens: int = 1_024
    deadline_s: float = 300.0
    stall_s: float = 300.0

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "batch_s", "queued_tokens", "interactive_tokens", "deadline_s", "stall_s"):
            if not getattr(self, name) > 0:  # true for NaN
                raise ConfigError(f"{name} must be above 0; got {getattr(self, name)}")
            if getattr(self, name) == math.inf:
                raise ConfigError(f"{name} must be finite; got {getattr(self, name)}")
            if name.endswith("_s") and getattr(self, name) > LONGEST_S:
                raise ConfigError(f"{name} must be at most {LONGEST_S:g} seconds; got {getattr(self, name):g}")


class Done(NamedTuple, Generic[R]):
    """The results of a request, in its order, and where its time went."""

    results: list[R]
    queue_s: float
    run_s: float


class BatchReport(NamedTuple):
    """One batch, for measurements."""

    texts: int
    tokens: int
    failed: int
    seconds: float


class Engine(Generic[R]):
    """Requests in, results out, through one worker thread that is replaced when it dies.

    make      builds the runner, in the worker thread; called again for every new worker
    observer  told about every batch, on the event loop
    clock     seconds, monotonic
    """

    def __init__(
        self,
        make: Callable[[], Runner[R]],
        limits: Limits | None = None,
        *,
        observer: Callable[[BatchReport], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits or Limits()
        self.pace = Pace()
        self.restarts = 0
        self.lost: str | None = None  # why no worker of this process can ever run again
        self._make = make
        self._observer = observer
        self._clock = clock
        self._shared = Shared(Schedule())
        self._state: State = "stopped"
        self._jobs: set[Job] = set()
        self._worker: Worker[R] | None = None
        self._next_restart_s = RESTART_S
        self._restart: asyncio.TimerHandle | None = None

    # ---- life ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Load and warm up. An error of the first load is raised; later ones are met by restarting."""
        self._loop = asyncio.get_running_loop()
        self._first: asyncio.Future[None] = self._loop.create_future()
        self._shared.stop = False
        self._state = "starting"
        self._spawn()
        await self._first

    async def drain(self, timeout_s: float | None = None) -> None:
        """Refuse new work, finish what is there, stop the worker. What is left after `timeout_s` is given up."""
        self._state = "draining"
        if self._jobs:
            await asyncio.wait([job.future for job in self._jobs], timeout=timeout_s)
        for job in list(self._jobs):
            self._fail(job, UnavailableError("the server is shutting down"))
        await self._join()
        self._state = "stopped"

    async def _join(self) -> None:
        if self._restart is not None:
            self._restart.cancel()
        with self._shared.condition:
            self._shared.stop = True
            self._shared.condition.notify()
        if self._worker is not None:
            await asyncio.to_thread(self._worker.join)

    @property
    def state(self) -> State:
        """What the engine is doing."""
        return self._state

    def problem(self) -> str | None:
        """Why the engine is not ready; None when it is."""
        if self.lost is not None:
            return "the device is lost"
        if self._state != "ready":
            return {"starting": "the model is loading", "restarting": "the worker died and is being restarted"}.get(
                self._state, "the server is shutting down"
            )
        if self._worker is None or not self._worker.alive:
            return "the worker is dead"
        with self._shared.condition:
            busy = self._clock() - self._shared.running_since if self._shared.running else 0.0
        return f"a batch has been running for {busy:.0f} s" if busy > self.limits.stall_s else None

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait."""
        with self._shared.condition:
            return self._shared.schedule.tokens

    # ---- requests ------------------------------------------------------------------------------------------

    async def run(
        self,
        rows: Sequence[Ints],
        wanted: Sequence[Any],
        *,
        lane: Lane | None = None,
        deadline_s: float | None = None,
    ) -> Done[R]:
        """Results of these rows. Cancelling the caller takes out what has not begun.

        lane        None: by size
        deadline_s  None: that of the limits
        """
        tokens = sum(len(ids) for ids in rows)
        if lane is None:
            lane = "interactive" if tokens <= self.limits.interactive_tokens else "bulk"
        deadline = self.limits.deadline_s if deadline_s is None else deadline_s
        self.admit(tokens, lane, deadline)
        job = Job(lane, self._loop.create_future(), self._clock(), [None] * len(rows), len(rows), tokens)
        if not rows:
            return Done([], 0.0, 0.0)
        self._jobs.add(job)
        late = too_late(deadline)
        timer = self._loop.call_later(deadline, self._fail, job, late)
        self._enqueue(job, rows, wanted)
        try:
            await job.future
        finally:
            timer.cancel()
            self._close(job)
        return Done(job.results, job.started - job.arrived, self._clock() - job.started)

    def admit(self, tokens: int, lane: Lane, deadline_s: float) -> None:
        """Refuse what must be refused, before any work is done for it."""
        if self._state not in ("ready", "restarting"):
            raise UnavailableError(self.problem() or "the server is shutting down", 1.0)
        with self._shared.condition:
            waiting = self._shared.schedule.tokens
            running = sum(item.tokens for item in self._shared.running)
            ahead = self._shared.schedule.ahead_of(lane) + running
        rate = self.pace.rate
        if waiting and waiting + tokens > self.limits.queued_tokens:
            raise OverloadedError(
                f"{waiting:,} tokens are waiting and {tokens:,} more would pass the limit of "
                f"{self.limits.queued_tokens:,}",
                max(waiting / rate, 1.0),
            )
        if ahead and ahead / rate > deadline_s:
            raise OverloadedError(
                f"{ahead:,} tokens are before this request, {ahead / rate:.0f} s of work; "
                f"it would not be answered within {deadline_s:g} s",
                max(ahead / rate - deadline_s, 1.0),
            )

    def _enqueue(self, job: Job, rows: Sequence[Ints], wanted: Sequence[Any]) -> None:
        now, rate = self._clock(), self.pace.rate
        with self._shared.condition:
            for index, (ids, want) in enumerate(zip(rows, wanted, strict=True)):
                self._shared.schedule.push(Item(job, index, ids, want), now, rate)
            self._shared.condition.notify()

    def _fail(self, job: Job, error: BaseException) -> None:
        if not job.future.done():
            job.future.set_exception(error)
        self._close(job)

    def _close(self, job: Job) -> None:
        self._jobs.discard(job)
        with self._shared.condition:
            self._shared.schedule.close(job, job.waiting)

    # ---- what the worker says, on the loop -----------------------------------------------------------------

    def deliver(self, outcomes: Sequence[tuple[Item, R | Exception]], seconds: float) -> None:
        """A batch is done: results and errors go to their requests."""
        failed = 0
        for item, outcome in outcomes:
            job = item.owner
            assert isinstance(job, Job)
            if isinstance(outcome, Exception):
                failed += 1
                self._fail(job, TextFailedError(f"input {item.index}", item.index, _said(outcome)))
            elif not job.future.done():
                job.results[item.index] = outcome
                job.left -= 1
                if not job.left:
                    job.future.set_result(None)
        self._next_restart_s = RESTART_S if failed < len(outcomes) else self._next_restart_s
        tokens = sum(item.tokens for item, _ in outcomes)
        if not failed:
            self.pace.add(tokens, seconds)
        if self._observer is not None:
            self._observer(BatchReport(len(outcomes), tokens, failed, seconds))

    def ready(self, tokens: int, seconds: float) -> None:
        """The worker has loaded the model and warmed up."""
        self.pace.add(tokens, seconds)
        if self._state in ("starting", "restarting"):
            self._state = "ready"
        if not self._first.done():
            self._first.set_result(None)

    def died(self, error: BaseException, running: Sequence[Item]) -> None:
        """Its texts run once more, alone; whoever meets a second death is to blame and fails."""
        if not self._first.done():
            self._state = "stopped"
            self._first.set_exception(error if isinstance(error, Exception) else UnavailableError(repr(error)))
            return
        if isinstance(error, DeviceLost):
            self._give_up(error)
            return
        log.error("the worker died: %r; a new one starts in %g s", error, self._next_restart_s)
        for item in running:
            item.tries += 1
            job = item.owner
            assert isinstance(job, Job)
            if item.tries > 1:
                self._fail(job, UnavailableError("the model failed twice on this input"))
            elif not job.closed:
                with self._shared.condition:
                    job.waiting += item.tokens
                    self._shared.schedule.push_back(item)
        if self._shared.stop:
            return
        self._state = "restarting" if self._state == "ready" else self._state
        self._restart = self._loop.call_later(self._next_restart_s, self._respawn)
        self._next_restart_s = min(2 * self._next_restart_s, RESTART_MOST_S)

    def _give_up(self, error: DeviceLost) -> None:
        """No new worker would fare better: the process has to end (`run.serve` sees to it)."""
        log.critical("the device is lost: %s", error)
        self.lost, self._state = str(error), "stopped"
        for job in list(self._jobs):
            self._fail(job, UnavailableError("the GPU of this server failed; it is being restarted"))

    def _respawn(self) -> None:
        self.restarts += 1
        self._spawn()

    def _spawn(self) -> None:
        batch = (self.limits.batch_tokens, self.limits.batch_s)
        self._worker = Worker(self._make, self._shared, self, self.pace, batch, self._loop, self._clock)


def _said(error: Exception) -> str:
    """What a client may read of an error: our own words, and of others only the kind."""
    return str(error) if isinstance(error, ThreefoldError) else f"the model failed ({type(error).__name__})"
