from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.encoder.test_encoder import same
from torch import Tensor

from threefold import Encoder
from threefold.encoder.attention import Layout, attend, best_path

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def one_by_one(qkv: Tensor, heads: int, lengths: list[int]) -> Tensor:
    """Equation 1 of Vaswani et al. for each text and head by itself, in float64."""
    outputs = []
    for part in torch.split(qkv.double(), lengths):
        q, k, v = (x.reshape(len(x), heads, -1) for x in part.chunk(3, dim=1))  # each (t, heads, d_head)
        per_head = [
            torch.softmax(q[:, h] @ k[:, h].T / q.shape[2] ** 0.5, dim=1) @ v[:, h] for h in range(heads)
        ]  # fmt: skip
        outputs.append(torch.cat(per_head, dim=1))
    return torch.cat(outputs)


@settings(deadline=None, max_examples=40)
@given(lengths=LENGTHS, heads=st.sampled_from([1, 2, 4]))
@pytest.mark.parametrize("training", [False, True], ids=["fused kernel", "plain"])
def test_blocks_equal_one_text_at_a_time(training: bool, lengths: list[int], heads: int) -> None:
    qkv = torch.randn(sum(lengths), 24, generator=torch.Generator().manual_seed(sum(lengths)))
    got = attend(qkv.clone().requires_grad_(training), heads, Layout.of(np.array(lengths)))
    assert got.shape == (sum(lengths), 8)
    torch.testing.assert_close(got.double(), one_by_one(qkv, heads, lengths), atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_the_formula() -> None:
    qkv = torch.randn(9, 24, requires_grad=True)
    got = attend(qkv, 2, Layout.of(np.array([4, 4, 1])))
    formula = one_by_one(qkv, 2, [4, 4, 1])
    gradients = [torch.autograd.grad(out.square().sum(), qkv)[0] for out in (got, formula)]
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-5)


def test_training_in_16_bits_attends_in_32() -> None:
    qkv = torch.randn(5, 24).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = attend(qkv.clone().requires_grad_(), 2, Layout.of(np.array([5])))
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, one_by_one(qkv, 2, [5]).bfloat16())


@given(lengths=st.lists(st.integers(0, 4), max_size=20))
def test_runs_join_neighbours_of_equal_length_and_cover_every_token(lengths: list[int]) -> None:
    layout = Layout.of(np.array(lengths, np.int64))
    assert np.diff(layout.offsets).tolist() == lengths
    covered = [i for run in layout.runs for i in range(run.start, run.end)]
    assert covered == list(range(sum(lengths)))
    assert [run.length for run in layout.runs for _ in range(run.texts)] == [n for n in lengths if n]
    assert layout.longest == max(lengths, default=0)


def test_runs_by_hand() -> None:
    assert [tuple(run) for run in Layout.of(np.array([3, 3, 2, 3])).runs] == [(0, 2, 3), (6, 1, 2), (8, 1, 3)]


def test_cut_gives_views() -> None:
    packed = torch.arange(16.0).view(8, 2)
    parts = list(Layout.of(np.array([3, 3, 2])).cut(packed))
    assert [part.shape[0] for _, part in parts] == [6, 2]
    assert all(part.untyped_storage().data_ptr() == packed.untyped_storage().data_ptr() for _, part in parts)


def test_the_path_is_chosen_by_device_and_type() -> None:
    assert best_path(torch.device("cpu"), torch.bfloat16, 64) == "blocks"
    assert best_path(torch.device("cuda"), torch.float32, 64) == "blocks"
    assert best_path(torch.device("cuda"), torch.float16, 12) == "blocks"  # flash attention: multiples of 8


def varlen_on_cpu(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int,
                  *options: Any) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What PyTorch documents of its kernel: text i has the rows from cu[i] to cu[i + 1], borders are int32."""
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert torch.equal(cu_q, cu_k)
    lengths = cu_q.diff().tolist()
    assert max_q == max_k == max(lengths)
    qkv = torch.stack([q, k, v], dim=1).flatten(1)
    out = one_by_one(qkv, q.shape[1], lengths).view(q.shape).to(q.dtype)
    return out, torch.empty(q.shape[1], len(q)), torch.empty(2, dtype=torch.uint64)


@pytest.fixture(scope="module")
def cpu_kernel() -> None:
    """PyTorch's own front of the kernel runs; only the CUDA code behind it is replaced."""
    varlen = pytest.importorskip("torch.nn.attention.varlen", reason="this PyTorch has no variable-length kernel")
    varlen._varlen_attn.register_kernel("cpu")(varlen_on_cpu)


@pytest.mark.usefixtures("cpu_kernel")
@settings(deadline=None, max_examples=40)
@given(lengths=LENGTHS, heads=st.sampled_from([1, 2, 4]))
def test_varlen_is_asked_for_what_blocks_compute(lengths: list[int], heads: int) -> None:
    qkv = torch.randn(sum(lengths), 24, generator=torch.Generator().manual_seed(sum(lengths)))
    layout = Layout.of(np.array(lengths))
    varlen, blocks = (attend(qkv, heads, layout, path) for path in ("varlen", "blocks"))
    torch.testing.assert_close(varlen, blocks, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("cpu_kernel")
def test_the_encoder_gives_the_same_by_either_path(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["the tide", "der Mond zieht das Meer an, und die Erde dreht sich darunter", "潮汐", "a b c", ""]
    blocks = Encoder(precision="float32", device="cpu").encode(texts)
    monkeypatch.setattr("threefold.encoder.network.best_path", lambda *_: "varlen")
    varlen = Encoder(precision="float32", device="cpu").encode(texts)
    same(varlen, blocks, atol=1e-5)
    assert varlen.sparse is not None
    assert blocks.sparse is not None
    np.testing.assert_array_equal(varlen.sparse.indices, blocks.sparse.indices)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the variable-length kernel needs a CUDA GPU")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_varlen_equals_blocks(dtype: torch.dtype) -> None:
    if best_path(torch.device("cuda"), dtype, 64) != "varlen":
        pytest.skip("this GPU or this PyTorch has no variable-length kernel")
    lengths = [700, 33, 33, 5, 2]
    qkv = torch.randn(sum(lengths), 3 * 256, device="cuda", dtype=dtype)
    layout = Layout.of(np.array(lengths))
    torch.testing.assert_close(
        attend(qkv, 4, layout, "varlen"), attend(qkv, 4, layout, "blocks"), atol=2e-2, rtol=2e-2
    )  # fmt: skip
