"""Objectives of cross-encoders: formulas by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from threefold.errors import ConfigError
from threefold.train.cross_losses import CrossLoss, as_matrix, cross_loss, listwise, margin_mse, pointwise

NAN, NONE = math.nan, -math.inf


def test_listwise_by_hand() -> None:
    # softmax of the first: e^0 / (e^0 + e^0) = 1/2; of the second: e^ln3 / (e^ln3 + 1 + 1) = 3/5
    logits = torch.tensor([[0.0, 0.0, NONE], [math.log(3), 0.0, 0.0]])
    assert float(listwise(logits)) == pytest.approx((math.log(2) + math.log(5 / 3)) / 2)


def test_pointwise_by_hand() -> None:
    # sigmoid(ln 3) = 3/4: the positive costs ln(4/3), each of the negatives ln 4, ln 2
    logits = torch.tensor([[math.log(3), math.log(3), 0.0]])
    assert float(pointwise(logits)) == pytest.approx((math.log(4 / 3) + math.log(4) + math.log(2)) / 3)
    missing = torch.tensor([[math.log(3), math.log(3), NONE]])
    assert float(pointwise(missing)) == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)


def test_margin_mse_by_hand() -> None:
    # margins of the student 2 and 3, of the teacher 1 and unknown; second query: 1 against 4
    logits = torch.tensor([[3.0, 1.0, 0.0], [1.0, 0.0, NONE]])
    teacher = torch.tensor([[5.0, 4.0, NAN], [4.0, 0.0, NAN]])
    assert float(margin_mse(logits, teacher)) == pytest.approx(((2 - 1) ** 2 + (1 - 4) ** 2) / 2)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kl_is_that_of_torch(temperature: float) -> None:
    rng = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(5, 4, generator=rng), torch.randn(5, 4, generator=rng)
    weights = CrossLoss(contrast="none", temperature=temperature)
    oracle = torch.nn.functional.kl_div(
        (logits / temperature).log_softmax(1), (teacher / temperature).softmax(1), reduction="batchmean"
    )
    assert float(cross_loss(logits, teacher, weights)[0]) == pytest.approx(float(oracle), abs=1e-6)


def test_only_queries_with_a_teacher_are_distilled() -> None:
    logits = torch.tensor([[1.0, 0.0, NONE], [2.0, 0.0, 1.0], [0.0, 1.0, 2.0]], requires_grad=True)
    teacher = torch.tensor([[NAN, 1.0, NAN], [1.0, NAN, NAN], [2.0, NAN, 1.0]])
    total, log = cross_loss(logits, teacher, CrossLoss("none", "margin"))
    assert total.item() == pytest.approx(((0 - 2) - (2 - 1)) ** 2)
    assert log == {"margin": total.item()}
    total.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad[:2].abs().sum() == 0
    assert logits.grad[2].tolist() == [-6.0, 0.0, 6.0]


@pytest.mark.parametrize("contrast", ["listwise", "pointwise"])
@pytest.mark.parametrize("distil", ["kl", "margin"])
def test_gradients_are_finite_where_candidates_are_missing(contrast: Any, distil: Any) -> None:
    values = torch.randn(5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    counts = torch.tensor([2, 3])
    logits = as_matrix(values, counts, NONE)
    teacher = as_matrix(torch.tensor([1.0, 0.0, 1.0, NAN, 0.5]), counts, NAN)
    total, log = cross_loss(logits, teacher, CrossLoss(contrast, distil, distil_weight=2.0))
    assert total.item() == pytest.approx(log[contrast] + 2 * log[distil])
    total.backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None
    assert torch.isfinite(values.grad).all()
    assert (values.grad != 0).all()


@pytest.mark.parametrize(
    ("contrast", "distil"), [("listwise", "none"), ("pointwise", "none"), ("none", "kl"), ("none", "margin")]
)
def test_a_logit_that_is_not_a_number_is_no_missing_candidate(contrast: Any, distil: Any) -> None:
    """The loss says so, and the run stops (`Updates`)."""
    logits, teacher = torch.tensor([[0.0, NAN, 1.0]]), torch.tensor([[2.0, 1.0, 0.0]])
    assert cross_loss(logits, teacher, CrossLoss(contrast, distil))[0].isnan()


def test_settings_without_a_goal_are_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to learn"):
        CrossLoss("none", "none")
    with pytest.raises(ConfigError, match="temperature must be positive"):
        CrossLoss(temperature=0)
