"""The training loop: one visible loop, one `step`, checkpoints that resume exactly.

    for rows in plan: loss(rows) -> backward -> clip -> AdamW -> log

Runs on one device. Everything that decides the future (weights, optimiser, step, elapsed time) is in the checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from threefold.config import Settings
from threefold.encoder.attention import Layout
from threefold.encoder.model import Model
from threefold.encoder.network import Batch
from threefold.errors import CheckpointError, ConfigError, NumericalError
from threefold.text.tokenizer import Tokens
from threefold.train.batches import PairTable
from threefold.train.losses import LossWeights, embedding_distillation, info_nce, joint_loss
from threefold.train.scores import Side, dense_matrix, multi_matrix, sparse_matrix
from threefold.types import Floats, Ints


class Targets(NamedTuple):
    """Teacher vectors for some rows of a side: which rows (m,), and unit vectors (m, d)."""

    rows: Ints
    vectors: Floats


#: Weight of the squared distance to IDF at the first step: weights are near 0.1, their squares near 0.01.
IDF_PULL = 10.0

#: Settings that may change when a run is resumed: they say how long and how often, not what is learnt.
_CLOCKS = frozenset({"minutes", "checkpoint_every", "log_every"})

#: Rows of the pair table -> teacher targets for the queries and for the positives.
Teacher = Callable[[Ints], tuple[Targets, Targets]]


@dataclass(frozen=True, slots=True)
class TrainSettings(Settings):
    """How to train. Learning rates are peaks; all rise over `warmup` and fall linearly to a twentieth.

    minutes       end of the schedule by the clock; 0: by the number of batches
    word_lr       of the word table, which sees each row rarely
    teacher       weight of the distance to teacher vectors
    idf_steps     steps over which the sparse head is also pulled to `idf_scale` x IDF, fading to 0: without a
                  start, ReLU heads die or stay flat for thousands of steps
    matryoshka    weight of the dense loss at each shorter dimension
    """

    minutes: float = 0.0
    body_lr: float = 1e-4
    word_lr: float = 1e-3
    head_lr: float = 1e-3
    warmup: float = 0.03
    clip: float = 1.0
    weight_decay: float = 0.01
    loss: LossWeights = field(default_factory=LossWeights)
    teacher: float = 4.0
    idf_scale: float = 0.03
    idf_steps: int = 300
    matryoshka: float = 0.2
    checkpoint_every: int = 200
    log_every: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup must be from 0 to below 1; got {self.warmup}")
        if min(self.checkpoint_every, self.log_every) < 1:
            raise ConfigError("checkpoint_every and log_every must be at least 1")


def rate(progress: float, warmup: float) -> float:
    """Factor on the learning rates at `progress` in [0, 1]."""
    if progress < warmup:
        return max(progress / warmup, 0.01)
    return 1.0 - 0.95 * min((progress - warmup) / (1.0 - warmup), 1.0)


class Trainer:
    """A model, its optimiser and where it is in the plan."""

    def __init__(
        self,
        model: Model,
        table: PairTable,
        plan: Sequence[Ints],
        settings: TrainSettings,
        folder: Path,
        *,
        special: tuple[int, ...],
        idf: Floats | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        self.model, self.table, self.plan, self.settings, self.folder = model, table, plan, settings, folder
        self.special = torch.tensor(special)
        self.idf = None if idf is None else torch.as_tensor(idf)
        self.teacher = teacher
        self.step, self.elapsed_s = 0, 0.0
        words = [p for name, p in model.named_parameters() if name == "network.words.weight"]
        heads = list(model.heads.parameters())
        known = {id(p) for p in [*words, *heads]}
        body = [p for p in model.parameters() if id(p) not in known]
        s = settings
        groups = [
            {"params": words, "lr": s.word_lr, "peak": s.word_lr, "weight_decay": 0.0},
            {"params": heads, "lr": s.head_lr, "peak": s.head_lr, "weight_decay": 0.0},
            {"params": body, "lr": s.body_lr, "peak": s.body_lr, "weight_decay": s.weight_decay},
        ]
        self.optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)

    # ---- one step ------------------------------------------------------------------------------------

    def loss(self, rows: Ints) -> tuple[Tensor, dict[str, float]]:
        """The whole objective on these pairs."""
        rng = np.random.default_rng((self.settings.seed, self.step))
        query, positive = self.table.query, self.table.positive
        swapped = bool(self.table.symmetric[rows].all()) and rng.random() < 0.5
        if swapped:
            query, positive = positive, query
        q_rows = rows[np.argsort(query.lengths[rows], kind="stable")]
        p_rows = rows[np.argsort(positive.lengths[rows], kind="stable")]
        q, p = self._side(query, q_rows), self._side(positive, p_rows)
        targets = torch.from_numpy(_positions(q_rows, p_rows))
        meaning = torch.from_numpy(self.table.meaning)
        forbidden = meaning[q_rows][:, None] == meaning[p_rows][None, :]
        forbidden[torch.arange(len(rows)), targets] = False
        similarity = dense_matrix(q, p)
        total, log = joint_loss(
            similarity, sparse_matrix(q, p), multi_matrix(q, p), targets, forbidden, self.settings.loss
        )
        total = total + self._matryoshka(q, p, targets, forbidden)
        if self.teacher is not None:
            aims = self.teacher(rows)[:: -1 if swapped else 1]
            sides = ((q.dense, q_rows, aims[0]), (p.dense, p_rows, aims[1]))
            pulls = [_pull(dense, order, rows, aim) for dense, order, aim in sides]
            pulled = [pull for pull in pulls if pull is not None]
            if pulled:
                distance = torch.stack(pulled).mean()
                total = total + self.settings.teacher * distance
                log["teacher"] = float(distance.detach())
        fade = 1.0 - self.step / max(self.settings.idf_steps, 1)
        if self.idf is not None and fade > 0:
            total = total + fade * IDF_PULL * self._idf_distance(p)
        return total, log

    def _side(self, tokens: Tokens, rows: Ints) -> Side:
        lengths = tokens.lengths[rows]
        layout = Layout.of(lengths)
        ids = torch.from_numpy(np.concatenate([tokens[int(r)] for r in rows]).astype(np.int64))
        positions = torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))
        positions += self.model.config.network.first_position
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.model.network(Batch(ids, positions, layout))
        hidden = hidden.float()
        heads = self.model.heads
        weights = heads.sparse_weights(hidden) * ~torch.isin(ids, self.special)
        return Side(heads.dense_vectors(hidden, layout), weights, heads.multi_vectors(hidden), ids, layout)

    def _matryoshka(self, q: Side, p: Side, targets: Tensor, forbidden: Tensor) -> Tensor:
        shorter = [d for d in self.model.config.matryoshka if d < q.dense.shape[1]]
        cut = [normalize(q.dense[:, :d], dim=-1) @ normalize(p.dense[:, :d], dim=-1).T for d in shorter]
        losses = [info_nce(s, targets, forbidden, self.settings.loss.temperature) for s in cut]
        return self.settings.matryoshka * torch.stack(losses).mean() if losses else q.dense.new_zeros(())

    def _idf_distance(self, side: Side) -> Tensor:
        assert self.idf is not None
        wanted = self.idf[side.ids] * self.settings.idf_scale
        known = ~torch.isin(side.ids, self.special)
        return ((side.weights - wanted)[known] ** 2).mean()

    # ---- the run -------------------------------------------------------------------------------------

    def run(self, report: Callable[[dict[str, float]], None]) -> None:
        """Train to the end of the plan or of the time, from wherever the checkpoint left off."""
        self.model.train()
        logs: list[dict[str, float]] = []
        while self.step < len(self.plan) and self.progress < 1.0:
            start = time.perf_counter()
            rows = self.plan[self.step]
            logs.append(self._update(rows))
            self.step += 1
            self.elapsed_s += time.perf_counter() - start
            logs[-1]["seconds"] = time.perf_counter() - start
            if self.step % self.settings.log_every == 0:
                report(self._summary(logs))
                logs.clear()
            if self.step % self.settings.checkpoint_every == 0:
                self.save()
        if logs:
            report(self._summary(logs))
        self.save()

    @property
    def progress(self) -> float:
        """Part of the schedule that is done, by batches or by time, whichever is further."""
        by_steps = self.step / max(len(self.plan), 1)
        by_clock = self.elapsed_s / (60 * self.settings.minutes) if self.settings.minutes else 0.0
        return max(by_steps, by_clock)

    def _update(self, rows: Ints) -> dict[str, float]:
        factor = rate(self.progress, self.settings.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * factor
        self.optimiser.zero_grad(set_to_none=True)
        total, log = self.loss(rows)
        if not torch.isfinite(total):
            raise NumericalError(
                f"the loss of step {self.step} is {float(total.detach())}; the last checkpoint is intact"
            )
        total.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        if not torch.isfinite(norm):  # the update would destroy the weights, and the next checkpoint with them
            raise NumericalError(f"the gradient of step {self.step} is {float(norm)}; the last checkpoint is intact")
        self.optimiser.step()
        tokens = int((self.table.query.lengths[rows] + self.table.positive.lengths[rows]).sum())
        return log | {"total": float(total.detach()), "norm": float(norm), "tokens": tokens, "pairs": len(rows)}

    def _summary(self, logs: list[dict[str, float]]) -> dict[str, float]:
        keys = sorted({key for log in logs for key in log})
        means = {key: float(np.mean([log[key] for log in logs if key in log])) for key in keys}
        means["tokens_per_s"] = sum(log["tokens"] for log in logs) / max(sum(log["seconds"] for log in logs), 1e-9)
        return means | {"step": self.step, "of": len(self.plan), "progress": self.progress}

    # ---- checkpoints ---------------------------------------------------------------------------------

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "training.pt"

    def save(self) -> None:
        """Write everything that decides the future; a crash while writing keeps the previous checkpoint."""
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self._checkpoint.with_suffix(".part")
        state = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "settings": json.dumps(self.settings.to_dict(), sort_keys=True),
            "plan": _digest(self.plan),
        }
        torch.save(state, part)
        part.replace(self._checkpoint)

    def resume(self) -> bool:
        """Continue from the checkpoint of `folder`, if there is one; refused when it is of another run."""
        if not self._checkpoint.is_file():
            return False
        try:
            state = torch.load(self._checkpoint, weights_only=True)
            self._check_same_run(json.loads(state["settings"]), state.get("plan"))
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.elapsed_s = int(state["step"]), float(state["elapsed_s"])
        except CheckpointError:
            raise
        except Exception as error:  # a damaged pickle fails in any way that it likes
            raise CheckpointError(f"cannot resume from {self._checkpoint}: {error}") from error
        return True

    def _check_same_run(self, old: dict[str, Any], plan: str | None) -> None:
        now = self.settings.to_dict()
        changed = [key for key in sorted(old.keys() & now.keys() - _CLOCKS) if old[key] != now[key]]
        if changed:
            raise CheckpointError(
                f"{self._checkpoint} was written with {changed[0]} {old[changed[0]]!r}, now it is "
                f"{now[changed[0]]!r}. Restore the setting, or train into another folder"
            )
        if plan is not None and plan != _digest(self.plan):
            raise CheckpointError(
                f"{self._checkpoint} was written with another plan: the pairs, their shares, the budget or the seed "
                "have changed. Restore them, or train into another folder"
            )


def _digest(plan: Sequence[Ints]) -> str:
    digest = hashlib.sha256()
    for rows in plan:
        digest.update(np.asarray(rows, np.int64).tobytes() + b"|")
    return digest.hexdigest()[:16]


def _positions(wanted: Ints, order: Ints) -> Ints:
    """Where each of `wanted` stands in `order`; both name the same distinct rows."""
    sorter = np.argsort(order, kind="stable")
    return sorter[np.searchsorted(order, wanted, sorter=sorter)]


def _pull(dense: Tensor, order: Ints, rows: Ints, aim: Targets) -> Tensor | None:
    if not len(aim.rows):
        return None
    place = _positions(rows[aim.rows], order)
    return embedding_distillation(dense[torch.from_numpy(place)], torch.from_numpy(aim.vectors))
