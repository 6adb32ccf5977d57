"""The loop of a cross-encoder: what it learns, where it stops, how it goes on."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.train.small import table

from threefold.encoder.cross_model import CrossConfig, CrossModel
from threefold.encoder.network import NetworkConfig, initialise
from threefold.errors import CheckpointError, NumericalError
from threefold.train.checkpoints import flat
from threefold.train.cross_groups import Frame, candidates, group_plan
from threefold.train.cross_loop import CrossSettings, CrossTrainer
from threefold.train.cross_losses import CrossLoss


def trainer(
    folder: Path, *, passes: int = 2, origin: dict[str, Any] | None = None, device: str = "cpu", **settings: Any
) -> CrossTrainer:
    """Which passage has the words of the query?"""
    network = NetworkConfig(64, 16, 2, 2, 32, 60, first_position=0, types=2)
    model = CrossModel(CrossConfig(network, 60, token_types=True))
    initialise(model, std=0.3, seed=1)
    groups = candidates(table(), 4, seed=0)
    plan = [rows for seed in range(passes) for rows in group_plan(groups, budget=700, window=60, seed=seed)]
    usual: dict[str, Any] = {"body_lr": 4e-3, "head_lr": 4e-3, "log_every": 1, "checkpoint_every": 4}
    frame = Frame(0, (2,), 2, 60)
    return CrossTrainer(
        model, groups, plan, CrossSettings(**(usual | settings)), folder, frame, device=device, origin=origin
    )


def test_it_learns(tmp_path: Path) -> None:
    lines: list[dict[str, float]] = []
    trainer(tmp_path, passes=10, precision="float32").run(lines.append)
    begin, end = lines[:5], lines[-5:]
    assert np.mean([line["listwise"] for line in end]) < 0.7 * np.mean([line["listwise"] for line in begin])
    assert np.mean([line["first"] for line in end]) > 0.6


def test_the_log_says_what_was_done(tmp_path: Path) -> None:
    lines: list[dict[str, float]] = []
    run = trainer(tmp_path)
    run.run(lines.append)
    assert [line["step"] for line in lines] == list(range(1, len(run.plan) + 1))
    assert [line["queries"] for line in lines] == [len(rows) for rows in run.plan]
    assert [line["tokens"] for line in lines] == [run.groups.sizes[rows].sum() for rows in run.plan]
    assert lines[0].keys() == {
        "elapsed_s", "first", "listwise", "lr", "norm", "of", "progress", "queries", "seconds", "step", "tokens",
        "tokens_per_s", "total",
    }  # fmt: skip


def test_logits_are_those_of_the_encoder(tmp_path: Path) -> None:
    """The packed batch of training against the pairs one by one."""
    run = trainer(tmp_path, precision="float32")
    rows = run.plan[0][:3]
    together = run.logits(rows)
    alone = torch.cat([run.logits(rows[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert len(together) == 12


def test_an_interrupted_run_goes_on_exactly(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole")
    lines: list[float] = []
    whole.run(lambda line: lines.append(line["total"]))

    class Stop(Exception):
        pass

    def stop(line: dict[str, float]) -> None:
        if line["step"] == 7:  # the last checkpoint is of step 4
            raise Stop

    with pytest.raises(Stop):
        trainer(tmp_path / "cut").run(stop)
    rest = trainer(tmp_path / "cut")
    assert rest.resume()
    assert rest.step == 4
    later: list[float] = []
    rest.run(lambda line: later.append(line["total"]))
    assert later == lines[4:]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, rest.model.state_dict()[name]), name


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    assert not run.resume()
    run.save()
    with pytest.raises(CheckpointError, match=r"was written with body_lr 0.004, now it is 0.1"):
        trainer(tmp_path, body_lr=0.1).resume()
    other = trainer(tmp_path)
    other.plan = other.plan[1:]
    with pytest.raises(CheckpointError, match="another plan"):
        other.resume()
    with pytest.raises(CheckpointError, match=r"was written with loss\.contrast 'listwise', now it is 'pointwise'"):
        trainer(tmp_path, loss=CrossLoss("pointwise")).resume()
    trainer(tmp_path, origin={"max_tokens": 60}).save()
    with pytest.raises(CheckpointError, match="was written with max_tokens 60, now it is 50"):
        trainer(tmp_path, origin={"max_tokens": 50}).resume()
    assert not trainer(tmp_path, origin={"max_tokens": 50}).resume(anew=True)
    assert trainer(tmp_path, origin={"max_tokens": 60}, minutes=1.0).resume()
    trainer(tmp_path).checkpoint.write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match=r"cannot resume from .*training\.pt: .*\. Delete it to begin again"):
        trainer(tmp_path).resume()
    assert not trainer(tmp_path).resume(anew=True)
    torch.save({"step": 4}, trainer(tmp_path).checkpoint)  # whole, and yet no state
    with pytest.raises(CheckpointError, match="it has no model"):
        trainer(tmp_path).resume()
    assert not trainer(tmp_path).resume(anew=True)


def test_a_checkpoint_of_before_is_read(tmp_path: Path) -> None:
    """Settings and lines stood in the file as they are, and there were no notes and no scale."""
    run = trainer(tmp_path, origin={"max_tokens": 60})
    run.plan = run.plan[:3]  # ends in the middle
    run.run(lambda line: None)
    run.plan = trainer(tmp_path).plan
    run.unreported = [{"total": 1.5, "tokens": 10, "seconds": 0.5}]
    run.save()
    state = torch.load(run.checkpoint, weights_only=True)
    del state["notes"], state["scaler"]
    torch.save(
        state | {"origin": run.origin, "settings": flat(run.settings.to_dict()), "unreported": run.unreported},
        run.checkpoint,
    )
    rest = trainer(tmp_path, origin={"max_tokens": 60})
    assert rest.resume()
    assert (rest.step, rest.unreported, rest.notes) == (3, run.unreported, {})
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), rest.model.parameters(), strict=True))
    with pytest.raises(CheckpointError, match=r"was written with loss\.distil 'kl', now it is 'margin'"):
        trainer(tmp_path, loss=CrossLoss(distil="margin")).resume()


def test_a_report_over_a_checkpoint_has_the_steps_before_it(tmp_path: Path) -> None:
    def means(run: CrossTrainer, until: int = 0) -> list[float]:
        found: list[float] = []

        def report(line: dict[str, float]) -> None:
            if line["step"] == until:
                raise KeyboardInterrupt
            found.append(line["total"])

        with pytest.raises(KeyboardInterrupt) if until else nullcontext():
            run.run(report)
        return found

    often: dict[str, Any] = {"checkpoint_every": 3, "log_every": 2}
    expected = means(trainer(tmp_path / "whole", **often))
    first = means(trainer(tmp_path / "cut", **often), until=4)
    rest = trainer(tmp_path / "cut", **often)
    assert rest.resume()
    assert rest.step == 3
    assert first + means(rest) == expected


def test_gradients_are_those_of_the_plain_network(tmp_path: Path) -> None:
    """That of the word table is written behind autograd's back (`train/words.py`)."""
    found, plain = (trainer(tmp_path, precision="float32") for _ in range(2))
    rows = plain.plan[0]
    found.gradients(rows)
    plain.reader.states = plain.model.network  # type: ignore[method-assign]
    torch.autograd.backward(plain.loss(rows)[0])
    for (name, ours), theirs in zip(found.model.named_parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def test_a_batch_that_teaches_nothing_is_no_error(tmp_path: Path) -> None:
    """Without a contrastive part, and no scores of a teacher."""
    lines: list[dict[str, float]] = []
    run = trainer(tmp_path, loss=CrossLoss("none"), passes=1)
    run.run(lines.append)
    assert {line["total"] for line in lines} == {0.0}


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_lost(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.save()
    before = run.checkpoint.read_bytes()
    with torch.no_grad():
        run.model.network.words.weight[:] = torch.nan
    with pytest.raises(NumericalError, match="the loss of step 0 is nan; the last checkpoint is intact"):
        run.run(lambda line: None)
    assert run.checkpoint.read_bytes() == before


def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.model.head.dense.weight.register_hook(lambda gradient: gradient * torch.inf)  # type: ignore[no-untyped-call]
    before = [p.detach().clone() for p in run.model.parameters()]
    with pytest.raises(NumericalError, match="the gradient of step 0 is"):
        run.run(lambda line: None)
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))
