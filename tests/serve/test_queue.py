"""The engine under load and faults, with a runner that the test holds in its hands. No test measures time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serve.runners import PATIENCE_S, HeldRunner

from threefold.errors import (
    ConfigError,
    DeadlineError,
    InputFailedError,
    NumericalError,
    OverloadedError,
    UnavailableError,
)
from threefold.serve import queue, worker
from threefold.serve.queue import BatchReport, Engine, Limits
from threefold.serve.schedule import Lane
from threefold.types import Ints

Held = Engine[tuple[Any, list[int]]]


def text(first: int, tokens: int = 1) -> Ints:
    return np.full(tokens, first, np.int32)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(3 * PATIENCE_S):
            await test()

    asyncio.run(limited())


@asynccontextmanager
async def started(runner: HeldRunner, limits: Limits | None = None, **options: Any) -> AsyncIterator[Held]:
    engine: Held = Engine(runner.make, limits, **options)
    await engine.start()
    try:
        yield engine
    finally:
        runner.release()
        await engine.drain()


async def busy(engine: Held, runner: HeldRunner, first: int = 1, lane: Lane | None = None) -> asyncio.Task[Any]:
    """The worker is inside a batch and stays there."""
    runner.hold()
    task = asyncio.create_task(engine.run([text(first)], ["w"], lane=lane))
    await asyncio.to_thread(runner.began.acquire)
    return task


async def submitted(engine: Held, *firsts: int, tokens: int = 1, lane: Lane | None = None) -> asyncio.Task[Any]:
    """A request that waits behind the running batch."""
    before = engine.queued_tokens
    task = asyncio.create_task(engine.run([text(first, tokens) for first in firsts], list(firsts), lane=lane))
    while engine.queued_tokens == before and not task.done():
        await asyncio.sleep(0)
    return task


@pytest.fixture
def quick_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "RESTART_S", 0.001)
    monkeypatch.setattr(queue, "RESTART_MOST_S", 0.002)


def test_results_come_in_the_order_of_the_request() -> None:
    async def test() -> None:
        async with started(HeldRunner()) as engine:
            done = await engine.run([text(5, 3), text(6), text(7, 2)], ["a", "b", "c"])
            assert done.results == [("a", [5, 5, 5]), ("b", [6]), ("c", [7, 7])]
            assert done.queue_s >= 0
            assert done.run_s >= 0
            assert (await engine.run([], [])).results == []

    run(test)


def test_an_idle_worker_does_not_wait_for_company_and_a_busy_one_packs_requests() -> None:
    async def test() -> None:
        runner = HeldRunner()
        async with started(runner) as engine:
            first = await busy(engine, runner, 1)
            others = [await submitted(engine, i) for i in (2, 3, 4)]
            runner.release()
            await asyncio.gather(first, *others)
            assert runner.batches == [[1], [2, 3, 4]]

    run(test)


def test_interactive_goes_before_bulk_by_size_and_by_word() -> None:
    async def test() -> None:
        runner = HeldRunner()
        async with started(runner, Limits(interactive_tokens=300, batch_tokens=256)) as engine:
            first = await busy(engine, runner)
            tasks = [
                await submitted(engine, 2, 3, tokens=200),  # 400 tokens: bulk
                await submitted(engine, 4, tokens=250),
                await submitted(engine, 5, tokens=250, lane="bulk"),
                await submitted(engine, 6, 7, tokens=250, lane="interactive"),
            ]
            runner.release()
            await asyncio.gather(first, *tasks)
            order = [first for batch in runner.batches for first in batch]
            assert order == [1, 4, 6, 7, 2, 3, 5]

    run(test)


@pytest.mark.parametrize(
    ("layer_s", "sizes"),
    [
        ((0.05,) * 6, [6, 2]),
        ((0.0, 0.0, 0.3), [2, 2, 2, 2]),  # queued ahead of their computation, as on a GPU
        ((), [2, 2, 2, 2]),
    ],
)
def test_bulk_that_yields_to_queries_has_larger_batches(layer_s: tuple[float, ...], sizes: list[int]) -> None:
    """The warm-up reads 1,000 tokens per second, so 256 tokens take `batch_s`; texts have 125."""
    now, layers = [0.0], itertools.cycle(layer_s)

    class Layered(HeldRunner):
        def samples(self) -> tuple[Sequence[Ints], Sequence[Any]]:
            return [text(0, 300)], ["w"]

    def layer(firsts: list[int]) -> None:
        now[0] += next(layers)

    async def test() -> None:
        runner = Layered()
        runner.layers, runner.layer = len(layer_s), layer
        async with started(runner, Limits(batch_s=0.256), clock=lambda: now[0]) as engine:
            for _ in "warm-up", "measured":
                await asyncio.to_thread(runner.began.acquire)
            first = await busy(engine, runner)
            bulk = await submitted(engine, *range(10, 18), tokens=125, lane="bulk")
            runner.release()
            await asyncio.gather(first, bulk)
        assert [len(batch) for batch in runner.batches if batch[0] >= 10] == sizes

    run(test)


def test_queries_run_between_the_layers_of_bulk_and_are_answered_first() -> None:
    async def test() -> None:
        runner = HeldRunner()
        runner.layers = 4
        async with started(runner) as engine:
            answered: list[int] = []

            def note(first: int, task: asyncio.Task[Any]) -> None:
                task.add_done_callback(lambda _: answered.append(first))

            bulk = await busy(engine, runner, 1, lane="bulk")
            query = await submitted(engine, 2)
            other = await submitted(engine, 3, lane="bulk")
            for first, task in enumerate((bulk, query, other), 1):
                note(first, task)
            runner.release()
            results = await asyncio.gather(bulk, query, other)
            assert [done.results[0][1] for done in results] == [[1], [2], [3]]
            assert answered == [2, 1, 3]

    run(test)


def test_queries_take_at_most_three_times_what_the_interrupted_batch_has_had() -> None:
    """A layer takes 1 s and a query 4 s. Before layer n the batch has had n s; a query runs if those before it took at
    most 3 n s: 0 of 0, not 4 of 3, 4 of 6, 8 of 9, 12 of 12, not 16 of 15.
    """

    async def test() -> None:
        now = [0.0]
        order: list[int] = []
        runner = HeldRunner()
        async with started(runner, Limits(batch_tokens=1), clock=lambda: now[0]) as engine:
            bulk = await busy(engine, runner, 1, lane="bulk")
            queries = [await submitted(engine, first) for first in (10, 11, 12, 13, 14)]
            runner.layers = 6

            def layer(firsts: list[int]) -> None:
                order.append(firsts[0])
                now[0] += 1.0 if firsts == [1] else 4.0 / 6.0

            runner.layer = layer
            runner.release()
            await asyncio.gather(bulk, *queries)
            assert [first for i, first in enumerate(order) if i == 0 or order[i - 1] != first] == [
                10, 1, 11, 1, 12, 1, 13, 1, 14,
            ]  # fmt: skip
            assert order[:8] == [10] * 6 + [1] * 2

    run(test)


def test_a_long_query_lets_a_short_one_pass_that_came_little_later() -> None:
    async def test() -> None:
        runner = HeldRunner()
        runner.layers = 2
        async with started(runner, Limits(batch_tokens=100)) as engine:
            engine.pace.add(2_000, 20.0)  # 100 tokens per second: the key of the long one is 40 s from now
            runner.hold()
            long = asyncio.create_task(engine.run([text(1, 1_000)], ["w"]))
            await asyncio.to_thread(runner.began.acquire)
            short = await submitted(engine, 2)
            same = await submitted(engine, 3, tokens=1_000)
            runner.release()
            await asyncio.gather(long, short, same)
            assert runner.batches == [[1], [2], [3]]
            assert (await short).run_s <= (await long).run_s  # inside it

    run(test)


def test_a_batch_that_nobody_waits_for_is_left_in_the_middle() -> None:
    async def test() -> None:
        runner = HeldRunner()
        layers: list[int] = []
        runner.layers, runner.layer = 5, lambda firsts: layers.append(firsts[0])
        async with started(runner) as engine:
            gone = await busy(engine, runner, 1)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            runner.release()
            assert (await engine.run([text(2)], ["w"])).results == [("w", [2])]
            assert layers == [2] * 5
            assert engine.problem() is None
            assert engine.restarts == 0

    run(test)


@pytest.mark.parametrize("first", [HeldRunner.DIE_ONCE, HeldRunner.FAIL])
@pytest.mark.usefixtures("quick_restart")
def test_a_query_that_fails_inside_a_bulk_batch_takes_nothing_with_it(first: int) -> None:
    async def test() -> None:
        runner = HeldRunner()
        runner.layers = 3
        async with started(runner) as engine:
            bulk = await busy(engine, runner, 1, lane="bulk")
            query = await submitted(engine, first)
            runner.release()
            assert (await bulk).results == [("w", [1])]
            if first == HeldRunner.FAIL:
                with pytest.raises(InputFailedError):
                    await query
            else:
                assert (await query).results == [(first, [first])]
            assert engine.queued_tokens == 0

    run(test)


@pytest.mark.usefixtures("quick_restart")
def test_what_may_have_killed_a_worker_is_not_interrupted() -> None:
    """The query dies inside the bulk batch; when that runs again, alone, a second deadly query must not blame it."""

    async def test() -> None:
        runner = HeldRunner()
        runner.layers = 1
        async with started(runner) as engine:
            bulk = await busy(engine, runner, 1, lane="bulk")
            deadly = [await submitted(engine, HeldRunner.DIE) for _ in range(3)]
            runner.release()
            assert (await bulk).results == [("w", [1])]
            for task in deadly:
                with pytest.raises(UnavailableError):
                    await task

    run(test)


def test_a_client_that_goes_takes_its_texts_with_it() -> None:
    async def test() -> None:
        runner = HeldRunner()
        async with started(runner) as engine:
            first = await busy(engine, runner)
            gone = await submitted(engine, 2, 3, tokens=10)
            stays = await submitted(engine, 4, tokens=10)
            assert engine.queued_tokens == 30
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            assert engine.queued_tokens == 10
            runner.release()
            await asyncio.gather(first, stays)
            assert runner.batches == [[1], [4]]

    run(test)


def test_admission_is_bounded_in_tokens_and_says_when_to_come_back() -> None:
    async def test() -> None:
        runner = HeldRunner()
        async with started(runner, Limits(queued_tokens=1_000)) as engine:
            engine.pace.add(2_000, 20.0)  # 100 tokens per second
            first = await busy(engine, runner)
            waits = await submitted(engine, 2, tokens=900)
            with pytest.raises(OverloadedError, match=r"900 tokens are waiting and 101 more .* 1,000") as error:
                await engine.run([text(3, 101)], [3])
            assert error.value.retry_after_s == pytest.approx(900 / 100)
            fits = await submitted(engine, 4, tokens=100)
            runner.release()
            await asyncio.gather(first, waits, fits)
            big = await engine.run([text(5, 2_000)], [5])  # alone, a request may be larger
            assert len(big.results) == 1

    run(test)


def test_what_cannot_be_in_time_is_refused_at_once() -> None:
    async def test() -> None:
        runner = HeldRunner()
        async with started(runner) as engine:
            engine.pace.add(2_000, 20.0)
            first = await busy(engine, runner)
            waits = await submitted(engine, 2, tokens=5_999, lane="bulk")
            with pytest.raises(OverloadedError, match="60 s of work; it would not be answered within 50 s") as error:
                await engine.run([text(3)], [3], lane="bulk", deadline_s=50.0)
            assert error.value.retry_after_s == pytest.approx(10.0)
            quick = asyncio.create_task(engine.run([text(4)], [4], deadline_s=50.0))  # does not wait for bulk
            await asyncio.sleep(0)
            runner.release()
            await asyncio.gather(first, waits, quick)

    run(test)


def test_a_deadline_ends_the_wait_and_drops_the_text() -> None:
    async def test() -> None:
        runner = HeldRunner()
        async with started(runner) as engine:
            first = await busy(engine, runner)
            with pytest.raises(DeadlineError, match=r"no answer within 0\.01 s"):
                await engine.run([text(2)], [2], deadline_s=0.01)
            assert engine.queued_tokens == 0
            runner.release()
            await first
            assert runner.batches == [[1]]

    run(test)


def test_one_bad_text_fails_alone() -> None:
    async def test() -> None:
        runner = HeldRunner()
        reports: list[BatchReport] = []
        async with started(runner, observer=reports.append) as engine:
            first = await busy(engine, runner)
            good = [await submitted(engine, i) for i in (2, 3, 4, 5)]
            bad = await submitted(engine, 6, HeldRunner.FAIL)
            runner.release()
            results = await asyncio.gather(first, *good)
            assert [done.results for done in results[1:]] == [[(i, [i])] for i in (2, 3, 4, 5)]
            with pytest.raises(InputFailedError, match=r"^input 1: the model failed \(RuntimeError\)$"):
                await bad
            assert reports[-1][:3] == (6, 6, 1)
            assert engine.state == "ready"
            assert engine.restarts == 0

    run(test)


def test_our_own_errors_are_told_in_full() -> None:
    async def test() -> None:
        runner = HeldRunner()

        def nan(_: list[int]) -> None:
            raise NumericalError("NaN or infinity")

        runner.before = nan
        async with started(runner) as engine:
            for _ in range(2 * worker.STRIKES):  # on purpose: these do not make the worker a broken one
                with pytest.raises(InputFailedError, match="input 0: NaN or infinity"):
                    await engine.run([text(1)], [1])
            assert engine.restarts == 0

    run(test)


@pytest.mark.usefixtures("quick_restart")
def test_a_worker_killed_in_flight_loses_nothing() -> None:
    async def test() -> None:
        runner = HeldRunner()
        async with started(runner) as engine:
            first = await busy(engine, runner)
            tasks = [await submitted(engine, i) for i in (2, HeldRunner.DIE_ONCE, 3)]
            runner.release()
            results = await asyncio.gather(first, *tasks)
            assert [done.results[0][1] for done in results] == [[1], [2], [HeldRunner.DIE_ONCE], [3]]
            assert engine.restarts == 1
            assert runner.loads == 2
            assert engine.state == "ready"

    run(test)


@pytest.mark.usefixtures("quick_restart")
def test_a_text_that_kills_twice_is_to_blame_and_others_are_served() -> None:
    async def test() -> None:
        runner = HeldRunner()
        async with started(runner) as engine:
            first = await busy(engine, runner)
            poison = await submitted(engine, HeldRunner.DIE)
            others = [await submitted(engine, i) for i in (2, 3)]
            runner.release()
            await asyncio.gather(first, *others)
            with pytest.raises(UnavailableError, match="failed twice on this input"):
                await poison
            assert (await engine.run([text(7)], ["w"])).results == [("w", [7])]

    run(test)


@pytest.mark.usefixtures("quick_restart")
def test_a_model_on_which_everything_fails_is_loaded_again() -> None:
    async def test() -> None:
        runner = HeldRunner()
        async with started(runner) as engine:
            for _ in range(worker.STRIKES):
                with pytest.raises(InputFailedError):
                    await engine.run([text(HeldRunner.FAIL)], [0])
            while engine.restarts == 0 or engine.state != "ready":
                await asyncio.sleep(0.001)
            assert runner.loads == 2
            assert (await engine.run([text(7)], ["w"])).results == [("w", [7])]

    run(test)


def test_nothing_is_tried_again_on_a_gpu_that_is_lost() -> None:
    """Not halved, so that no other text of the batch is blamed; not loaded again, which would fail for ever."""

    async def test() -> None:
        runner = HeldRunner()
        async with started(runner) as engine:
            first = await busy(engine, runner)
            others = [await submitted(engine, 2), await submitted(engine, HeldRunner.LOSE), await submitted(engine, 3)]
            runner.release()
            await first
            for each in others:
                with pytest.raises(UnavailableError, match="the GPU of this server failed; it is being restarted"):
                    await each
            assert engine.problem() == "the device is lost"
            assert engine.lost == "CUDA error: an illegal memory access was encountered"
            with pytest.raises(UnavailableError, match="the device is lost"):
                await engine.run([text(7)], ["w"])
            assert (runner.loads, engine.restarts, len(runner.batches)) == (1, 0, 2)

    run(test)


def test_readiness_is_red_while_the_worker_is_dead_and_requests_wait_for_the_next() -> None:
    async def test() -> None:
        runner = HeldRunner()
        async with started(runner) as engine:
            assert engine.problem() is None
            first = await busy(engine, runner, HeldRunner.DIE_ONCE)
            runner.load_error = MemoryError("no room for the model")
            runner.release()
            while engine.state == "ready":
                await asyncio.sleep(0)
            assert engine.problem() == "the worker died and is being restarted"
            waits = await submitted(engine, 2)
            runner.load_error = None
            await asyncio.gather(first, waits)
            assert engine.problem() is None

    run(test)


def test_readiness_is_red_when_a_batch_does_not_end() -> None:
    async def test() -> None:
        now = [0.0]
        runner = HeldRunner()
        async with started(runner, Limits(stall_s=60.0), clock=lambda: now[0]) as engine:
            first = await busy(engine, runner)
            assert engine.problem() is None
            now[0] = 61.0
            assert engine.problem() == "a batch has been running for 61 s"
            runner.release()
            await first
            assert engine.problem() is None

    run(test)


def test_an_error_of_the_first_load_is_raised() -> None:
    async def test() -> None:
        runner = HeldRunner()
        runner.load_error = ConfigError("no such model")
        engine: Held = Engine(runner.make)
        with pytest.raises(ConfigError, match="no such model"):
            await engine.start()
        assert engine.state == "stopped"
        with pytest.raises(UnavailableError):
            await engine.run([text(1)], [1])

    run(test)


def test_draining_finishes_what_is_there_and_takes_nothing_new() -> None:
    async def test() -> None:
        runner = HeldRunner()
        engine: Held = Engine(runner.make)
        await engine.start()
        first = await busy(engine, runner)
        waits = await submitted(engine, 2)
        draining = asyncio.create_task(engine.drain())
        await asyncio.sleep(0)
        assert engine.problem() == "the server is shutting down"
        with pytest.raises(UnavailableError, match="shutting down"):
            await engine.run([text(3)], [3])
        runner.release()
        await draining
        assert (await first).results == [("w", [1])]
        assert (await waits).results == [(2, [2])]
        assert engine.state == "stopped"

    run(test)


def test_draining_gives_up_what_takes_too_long() -> None:
    async def test() -> None:
        runner = HeldRunner()
        engine: Held = Engine(runner.make)
        await engine.start()
        first = await busy(engine, runner)
        draining = asyncio.create_task(engine.drain(timeout_s=0.01))
        with pytest.raises(UnavailableError, match="shutting down"):
            await first
        runner.release()
        await draining
        assert engine.state == "stopped"

    run(test)


def test_limits_are_checked() -> None:
    with pytest.raises(ConfigError, match="batch_s must be above 0; got 0"):
        Limits(batch_s=0)
    with pytest.raises(ConfigError, match=r"limits\.batch_tokens: expected int"):
        Limits.from_dict({"batch_tokens": "many"}, "limits")


requests = st.lists(
    st.tuples(
        st.lists(st.sampled_from([1, 2, 3, 4, 5, HeldRunner.FAIL]), max_size=4),
        st.integers(1, 200),
        st.sampled_from(["interactive", "bulk"]),
        st.booleans(),
    ),
    max_size=12,
)


@given(requests)
@settings(deadline=None, max_examples=50)
def test_every_request_gets_its_own_answer_whatever_the_others_do(
    coming: list[tuple[list[int], int, Lane, bool]],
) -> None:
    """Some fail, some are cancelled in the queue; nothing is lost, mixed up or left behind."""

    async def test() -> None:
        runner = HeldRunner()
        async with started(runner) as engine:
            first = await busy(engine, runner)
            tasks = [
                asyncio.create_task(engine.run([text(id, tokens) for id in ids], ids, lane=lane))
                for ids, tokens, lane, _ in coming
            ]
            await asyncio.sleep(0)
            for task, (_, _, _, leaves) in zip(tasks, coming, strict=True):
                if leaves:
                    task.cancel()
            runner.release()
            await first
            results = await asyncio.gather(*tasks, return_exceptions=True)
            for result, (ids, tokens, _, leaves) in zip(results, coming, strict=True):
                if leaves and ids:
                    assert isinstance(result, asyncio.CancelledError)
                elif HeldRunner.FAIL in ids:
                    assert isinstance(result, InputFailedError)
                elif not leaves:
                    assert not isinstance(result, BaseException), result
                    assert result.results == [(id, [id] * tokens) for id in ids]
            assert engine.queued_tokens == 0

    run(test)
