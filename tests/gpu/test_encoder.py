"""The encoder, with everything it does on a GPU and not on a CPU."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.encoder.checkpoints import HIDDEN, bge_m3
from tests.encoder.cross_checkpoints import bge_reranker
from tests.encoder.test_encoder import same as same_within
from tests.encoder.test_encoder import same_weights
from tests.gpu.pretend import Far, Gpu, Stream, in_stream

from threefold import CrossEncoder, Encoder
from threefold.encoder import bench as bench_module
from threefold.encoder import transfer
from threefold.encoder.bench import _Job, _measure, bench, fidelity, usual_precisions
from threefold.errors import InputError
from threefold.types import Encoded, Representation

TEXTS = ["", "fox", "the quick brown fox", "jumps over", "jumps over", "the lazy dog " * 9]
ALL: list[Representation] = ["dense", "sparse", "multi"]

TURING, AMPERE, HOPPER = (7, 5), (8, 0), (9, 0)
VARLEN = "torch_attn._varlen_attn.default"


@pytest.fixture(scope="module")
def plain(m3_folder: Path) -> Encoder:
    """On the CPU, as exactly as there is."""
    return Encoder(m3_folder, device="cpu", precision="float32")


def same(found: Encoded, wanted: Encoded) -> None:
    same_within(found, wanted, 1e-5)


def close(found: Encoded, wanted: Encoded, cosine: float) -> None:
    """Dense and multi by their cosines, sparse by its weights, of which the largest is about 2."""
    for mine, theirs in ((found.dense, wanted.dense), (found.multi, wanted.multi)):
        assert mine is not None
        assert theirs is not None
        a, b = (rows if isinstance(rows, np.ndarray) else rows.rows for rows in (mine, theirs))
        assert (a * b).sum(axis=1).min() > cosine
    assert found.sparse is not None
    assert wanted.sparse is not None
    for i in range(len(wanted)):
        same_weights(found.sparse.row(i), wanted.sparse.row(i), 0.05)


def test_in_float32_the_gpu_finds_what_the_cpu_finds(gpu: Gpu, m3_folder: Path, plain: Encoder) -> None:
    encoder = Encoder(m3_folder, precision="float32")
    assert encoder.device.type == "cuda"
    assert encoder.kernels == "PyTorch"
    same(encoder.encode(TEXTS), plain.encode(TEXTS))
    assert VARLEN not in gpu.ops  # it multiplies 16 bits only


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_sixteen_bits_run_the_variable_length_kernel(gpu: Gpu, m3_folder: Path, plain: Encoder, precision: str) -> None:
    encoder = Encoder(m3_folder, precision=precision)  # type: ignore[arg-type]
    close(encoder.encode(TEXTS), plain.encode(TEXTS), 0.999)
    assert gpu.ops.count(VARLEN) == 2  # one for each layer, all texts at once
    assert all(isinstance(weight, Far) for weight in encoder._model.parameters())


@pytest.mark.parametrize(("capability", "precision"), [(TURING, "float16"), (AMPERE, "bfloat16"), (HOPPER, "bfloat16")])
def test_auto_takes_the_sixteen_bits_that_the_gpu_multiplies(
    gpu: Gpu, m3_folder: Path, plain: Encoder, capability: tuple[int, int], precision: str
) -> None:
    encoder = Encoder(m3_folder)
    assert encoder.precision == precision
    close(encoder.encode(TEXTS), plain.encode(TEXTS), 0.999)
    assert (VARLEN in gpu.ops) == (capability >= AMPERE)


def test_the_host_waits_once_a_batch_and_only_for_the_results(gpu: Gpu, m3_folder: Path) -> None:
    encoder = Encoder(m3_folder, budget=12)
    gpu.waits.clear()
    encoder.encode(TEXTS)
    assert len(gpu.waits) > 3
    assert set(gpu.waits) == {"event"}


def test_the_next_batch_is_told_before_the_last_is_waited_for(gpu: Gpu, m3_folder: Path, plain: Encoder) -> None:
    encoder = Encoder(m3_folder, budget=12, precision="float32")
    told: list[int] = []
    gpu.at_wait = lambda: told.append(gpu.ops.count("aten.embedding.default") // 2)  # words and positions
    same(encoder.encode(TEXTS), plain.encode(TEXTS))
    assert told == [*range(2, told[-1] + 1), told[-1]]  # two of them, when the first is waited for


def test_the_next_part_of_a_stream_is_told_before_the_last_is_waited_for(
    gpu: Gpu, m3_folder: Path, plain: Encoder
) -> None:
    encoder = Encoder(m3_folder, budget=1_000, precision="float32")  # each part is one batch
    told: list[int] = []
    gpu.at_wait = lambda: told.append(gpu.ops.count("aten.embedding.default") // 2)  # words and positions
    found = list(encoder.iter_encode(TEXTS, block=2))
    assert told == [2, 3, 3]
    for part, start in zip(found, range(0, len(TEXTS), 2), strict=True):
        same(part, plain.encode(TEXTS[start : start + 2]))


def test_a_text_that_is_none_is_an_error_after_what_was_begun(gpu: Gpu, m3_folder: Path) -> None:
    stream = Encoder(m3_folder, device="cuda").iter_encode(["a", "b", "c", 5], block=2)  # type: ignore[list-item]
    assert len(next(stream)) == 2
    with pytest.raises(InputError, match="text 3 must be a string; got int"):
        next(stream)


def test_large_results_leave_beside_the_next_batch(
    gpu: Gpu, m3_folder: Path, plain: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder(m3_folder, budget=12, precision="float32")
    same(encoder.encode(TEXTS), plain.encode(TEXTS))
    assert set(gpu.copied_by) == {gpu.stream}  # so few bytes do not pay for a stream
    monkeypatch.setattr(transfer, "LARGE", 1)
    gpu.copied_by.clear()
    gpu.waits.clear()
    same(encoder.encode(TEXTS), plain.encode(TEXTS))
    assert len(set(gpu.copied_by)) == 1
    assert gpu.stream not in gpu.copied_by
    assert set(gpu.waits) == {"event"}


def test_a_layer_keeps_no_queries_keys_and_values(gpu: Gpu, m3_folder: Path) -> None:
    encoder = Encoder(m3_folder)
    made: list[weakref.ref[Far]] = []
    alive: list[int] = []

    def look(func: Any, args: Any) -> None:
        if str(func) == "aten.gelu.default":
            alive.append(sum(each() is not None for each in made))
        elif isinstance(args[0], Far) and args[0].ndim > 1 and args[0].shape[1:].numel() == 3 * HIDDEN:
            made.append(weakref.ref(args[0]))

    gpu.at_operation = look
    encoder.encode(TEXTS)
    assert made
    assert alive == [0, 0]


def test_a_stream_waits_for_what_it_reads_of_another(gpu: Gpu) -> None:
    made, other = torch.ones(3, device="cuda"), Stream()
    with in_stream(other), pytest.raises(RuntimeError, match="another stream may still write"):
        made + 1
    other.wait_stream(gpu.stream)
    with in_stream(other):
        assert (made + 1).sum().item() == 6


def test_memory_that_still_leaves_is_kept(gpu: Gpu) -> None:
    other, made = Stream(), torch.ones(3, device="cuda")
    other.wait_stream(gpu.stream)
    with in_stream(other):
        host = torch.empty(3, pin_memory=True).copy_(made, non_blocking=True)
    del made
    with pytest.raises(RuntimeError, match="was given away before it was copied"):
        torch.cuda.synchronize()
    assert host is not None


def test_rows_of_a_server_wait_once_too(gpu: Gpu, m3_folder: Path, plain: Encoder) -> None:
    encoder = Encoder(m3_folder, precision="float32")
    tokens = encoder.tokenizer.encode(TEXTS, max_tokens=64)
    wanted = [["dense"], ["weights", "multi"], ["sparse"], ["hidden"], ["dense", "sparse", "multi"], ["multi"]]
    gpu.waits.clear()
    rows = encoder.encode_tokens(tokens, wanted)  # type: ignore[arg-type]
    assert gpu.waits == ["event"]
    for mine, theirs in zip(rows, plain.encode_tokens(tokens, wanted), strict=True):  # type: ignore[arg-type]
        for name, found, expected in zip(mine._fields, mine, theirs, strict=True):
            assert (found is None) == (expected is None), name
            if isinstance(found, np.ndarray):
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_every_pooling(gpu: Gpu, tmp_path: Path, pooling: str) -> None:
    folder = bge_m3(tmp_path / "model")
    for name in ("sparse_linear.pt", "colbert_linear.pt"):
        (folder / name).unlink()
    found, wanted = (
        Encoder(folder, device=device, precision="float32", pooling=pooling).encode(TEXTS, outputs=["dense"])
        for device in ("cuda", "cpu")
    )
    same(found, wanted)


def test_a_long_document(gpu: Gpu, m3_folder: Path, plain: Encoder) -> None:
    text = "the quick brown fox jumps over the lazy dog " * 60
    same(Encoder(m3_folder, precision="float32").encode([text]), plain.encode([text]))


def test_what_overflows_in_float16_is_computed_again_in_float32(
    gpu: Gpu, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = bge_m3(tmp_path / "model")
    weights = torch.load(folder / "pytorch_model.bin")
    name = next(name for name in weights if name.endswith("intermediate.dense.weight"))
    weights[name] *= 1e6
    torch.save(weights, folder / "pytorch_model.bin")
    with caplog.at_level(logging.WARNING):
        found = Encoder(folder, precision="float16").encode(TEXTS)
    assert "float32" in caplog.text
    same(found, Encoder(folder, device="cpu", precision="float32").encode(TEXTS))


def test_a_cross_encoder(gpu: Gpu, tmp_path: Path) -> None:
    folder = bge_reranker(tmp_path / "reranker")
    encoder = CrossEncoder(folder, precision="float32", budget=40)
    gpu.waits.clear()
    found = encoder.score("What is BGE M3?", TEXTS)
    assert len(gpu.waits) > 1
    assert set(gpu.waits) == {"event"}
    wanted = CrossEncoder(folder, device="cpu", precision="float32").score("What is BGE M3?", TEXTS)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(CrossEncoder(folder).score("What is BGE M3?", TEXTS), wanted, atol=0.15)
    assert VARLEN in gpu.ops


class TestGraphs:
    """What is recorded is what the network computes, and is computed by one call."""

    QUERIES = ("fox", "dog", "the quick fox", "the lazy dog", "jumps", "what is BGE M3?")

    def test_they_find_what_the_network_finds(self, gpu: Gpu, m3_folder: Path) -> None:
        plain, recorded = (Encoder(m3_folder, graphs=graphs) for graphs in (False, True))
        for query in self.QUERIES * 2:
            same(recorded.encode([query]), plain.encode([query]))

    def test_a_known_length_costs_no_layer(self, gpu: Gpu, m3_folder: Path) -> None:
        encoder = Encoder(m3_folder, graphs=True)
        encoder.encode(["fox"])
        before = gpu.ops.count("aten.addmm.default")
        gpu.waits.clear()
        encoder.encode(["dog"], outputs=["dense"])
        assert gpu.ops.count("aten.addmm.default") == before
        assert gpu.waits == ["event"]

    def test_results_are_not_overwritten_by_the_next(self, gpu: Gpu, m3_folder: Path) -> None:
        encoder = Encoder(m3_folder, graphs=True)
        queries = ["fox", "dog"]
        found = [encoder.encode([query]) for query in queries]
        for query, each in zip(queries, found, strict=True):
            same(each, encoder.encode([query]))

    def test_many_texts_at_once_are_not_recorded(self, gpu: Gpu, m3_folder: Path) -> None:
        encoder = Encoder(m3_folder, graphs=True)
        encoder.encode(TEXTS)
        assert encoder._recorded is not None
        assert not encoder._recorded._known


@pytest.mark.parametrize("capability", [TURING])
def test_what_the_gpu_does_not_have_is_refused(gpu: Gpu, m3_folder: Path, capability: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="cuda emulates bfloat16, slowly and in much memory; use float16 or float32"):
        Encoder(m3_folder, precision="bfloat16")
    with pytest.raises(InputError, match="'cuda:1' was asked for, but PyTorch sees 1: cuda:0 to cuda:0"):
        Encoder(m3_folder, device="cuda:1")
    with pytest.raises(InputError, match="at most 131070 on a CUDA GPU; got 131071"):
        Encoder(m3_folder, budget=131_071)
    with pytest.raises(InputError, match="int8 runs on CPUs, and the device is cuda"):
        Encoder(m3_folder, precision="int8")


def test_its_precisions_are_compared(gpu: Gpu, m3_folder: Path) -> None:
    precisions = usual_precisions(torch.device("cuda"))
    assert precisions == ("float32", "float16", "bfloat16")
    found = [_measure(_Job(str(m3_folder), None, each, tuple(TEXTS), 1, "cuda", None)) for each in precisions]
    for (measured, encoded), least in zip(found, (1 - 1e-6, 0.9999, 0.999), strict=True):
        assert measured.peak_bytes == 2**20
        assert measured.kernels == "PyTorch"
        assert min(fidelity(found[0][1], encoded)[0].values()) > least
    with pytest.raises(InputError, match="int8 runs on CPUs, and the device is cuda"):
        next(bench(str(m3_folder), TEXTS, precisions=["float16", "int8"]))


def test_what_a_gpu_prepares_once_is_not_timed(gpu: Gpu, m3_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    encode = Encoder.encode

    def counted(self: Encoder, texts: Sequence[str], **options: Any) -> Encoded:
        calls.append(len(texts))
        return encode(self, texts, **options)

    monkeypatch.setattr(Encoder, "encode", counted)
    for device, warm in (("cuda", 1), ("cpu", 0)):
        calls.clear()
        _measure(_Job(str(m3_folder), None, "float32", tuple(TEXTS), 1, device, None))
        assert calls == [6, *([6, *[1] * 6] * (1 + warm))], device


def test_a_gpu_reads_more_of_the_built_in_texts(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []

    def stop(job: _Job) -> None:
        given.append(len(job.texts))
        raise InterruptedError

    monkeypatch.setattr(bench_module, "_in_own_process", stop)
    for device in ("cuda", "cpu"):
        with pytest.raises(InterruptedError):
            next(bench(device=device))
    assert given == [2_048, 64]


def test_one_gpu_is_one_type_of_device(gpu: Gpu) -> None:
    with pytest.raises(RuntimeError, match="tensors on cuda:0 and cpu"):
        torch.ones(3, device="cuda") + torch.ones(3)
    assert (torch.ones(HIDDEN, device="cuda") + 1).sum().item() == 2 * HIDDEN
    assert gpu.waits[-1:] == ["aten._local_scalar_dense.default"]
