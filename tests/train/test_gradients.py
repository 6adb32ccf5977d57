"""Every way to compute the gradients of a step gives the gradients of the plain one, all parts of the loss included.

The network is in float64; heads and losses work in float32 inside, which bounds the agreement.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.train.small import SPECIAL, gradients_of, hard_table, hard_trainer, model, tokens

from threefold.encoder import precision
from threefold.errors import ConfigError
from threefold.train.loop import Trainer, TrainSettings
from threefold.train.masks import FalseNegatives
from threefold.train.maxsim import best_matches
from threefold.train.packed import Packed
from threefold.train.parts import trained_heads
from threefold.train.questions import Questions, ask
from threefold.train.reader import arithmetic
from threefold.train.world import World

RUNNER = Path(__file__).with_name("worlds.py")


def plain(folder: Path, rows: Any) -> dict[str, torch.Tensor]:
    run = hard_trainer(folder)
    run.loss(rows)[0].backward()  # type: ignore[no-untyped-call]
    return gradients_of(run)


@pytest.mark.parametrize(
    "changes",
    [{}, {"sub_tokens": 1}, {"sub_tokens": 30}, {"recompute": True}, {"recompute": True, "sub_tokens": 40}],
    ids=str,
)
def test_every_saving_path_gives_the_plain_gradients(tmp_path: Path, changes: dict[str, Any]) -> None:
    rows = np.arange(12)
    expected, run = plain(tmp_path, rows), hard_trainer(tmp_path, changes)
    log = run.gradients(rows)
    found = gradients_of(run)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-5, atol=1e-6), name
    assert {"dense", "sparse", "multi", "ensemble", "distil", "matryoshka", "teacher_scores", "teacher"} < log.keys()
    assert log["total"] == pytest.approx(float(hard_trainer(tmp_path).loss(rows)[0].detach()), rel=1e-6)


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    """Two gloo processes, each with its part of every batch: gradients, losses and three updates of one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    base = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(RUNNER), str(tmp_path)]
    processes = [
        subprocess.Popen(command, env=base | {"RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    complaints = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], complaints
    run = hard_trainer(tmp_path / "one")
    run.gradients(run.plan[0])
    expected, found = gradients_of(run), torch.load(tmp_path / "gradients.pt", weights_only=True)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-5, atol=1e-6), name
    run = hard_trainer(tmp_path / "one")
    logs: list[dict[str, float]] = []
    run.run(logs.append)
    theirs = json.loads((tmp_path / "logs.json").read_text())
    for ours, other in zip(logs, theirs, strict=True):
        for name in ours.keys() - {"seconds", "elapsed_s", "tokens_per_s"}:
            assert other[name] == pytest.approx(ours[name], rel=1e-4, abs=1e-6), name
    trained = torch.load(tmp_path / "two" / "training.pt", weights_only=True)["model"]
    for name, value in run.model.state_dict().items():
        pairs = [(trained[name], value)]
        if "qkv.bias" in name:
            pairs = list(zip(trained[name].chunk(3), value.chunk(3), strict=True))
        for i, (theirs_, ours_) in enumerate(pairs):
            if i != 1:  # the bias of the keys has no gradient but rounding (softmax ignores it); Adam blows that up
                torch.testing.assert_close(theirs_, ours_, rtol=1e-4, atol=1e-6)


def test_best_matches_equal_the_formula_that_keeps_everything() -> None:
    texts = Packed.of([np.arange(n) for n in (3, 3, 5, 2)])
    rows = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    passages = torch.randn(13, 4, dtype=torch.float64, requires_grad=True)
    factors = torch.randn(7, 4, dtype=torch.float64)
    pieces = [passages[1:3], passages[4:6], passages[7:11], passages[12:13]]
    kept = torch.stack([(rows @ piece.T).amax(dim=1) for piece in pieces], dim=1)
    expected = torch.autograd.grad((kept * factors).sum(), (rows, passages))
    for chunk in (1, 20, 10_000):
        found = best_matches(rows, passages, texts.layout, chunk)
        torch.testing.assert_close(found, kept)
        torch.testing.assert_close(torch.autograd.grad((found * factors).sum(), (rows, passages)), expected)


# ---- what a device is asked --------------------------------------------------------------------------------


def questions(world: int, *, swapped: bool = False) -> tuple[list[Questions], Any]:
    pairs = hard_table()
    rows = np.array([3, 0, 2, 1, 7, 4])
    return [ask(pairs, FalseNegatives(pairs), rows, swapped=swapped, rank=r, world=world) for r in range(world)], rows


def texts(packed: Packed) -> list[list[int]]:
    ends = np.cumsum(packed.lengths)
    return [packed.ids[end - n : end].tolist() for end, n in zip(ends, packed.lengths, strict=True)]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("swapped", [False, True])
def test_every_query_keeps_its_passage_its_masks_and_its_scores(world: int, swapped: bool) -> None:
    pairs, (asked, rows) = hard_table(), questions(world, swapped=swapped)
    masks = FalseNegatives(pairs)(rows, swapped=swapped)
    first, second = (pairs.positive, pairs.query) if swapped else (pairs.query, pairs.positive)
    seen = []
    for one in asked:
        columns = [text for part in one.passages for text in texts(part)]
        assert len(columns) == masks.shape[1]
        assert texts(one.own) == sorted(texts(one.own), key=len)
        for pair, q_at, p_at in zip(one.pairs, one.query_at, one.passage_at, strict=True):
            place = rows.tolist().index(pair)
            seen.append(int(pair))
            assert texts(one.queries)[q_at] == first[int(pair)].tolist()
            assert texts(one.own)[p_at] == second[int(pair)].tolist()
            assert columns[one.targets[q_at]] == second[int(pair)].tolist()
            assert one.forbidden[q_at].sum() == masks[place].sum()
            assert not one.forbidden[q_at, one.targets[q_at]]
            known = [*([pairs.positive_score[pair]]), *pairs.negative_score[pairs.negatives_of(np.array([pair]))]]
            known = [] if swapped or np.isfinite(known).sum() < 2 else [s for s in known if np.isfinite(s)]
            mine = [] if one.scores is None else [s for s in one.scores[q_at] if np.isfinite(s)]
            assert sorted(mine) == pytest.approx(sorted(known))
    assert sorted(seen) == sorted(rows.tolist())


def test_the_own_positive_is_found_among_equal_texts() -> None:
    """Trap: finding the target by its text. Both pairs have the same passage; each has its own column."""
    pairs = hard_table()
    same = tokens([[0, 9, 2]] * len(pairs))
    equal = replace(pairs, positive=same, meaning=np.arange(len(pairs)))
    one = ask(equal, FalseNegatives(equal), np.arange(4))
    assert len(set(one.targets.tolist())) == 4


def test_packed_texts_are_split_by_tokens() -> None:
    packed = Packed.of([np.arange(n) for n in (2, 2, 3, 9, 4)])
    assert [part.lengths.tolist() for part in packed.split(7)] == [[2, 2, 3], [9], [4]]
    assert [part.lengths.tolist() for part in packed.split(0)] == [[2, 2, 3, 9, 4]]
    assert np.concatenate([part.ids for part in packed.split(1)]).tolist() == packed.ids.tolist()
    assert list(Packed.of([]).split(5)) == []


# ---- what is trained ---------------------------------------------------------------------------------------


def test_frozen_parts_get_no_gradient_and_do_not_move(tmp_path: Path) -> None:
    run = hard_trainer(tmp_path, {"freeze": ("words", "body")})
    before = {name: p.clone() for name, p in run.model.named_parameters()}
    run.run(lambda _: None)
    moved = {name for name, p in run.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"heads.sparse.weight", "heads.sparse.bias", "heads.multi.weight", "heads.multi.bias"}


def test_only_the_heads_that_are_asked_for_are_trained(tmp_path: Path) -> None:
    run = hard_trainer(tmp_path, {"heads": ("dense", "multi")})
    log = run.gradients(run.plan[0])
    assert {"dense", "multi", "ensemble", "distil"} < log.keys()
    assert "sparse" not in log
    assert "heads.sparse.weight" not in gradients_of(run)
    assert "heads.multi.weight" in gradients_of(run)


def test_a_single_world_changes_nothing() -> None:
    world, tensor = World(), torch.randn(3, 2)
    assert world.first
    assert world.gather(tensor, [3]) is tensor
    assert world.share(5) == 1.0
    assert world.numbers({"a": torch.tensor(2.5), "b": torch.tensor(1)}) == {"a": 2.5, "b": 1.0}
    assert model() is not None


def test_a_head_that_the_model_lacks_cannot_be_trained() -> None:
    dense_only = model()
    dense_only.heads.multi = None
    assert trained_heads(dense_only, TrainSettings()) == ("dense", "sparse")
    with pytest.raises(ConfigError, match="the model has no multi head to train; leave multi out"):
        trained_heads(dense_only, TrainSettings(heads=("dense", "multi")))


def test_texts_without_positions_are_refused_before_the_first_step(tmp_path: Path) -> None:
    long = replace(hard_table(), query=tokens([[0] * 39] * 12))
    with pytest.raises(ConfigError, match="a text has 39 tokens, the model reads at most 38"):
        Trainer(model(), long, [np.arange(12)], TrainSettings(), tmp_path, special=SPECIAL)


def test_every_device_needs_a_pair(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fewer items than there are devices; plan with least=13"):
        hard_trainer(tmp_path, world=World(0, 13))


@pytest.mark.parametrize(("fast", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_arithmetic_by_device(fast: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without instructions for bfloat16 emulates it, a hundred times slower."""
    monkeypatch.setattr(precision, "fast_bfloat16", lambda: fast)
    cpu = torch.device("cpu")
    assert arithmetic("auto", cpu) == expected
    assert arithmetic("float32", cpu) == torch.float32
    with pytest.raises(ConfigError, match="float16 is for GPUs"):
        arithmetic("float16", cpu)


def test_arithmetic_of_a_gpu_is_that_of_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` may be float16 there, where bfloat16 is emulated."""
    monkeypatch.setattr("threefold.train.reader.choose_precision", lambda *_: "float16")
    assert arithmetic("auto", torch.device("cuda")) == torch.float16


def test_processes_that_were_not_started_by_torchrun_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="WORLD_SIZE is set but RANK is not; start the processes with torchrun"):
        World.from_environment(torch.device("cpu"))
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert World.from_environment(torch.device("cpu")).size == 1
