"""An encoder over two CPU processes says what one encoder says."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.encoder.checkpoints import bge_m3, sentence_transformer
from tests.encoder.test_encoder import ALONE, TEXTS, same

from threefold.collection import Collection
from threefold.encoder import front
from threefold.encoder import pool as pool_module
from threefold.encoder.encoder import Encoder
from threefold.encoder.pool import LEAST_SHARE, EncoderPool, share
from threefold.errors import CheckpointError, InputError, MissingHeadError, NumericalError, WorkerError
from threefold.opening import manifest_for
from threefold.store.memory import MemoryStore
from threefold.text.packing import plan_batches
from threefold.text.tokenizer import Tokens
from threefold.types import Output

MANY = TEXTS * 20


@pytest.fixture(scope="module")
def pool(m3_folder: Path) -> Iterator[EncoderPool]:
    """Two processes with small batches."""
    with EncoderPool(m3_folder, processes=2, precision="float32", budget=300, threads=1) as pool:
        yield pool


# ---- the same vectors ------------------------------------------------------------------------------------


def test_the_same_as_one_encoder(pool: EncoderPool, m3: Encoder) -> None:
    assert pool.card == m3.card
    assert pool.tokenizer.fingerprint() == m3.tokenizer.fingerprint()
    same(pool.encode(MANY), m3.encode(MANY), ALONE)


@pytest.mark.parametrize(
    "options",
    [
        {"outputs": ["dense"]},
        {"outputs": ["multi", "sparse"]},
        {"max_tokens": 6},
        {"max_tokens": 6, "truncate": "start"},
        {"prompt": "query: "},
    ],
    ids=str,
)
def test_every_option(pool: EncoderPool, m3: Encoder, options: dict[str, Any]) -> None:
    same(pool.encode(TEXTS, **options), m3.encode(TEXTS, **options), ALONE)
    streamed = list(pool.iter_encode(TEXTS, block=5, **options))
    for got, wanted in zip(streamed, m3.iter_encode(TEXTS, block=5, **options), strict=True):
        same(got, wanted, ALONE)


def test_no_texts(pool: EncoderPool, m3: Encoder) -> None:
    same(pool.encode([]), m3.encode([]), 0.0)
    assert list(pool.iter_encode([])) == []
    assert pool.encode_tokens(m3.tokenizer.encode([], max_tokens=9), []) == []


def test_rows_with_different_outputs(pool: EncoderPool, m3: Encoder) -> None:
    tokens = m3.tokenizer.encode(MANY, max_tokens=64)
    kinds: list[tuple[Output, ...]] = [("dense",), ("sparse", "multi"), ("weights",), ("hidden",)]
    outputs = [kinds[i % 4] for i in range(len(MANY))]
    for got, wanted in zip(pool.encode_tokens(tokens, outputs), m3.encode_tokens(tokens, outputs), strict=True):
        assert [part is None for part in got] == [part is None for part in wanted]
        for name in ("dense", "weights", "multi", "hidden"):
            ours, theirs = getattr(got, name), getattr(wanted, name)
            if theirs is not None:
                np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_progress_counts_every_text_and_token(pool: EncoderPool) -> None:
    seen: list[tuple[int, int]] = []
    three = pool.encode(MANY, progress=lambda texts, tokens: seen.append((texts, tokens)))
    assert len(seen) > 4
    assert [sum(column) for column in zip(*seen, strict=True)] == [len(MANY), int(three.tokens.sum())]


def test_calls_of_several_threads_share_the_processes(pool: EncoderPool, m3: Encoder) -> None:
    parts = [TEXTS[i:] for i in range(8)]
    with ThreadPoolExecutor(4) as threads:
        for got, part in zip(threads.map(pool.encode, parts), parts, strict=True):
            same(got, m3.encode(part), ALONE)


def test_a_collection_may_use_a_pool(pool: EncoderPool) -> None:
    collection = Collection.over(MemoryStore(manifest_for(pool, None, None)), pool)
    collection.add(["The quick brown fox.", "今天天气很好。"])
    assert collection.search("quick fox", mode="sparse", k=1)[0].text == "The quick brown fox."


# ---- streams ---------------------------------------------------------------------------------------------


def test_streams_are_in_order_and_read_no_more_than_one_part_ahead(pool: EncoderPool, m3: Encoder) -> None:
    read: list[int] = []

    def endless() -> Iterator[str]:
        while True:
            read.append(1)
            yield f"fox {len(read)}"

    stream = pool.iter_encode(endless(), block=3, outputs=["dense"])
    assert read == []
    for i in range(4):
        same(next(stream), m3.encode([f"fox {3 * i + j}" for j in (1, 2, 3)], outputs=["dense"]), ALONE)
        assert len(read) == 3 * (i + 2)
    stream.close()  # type: ignore[attr-defined]
    assert len(pool.encode(["fox"])) == 1


def test_an_error_of_the_reader_reaches_the_caller(pool: EncoderPool) -> None:
    def broken() -> Iterator[str]:
        yield from ["fox"] * 6
        raise OSError("the disk is gone")

    stream = pool.iter_encode(broken(), block=3)
    assert [len(next(stream)), len(next(stream))] == [3, 3]  # what was read before the error still comes
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)
    assert len(pool.encode(["fox"])) == 1


def test_long_texts_make_small_parts(pool: EncoderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "BLOCK_CHARACTERS", 10)
    assert [len(part) for part in pool.iter_encode(["fox", "the lazy dog", "fox", "", "box"], block=3)] == [2, 3]


# ---- balance ---------------------------------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(3, 500), min_size=1, max_size=300),
    workers=st.integers(1, 8),
    budget=st.integers(500, 4000),
)
def test_every_worker_gets_as_many_batches_of_about_the_same_size(
    lengths: list[int], workers: int, budget: int
) -> None:
    each = share(np.array(lengths), budget, workers)
    assert each <= budget
    batches = plan_batches(np.array(lengths), each)
    total, longest = sum(lengths), max(lengths)
    rounds = -(-total // (budget * workers))
    if budget > max(LEAST_SHARE, -(-total // (rounds * workers)) + longest):
        assert len(batches) <= rounds * workers


def test_a_small_call_uses_every_process() -> None:
    assert share(np.array([100] * 8), 4096, 2) == 400 + 100  # 4 of the 8 texts each, and room for one more
    assert share(np.array([9, 9]), 4096, 2) == LEAST_SHARE  # too little to share
    assert share(np.array([100] * 1000), 4096, 2) == -(-100_000 // (13 * 2)) + 100


# ---- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"outputs": ["colbert"]}, InputError, "outputs must be some of"),
        ({"dim": 16}, InputError, "cannot cut dense vectors to 16 dimensions"),
        ({"max_tokens": 8193}, InputError, "reads at most 8192 tokens"),
        ({"truncate": "none", "max_tokens": 4}, InputError, "the limit is 4"),
    ],
)
def test_bad_arguments_never_reach_a_process(
    pool: EncoderPool, options: Any, error: type[Exception], message: str
) -> None:
    for call in (pool.encode, lambda *a, **o: list(pool.iter_encode(*a, **o))):
        with pytest.raises(error, match=message) as caught:
            call(["fox", "the quick brown fox"], **options)
        assert not hasattr(caught.value, "__notes__")


def test_what_is_no_list_of_texts_is_refused(pool: EncoderPool) -> None:
    with pytest.raises(InputError, match="put it into a list"):
        pool.iter_encode("fox")
    with pytest.raises(InputError, match="block must be at least 1"):
        pool.iter_encode(["fox"], block=0)
    with pytest.raises(InputError, match="text 4 must be a string; got int"):
        list(pool.iter_encode(["fox"] * 4 + [1]))  # type: ignore[list-item]


def test_a_head_that_is_missing(tmp_path: Path) -> None:
    with EncoderPool(sentence_transformer(tmp_path / "model"), processes=1, threads=1) as pool:
        with pytest.raises(MissingHeadError, match="cannot make sparse vectors"):
            pool.encode(["fox"], outputs=["sparse"])
        same(pool.encode_queries(["fox"]), pool.encode(["query: fox"]), ALONE)


def test_damaged_weights_are_the_error_of_the_process(m3_folder: Path, tmp_path: Path) -> None:
    folder = bge_m3(tmp_path / "model", weights="safetensors")
    state = load_file(folder / "model.safetensors")
    state["encoder.layer.0.output.dense.bias"].fill_(torch.nan)
    save_file(state, folder / "model.safetensors")
    with EncoderPool(folder, processes=1, precision="float32", threads=1) as pool:
        with pytest.raises(NumericalError, match="its weights are damaged") as caught:
            pool.encode(["fox"])
        assert "in worker process 0 (cpu)" in caught.value.__notes__[0]
        with pytest.raises(NumericalError):
            list(pool.iter_encode(["fox"] * 9, block=2))


def test_a_killed_process_ends_the_pool_without_a_hang(m3_folder: Path) -> None:
    with EncoderPool(m3_folder, processes=2, precision="float32", threads=1) as pool:
        stream = pool.iter_encode((f"fox {i}" for i in range(10**9)), block=64)
        next(stream)
        os.kill(pool.pids[0], signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(WorkerError, match=r"worker process 0 \(cpu\) was killed by SIGKILL"):
            list(stream)
        assert time.monotonic() - start < 30
        with pytest.raises(WorkerError, match="Make a new one to go on"):
            pool.encode(["fox"])
    with pytest.raises(InputError, match="the pool is closed"):
        pool.encode(["fox"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs either devices=.* or processes=N"),
        ({"processes": 2, "devices": ["cpu"]}, "not both"),
        ({"processes": 0}, "processes must be at least 1; got 0"),
        ({"devices": []}, r"devices must be a list such as .*; got \[\]"),
        ({"devices": "cpu"}, "devices must be a list"),
        ({"devices": ["abacus"]}, "unknown device 'abacus'"),
        ({"processes": 1, "precision": "float16"}, "float16 on a CPU is emulated"),
        ({"processes": 1, "budget": 0}, "the token budget must be at least 1; got 0"),
        ({"processes": 1, "threads": 0}, "threads must be at least 1; got 0"),
        ({"processes": 1, "threads": 10**9}, r"threads must be at most \d+ \(this machine has \d+ processors\); got 1"),
        ({"processes": 10**9}, r"processes must be at most \d+ \(this machine has"),
        ({"processes": 1, "revision": "main"}, "is a folder and has no revisions"),
    ],
)
def test_construction_checks_its_options_before_any_process_starts(
    m3_folder: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("threefold.encoder.pool.Workers", None)
    with pytest.raises(InputError, match=message):
        EncoderPool(m3_folder, **options)


def test_a_process_whose_gpu_is_lost_ends(
    m3_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would fail at once whatever it is given, and so be the first to be free for the next."""

    def fail(tokens: Tokens, words: str) -> None:
        raise RuntimeError(words)

    def end(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr("threefold.encoder.pool.Encoder", lambda *args, **options: SimpleNamespace(encode_ids=fail))
    monkeypatch.setattr("os._exit", end)
    call = pool_module._open(pool_module._Setting(m3_folder, "cuda:3", "float16", None, 500, None))
    none = Tokens(np.zeros(0, np.int32), np.zeros(1, np.int64), np.zeros(0, np.int64))
    with pytest.raises(SystemExit) as ended:
        call(pool_module._Task("encode_ids", none, {"words": "CUDA error: device-side assert triggered"}))
    assert ended.value.code == 70
    assert "threefold: cuda:3 is lost: CUDA error: device-side assert" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="out of memory"):
        call(pool_module._Task("encode_ids", none, {"words": "CUDA out of memory"}))


def test_a_broken_checkpoint_starts_no_process(
    m3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("threefold.encoder.pool.Workers", None)
    shutil.copytree(m3_folder, tmp_path / "model")
    (tmp_path / "model/pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot read"):
        EncoderPool(tmp_path / "model", processes=2)


def test_what_it_is(pool: EncoderPool, m3_folder: Path) -> None:
    assert pool.devices == ("cpu", "cpu")
    assert repr(pool) == f"EncoderPool('{m3_folder}', devices=['cpu', 'cpu'], precision='float32')"
    assert len(set(pool.pids)) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_two_processes_on_a_gpu(m3_folder: Path) -> None:
    one = Encoder(m3_folder, device="cuda:0", precision="bfloat16")
    with EncoderPool(m3_folder, devices=["cuda:0", "cuda:0"], precision="bfloat16", budget=500) as pool:
        same(pool.encode(MANY, outputs=["dense"]), one.encode(MANY, outputs=["dense"]), 0.02)
