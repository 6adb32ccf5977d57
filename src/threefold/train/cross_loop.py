"""The training loop of a cross-encoder: pairs of query and candidate, packed; checkpoints that resume exactly."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from threefold.config import Settings
from threefold.encoder.attention import Layout
from threefold.encoder.cross_model import CrossModel
from threefold.encoder.network import Batch
from threefold.encoder.precision import choose_device, choose_precision
from threefold.errors import CheckpointError, ConfigError, NumericalError
from threefold.train.checkpoints import (
    check_same_plan,
    check_same_settings,
    flat,
    plan_digest,
    read_checkpoint,
    write_checkpoint,
)
from threefold.train.checks import check_numbers
from threefold.train.cross_groups import Frame, Groups, pair_tokens
from threefold.train.cross_losses import CrossLoss, as_matrix, cross_loss
from threefold.train.settings import rate
from threefold.train.updates import means_of, progress
from threefold.types import Ints

#: Settings that may change when a run is resumed.
_CLOCKS: Final = frozenset({"minutes", "checkpoint_every", "log_every"})


@dataclass(frozen=True, slots=True)
class CrossSettings(Settings):
    """How to train. Learning rates are peaks; both rise over `warmup` and fall linearly to a twentieth.

    minutes    end of the schedule by the clock; 0: by the number of batches
    precision  of the products in the network: auto, float32 or bfloat16. Weights and updates are float32
    """

    minutes: float = 0.0
    body_lr: float = 3e-5
    head_lr: float = 3e-4
    warmup: float = 0.1
    clip: float = 1.0
    weight_decay: float = 0.01
    loss: CrossLoss = field(default_factory=CrossLoss)
    precision: str = "auto"
    checkpoint_every: int = 200
    log_every: int = 20

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup must be from 0 to below 1; got {self.warmup}")
        if min(self.checkpoint_every, self.log_every) < 1:
            raise ConfigError("checkpoint_every and log_every must be at least 1")
        if not self.clip > 0:  # infinity is fine: no clipping
            raise ConfigError(f"clip must be positive; got {self.clip}")
        check_numbers(self, not_negative=("minutes", "body_lr", "head_lr", "weight_decay"))
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise ConfigError(f"precision must be auto, float32 or bfloat16; got {self.precision!r}")


class CrossTrainer:
    """A cross-encoder, its optimiser and where it is in the plan.

    origin  whatever else the run was made from, by name: a checkpoint with another one is of another run
    """

    def __init__(
        self,
        model: CrossModel,
        groups: Groups,
        plan: Sequence[Ints],
        settings: CrossSettings,
        folder: Path,
        frame: Frame,
        *,
        device: str = "auto",
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        self.device = choose_device(device)
        self.precision = choose_precision(settings.precision, self.device)
        self.model = model.to(self.device)
        self.groups, self.plan, self.settings, self.frame = groups, plan, settings, frame
        self.path, self.origin = folder / "training.pt", dict(origin or {})
        self.step, self.elapsed_s = 0, 0.0
        self.unreported: list[dict[str, float]] = []  # what the steps since the last report logged
        body, head, s = list(model.network.parameters()), list(model.head.parameters()), settings
        self.optimiser = torch.optim.AdamW(
            [
                {"params": body, "lr": s.body_lr, "peak": s.body_lr, "weight_decay": s.weight_decay},
                {"params": head, "lr": s.head_lr, "peak": s.head_lr, "weight_decay": s.weight_decay},
            ],
            fused=True,
        )

    # ---- one step ------------------------------------------------------------------------------------

    def logits(self, rows: Ints) -> Tensor:
        """(m,) of all candidates of these rows, row after row."""
        pairs = pair_tokens(self.groups, rows, self.frame)
        order = np.argsort(pairs.lengths, kind="stable")  # neighbours of equal length share a block of attention
        packed = pairs.take(order)
        layout = Layout.of(packed.lengths)
        config = self.model.config
        seconds = packed.seconds if config.token_types else None
        batch = Batch.of(packed.ids, layout, config.network.first_position, self.device, seconds)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            hidden = self.model.network(batch)
        first = hidden[layout.borders(self.device)[:-1]].float()  # (m, d)
        logits: Tensor = self.model.head(first)
        return logits[torch.from_numpy(np.argsort(order, kind="stable")).to(self.device)]

    def loss(self, rows: Ints) -> tuple[Tensor, dict[str, float]]:
        """The objective on these rows; `first` is the share of them whose positive has the best logit."""
        groups = self.groups
        counts = np.diff(groups.offsets)[rows]
        places = np.concatenate([np.arange(groups.offsets[row], groups.offsets[row + 1]) for row in rows])
        sizes = torch.from_numpy(counts).to(self.device)
        logits = as_matrix(self.logits(rows), sizes, -torch.inf)
        teacher = as_matrix(torch.from_numpy(groups.teacher[places]).to(self.device), sizes, torch.nan)
        total, log = cross_loss(logits, teacher, self.settings.loss)
        return total, log | {"first": float((logits.argmax(dim=1) == 0).float().mean())}

    # ---- the run -------------------------------------------------------------------------------------

    def run(self, report: Callable[[dict[str, float]], None]) -> None:
        """Train to the end of the plan or of the time, from wherever the checkpoint left off."""
        self.model.train()
        while self.step < len(self.plan) and self.progress < 1.0:
            start = time.perf_counter()
            log = self._update(self.plan[self.step])
            self.step += 1
            log["seconds"] = time.perf_counter() - start
            self.unreported.append(log)
            self.elapsed_s += log["seconds"]
            if self.step % self.settings.log_every == 0:
                self._report(report)
            if self.step % self.settings.checkpoint_every == 0:
                self.save()
        if self.unreported:
            self._report(report)
        self.save()

    @property
    def progress(self) -> float:
        """Part of the schedule that is done, by batches or by time, whichever is further."""
        return progress(self.step, len(self.plan), self.elapsed_s, self.settings.minutes)

    def _update(self, rows: Ints) -> dict[str, float]:
        factor = rate(self.progress, self.settings.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * factor
        self.optimiser.zero_grad(set_to_none=True)
        total, log = self.loss(rows)
        if total.requires_grad:  # with contrast "none", a batch without a teacher's scores teaches nothing
            total.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        if not torch.isfinite(total) or not torch.isfinite(norm):  # the update would destroy the weights
            raise NumericalError(
                f"step {self.step} has loss {float(total.detach())} and gradient {float(norm)}; "
                "the last checkpoint is intact"
            )
        self.optimiser.step()
        tokens = int(self.groups.sizes[rows].sum())
        done = {"norm": float(norm), "tokens": tokens, "queries": len(rows), "lr": factor * self.settings.body_lr}
        return log | {"total": float(total.detach())} | done

    def _report(self, report: Callable[[dict[str, float]], None]) -> None:
        where = {"elapsed_s": self.elapsed_s, "step": self.step, "of": len(self.plan), "progress": self.progress}
        report(means_of(self.unreported) | where)
        self.unreported.clear()

    # ---- checkpoints ---------------------------------------------------------------------------------

    def save(self) -> None:
        """Write everything that decides the future; a crash while writing keeps the previous checkpoint."""
        state = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
        recipe = {"origin": self.origin, "settings": flat(self.settings.to_dict()), "plan": plan_digest(self.plan)}
        where = {"step": self.step, "elapsed_s": self.elapsed_s, "unreported": self.unreported}
        write_checkpoint(self.path, state | recipe | where)

    def resume(self, *, anew: bool = False) -> bool:
        """Continue from the checkpoint, if there is one.

        anew  where it is of another run, or damaged, begin again, instead of an error
        """
        if not self.path.is_file():
            return False
        try:
            state = read_checkpoint(self.path)
            self._check_same_run(state)
        except CheckpointError:
            if anew:
                return False
            raise
        self._restore(state)
        return True

    def _check_same_run(self, state: Mapping[str, Any]) -> None:
        check_same_settings(self.path, state.get("origin", {}), self.origin, frozenset())
        check_same_settings(self.path, state.get("settings", {}), flat(self.settings.to_dict()), _CLOCKS)
        check_same_plan(self.path, state.get("plan"), plan_digest(self.plan))

    def _restore(self, state: Mapping[str, Any]) -> None:
        try:
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.elapsed_s = int(state["step"]), float(state["elapsed_s"])
            self.unreported = [dict(log) for log in state.get("unreported", [])]
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"cannot resume from {self.path}: {error}") from error
