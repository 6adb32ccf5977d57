"""Recorded networks find what the network finds, whatever was played before. A stand-in for CUDA graphs on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.encoder.test_encoder import same
from torch import Tensor

from threefold import Encoder
from threefold.encoder.attention import Layout
from threefold.encoder.network import Batch, Network, NetworkConfig, initialise
from threefold.encoder.recorded import LONGEST, Recorded
from threefold.errors import InputError
from threefold.types import Ints

CPU = torch.device("cpu")
SIZES = NetworkConfig(vocab=50, hidden=16, layers=2, heads=2, ffn=32, positions=80, first_position=2, types=1)


class FixedBuffers:
    """Plays work as a CUDA graph does: the same input tensors, the same output tensor every time."""

    def __init__(self) -> None:
        self.recorded = 0

    def __call__(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.recorded += 1
        made = work()
        return lambda: made.copy_(work())


@pytest.fixture(scope="module")
def network() -> Network:
    network = Network(SIZES)
    initialise(network, std=0.3)
    return network


def plain(network: Network, ids: Ints) -> Tensor:
    return network(Batch.of(ids, Layout.of(np.array([len(ids)])), SIZES.first_position, CPU))  # type: ignore[no-any-return]


@settings(deadline=None, max_examples=30)
@given(texts=st.lists(st.lists(st.integers(0, 49), min_size=1, max_size=6), min_size=1, max_size=12))
def test_every_text_gets_its_own_states(network: Network, texts: list[list[int]]) -> None:
    record = FixedBuffers()
    recorded = Recorded(network, CPU, record)
    with torch.inference_mode():
        found = [recorded(np.array(ids), Layout.of(np.array([len(ids)]))) for ids in texts]
        for ids, states in zip(texts, found, strict=True):  # none was overwritten by a later one
            torch.testing.assert_close(states, plain(network, np.array(ids)), atol=1e-6, rtol=1e-5)
    assert record.recorded == len({len(ids) for ids in texts})


@pytest.mark.parametrize(
    ("lengths", "takes"),
    [([1], True), ([LONGEST], True), ([LONGEST + 1], False), ([3, 3], False), ([3, 4], False), ([0], False)],
)
def test_only_one_short_text_is_recorded(network: Network, lengths: list[int], takes: bool) -> None:
    assert Recorded(network, CPU, FixedBuffers()).takes(Layout.of(np.array(lengths))) is takes


def test_an_encoder_finds_the_same_with_recordings(m3_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(m3_folder, device="cpu", precision="float32")
    texts = ["one query", "another query", "w " * 100, "one query"]
    expected = [encoder.encode([text]) for text in texts]
    together = encoder.encode(texts)
    record = FixedBuffers()
    monkeypatch.setattr(encoder, "_recorded", Recorded(encoder._model.network, CPU, record))
    for text, before in zip(texts, expected, strict=True):
        same(encoder.encode([text]), before, 1e-6)
    same(encoder.encode(texts), together, 1e-6)
    lengths = {int(one.tokens[0]) for one in expected}
    assert record.recorded == len([n for n in lengths if n <= LONGEST]) > 0
    tokens = encoder.tokenizer.encode(texts[:1], max_tokens=64)
    row = encoder.encode_tokens(tokens, [("dense",)])[0]
    assert row.dense is not None
    assert expected[0].dense is not None
    np.testing.assert_allclose(row.dense, expected[0].dense[0], atol=1e-6)


def test_graphs_are_refused_where_there_are_none(m3_folder: Path) -> None:
    with pytest.raises(InputError, match="graphs=True needs a CUDA GPU; the device is cpu"):
        Encoder(m3_folder, device="cpu", graphs=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_cuda_graphs_find_what_the_network_finds(m3_folder: Path) -> None:
    plain, recorded = (Encoder(m3_folder, device="cuda", graphs=graphs) for graphs in (False, True))
    for text in ("one query", "another query", "a longer one than these two are", "one query"):
        same(recorded.encode([text]), plain.encode([text]), atol=2e-3)
