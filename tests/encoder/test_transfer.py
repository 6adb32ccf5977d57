"""Work that is begun early comes back in order; copies bring what was computed."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.encoder.cross_checkpoints import bge_reranker

from threefold import CrossEncoder, Encoder
from threefold.encoder import fitting
from threefold.encoder.transfer import OnTheWay, ahead, ahead_in_thread, depth_of, is_lost, to_device

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"))]


@given(n=st.integers(0, 12), depth=st.integers(0, 4))
def test_results_come_in_order_and_at_most_depth_more_have_begun(n: int, depth: int) -> None:
    begun: list[int] = []
    early: list[int] = []

    def begin(item: int) -> int:
        begun.append(item)
        return item

    def finish(item: int) -> int:
        early.append(len(begun) - item - 1)
        return item * item

    assert list(ahead(range(n), begin, finish, depth)) == [i * i for i in range(n)]
    assert begun == list(range(n))
    assert early == [min(depth, n - 1 - i) for i in range(n)]


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_an_error_of_the_second_batch_comes_after_nothing_was_lost(depth: int) -> None:
    def begin(item: int) -> int:
        if item == 2:
            raise ValueError("the device is gone")
        return item

    found: list[int] = []
    with pytest.raises(ValueError, match="the device is gone"):
        found.extend(ahead(range(4), begin, lambda item: item, depth))
    assert found == [0, 1]


@given(n=st.integers(0, 6), depth=st.integers(0, 3))
def test_an_item_that_cannot_be_had_is_an_error_after_all_before_it(n: int, depth: int) -> None:
    def items() -> Iterator[int]:
        yield from range(n)
        raise ValueError("the stream broke")

    found: list[int] = []
    with pytest.raises(ValueError, match="the stream broke"):
        found.extend(ahead(items(), lambda item: item, lambda item: item, depth))
    assert found == list(range(n))


def test_in_a_thread_the_next_one_is_worked_at_while_one_is_used() -> None:
    here, read, begun = threading.get_ident(), [], []
    second = threading.Event()

    def items() -> Iterator[int]:
        for i in range(3):
            read.append(threading.get_ident())
            yield i

    def work(item: int) -> int:
        begun.append(threading.get_ident())
        if item == 1:
            second.set()
        return item * item

    found = ahead_in_thread(items(), work)
    assert next(found) == 0
    assert second.wait(10)  # nobody has asked for it
    assert list(found) == [1, 4]
    assert set(read) == {here}  # a cursor of a database, say, is of one thread
    assert here not in begun


def test_an_error_of_a_thread_is_that_of_its_item() -> None:
    found: list[float] = []
    with pytest.raises(ZeroDivisionError):
        found.extend(ahead_in_thread([1, 2, 0, 4], lambda item: 1 / item))
    assert found == [1, 0.5]


def test_a_cpu_begins_nothing_early() -> None:
    assert depth_of(torch.device("cpu")) == 0
    assert depth_of(torch.device("cuda")) == 1


@pytest.mark.parametrize("device", DEVICES)
def test_there_and_back(device: str) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensor = to_device(array, torch.device(device))
    assert tensor.device.type == device
    arrays = OnTheWay({"a": tensor * 2, "b": tensor[0]}).arrays()
    assert np.array_equal(arrays["a"], array * 2)
    assert np.array_equal(arrays["b"], array[0])
    assert OnTheWay({}).arrays() == {}


def test_the_encoder_finds_the_same_when_batches_begin_early(m3_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(m3_folder, budget=16)
    texts = [f"text {'and more ' * (i % 5)}{i}" for i in range(23)]
    seen: list[tuple[int, int]] = []
    plain = encoder.encode(texts)
    monkeypatch.setattr(fitting, "depth_of", lambda device: 2)
    early = encoder.encode(texts, progress=lambda n, tokens: seen.append((n, tokens)))
    assert plain.dense is not None
    assert early.dense is not None
    assert np.array_equal(plain.dense, early.dense)
    assert plain.multi is not None
    assert early.multi is not None
    assert np.array_equal(plain.multi.rows, early.multi.rows)
    assert plain.sparse is not None
    assert early.sparse is not None
    assert np.array_equal(plain.sparse.values, early.sparse.values)
    assert (sum(n for n, _ in seen), sum(tokens for _, tokens in seen)) == (23, int(early.tokens.sum()))


def test_a_cross_encoder_finds_the_same_when_batches_begin_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cross = CrossEncoder(bge_reranker(tmp_path / "reranker"), budget=32)
    texts = [f"text {'and more ' * (i % 5)}{i}" for i in range(23)]
    seen: list[int] = []
    plain = cross.score("more", texts)
    monkeypatch.setattr(fitting, "depth_of", lambda device: 2)
    assert np.array_equal(cross.score("more", texts, progress=lambda n, tokens: seen.append(n)), plain)
    assert len(seen) > 3
    assert sum(seen) == 23


def test_a_gpu_is_lost_by_errors_that_stay() -> None:
    assert is_lost(RuntimeError("CUDA error: an illegal memory access was encountered"))
    accelerator = getattr(torch, "AcceleratorError", RuntimeError)  # since PyTorch 2.8
    assert is_lost(accelerator("CUDA error: device-side assert triggered"))
    assert not is_lost(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    for said in ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"):
        assert not is_lost(accelerator(f"CUDA error: {said}"))
        assert not is_lost(RuntimeError(f"CUDA error: {said}"))
    assert not is_lost(RuntimeError("The size of tensor a (3) must match"))
    assert not is_lost(ValueError("CUDA error: none of it"))
