from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from threefold.errors import ConfigError
from threefold.train.losses import (
    LossWeights,
    embedding_distillation,
    idf_distance,
    info_nce,
    joint_loss,
    soft_cross_entropy,
    teacher_scores,
)
from threefold.train.losses.joint import Scores, with_ensemble

NONE = torch.zeros(2, 2, dtype=torch.bool)
DIAGONAL = torch.arange(2)


def fused(dense: Tensor, sparse: Tensor, multi: Tensor, weights: LossWeights | None = None) -> Scores:
    return with_ensemble({"dense": dense, "sparse": sparse, "multi": multi}, weights or LossWeights())


def test_info_nce_by_hand() -> None:
    # scores / t: [2, 0] and [1, 1]; losses log(1 + e^-2) and log 2
    scores = torch.tensor([[0.2, 0.0], [0.1, 0.1]])
    expected = (math.log(1 + math.exp(-2)) + math.log(2)) / 2
    assert info_nce(scores, DIAGONAL, NONE, 0.1).item() == pytest.approx(expected)


def test_info_nce_leaves_false_negatives_out() -> None:
    scores = torch.tensor([[0.2, 9.0], [0.1, 0.1]])
    forbidden = torch.tensor([[False, True], [False, False]])
    # the first query has no negative left: log 1 = 0
    assert info_nce(scores, DIAGONAL, forbidden, 0.1).item() == pytest.approx((0 + math.log(2)) / 2)


def test_soft_cross_entropy_by_hand() -> None:
    # teacher softmax([log 3, 0]) = [3/4, 1/4]; student softmax([0, 0]) = [1/2, 1/2]: the loss is log 2
    teacher, student = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)
    assert soft_cross_entropy(student, teacher, NONE[:1], 1.0).item() == pytest.approx(math.log(2))
    # the other way around: -(1/2 log 3/4 + 1/2 log 1/4)
    expected = -(math.log(3 / 4) + math.log(1 / 4)) / 2
    assert soft_cross_entropy(teacher, student, NONE[:1], 1.0).item() == pytest.approx(expected)


def test_soft_cross_entropy_is_kl_plus_the_entropy_of_the_teacher() -> None:
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    goal = (teacher / 0.3).softmax(dim=1)
    kl = kl_div((student / 0.3).log_softmax(dim=1), goal, reduction="batchmean")
    entropy = -(goal * goal.log()).sum(dim=1).mean()
    got = soft_cross_entropy(student, teacher, torch.zeros(5, 7, dtype=torch.bool), 0.3)
    torch.testing.assert_close(got, kl + entropy)
    torch.testing.assert_close(got, cross_entropy(student / 0.3, goal))


def test_forbidden_columns_do_not_exist() -> None:
    student, teacher, keep = torch.randn(3, 5), torch.randn(3, 5), torch.tensor([0, 2, 4])
    forbidden = torch.ones(3, 5, dtype=torch.bool)
    forbidden[:, keep] = False
    student.requires_grad_()
    loss = soft_cross_entropy(student, teacher, forbidden, 0.1)
    without = soft_cross_entropy(student[:, keep], teacher[:, keep], torch.zeros(3, 3, dtype=torch.bool), 0.1)
    torch.testing.assert_close(loss, without)
    loss.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert (student.grad[:, [1, 3]] == 0).all()


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = torch.randn(2, 2, requires_grad=True), torch.randn(2, 2, requires_grad=True)
    soft_cross_entropy(student, teacher, NONE, 0.1).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert teacher.grad is None


def test_joint_loss_is_the_formula_of_the_released_code() -> None:
    """(L + L') / 2 with L = (d + e + 0.1 s + m) / 4 and L' = (d + 0.1 s + m) / 3 (m3.md, section 8.1)."""
    d, s, m = (torch.randn(4, 6) * 0.1 for _ in range(3))
    targets, t = torch.tensor([1, 0, 5, 2]), 0.02
    e = (d + 0.3 * s + m) / t
    hard = (
        cross_entropy(d / t, targets) + cross_entropy(e, targets) + 0.1 * cross_entropy(s / t, targets)
        + cross_entropy(m / t, targets)
    ) / 4  # fmt: skip
    goal = e.softmax(dim=1)
    soft = (cross_entropy(d / t, goal) + 0.1 * cross_entropy(s / t, goal) + cross_entropy(m / t, goal)) / 3
    total, log = joint_loss(fused(d, s, m), targets, torch.zeros(4, 6, dtype=torch.bool), LossWeights())
    torch.testing.assert_close(total, (hard + soft) / 2)
    assert log["distil"].item() == pytest.approx(soft.item(), rel=1e-5)
    assert set(log) == {"dense", "sparse", "multi", "ensemble", "distil"}


def test_without_distillation_only_the_contrastive_part_counts() -> None:
    d, s, m = (torch.randn(2, 2) for _ in range(3))
    weights = LossWeights(distil=0.0, temperature=1.0)
    total, log = joint_loss(fused(d, s, m, weights), DIAGONAL, NONE, weights)
    expected = (log["dense"] + 0.1 * log["sparse"] + log["multi"] + log["ensemble"]) / 4
    assert "distil" not in log
    torch.testing.assert_close(total, expected)


def test_embedding_distillation_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[0.0, 1.0], [0.6, 0.8]])
    assert embedding_distillation(student, teacher).item() == pytest.approx((1.0 + 0.0) / 2)


def test_idf_distance_by_hand() -> None:
    assert idf_distance(torch.tensor([0.5, 0.0]), torch.tensor([0.2, 0.1])).item() == pytest.approx((0.09 + 0.01) / 2)


def test_one_head_alone_has_no_ensemble_and_teaches_nobody() -> None:
    scores = torch.randn(2, 2)
    alone = with_ensemble({"dense": scores}, LossWeights())
    total, log = joint_loss(alone, DIAGONAL, NONE, LossWeights(temperature=0.5))
    assert set(log) == {"dense"}
    torch.testing.assert_close(total, info_nce(scores, DIAGONAL, NONE, 0.5))


def test_two_heads_share_the_loss() -> None:
    d, m = torch.randn(2, 2), torch.randn(2, 2)
    total, log = joint_loss(with_ensemble({"dense": d, "multi": m}, LossWeights()), DIAGONAL, NONE, LossWeights())
    hard = (log["dense"] + log["multi"] + info_nce(d + m, DIAGONAL, NONE, 0.02)) / 3
    torch.testing.assert_close(total, (hard + log["distil"]) / 2)


# ---- the scores of another model ----------------------------------------------------------------------------


def test_teacher_scores_by_hand() -> None:
    # teacher softmax([log 3, 0]) = [3/4, 1/4], student [1/2, 1/2], the third passage is unknown to the teacher:
    # KL = 3/4 log(3/4 / 1/2) + 1/4 log(1/4 / 1/2)
    teacher = torch.tensor([[math.log(3), 0.0, math.nan]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    got = teacher_scores(torch.tensor([[0.1, 0.1, 9.0]]), teacher, 0.02, 1.0)
    assert got.item() == pytest.approx(expected, rel=1e-5)
    warm = teacher_scores(torch.tensor([[0.1, 0.1, 9.0]]), 2 * teacher, 0.02, 2.0)
    assert warm.item() == pytest.approx(expected, rel=1e-5)


def test_a_student_that_agrees_with_the_teacher_has_no_loss_and_no_gradient() -> None:
    teacher = torch.tensor([[3.0, math.nan, 1.0, 0.0], [math.nan, 2.0, 5.0, math.nan]])
    student = (teacher.nan_to_num(7.0) * 0.02 + 0.3).requires_grad_()
    loss = teacher_scores(student, teacher, 0.02, 1.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(0.0, abs=1e-5)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-4
    assert (student.grad[teacher.isnan()] == 0).all()


def test_teacher_scores_are_the_kl_of_the_library() -> None:
    student, teacher = torch.randn(4, 9), torch.randn(4, 9)
    expected = kl_div((student / 0.5).log_softmax(1), (teacher / 3.0).softmax(1), reduction="batchmean")
    torch.testing.assert_close(teacher_scores(student, teacher, 0.5, 3.0), expected)


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"temperature must be positive; got 0\.0"):
        replace(LossWeights(), temperature=0.0)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_joint_loss_equals_the_released_trainer() -> None:
    """The loss of FlagEmbedding's `forward`, from its own functions, on the same scores."""
    from FlagEmbedding.finetune.embedder.encoder_only.m3 import EncoderOnlyEmbedderM3Model as Released

    model = Released.__new__(Released)
    torch.nn.Module.__init__(model)
    model.cross_entropy = torch.nn.CrossEntropyLoss(reduction="mean")
    d, s, m = (torch.randn(3, 12) * 0.05 for _ in range(3))
    targets, t = torch.arange(3) * 4, 0.02
    scaled = {"d": d / t, "s": s / t, "m": m / t}
    ensemble = scaled["d"] + 0.3 * scaled["s"] + scaled["m"]
    hard = {name: model.compute_loss(scores, targets) for name, scores in (scaled | {"e": ensemble}).items()}
    goal = ensemble.softmax(dim=-1).detach()
    soft = {name: model.distill_loss("kl_div", goal, scores, group_size=4) for name, scores in scaled.items()}
    released = (
        (hard["d"] + hard["e"] + 0.1 * hard["s"] + hard["m"]) / 4 + (soft["d"] + 0.1 * soft["s"] + soft["m"]) / 3
    ) / 2  # fmt: skip
    total, _ = joint_loss(fused(d, s, m), targets, torch.zeros(3, 12, dtype=torch.bool), LossWeights())
    torch.testing.assert_close(total, released)
