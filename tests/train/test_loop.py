from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.train.small import SPECIAL, batches, model, table, tokens, trainer

from threefold.encoder.checkpoint import load, save
from threefold.errors import CheckpointError, ConfigError, NumericalError
from threefold.train.batches import PairTable
from threefold.train.loop import Targets, Teacher, Trainer, TrainSettings, rate
from threefold.train.losses import LossWeights
from threefold.types import Ints

RUNNER = Path(__file__).with_name("runner.py")


def run(run: Trainer) -> list[float]:
    """The loss of every step."""
    totals: list[float] = []
    run.run(lambda line: totals.append(line["total"]))
    return totals


# ---- learning --------------------------------------------------------------------------------------------


def test_a_toy_task_is_learnt(tmp_path: Path) -> None:
    settings = TrainSettings(body_lr=3e-3, word_lr=1e-2, head_lr=3e-3, idf_steps=0, log_every=1, matryoshka=0.1)
    toy = trainer(tmp_path, settings=settings, epochs=12)
    first = logs_of(toy)
    for head in ("dense", "sparse", "multi", "ensemble"):
        early, late = (np.mean([log[head] for log in part]) for part in (first[:6], first[-6:]))
        assert late < 0.7 * early, head


def logs_of(run: Trainer) -> list[dict[str, float]]:
    logs: list[dict[str, float]] = []
    run.run(logs.append)
    return logs


def test_the_log_says_what_was_done(tmp_path: Path) -> None:
    logs = logs_of(trainer(tmp_path))
    assert [log["step"] for log in logs] == list(range(1, len(batches()) + 1))
    sizes = table().query.lengths + table().positive.lengths
    assert [log["tokens"] for log in logs] == [int(sizes[rows].sum()) for rows in batches()]
    assert logs[-1]["progress"] == 1.0
    assert {"dense", "sparse", "multi", "ensemble", "distil", "total", "norm", "tokens_per_s"} <= logs[0].keys()


def test_steps_after_the_last_whole_report_are_reported(tmp_path: Path) -> None:
    settings = TrainSettings(log_every=4, idf_steps=0)
    logs = logs_of(trainer(tmp_path, settings=settings))
    assert [log["step"] for log in logs] == [*range(4, len(batches()), 4), len(batches())]


def test_rate_by_hand() -> None:
    assert rate(0.0, 0.1) == 0.01  # never quite nothing
    assert rate(0.05, 0.1) == pytest.approx(0.5)
    assert rate(0.1, 0.1) == pytest.approx(1.0)
    assert rate(0.55, 0.1) == pytest.approx(1 - 0.95 / 2)
    assert rate(1.0, 0.1) == pytest.approx(0.05)
    assert rate(0.0, 0.0) == 1.0


# ---- the objective ---------------------------------------------------------------------------------------


def plain(**changes: Any) -> TrainSettings:
    return replace(TrainSettings(idf_steps=0, matryoshka=0.0, loss=LossWeights(distil=0.0)), **changes)


def small_trainer(folder: Path, pairs: PairTable, settings: TrainSettings, teacher: Teacher | None = None) -> Trainer:
    rows = np.arange(len(pairs))
    return Trainer(model(), pairs, [rows], settings, folder, special=SPECIAL, teacher=teacher)


def test_each_query_finds_its_own_positive_whatever_the_order(tmp_path: Path) -> None:
    """Sides are sorted by length; the loss must not depend on the order of the pairs."""
    run = small_trainer(tmp_path, table(12, symmetric=False), plain())
    rows = np.arange(12)
    losses = [run.loss(np.random.default_rng(seed).permutation(rows))[0].item() for seed in range(4)]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-3)


def test_targets_are_the_own_positives(tmp_path: Path) -> None:
    """Queries equal to their positives, of different lengths: the diagonal wins by far, however both are sorted."""
    texts = [[0, *range(4 + 3 * i, 4 + 3 * i + 2 + i % 3), 2] for i in range(12)]
    flags = np.zeros(12, np.int8)
    pairs = PairTable(tokens(texts), tokens(texts), flags, np.arange(12), flags, flags.astype(bool))
    run = small_trainer(tmp_path, pairs, plain())
    _, log = run.loss(np.random.default_rng(0).permutation(12))
    assert log["dense"] < 1.0  # log(12) = 2.5 by chance, and far more if the targets were of other pairs
    assert log["multi"] < 1.0


def test_pairs_of_one_meaning_are_no_negatives(tmp_path: Path) -> None:
    """All of one meaning: nothing is left to tell apart."""
    pairs = replace(table(8), meaning=np.zeros(8, np.int64))
    total, log = small_trainer(tmp_path, pairs, plain()).loss(np.arange(8))
    assert total.item() == 0.0
    assert all(log[name] == 0.0 for name in ("dense", "sparse", "multi", "ensemble"))


def test_symmetric_pairs_are_exchanged_in_some_steps(tmp_path: Path) -> None:
    for symmetric, kinds in ((True, 2), (False, 1)):
        run = small_trainer(tmp_path, table(8, symmetric=symmetric), plain())
        losses = set()
        for run.step in range(8):
            losses.add(round(run.loss(np.arange(8))[0].item(), 3))
        assert len(losses) == kinds


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_teacher_pulls_each_side_to_its_own_vectors(tmp_path: Path, symmetric: bool) -> None:
    """Its targets are the model's own vectors: the distance is 0, in exchanged steps too, whichever rows it knows."""
    pairs = table(8, symmetric=symmetric)
    network = model().eval()
    own = [own_vectors(network, side) for side in (pairs.query, pairs.positive)]

    def teacher(rows: Ints) -> tuple[Targets, Targets]:
        known = np.array([5, 1, 2]), np.array([0, 7])
        first, second = (Targets(places, side[rows[places]]) for places, side in zip(known, own, strict=True))
        return first, second

    run = small_trainer(tmp_path, pairs, plain(teacher=1.0), teacher)
    for run.step in range(8):
        assert run.loss(np.random.default_rng(run.step).permutation(8))[1]["teacher"] < 2e-3  # bfloat16
    run.teacher = lambda rows: (teacher(rows)[1], teacher(rows)[0])
    assert max(run.loss(np.arange(8))[1]["teacher"] for _ in range(4)) > 0.1


def own_vectors(network: Any, side: Any) -> Any:
    from threefold.encoder.attention import Layout
    from threefold.encoder.network import Batch

    layout = Layout.of(side.lengths)
    places = np.concatenate([np.arange(n) for n in side.lengths]) + 2
    batch = Batch(torch.from_numpy(side.ids.astype(np.int64)), torch.from_numpy(places), layout)
    with torch.no_grad():
        return network.heads.dense_vectors(network.network(batch), layout).numpy()


def test_a_teacher_that_knows_nothing_is_no_error(tmp_path: Path) -> None:
    nothing = Targets(np.zeros(0, np.int64), np.zeros((0, 16), np.float32))
    run = small_trainer(tmp_path, table(8), plain(), lambda _: (nothing, nothing))
    assert "teacher" not in run.loss(np.arange(8))[1]


def test_every_parameter_gets_a_gradient_and_special_tokens_no_sparse_weight(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.loss(batches()[0])[0].backward()  # type: ignore[no-untyped-call]
    for name, parameter in run.model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    side = run.reader(run.questions(batches()[0]).queries)
    assert (side.weights[torch.isin(side.ids, torch.tensor(SPECIAL))] == 0).all()


def test_parameters_are_in_one_group_each(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    grouped = [id(p) for group in run.optimiser.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in run.model.parameters())
    assert [group["peak"] for group in run.optimiser.param_groups] == [1e-3, 1e-3, 1e-4]


def test_without_steps_towards_idf_there_is_none(tmp_path: Path) -> None:
    """Not in the first step either."""
    settings = TrainSettings(idf_steps=0, precision="float32")
    plain_ = Trainer(model(), table(), batches(), settings, tmp_path, special=SPECIAL)
    with_idf = trainer(tmp_path, settings=settings)
    assert torch.equal(with_idf.loss(batches()[0])[0], plain_.loss(batches()[0])[0])


# ---- resuming --------------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


def stopped_after(folder: Path, steps: int) -> list[float]:
    """A run that is interrupted in step `steps` + 1, after a checkpoint at step `steps`."""
    run_, totals = trainer(folder), []

    def report(line: dict[str, float]) -> None:
        totals.append(line["total"])
        if len(totals) > steps:
            raise Stopped

    with pytest.raises(Stopped):
        run_.run(report)
    return totals[:steps]


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole")
    expected = run(whole)
    first = stopped_after(tmp_path / "parts", 3)
    second = trainer(tmp_path / "parts")
    assert second.resume()
    assert second.step == 3
    assert first + run(second) == expected
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_report_over_a_checkpoint_has_the_steps_before_it(tmp_path: Path) -> None:
    """Stopped at step 4, resumed from 3: the means over steps 3 and 4 are those of the run that was left alone."""
    settings = TrainSettings(checkpoint_every=3, log_every=2, idf_steps=10)
    expected = run(trainer(tmp_path / "whole", settings=settings))
    totals: list[float] = []

    def stop(line: dict[str, float]) -> None:
        if line["step"] == 4:
            raise Stopped
        totals.append(line["total"])

    with pytest.raises(Stopped):
        trainer(tmp_path / "parts", settings=settings).run(stop)
    second = trainer(tmp_path / "parts", settings=settings)
    assert second.resume()
    assert second.step == 3
    assert totals + run(second) == expected


def test_what_a_killed_process_left_of_a_checkpoint_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".123.training.pt").write_bytes(b"half")
    trainer(tmp_path).save()
    assert [path.name for path in tmp_path.iterdir()] == ["training.pt"]


def test_nothing_to_resume(tmp_path: Path) -> None:
    fresh = trainer(tmp_path)
    assert not fresh.resume()
    assert fresh.step == 0


def test_a_finished_run_stays_finished(tmp_path: Path) -> None:
    run(trainer(tmp_path))
    again = trainer(tmp_path)
    assert again.resume()
    assert run(again) == []


def test_a_killed_run_resumes_on_the_same_curve(tmp_path: Path) -> None:
    """kill -9 in the middle: the lines of both processes together are those of a run that was left alone."""
    command = [sys.executable, str(RUNNER)]
    whole = subprocess.run([*command, str(tmp_path / "whole")], capture_output=True, text=True, check=True)
    expected = dict(map(json.loads, whole.stdout.splitlines()))
    process = subprocess.Popen([*command, str(tmp_path / "killed")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    seen = dict(json.loads(process.stdout.readline()) for _ in range(5))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    resumed = subprocess.run([*command, str(tmp_path / "killed")], capture_output=True, text=True, check=True)
    rest = dict(map(json.loads, resumed.stdout.splitlines()))
    assert 1 < min(rest) <= 7  # from the checkpoint of step 3, or of step 6 when the signal was late
    assert max(rest) == len(batches())
    assert seen | rest == expected
    assert seen == {step: expected[step] for step in seen}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"body_lr": 1e-3}, r"written with body_lr 0\.0001, now it is 0\.001"),
        ({"loss": LossWeights(temperature=0.05)}, "written with loss"),
        ({"seed": 1}, "written with seed 0, now it is 1"),
    ],
)
def test_another_recipe_is_not_resumed(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    first = trainer(tmp_path)
    first.save()
    with pytest.raises(CheckpointError, match=message):
        trainer(tmp_path, settings=replace(first.settings, **change)).resume()
    assert trainer(tmp_path, settings=replace(first.settings, minutes=1.0, log_every=9)).resume()


def test_another_plan_is_not_resumed(tmp_path: Path) -> None:
    trainer(tmp_path).save()
    with pytest.raises(CheckpointError, match="written with another plan"):
        trainer(tmp_path, epochs=3).resume()


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    first = trainer(tmp_path)
    first.save()
    path = tmp_path / "training.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"cannot resume from .*training\.pt"):
        first.resume()


# ---- trouble ---------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_lost(tmp_path: Path) -> None:
    run_ = trainer(tmp_path)
    run_.save()
    before = (tmp_path / "training.pt").read_bytes()
    with torch.no_grad():
        run_.model.network.words.weight[:] = torch.nan
    with pytest.raises(NumericalError, match="the loss of step 0 is nan; the last checkpoint is intact"):
        run(run_)
    assert (tmp_path / "training.pt").read_bytes() == before


def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    run_ = trainer(tmp_path)
    assert run_.model.heads.multi is not None
    run_.model.heads.multi.weight.register_hook(lambda gradient: gradient * torch.inf)  # type: ignore[no-untyped-call]
    before = [p.detach().clone() for p in run_.model.parameters()]
    with pytest.raises(NumericalError, match="the gradient of step 0 is"):
        run(run_)
    assert all(torch.equal(a, b) for a, b in zip(before, run_.model.parameters(), strict=True))


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every trainer computes in float16, which is for GPUs, but works."""
    monkeypatch.setattr("threefold.train.reader.arithmetic", lambda precision, device: torch.float16)


@pytest.mark.usefixtures("half")
def test_a_gradient_that_float16_cannot_hold_is_left_out(tmp_path: Path) -> None:
    """The scale is lowered until it can. A line has no norm of such a step, and stays JSON."""
    run_ = trainer(tmp_path)
    weight = next(run_.model.network.layers[0].parameters())
    before, steps = weight.detach().clone(), 0

    def overflow(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * (torch.inf if steps < 3 else 1.0)

    weight.register_hook(overflow)  # type: ignore[no-untyped-call]
    lines: list[dict[str, float]] = []

    def report(line: dict[str, float]) -> None:
        nonlocal steps
        steps += 1
        lines.append(json.loads(json.dumps(line, allow_nan=False)))
        assert torch.equal(weight, before) == (steps <= 3)

    run_.run(report)
    assert ["norm" in line for line in lines] == [False] * 3 + [True] * (len(lines) - 3)
    assert run_.scaler.get_scale() == 2.0**16 / 2**3


@pytest.mark.usefixtures("half")
def test_the_scale_of_float16_goes_on_too(tmp_path: Path) -> None:
    first = trainer(tmp_path)
    first.scaler.load_state_dict(first.scaler.state_dict() | {"scale": 1024.0})
    first.save()
    second = trainer(tmp_path)
    assert second.resume()
    assert second.scaler.get_scale() == 1024.0


def test_a_run_goes_on_where_the_arithmetic_is_another(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """`auto` on a machine with bfloat16, then on one without: there is no scale yet."""
    trainer(tmp_path / "there").save()
    request.getfixturevalue("half")
    here = trainer(tmp_path / "there")
    assert here.resume()
    assert here.scaler.is_enabled()
    trainer(tmp_path / "back").save()
    request.getfixturevalue("monkeypatch").undo()
    assert trainer(tmp_path / "back").resume()


@pytest.mark.parametrize(("change", "message"), [({"warmup": 1.0}, "warmup"), ({"log_every": 0}, "log_every")])
def test_settings_that_mean_nothing_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TrainSettings(), **change)


def test_what_was_trained_can_be_saved_and_loaded(tmp_path: Path) -> None:
    toy = trainer(tmp_path / "run")
    run(toy)
    save(toy.model, tmp_path / "model")
    loaded = load(tmp_path / "model").model
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), toy.model.parameters(), strict=True))
