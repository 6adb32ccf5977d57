"""The loop around any gradients: learning rates, clipping, AdamW, time, reports, checkpoints that resume exactly."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import torch
from torch import Tensor, nn

from threefold.errors import CheckpointError, ConfigError, NumericalError
from threefold.train.checkpoints import (
    check_same_plan,
    check_same_settings,
    flat,
    plan_digest,
    read_checkpoint,
    unusable,
    write_checkpoint,
)
from threefold.train.settings import CLOCKS, LoopSettings, rate
from threefold.train.words import clear_gradients
from threefold.train.world import World
from threefold.types import Ints

#: Called every `log_every` steps with means over them.
Report = Callable[[dict[str, float]], None]
#: Called after every step; what it writes into `Updates.notes` is part of the checkpoint. True ends the run.
Watch = Callable[["Updates"], bool]

#: Decay rates of AdamW's two means, where a group has no others: RoBERTa's (Liu et al. 2019, arXiv 1907.11692, section
#: 3.1).
BETAS: Final = (0.9, 0.98)


def progress(step: int, steps: int, elapsed_s: float, minutes: float) -> float:
    """Part of a schedule that is done, by batches or (`minutes` above 0) by time, whichever is further."""
    by_clock = elapsed_s / (60 * minutes) if minutes else 0.0
    return max(step / max(steps, 1), by_clock)


def means_of(logs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over steps of what they logged, and their tokens per second."""
    keys = sorted({key for log in logs for key in log})
    means = {key: float(np.mean([log[key] for log in logs if key in log])) for key in keys}
    means["tokens_per_s"] = sum(log["tokens"] for log in logs) / max(sum(log["seconds"] for log in logs), 1e-9)
    return means


class Updates(ABC):
    """What is trained, its optimiser and where it is in the plan.

    modules   by name; the first is the model
    groups    of AdamW, each with its `peak` learning rate
    plan      what each step takes, of all devices together; sizes: tokens of each item that a plan names
    folder    for checkpoints
    origin    what else decides the weights, by name: a checkpoint with another one is of another run
    """

    #: What the log calls the items that a plan names.
    items: ClassVar[str] = "pairs"

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        groups: list[dict[str, Any]],
        plan: Sequence[Ints],
        sizes: Ints,
        settings: LoopSettings,
        folder: Path,
        world: World,
        dtype: torch.dtype,
        *,
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        if min(map(len, plan), default=world.size) < world.size:
            raise ConfigError(f"a batch has fewer items than there are devices; plan with least={world.size}")
        if not groups:
            raise ConfigError("nothing is left to train: every part is frozen or has no learning rate")
        self.modules, self.plan, self.sizes, self.settings = dict(modules), plan, sizes, settings
        self.folder, self.world, self.origin = folder, world, dict(origin or {})
        self.device = next(p.device for group in groups for p in group["params"])
        self.step, self.elapsed_s = 0, 0.0
        self.unreported: list[dict[str, float]] = []  # what the steps since the last report logged
        self.notes: dict[str, Any] = {}
        self.optimiser = torch.optim.AdamW(groups, betas=BETAS, fused=True)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)

    @abstractmethod
    def gradients(self, rows: Ints) -> dict[str, float]:
        """Add the gradients of the loss on these items, of all devices, times the scale of `scaler`.

        Returns the loss of all devices as `total`, and its parts.
        """

    # ---- the run -------------------------------------------------------------------------------------

    def run(self, report: Report, watch: Watch | None = None) -> None:
        """Train to the end of the plan or of the time, from wherever the checkpoint left off."""
        for module in self.modules.values():
            module.train()
        while not self.finished:
            start = time.perf_counter()
            log = self._update(self.plan[self.step])
            self.step += 1
            log["seconds"] = time.perf_counter() - start
            self.unreported.append(log)
            self.elapsed_s = self.world.from_first(self.elapsed_s + log["seconds"])
            if self.step % self.settings.log_every == 0:
                self._report(report)
            if watch is not None and watch(self):
                self.notes["stopped"] = True
            if self.step % self.settings.checkpoint_every == 0:
                self.save()
        if self.unreported:
            self._report(report)
        self.save()

    @property
    def finished(self) -> bool:
        """Whether the plan or the time is at its end, or the run was stopped for good."""
        return self.step >= len(self.plan) or self.progress >= 1.0 or bool(self.notes.get("stopped"))

    @property
    def progress(self) -> float:
        """Part of the schedule that is done, by batches or by time, whichever is further."""
        return progress(self.step, len(self.plan), self.elapsed_s, self.settings.minutes)

    def _update(self, rows: Ints) -> dict[str, float]:
        factor = rate(self.progress, self.settings.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * factor
        clear_gradients(self.trained())
        log = self.gradients(rows)
        if not np.isfinite(log["total"]):
            raise NumericalError(f"the loss of step {self.step} is {log['total']}; the last checkpoint is intact")
        self.scaler.unscale_(self.optimiser)
        norm = torch.nn.utils.clip_grad_norm_(self.trained(), self.settings.clip)
        if not torch.isfinite(norm) and not self._may_overflow():
            # the update would destroy the weights, and the next checkpoint with them
            raise NumericalError(f"the gradient of step {self.step} is {float(norm)}; the last checkpoint is intact")
        self.scaler.step(self.optimiser)  # in float16: nothing, if the gradient overflowed; the scale is lowered
        self.scaler.update()
        log |= {"tokens": int(self.sizes[rows].sum()), self.items: len(rows), "lr": factor * self.settings.body_lr}
        if torch.isfinite(norm):  # JSON has no number for one that overflowed
            log["norm"] = float(norm)
        return log

    def trained(self) -> list[Tensor]:
        """All parameters that are trained."""
        return [p for group in self.optimiser.param_groups for p in group["params"]]

    def _may_overflow(self) -> bool:
        """Whether the scale of float16 can still be lowered."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1.0

    def _report(self, report: Report) -> None:
        where = {"elapsed_s": self.elapsed_s, "step": self.step, "of": len(self.plan), "progress": self.progress}
        report(means_of(self.unreported) | where)
        self.unreported.clear()

    # ---- checkpoints ---------------------------------------------------------------------------------

    @property
    def checkpoint(self) -> Path:
        """The file of the last checkpoint."""
        return self.folder / "training.pt"

    def save(self) -> None:
        """Write everything that decides the future; the first process does, and the others wait."""
        if self.world.first:
            state = {name: module.state_dict() for name, module in self.modules.items()} | {
                "optimiser": self.optimiser.state_dict(),
                "scaler": self.scaler.state_dict(),
                "step": self.step,
                "elapsed_s": self.elapsed_s,
                "notes": self.notes,
                "unreported": self.unreported,
                "settings": self.settings.to_dict(),
                "origin": self.origin,
                "plan": plan_digest(self.plan),
            }
            write_checkpoint(self.checkpoint, state)
        self.world.wait()

    def resume(self, *, anew: bool = False) -> bool:
        """Continue from the checkpoint of `folder`, if there is one; refused when it is of another run.

        anew  where it is of another run, or damaged, begin again, instead of an error
        """
        if not self.checkpoint.is_file():
            return False
        try:
            state = read_checkpoint(self.checkpoint, (*self.modules, "optimiser", "step", "elapsed_s", "settings"))
            self._check_same_run(state)
        except CheckpointError:
            if anew:
                return False
            raise
        self._restore(state)
        return True

    def _check_same_run(self, state: Mapping[str, Any]) -> None:
        check_same_settings(self.checkpoint, state.get("origin", {}), self.origin, frozenset())
        check_same_settings(self.checkpoint, flat(state["settings"]), flat(self.settings.to_dict()), CLOCKS)
        check_same_plan(self.checkpoint, state.get("plan"), plan_digest(self.plan))

    def _restore(self, state: Mapping[str, Any]) -> None:
        try:
            for name, module in self.modules.items():
                module.load_state_dict(state[name])
            self.optimiser.load_state_dict(state["optimiser"])
            if state.get("scaler"):  # empty from a device that needed no scale: here it begins where it begins
                self.scaler.load_state_dict(state["scaler"])
            self.notes, self.unreported = state.get("notes", {}), state.get("unreported", [])
            self.step, self.elapsed_s = int(state["step"]), float(state["elapsed_s"])
        except Exception as error:  # a state of another shape fails in any way that it likes
            raise unusable(self.checkpoint, error) from error
