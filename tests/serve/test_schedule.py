"""The order in which waiting texts leave, for any arrivals: time and speed are numbers here."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.serve.schedule import AGEING, PATIENCE, Item, Lane, Pace, Schedule


@dataclass(eq=False)
class Request:
    lane: Lane
    closed: bool = False


def item(tokens: int, lane: Lane = "interactive", owner: Request | None = None) -> Item:
    return Item(owner or Request(lane), 0, np.zeros(tokens, np.int32), None)


def sizes(batch: list[Item]) -> list[int]:
    return [one.tokens for one in batch]


def test_nothing_waits_nothing_leaves() -> None:
    assert Schedule().take(100) == []


def test_a_free_worker_takes_everything_that_fits() -> None:
    schedule = Schedule()
    for tokens in (10, 20, 30):
        schedule.push(item(tokens), now=0.0, rate=100.0)
    assert sizes(schedule.take(100)) == [10, 20, 30]
    assert schedule.tokens == 0


def test_a_text_longer_than_the_budget_runs_alone() -> None:
    schedule = Schedule()
    schedule.push(item(500), now=0.0, rate=1000.0)
    schedule.push(item(5), now=10.0, rate=1000.0)
    assert sizes(schedule.take(100)) == [500]
    assert sizes(schedule.take(100)) == [5]


def test_a_misfit_does_not_stop_the_batch() -> None:
    schedule = Schedule()
    for tokens, now in ((60, 0.0), (70, 0.1), (30, 0.2)):
        schedule.push(item(tokens), now=now, rate=1e9)
    assert sizes(schedule.take(100)) == [60, 30]
    assert sizes(schedule.take(100)) == [70]


def test_a_short_text_overtakes_a_long_one_that_came_little_earlier_and_no_other() -> None:
    """800 tokens at 100 per second take 8 s, so the long text yields to what comes within 4 * 8 = 32 s."""
    assert AGEING == 4.0
    schedule = Schedule()
    schedule.push(item(800), now=0.0, rate=100.0)
    schedule.push(item(1), now=31.9, rate=100.0)
    schedule.push(item(2), now=32.0, rate=100.0)
    assert sizes(schedule.take(1)) == [1]
    assert sizes(schedule.take(1)) == [800]
    assert sizes(schedule.take(1)) == [2]


def test_interactive_goes_before_bulk_and_bulk_joins_where_it_costs_little() -> None:
    schedule = Schedule()
    for tokens in (9, 6, 100):
        schedule.push(item(tokens, "bulk"), now=0.0, rate=1e9)
    schedule.push(item(4), now=5.0, rate=1e9)
    assert sizes(schedule.take(80)) == [4, 6]  # up to 80 / 8 = 10 tokens
    assert sizes(schedule.take(80)) == [9]
    assert sizes(schedule.take(80)) == [100]


def test_a_batch_of_bulk_alone_may_be_larger_than_others() -> None:
    schedule = Schedule()
    for tokens in (30, 30, 30, 30):
        schedule.push(item(tokens, "bulk"), now=0.0, rate=1e9)
    schedule.push(item(40), now=0.0, rate=1e9)
    schedule.push(item(50), now=0.0, rate=1e9)
    assert sizes(schedule.take(80, bulk=90)) == [40]
    assert sizes(schedule.take(80, bulk=90)) == [50]
    assert sizes(schedule.take(80, bulk=90)) == [30, 30, 30]
    assert sizes(schedule.take(80)) == [30]


def test_queries_do_not_join_the_batch_of_bulk_but_are_urgent_while_it_runs() -> None:
    schedule = Schedule()
    schedule.push(item(50, "bulk"), now=0.0, rate=1e9)
    for _ in range(PATIENCE + 2):
        schedule.push(item(20), now=0.0, rate=1e9)
    assert [sizes(schedule.take(20)) for _ in range(PATIENCE)] == [[20]] * PATIENCE
    assert sizes(schedule.take(80)) == [50]
    assert sizes(schedule.urgent(80, math.inf)) == [20, 20]
    assert schedule.urgent(80, math.inf) == []


def test_the_turn_of_bulk_passes_when_its_clients_have_gone() -> None:
    schedule = Schedule()
    gone = Request("bulk")
    schedule.push(item(50, owner=gone), now=0.0, rate=1e9)
    for _ in range(PATIENCE + 1):
        schedule.push(item(20), now=0.0, rate=1e9)
    assert [sizes(schedule.take(20)) for _ in range(PATIENCE)] == [[20]] * PATIENCE
    schedule.close(gone, 50)
    assert sizes(schedule.take(80)) == [20]


def test_what_is_urgent_has_a_smaller_key() -> None:
    """At 100 tokens per second, keys are the time of arrival plus 4 * tokens / 100."""
    schedule = Schedule()
    schedule.push(item(100), now=0.0, rate=100.0)  # 4.0
    schedule.push(item(50), now=1.0, rate=100.0)  # 3.0
    schedule.push(item(25), now=1.0, rate=100.0)  # 2.0
    schedule.push(item(10, "bulk"), now=0.0, rate=100.0)
    assert sizes(schedule.urgent(1_000, 4.0)) == [25, 50]
    assert schedule.tokens == 110


def test_bulk_is_served_after_so_many_batches_without_it() -> None:
    schedule = Schedule()
    schedule.push(item(100, "bulk"), now=0.0, rate=100.0)
    for _ in range(PATIENCE + 1):
        schedule.push(item(100), now=0.0, rate=100.0)
    lanes = [schedule.take(100)[0].owner.lane for _ in range(PATIENCE + 2)]
    assert lanes == ["interactive"] * PATIENCE + ["bulk", "interactive"]


def test_a_closed_owner_leaves_the_count_at_once_and_its_texts_are_dropped() -> None:
    schedule = Schedule()
    gone, kept = Request("bulk"), Request("bulk")
    for owner in (gone, kept, gone):
        schedule.push(item(10, owner=owner), now=0.0, rate=100.0)
    schedule.close(gone, 20)
    schedule.close(gone, 20)  # twice is once
    assert schedule.tokens == 10
    assert [one.owner for one in schedule.take(100)] == [kept]


def test_what_killed_a_worker_runs_next_and_alone() -> None:
    schedule = Schedule()
    suspect = item(10, "bulk")
    schedule.push(item(10), now=0.0, rate=100.0)
    schedule.push_back(suspect)
    assert schedule.tokens == 20
    assert schedule.take(100) == [suspect]
    assert sizes(schedule.take(100)) == [10]


Arrival = tuple[int, Lane, bool, float]
arrivals = st.lists(
    st.tuples(
        st.integers(1, 300), st.sampled_from(["interactive", "bulk"]), st.booleans(), st.floats(0.0, 5.0, width=32)
    ),
    max_size=60,
)


@given(arrivals, st.integers(1, 400), st.integers(1, 4))
def test_for_any_arrivals(coming: list[Arrival], budget: int, per_step: int) -> None:
    """Nothing is lost or doubled, budgets hold, counts are true, nobody starves, the oldest key always goes."""
    schedule = Schedule()
    waiting: dict[Item, float] = {}
    left = list(coming)
    now, without_bulk, taken = 0.0, 0, 0
    while left or waiting:
        for tokens, lane, leaves, gap in left[:per_step]:
            now += gap
            one = item(tokens, lane)
            schedule.push(one, now, rate=50.0)
            if leaves:
                schedule.close(one.owner, tokens)
            else:
                waiting[one] = now + AGEING * tokens / 50.0
        del left[:per_step]
        assert schedule.tokens == sum(one.tokens for one in waiting)
        bulk_waits = any(one.owner.lane == "bulk" for one in waiting)
        batch = schedule.take(budget)
        assert bool(batch) == bool(waiting)
        if not batch:
            continue
        assert len(batch) == 1 or sum(sizes(batch)) <= budget
        lead = batch[0].owner.lane
        assert waiting[batch[0]] == min(key for one, key in waiting.items() if one.owner.lane == lead)
        for one in batch:
            del waiting[one]
        taken += len(batch)
        served = any(one.owner.lane == "bulk" for one in batch)
        without_bulk = without_bulk + 1 if bulk_waits and not served else 0
        assert without_bulk <= PATIENCE
    assert taken == sum(not leaves for _, _, leaves, _ in coming)


def test_pace_is_tokens_per_busy_second() -> None:
    pace = Pace()
    assert pace.rate == Pace.GUESS
    pace.add(1000, 2.0)
    assert pace.rate == pytest.approx(500.0)


def test_small_batches_count_only_until_a_large_one_was_seen() -> None:
    pace = Pace()
    pace.add(10, 1.0)
    assert pace.rate == pytest.approx(10.0)
    pace.add(1000, 1.0)
    pace.add(10, 1.0)
    pace.add(1000, 0.0)  # a clock that did not move says nothing
    pace.add(0, 1.0)
    assert pace.rate == pytest.approx(1000.0)


def test_a_measurement_fades_with_busy_time() -> None:
    pace = Pace()
    pace.add(1000, 10.0)  # 100 per second
    pace.add(3000, 10.0)  # 300 per second; the first counts half: (500 + 3000) / (5 + 10)
    assert pace.rate == pytest.approx(3500 / 15)
