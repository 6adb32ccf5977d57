from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.fakes import FakeEncoder
from tests.retrieve.test_experiment import make_task

from threefold.errors import ConfigError, EvaluationError, InputError
from threefold.evaluate.task import Task
from threefold.retrieve.experiment import Protocol, run_task
from threefold.retrieve.tune import Tuned, development, simplex, tune
from threefold.score import Weights


@pytest.mark.parametrize("mode", ["hybrid", "dense+sparse"])
def test_the_best_of_the_grid_by_running_each(encoder: FakeEncoder, mode: str) -> None:
    task = make_task(documents=40, queries=12, seed=3)
    tuned = tune([task], encoder, mode=mode, measure="nDCG@10", step=0.25, protocol=Protocol(multi_depth=15))
    values = {}
    for weights in simplex(3 if mode == "hybrid" else 2, 0.25):
        both = weights if mode == "dense+sparse" else None
        protocol = Protocol(modes=(mode,), weights=weights, dense_sparse=both, multi_depth=15)
        if mode == "hybrid" and weights.multi == 0:
            continue  # such a protocol scores all documents, not the candidates of dense
        values[weights] = run_task(task, encoder, protocol).rows[0].values["nDCG@10"]
    assert tuned.value >= max(values.values()) - 1e-9
    if tuned.weights in values:
        assert tuned.value == pytest.approx(values[tuned.weights])
    assert ("training" in tuned.compared) == (mode == "hybrid")


def test_several_sets_count_alike(encoder: FakeEncoder) -> None:
    a, b = make_task(seed=1), make_task(documents=12, queries=3, seed=2)
    one, other = (tune([task], encoder, step=1) for task in (a, b))
    both = tune([a, b], encoder, step=1)
    for name in one.compared:
        assert both.compared[name] == pytest.approx((one.compared[name] + other.compared[name]) / 2)
    assert both.sets == ("toy", "toy")


def test_equals_go_to_the_weights_of_the_training(encoder: FakeEncoder) -> None:
    """Every weight finds the only document, so the nearest to 1 : 0.3 : 1 wins: 0.4, 0.2, 0.4."""
    task = Task("one", {"d": "fox"}, {"q": "fox"}, {"q": {"d": 1}})
    assert tune([task], encoder, step=0.2).weights == Weights(0.4, 0.2, 0.4)


def test_simplex_by_hand() -> None:
    assert list(simplex(2, 0.5)) == [Weights(0, 1, 0), Weights(0.5, 0.5, 0), Weights(1, 0, 0)]
    assert len(list(simplex(3, 0.1))) == 66
    for step in (0, -1, 0.3, 2, 1e-320, 1e-4):
        with pytest.raises(ConfigError, match="step must divide 1"):
            list(simplex(3, step))


def test_development_queries_and_the_rest_never_meet() -> None:
    task = make_task(queries=20)
    part = development(task, 0.5)
    assert len(part.qrels) == 10
    assert set(development(task, 0.25).qrels) < set(part.qrels)
    assert development(task, 1) is task
    with pytest.raises(ConfigError, match="share must be more than 0"):
        development(task, 0)


def test_tuned_weights_refuse_their_own_queries_and_other_models(encoder: FakeEncoder, tmp_path: Path) -> None:
    task = make_task(queries=8)
    tuned = tune([task], encoder, step=0.5, share=0.5)
    tuned.save(tmp_path / "weights.json")
    again = Tuned.load(tmp_path / "weights.json")
    assert again == tuned
    rest = again.unseen(task)
    assert set(rest.qrels) == set(task.qrels) - set(development(task, 0.5).qrels)
    assert rest.warnings == {"queries used for tuning, not run": 4}
    assert again.unseen(make_task(seed=9)).warnings == {}
    assert again.applied(encoder.card.hash) == {"weights": tuned.weights}
    with pytest.raises(ConfigError, match="the weights were tuned for fake"):
        again.applied("other")
    with pytest.raises(EvaluationError, match="tuned on all of its 8 queries"):
        tune([task], encoder, step=1).unseen(task)


def test_what_cannot_be_tuned(encoder: FakeEncoder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mode 'dense' has no weights; tune hybrid or dense"):
        tune([make_task()], encoder, mode="dense")
    with pytest.raises(ConfigError, match="give multi_depth"):
        tune([make_task()], encoder, protocol=Protocol(multi_depth=None))
    with pytest.raises(EvaluationError, match="no set to tune on"):
        tune([], encoder)
    with pytest.raises(InputError, match="cannot read tuned weights"):
        Tuned.load(tmp_path / "absent")
    (tmp_path / "deep").write_text("[" * 100_000)
    with pytest.raises(InputError, match="cannot read tuned weights"):
        Tuned.load(tmp_path / "deep")
    (tmp_path / "odd").write_text(json.dumps({"mode": "hybrid"}))
    with pytest.raises(ConfigError, match="odd: setting"):
        Tuned.load(tmp_path / "odd")
