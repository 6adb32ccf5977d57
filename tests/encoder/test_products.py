"""Packed products against the formula in float64, and the int8 arithmetic by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import gelu

from threefold.encoder import products
from threefold.encoder.products import FloatProduct, Int8Product, has_bfloat16, has_int8, has_onednn
from threefold.encoder.stored import Stored, quantise_blocks, quantise_rows, stack
from threefold.errors import ShapeError

pytestmark = pytest.mark.skipif(not has_int8(), reason="this PyTorch has no oneDNN")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def test_int8_by_hand() -> None:
    """Largest of each token becomes 126 (64 without VNNI), of each row 127: values that fit these grids are exact."""
    weight = torch.tensor([[127.0, -1.0], [2.0, 254.0]])  # scales 1 and 2
    product = Int8Product(Stored(weight), torch.tensor([0.5, -1.0]), torch.float32)
    top = float(product._levels)
    y = product(torch.tensor([[top, -3.0], [0.0, top / 2]]))  # steps 1 and 2
    assert y.tolist() == [
        [top * 127 + 3 + 0.5, top * 2 - 3 * 254 - 1],
        [-top / 2 + 0.5, top / 2 * 254 - 1],
    ]


@torch.inference_mode()
def test_a_row_of_zeros_gives_the_bias() -> None:
    product = Int8Product(Stored(random(5, 8)), torch.arange(5.0), torch.float32)
    assert product(torch.zeros(1, 8)).tolist() == [[0.0, 1.0, 2.0, 3.0, 4.0]]


@pytest.mark.parametrize(
    ("kind", "dtype", "tolerance"),
    [
        (FloatProduct, torch.float32, 1e-5),
        pytest.param(
            FloatProduct, torch.bfloat16, 0.02, marks=pytest.mark.skipif(not has_bfloat16(), reason="no bfloat16 here")
        ),
        (Int8Product, torch.float32, 0.02),
        (Int8Product, torch.bfloat16, 0.03),
    ],
)
@torch.inference_mode()
def test_equals_the_formula(kind: type[FloatProduct | Int8Product], dtype: torch.dtype, tolerance: float) -> None:
    """Relative to the largest entry; rows and columns that are no multiple of any block."""
    for rows in (1, 3, 70):
        x, weight, bias, plus = random(rows, 37, seed=1), random(53, 37, seed=2), random(53, seed=3), random(rows, 53)
        product = kind(Stored(weight), bias, dtype)
        exact = x.double() @ weight.double().T + bias.double()
        for got, wanted in (
            (product(x.to(dtype)), exact),
            (product(x.to(dtype), gelu=True), gelu(exact)),
            (product(x.to(dtype), plus=plus.to(dtype)), exact + plus),
        ):
            assert got.dtype == dtype
            assert (got.double() - wanted).abs().max() <= tolerance * wanted.abs().max()


@torch.inference_mode()
def test_without_vnni_sums_of_two_products_fit_into_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such processors add two products in 16 bits: 2 * 128 * 127 fits, 2 * 255 * 127 does not."""
    monkeypatch.setattr(products, "fast_int8", lambda: False)
    product = Int8Product(Stored(torch.full((4, 64), 1.0)), torch.zeros(4), torch.float32)
    assert (product._middle + product._levels) * 127 * 2 <= 2**15 - 1
    torch.testing.assert_close(product(torch.full((2, 64), 3.0)), torch.full((2, 4), 192.0))
    torch.testing.assert_close(product(torch.full((2, 64), -3.0)), torch.full((2, 4), -192.0))


@torch.inference_mode()
@settings(deadline=None, max_examples=20)
@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 100))
def test_scaling_a_token_scales_its_result(scale: float, seed: int) -> None:
    """Activations have a scale per token: an outlier in one costs the others nothing."""
    x, product = random(4, 16, seed=seed), Int8Product(Stored(random(8, 16)), torch.zeros(8), torch.float32)
    before = product(x)
    after = product(torch.cat([x[:3], x[3:] * scale]))
    torch.testing.assert_close(after[:3], before[:3])
    torch.testing.assert_close(after[3] / scale, before[3], rtol=0.02, atol=0.02 * float(before[3].abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@torch.inference_mode()
def test_what_is_not_finite_is_not_hidden(bad: float, dtype: torch.dtype) -> None:
    x = random(3, 16).to(dtype)
    x[1, 5] = bad
    y = Int8Product(Stored(random(8, 16)), torch.zeros(8), dtype)(x)
    assert torch.isfinite(y[[0, 2]]).all()
    assert not torch.isfinite(y[1]).any()


def test_stored_int8_is_used_as_it_is() -> None:
    rows, scale = quantise_rows(random(6, 9))
    again, same = Stored(rows, scale).int8()
    assert again is rows
    assert same is scale


def test_rows_of_a_stored_table() -> None:
    table = random(7, 64)
    ids = torch.tensor([3, 3, 0])
    assert torch.equal(Stored(table).rows(ids), table[ids])
    for quantise in (quantise_rows, quantise_blocks):
        assert torch.equal(Stored(*quantise(table)).rows(ids), Stored(*quantise(table)).float()[ids])


def test_four_bits_by_hand() -> None:
    """The largest of each block, 16 and -4, becomes -8; byte k has number k below and number k + 32 above."""
    row = torch.zeros(1, 64)
    row[0, :3] = torch.tensor([16.0, -14.0, 3.0])  # steps of -2
    row[0, 32:35] = torch.tensor([-4.0, 3.6, 0.2])  # steps of 0.5
    bytes_, scale = quantise_blocks(row)
    assert bytes_.shape == (1, 32)
    assert scale.tolist() == [[-2.0, 0.5]]
    assert (bytes_[0, :3] & 15).tolist() == [-8 + 8, 7 + 8, -2 + 8]  # 3 / -2 is rounded to the even -2
    assert (bytes_[0, :3] >> 4).tolist() == [-8 + 8, 7 + 8, 0 + 8]
    exact = Stored(bytes_, scale).float()
    assert exact[0, :4].tolist() == [16.0, -14.0, 4.0, 0.0]
    assert exact[0, 32:36].tolist() == [-4.0, 3.5, 0.0, 0.0]


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_four_bits_stay_as_they_are(rows: int, blocks: int, seed: int) -> None:
    """Once on the grid, always on the grid; no number is moved by more than a step, or the largest one by rounding."""
    table = random(rows, 32 * blocks, seed=seed)
    stored = Stored(*quantise_blocks(table))
    assert torch.equal(Stored(*quantise_blocks(stored.float())).float(), stored.float())
    assert stored.scale is not None
    step = stored.scale.float().abs().repeat_interleave(32, dim=1)
    assert ((stored.float() - table).abs() <= step * 1.01).all()


def test_four_bits_of_nothing_are_nothing() -> None:
    assert not Stored(*quantise_blocks(torch.zeros(2, 32))).float().any()


def test_four_bits_as_int8() -> None:
    """The layers' int8 products read such a matrix too: its rows are given one scale each."""
    stored = Stored(*quantise_blocks(random(3, 32)))
    numbers, scale = stored.int8()
    assert numbers.dtype == torch.int8
    assert ((numbers * scale[:, None] - stored.float()).abs() <= scale[:, None] / 2 + 1e-7).all()


def test_four_bits_need_whole_blocks() -> None:
    with pytest.raises(ShapeError, match="a multiple of 32 numbers; got 40"):
        quantise_blocks(random(2, 40))


def test_parts_are_stacked_in_any_form() -> None:
    a, b = random(2, 3, seed=1), random(4, 3, seed=2)
    both = torch.cat([a, b])
    assert torch.equal(stack([Stored(a), Stored(b)]).float(), both)
    assert stack([Stored(a.half()), Stored(b.half())]).tensor.dtype == torch.float16
    int8 = stack([Stored(*quantise_rows(a)), Stored(*quantise_rows(b))])
    assert int8.tensor.dtype == torch.int8
    assert torch.equal(int8.float(), Stored(*quantise_rows(both)).float())
    mixed = stack([Stored(*quantise_rows(a)), Stored(b)])
    assert torch.equal(mixed.float(), torch.cat([Stored(*quantise_rows(a)).float(), b]))
    small, large = Stored(*quantise_blocks(random(2, 32))), Stored(*quantise_rows(random(4, 32)))
    assert torch.equal(stack([small, large]).float(), torch.cat([small.float(), large.float()]))
    assert torch.equal(stack([small, small]).float(), torch.cat([small.float(), small.float()]))


def test_onednn_is_where_int8_is() -> None:
    assert has_onednn()
