"""The encoder on a GPU that has too little memory for its batches: the same results, a few tries, a line in the log."""

from __future__ import annotations

import gc
import logging
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.encoder.checkpoints import bge_m3
from tests.encoder.cross_checkpoints import bge_reranker
from tests.gpu.pretend import Far, Gpu
from tests.gpu.test_encoder import TEXTS, same

from threefold import CrossEncoder, Encoder
from threefold.encoder import fitting, transfer
from threefold.encoder.fitting import Room
from threefold.errors import DeviceMemoryError
from threefold.serve.models import EncoderRunner
from threefold.serve.runner import outcomes_of, unexpected
from threefold.serve.schedule import Item, Owner
from threefold.types import Encoded, Output

MANY = [" ".join(["the quick brown fox", "jumps over", "the lazy dog"][: i % 4]) + f" {i}" * (i % 7) for i in range(40)]


@pytest.fixture(scope="module")
def plain(m3_folder: Path) -> Encoder:
    """On the CPU, as exactly as there is."""
    return Encoder(m3_folder, device="cpu", precision="float32")


@pytest.fixture(autouse=True)
def to_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the budget: these models and texts are small."""
    monkeypatch.setattr(fitting, "LEAST", 1)


@pytest.fixture(params=[1, transfer.LARGE], ids=["beside", "in its stream"])
def large(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results that leave in a stream of their own, which hold their memory until they are fetched, and others."""
    monkeypatch.setattr(transfer, "LARGE", request.param)


def needed(gpu: Gpu, work: Callable[[], object]) -> int:
    """Bytes that work needs beside what is there."""
    before = gpu.memory.peak = gpu.memory.held
    work()
    return gpu.memory.peak - before


@contextmanager
def crowded(gpu: Gpu, free: int) -> Iterator[None]:
    """So many bytes are left on the GPU: others have taken the rest."""
    gpu.memory.refused = 0
    gpu.memory.emptied.clear()
    gpu.memory.most = gpu.memory.held + free
    try:
        yield
    finally:
        gpu.memory.most = None


def parts_of(encoder: Encoder, texts: Sequence[str], block: int) -> list[Encoded]:
    return list(encoder.iter_encode(texts, block=block))


@pytest.mark.usefixtures("large")
def test_a_batch_that_does_not_fit_is_cut_and_finds_the_same(
    gpu: Gpu, m3_folder: Path, plain: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = Encoder(m3_folder, precision="float32")
    need, before = needed(gpu, lambda: encoder.encode(MANY)), encoder.budget
    gpu.waits.clear()
    with crowded(gpu, need // 3):
        held = gpu.memory.held
        same(encoder.encode(MANY), plain.encode(MANY))
        tries = gpu.memory.refused
        assert 1 < tries <= math.log2(before)
        assert gpu.memory.emptied == [held] * tries  # nothing of what failed, or of what was under way, is still there
        assert gpu.waits.count("synchronize") == tries
        said = [message for message in caplog.messages if "had no memory" in message]
        assert 1 <= len(said) < tries  # once the texts of a batch fit, not for each try
        assert f"From now on batches have at most {encoder.budget:,} tokens. PyTorch says: CUDA out" in said[-1]
        same(encoder.encode(MANY), plain.encode(MANY))
        same(encoder.encode(MANY[::-1]), plain.encode(MANY[::-1]))
        assert gpu.memory.refused == tries
    assert 1 < encoder.budget < before


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_the_texts_and_the_memory(gpu: Gpu, m3_folder: Path, plain: Encoder, data: st.DataObject) -> None:
    encoder = opened(m3_folder)
    lengths = data.draw(st.lists(st.integers(0, 30), min_size=2, max_size=24))
    texts = [("fox dog " * length).strip() + str(i) for i, length in enumerate(lengths)]
    budget, block = data.draw(st.sampled_from([20, 100, 10_000])), data.draw(st.integers(1, 24))
    encoder._room = Room("tiny", encoder.device, budget)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "LARGE", data.draw(st.sampled_from([1, 2_000, 1 << 20])))
        longest = max(texts, key=len)
        least = max(needed(gpu, lambda: encoder.encode([longest])), needed(gpu, lambda: encoder.encode([texts[0]])))
        most = needed(gpu, lambda: encoder.encode(texts))
        with crowded(gpu, least + int(data.draw(st.floats(0, 1)) * max(most - least, 0))):
            for _ in range(2):
                same(encoder.encode(texts), plain.encode(texts))
                for mine, theirs in zip(parts_of(encoder, texts, block), parts_of(plain, texts, block), strict=True):
                    same(mine, theirs)
            assert gpu.memory.refused <= math.log2(budget) + 2


_opened: dict[Path, tuple[Gpu, Encoder]] = {}


def opened(folder: Path) -> Encoder:
    """Once for all examples: they are of one test, and so of one GPU."""
    if folder not in _opened or _opened[folder][0] is not Gpu.here:
        _opened[folder] = Gpu.here, Encoder(folder, precision="float32")
    return _opened[folder][1]


@pytest.mark.usefixtures("large")
def test_the_parts_of_a_stream_come_in_order_and_once(gpu: Gpu, m3_folder: Path, plain: Encoder) -> None:
    """The first part is still on its way when there is no memory for the second."""
    encoder = Encoder(m3_folder, precision="float32")
    texts = ["fox", "dog", *["the lazy dog " * 6] * 6, "jumps", "over"]
    fits = needed(gpu, lambda: encoder.encode(texts[2:4]))
    seen: list[tuple[int, int]] = []
    with crowded(gpu, fits + 1_000):
        found = list(encoder.iter_encode(texts, block=2, progress=lambda n, tokens: seen.append((n, tokens))))
    assert len(found) == 5
    for part, start in zip(found, range(0, 10, 2), strict=True):
        same(part, plain.encode(texts[start : start + 2]))
    assert sum(n for n, _ in seen) == 10
    assert sum(tokens for _, tokens in seen) == sum(int(part.tokens.sum()) for part in found)


def test_one_text_that_fits_only_alone_is_tried_alone(
    gpu: Gpu, m3_folder: Path, plain: Encoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(transfer, "LARGE", 1)
    encoder = Encoder(m3_folder, precision="float32", budget=100)
    texts = ["the quick brown fox jumps over the lazy dog " * 9] * 4
    fits = needed(gpu, lambda: encoder.encode(texts[:1]))
    with crowded(gpu, fits):
        same(encoder.encode(texts), plain.encode(texts))
        assert gpu.memory.refused == 1
        same(encoder.encode(texts), plain.encode(texts))
        assert gpu.memory.refused == 1
    (said,) = [message for message in caplog.messages if "had no memory" in message]
    assert "From now on batches have at most 100 tokens, one at a time." in said


def test_one_text_that_does_not_fit_is_an_error_after_what_came_before_it(gpu: Gpu, m3_folder: Path) -> None:
    encoder = Encoder(m3_folder, precision="float32")
    texts = ["fox", "the quick brown fox jumps over the lazy dog " * 40, "dog"]
    tokens = int(encoder.encode(texts[1:2]).tokens[0])
    need = needed(gpu, lambda: encoder.encode(texts[1:2]))
    with crowded(gpu, need - 1):
        stream = encoder.iter_encode(texts, block=1)
        assert len(next(stream)) == 1
        with pytest.raises(DeviceMemoryError, match=rf"a text of {tokens:,} tokens alone .* left on cuda\."):
            next(stream)
        assert len(encoder.encode(texts[2:])) == 1  # the next call goes on
        assert len(encoder.encode(texts, max_tokens=20)) == 3  # as the error says
    assert len(encoder.encode(texts)) == 3  # so it does when there is memory again


def test_nothing_of_the_failed_batch_is_kept_while_it_is_tried_again(gpu: Gpu, m3_folder: Path) -> None:
    """An error holds the frames that it passed, and they hold the tensors."""
    encoder = Encoder(m3_folder, precision="float32")
    made: list[weakref.ref[Far]] = []
    alive: list[int] = []

    def fail_once(func: Any, args: Any) -> None:
        made.extend(weakref.ref(each) for each in args if isinstance(each, Far))
        if str(func) == "aten.gelu.default" and not alive:
            weights = {id(weight) for weight in encoder._model.parameters()}
            alive.append(-1)
            made[:] = [each for each in made if (it := each()) is not None and id(it) not in weights]
            assert made
            raise torch.OutOfMemoryError("CUDA out of memory")
        if alive == [-1]:
            alive.append(sum(each() is not None for each in made))

    gc.collect()
    gc.disable()
    try:
        held = gpu.memory.held
        gpu.at_operation = fail_once
        encoder.encode(TEXTS)
    finally:
        gc.enable()
    assert alive == [-1, 0]
    assert gpu.memory.emptied == [held]


@pytest.mark.parametrize(
    "said", ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"]
)
def test_other_words_for_it_are_the_same(gpu: Gpu, m3_folder: Path, plain: Encoder, said: str) -> None:
    encoder = Encoder(m3_folder, precision="float32")
    gpu.at_operation = failing_once(lambda func: "addmm" in func, torch.AcceleratorError(said))
    same(encoder.encode(TEXTS), plain.encode(TEXTS))
    assert len(gpu.memory.emptied) == 1


def failing_once(where: Callable[[str], bool], error: Exception) -> Callable[[Any, Any], None]:
    left = [error]

    def fail(func: Any, args: Any) -> None:
        if left and where(str(func)):
            raise left.pop()

    return fail


def test_other_errors_stay_errors(gpu: Gpu, m3_folder: Path) -> None:
    encoder = Encoder(m3_folder, precision="float32")
    before = encoder.budget
    gpu.at_operation = failing_once(lambda func: "addmm" in func, RuntimeError("CUDA error: an illegal address"))
    with pytest.raises(RuntimeError, match="an illegal address"):
        encoder.encode(TEXTS)
    assert not gpu.memory.emptied
    assert encoder.budget == before


@pytest.mark.usefixtures("large")
def test_rows_of_a_server(gpu: Gpu, m3_folder: Path, plain: Encoder) -> None:
    encoder = Encoder(m3_folder, precision="float32")
    tokens = encoder.tokenizer.encode(MANY, max_tokens=64)
    kinds: list[list[Output]] = [["dense"], ["weights", "multi"], ["sparse"], ["hidden"], ["dense", "sparse", "multi"]]
    wanted = [kinds[i % len(kinds)] for i in range(len(MANY))]
    need = needed(gpu, lambda: encoder.encode_tokens(tokens, wanted))
    with crowded(gpu, need // 3):
        found = encoder.encode_tokens(tokens, wanted)
        assert gpu.memory.refused
    for mine, theirs in zip(found, plain.encode_tokens(tokens, wanted), strict=True):
        for name, mine_of, theirs_of in zip(mine._fields, mine, theirs, strict=True):
            assert (mine_of is None) == (theirs_of is None), name
            if isinstance(mine_of, np.ndarray):
                torch.testing.assert_close(mine_of, theirs_of, atol=1e-5, rtol=1e-5)


def test_a_server_blames_the_text_that_does_not_fit(gpu: Gpu, m3_folder: Path, plain: Encoder) -> None:
    encoder = Encoder(m3_folder, precision="float32")
    long = "the quick brown fox jumps over the lazy dog " * 40
    tokens = encoder.tokenizer.encode(["fox", "dog", long, "the lazy dog"], max_tokens=1_000)
    need = needed(gpu, lambda: encoder.encode_tokens(tokens.take(np.array([2])), [["dense"]]))
    items: list[Any] = [Item(cast(Owner, None), i, tokens[i], ["dense"]) for i in range(4)]
    with crowded(gpu, need - 1):
        first, second, error, last = outcomes_of(EncoderRunner(encoder), items)
    assert isinstance(error, DeviceMemoryError)
    assert not unexpected(error)  # the model is not loaded again
    for i, row in ((0, first), (1, second), (3, last)):
        assert not isinstance(row, Exception)
        (expected,) = plain.encode_tokens(tokens.take(np.array([i])), [["dense"]])
        torch.testing.assert_close(row.dense, expected.dense, atol=1e-5, rtol=1e-5)


def test_a_query_between_the_layers_of_a_batch_that_does_not_fit(gpu: Gpu, m3_folder: Path, plain: Encoder) -> None:
    """As a server runs them: the batch begins again, and so do the queries that find no memory beside it."""
    encoder = Encoder(m3_folder, precision="float32")
    bulk, queries = (encoder.tokenizer.encode(texts, max_tokens=64) for texts in (MANY, ["fox", "the lazy dog"]))
    need = needed(gpu, lambda: encoder.encode_tokens(bulk, [["dense"]] * len(MANY)))
    answers: list[list[Any]] = []

    def between() -> None:
        if len(answers) < 3:
            answers.append(encoder.encode_tokens(queries, [["dense"]] * 2))

    with crowded(gpu, need // 2):
        found = encoder.encode_tokens(bulk, [["dense"]] * len(MANY), between=between)
        assert gpu.memory.refused
    for mine, texts in ((found, bulk), *((each, queries) for each in answers)):
        for row, expected in zip(mine, plain.encode_tokens(texts, [["dense"]] * len(texts)), strict=True):
            torch.testing.assert_close(row.dense, expected.dense, atol=1e-5, rtol=1e-5)
    assert len(answers) == 3


@pytest.mark.usefixtures("large")
def test_a_cross_encoder(gpu: Gpu, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = bge_reranker(tmp_path / "reranker")
    encoder = CrossEncoder(folder, precision="float32", budget=2_000)
    need = needed(gpu, lambda: encoder.score("What is BGE M3?", MANY))
    seen: list[int] = []
    with crowded(gpu, need // 3):
        found = encoder.score("What is BGE M3?", MANY, progress=lambda n, tokens: seen.append(n))
        assert 0 < gpu.memory.refused <= math.log2(2_000)
    assert encoder.budget < 2_000
    assert "had no memory" in caplog.text
    assert sum(seen) == len(MANY)
    wanted = CrossEncoder(folder, device="cpu", precision="float32").score("What is BGE M3?", MANY)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    long = "the quick brown fox jumps over the lazy dog " * 40
    alone = needed(gpu, lambda: encoder.score("fox", [long]))
    with crowded(gpu, alone - 1), pytest.raises(DeviceMemoryError, match="does not fit into the memory"):
        encoder.score("fox", [long])


class TestOverflow:
    """What overflows in float16 is computed once more in float32, in more memory, while the next batch is there."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = bge_m3(tmp_path / "model")
        weights = torch.load(folder / "pytorch_model.bin")
        name = next(name for name in weights if name.endswith("intermediate.dense.weight"))
        weights[name] *= 1e6
        torch.save(weights, folder / "pytorch_model.bin")
        return folder

    @pytest.mark.usefixtures("large")
    def test_in_smaller_batches_where_that_does_not_fit(self, gpu: Gpu, folder: Path) -> None:
        encoder, exact = (
            Encoder(folder, precision="float16", budget=200),
            Encoder(folder, device="cpu", precision="float32"),
        )
        encoder.encode(MANY)  # the weights in float32 are there now
        need = needed(gpu, lambda: encoder.encode(MANY))
        with crowded(gpu, need * 2 // 3):
            for found, start in zip(encoder.iter_encode(MANY, block=15), range(0, 40, 15), strict=True):
                same(found, exact.encode(MANY[start : start + 15]))
            assert gpu.memory.refused
        assert encoder.budget < 200

    def test_weights_that_do_not_fit(self, gpu: Gpu, folder: Path) -> None:
        encoder = Encoder(folder, precision="float16")
        with (
            crowded(gpu, 100_000),
            pytest.raises(DeviceMemoryError, match="its weights in float32 do not fit beside it"),
        ):
            encoder.encode(["fox"])
        assert len(encoder.encode(["fox"])) == 1


class TestGraphs:
    """A length for whose recording there is no memory runs as all others do."""

    @pytest.mark.parametrize("recording", [False, True], ids=["before", "while recording"])
    def test_the_same_is_found(
        self, gpu: Gpu, m3_folder: Path, caplog: pytest.LogCaptureFixture, recording: bool
    ) -> None:
        plain, recorded = (Encoder(m3_folder, graphs=graphs) for graphs in (False, True))
        stream = gpu.stream
        error, left = torch.OutOfMemoryError("CUDA out of memory."), [1]

        def fail(func: Any, args: Any) -> None:
            if left and gpu.stream is not stream and (gpu.tape is not None) == recording and "gelu" in str(func):
                left.clear()
                raise error

        gpu.at_operation = fail
        with caplog.at_level(logging.WARNING):
            for query in ["fox", "dog", "the quick fox", "fox", "the lazy dog"]:
                same(recorded.encode([query]), plain.encode([query]))
                assert gpu.stream is stream
        assert not left
        length = int(plain.encode(["fox"]).tokens[0])
        assert caplog.messages == [
            f"cuda had no memory to record texts of {length} tokens; they run as longer ones do. "
            "PyTorch says: CUDA out of memory."
        ]
        assert recorded._recorded is not None
        known = recorded._recorded._known
        assert known[length] is None
        assert any(each is not None for each in known.values())  # other lengths are recorded
        assert recorded.budget == plain.budget

    def test_a_recording_that_cannot_be_ended(
        self, gpu: Gpu, m3_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """PyTorch then says that at its end, and leaves the stream of the recording the current one."""
        record, stream = torch.cuda.graph, gpu.stream

        @contextmanager
        def broken(*args: Any, **options: Any) -> Iterator[None]:
            with record(*args, **options):
                yield
            gpu.stream = options["stream"]
            raise torch.AcceleratorError("CUDA error: capturing stream has unjoined work")

        monkeypatch.setattr(torch.cuda, "graph", broken)
        plain, recorded = (Encoder(m3_folder, graphs=graphs) for graphs in (False, True))
        gpu.at_operation = failing_once(
            lambda func: gpu.tape is not None and "gelu" in func, torch.OutOfMemoryError("CUDA out of memory.")
        )
        same(recorded.encode(["fox"]), plain.encode(["fox"]))
        assert gpu.stream is stream
        assert "no memory to record" in caplog.text

    def test_other_errors_of_a_recording_stay_errors(
        self, gpu: Gpu, m3_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encoder = Encoder(m3_folder, graphs=True)
        gpu.at_operation = failing_once(lambda func: gpu.tape is not None, RuntimeError("not permitted"))
        with pytest.raises(RuntimeError, match="not permitted"):
            encoder.encode(["fox"])
        assert len(encoder.encode(["fox"])) == 1
