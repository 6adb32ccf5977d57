"""Batches that do not fit are cut and come all the same, once each, in order. A stand-in for the memory of a GPU."""

from __future__ import annotations

import gc
import logging
import math
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from threefold import Encoder
from threefold.encoder import fitting
from threefold.encoder.fitting import LEAST, Lesson, Portion, Room, fitted, portions
from threefold.encoder.shortage import Short, is_short, tried
from threefold.encoder.transfer import is_lost
from threefold.errors import DeviceMemoryError
from threefold.text.tokenizer import Tokens
from threefold.types import Ints, offsets_of

CPU = torch.device("cpu")
NONE = Short("CUDA out of memory")


def tokens_of(lengths: list[int]) -> Tokens:
    sizes = np.array(lengths, np.int64)
    return Tokens(np.zeros(sizes.sum(), np.int32), offsets_of(sizes), sizes)


class Begun:
    """What was begun; it holds its memory until it is finished, or as long as anybody knows it."""

    def __init__(self, batch: Portion) -> None:
        self.batch = batch


class Device:
    """Has memory for so many tokens. What is computed again when it is finished needs twice its own."""

    def __init__(self, most: int, depth: int, again: bool = False) -> None:
        self.most, self.depth, self.again = most, depth, again
        self.begun: weakref.WeakSet[Begun] = weakref.WeakSet()
        self.refused = 0
        self.given_back = 0

    @property
    def held(self) -> int:
        return sum(each.batch.count for each in self.begun)

    def begin(self, batch: Portion) -> Begun:
        self.need(batch.count)
        begun = Begun(batch)
        self.begun.add(begun)
        return begun

    def finish(self, batch: Portion, begun: Begun) -> Ints:
        assert begun.batch is batch
        self.begun.remove(begun)
        if self.again:
            self.need(2 * batch.count)
        return batch.rows

    def give_back(self, _: torch.device) -> None:
        assert not self.held  # nothing is under way
        self.given_back += 1

    def need(self, tokens: int) -> None:
        if self.held + tokens > self.most:
            self.refused += 1
            raise torch.OutOfMemoryError(f"no memory for {tokens} tokens")

    def run(self, parts: list[list[int]], room: Room) -> list[list[list[int]]]:
        """The texts of each part, batch by batch."""
        source = (batch for lengths in parts for batch in portions(tokens_of(lengths), room.budget))
        found: list[list[list[int]]] = [[]]
        for batch, rows in fitted(source, self.begin, self.finish, room):
            found[-1].append(rows.tolist())
            if batch.last:
                found.append([])
        assert found.pop() == []
        return found


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device(0, 0)
    monkeypatch.setattr(fitting, "depth_of", lambda _: device.depth)
    monkeypatch.setattr(fitting, "give_back", device.give_back)
    return device


class TestEveryTextComesOnce:
    @settings(deadline=None, max_examples=300)
    @given(data=st.data())
    def test_in_order_after_few_tries(self, data: st.DataObject) -> None:
        parts = data.draw(st.lists(st.lists(st.integers(2, 40), min_size=1, max_size=12), min_size=1, max_size=4))
        longest = max(max(lengths) for lengths in parts)
        depth, again = data.draw(st.integers(0, 2)), data.draw(st.booleans())
        device = Device(data.draw(st.integers(2 * longest, 300)), depth, again)
        budget = data.draw(st.integers(1, 400))
        room = Room("model", CPU, budget)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fitting, "LEAST", 1)
            patch.setattr(fitting, "depth_of", lambda _: depth)
            patch.setattr(fitting, "give_back", device.give_back)
            for _ in range(3):
                found = device.run(parts, room)
                assert len(found) == len(parts)
                for batches, lengths in zip(found, parts, strict=True):
                    order = [row for rows in batches for row in rows]
                    assert sorted(order) == list(range(len(lengths)))
                    assert [lengths[row] for row in order] == sorted(lengths, reverse=True)
        assert device.held == 0
        assert device.refused <= math.log2(budget) + 2  # of a single text beside another: once

    def test_the_budget_is_halved_until_it_fits_and_stays_there(self, device: Device) -> None:
        device.most, room = 3_000, Room("model", CPU, 16_000)
        lengths = [500] * 40
        assert device.run([lengths], room) == [[[4 * i + k for k in range(4)] for i in range(10)]]
        assert (device.refused, room.budget) == (3, 2_000)  # 16,000, 8,000 and 4,000 tokens
        device.run([lengths], room)
        assert device.refused == 3
        assert device.given_back == 3

    def test_a_small_batch_beside_a_large_one_does_not_lower_the_budget_to_its_size(self, device: Device) -> None:
        device.most, device.depth, room = 16_050, 1, Room("model", CPU, 16_000)
        assert device.run([[500] * 32, [50, 50]], room)[1] == [[0], [1]]
        assert (device.refused, room.budget) == (1, 4_025)  # a quarter of 100 + 16,000

    def test_one_text_beside_another_is_tried_once_more_alone(
        self, device: Device, caplog: pytest.LogCaptureFixture
    ) -> None:
        device.most, device.depth, room = 700, 1, Room("model", CPU, 500)
        assert device.run([[500] * 5], room) == [[[0], [1], [2], [3], [4]]]
        assert (device.refused, room.budget, room.depth) == (1, 500, 0)
        (said,) = caplog.messages
        assert said == (
            "model: cpu had no memory for a batch of 500 tokens; its texts fitted otherwise. From now on batches have "
            "at most 500 tokens, one at a time. PyTorch says: no memory for 500 tokens"
        )

    def test_what_begun_after_one_that_cannot_be_finished_comes_after_it(self, device: Device) -> None:
        device.most, device.depth, device.again = 1_280, 2, True
        found = device.run([[100] * 10, [90] * 3], Room("model", CPU, 500))
        assert [[row for rows in batches for row in rows] for batches in found] == [[*range(10)], [0, 1, 2]]
        assert (device.refused, device.given_back) == (1, 1)  # 1,000 tokens where 770 were under way

    def test_the_budget_stays_worth_a_batch(self, device: Device, caplog: pytest.LogCaptureFixture) -> None:
        """Others may leave the GPU, and one that is full for a moment must not make it slow for ever."""
        device.most, room = 20, Room("model", CPU, 2_000)
        assert len(device.run([[10] * 200], room)[0]) == 200
        assert room.budget == LEAST == 512
        assert len(caplog.messages) == 1
        small = Room("model", CPU, 100)
        device.run([[10] * 20], small)
        assert small.budget == 100
        assert len(caplog.messages) == 2  # it is said, though nothing is lowered


class TestErrors:
    def test_one_text_alone_that_does_not_fit(self, device: Device) -> None:
        device.most, device.depth, room = 1_000, 1, Room("model", CPU, 800)
        found: list[list[int]] = []
        source = portions(tokens_of([300] * 4), 800) + portions(tokens_of([1_200, 5]), 800)
        with pytest.raises(DeviceMemoryError) as error:
            found.extend(rows.tolist() for _, rows in fitted(source, device.begin, device.finish, room))
        assert [row for rows in found for row in rows] == [0, 1, 2, 3]  # what came before it is not lost
        assert str(error.value) == (
            "model: a text of 1,200 tokens alone does not fit into the memory that is left on cpu. Read less of it "
            "(max_tokens=), take bfloat16 or float16 if it is float32, another device, or int8 on the CPU. PyTorch "
            "says: no memory for 1200 tokens"
        )
        assert error.value.__context__ is None

    def test_an_error_lowers_nothing(self, device: Device, caplog: pytest.LogCaptureFixture) -> None:
        """Nothing fits at all: what a batch may have is not known better than before."""
        device.most, room = 40, Room("model", CPU, 4_000)
        with pytest.raises(DeviceMemoryError, match="a text of 50 tokens alone"):
            device.run([[50] * 80], room)
        assert room.budget == 4_000
        assert not caplog.messages
        assert device.refused <= math.log2(4_000)

    @pytest.mark.parametrize("where", ["begin", "finish"])
    @pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
    def test_other_errors_are_not_tried_again(
        self, device: Device, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception
    ) -> None:
        device.most = 100
        calls: list[int] = []

        def fail(batch: Portion, *_: Any) -> Any:
            calls.append(batch.count)
            raise error

        monkeypatch.setattr(device, where, fail)
        with pytest.raises(type(error)):
            device.run([[9, 9]], Room("model", CPU, 50))
        assert calls == [18]
        assert device.given_back == 0

    def test_an_encoder_on_a_cpu_is_not_tried_again(self, m3_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        encoder = Encoder(m3_folder, device="cpu", precision="float32")
        calls: list[int] = []

        def fail(*_: Any) -> None:
            calls.append(1)
            raise MemoryError

        monkeypatch.setattr(encoder._model.network, "forward", fail)
        with pytest.raises(MemoryError):
            encoder.encode(["one", "two"])
        assert calls == [1]

    def test_an_error_keeps_nothing_of_the_call(self, device: Device) -> None:
        class Begin:
            def __call__(self, batch: Portion) -> Begun:
                raise ValueError("the device is gone")

        begin = Begin()
        kept = weakref.ref(begin)
        gc.disable()
        try:
            with pytest.raises(ValueError, match="the device is gone"):
                list(fitted(portions(tokens_of([9, 9]), 50), begin, device.finish, Room("model", CPU, 50)))
            del begin
            assert kept() is None
        finally:
            gc.enable()


def test_nothing_of_what_failed_is_there_when_it_is_tried_again() -> None:
    class Tensor:
        pass

    made: list[weakref.ref[Tensor]] = []

    def work() -> None:
        tensor = Tensor()
        made.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore is said in other lines.")

    gc.disable()
    try:
        assert tried(work) == Short("CUDA out of memory. Tried to allocate 2 GiB.")
        assert made[0]() is None
    finally:
        gc.enable()


def test_what_memory_that_is_not_there_is_called() -> None:
    assert is_short(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    for said in (
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "MPS backend out of memory (MPS allocated: 1.49 GiB, other allocations: 2 GiB, max allowed: 30.19 GiB)",
        "CUDA error: operation failed due to a previous error during capture",
    ):
        for kind in (RuntimeError, getattr(torch, "AcceleratorError", RuntimeError)):  # since PyTorch 2.8
            assert is_short(kind(said))
            assert not is_lost(kind(said))
        assert not is_short(ValueError(said))
    for error in (MemoryError(), RuntimeError("CUDA error: an illegal memory access was encountered")):
        assert not is_short(error)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20), budget=st.integers(1, 200), last=st.booleans())
def test_a_portion_is_cut_into_whole_texts_as_they_lie(lengths: list[int], budget: int, last: bool) -> None:
    tokens = tokens_of(lengths)
    (whole,) = portions(tokens, 10_000)
    whole = Portion(tokens, whole.rows, last)
    parts = whole.cut(budget)
    assert np.concatenate([part.rows for part in parts]).tolist() == whole.rows.tolist()
    assert all(part.count <= budget or len(part.rows) == 1 for part in parts)
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [last]
    assert sum(part.count for part in parts) == whole.count == sum(lengths)


def test_threads_that_fail_together_lower_the_budget_once(caplog: pytest.LogCaptureFixture) -> None:
    room = Room("model", CPU, 64_000)
    (batch,) = portions(tokens_of([1_000] * 64), 64_000)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: room.again(batch, NONE), range(64)))
        list(threads.map(room.learn, [part.lesson for parts in found for part in parts if part.lesson is not None]))
    assert room.budget == 32_000
    assert [[part.count for part in parts] for parts in found] == [[32_000, 32_000]] * 64
    assert caplog.messages == [
        "model: cpu had no memory for a batch of 64,000 tokens; its texts fitted otherwise. From now on batches have "
        "at most 32,000 tokens. PyTorch says: CUDA out of memory"
    ]
    assert caplog.records[0].levelno == logging.WARNING


def test_what_was_planned_before_the_budget_was_lowered_is_cut_before_it_is_tried() -> None:
    room = Room("model", CPU, 64_000)
    (batch,) = portions(tokens_of([1_000] * 64), 64_000)
    assert room.planned(batch) == [batch]
    room.learn(Lesson(64_000, 32_000, NONE.said))
    assert [part.count for part in room.planned(batch)] == [32_000, 32_000]
    (long,) = portions(tokens_of([40_000]), 64_000)
    assert room.planned(long) == [long]
