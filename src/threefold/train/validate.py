"""Figures during training: the model as it would be saved, through the same evaluation as everything else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

from threefold.encoder.encoder import Encoder
from threefold.errors import ConfigError
from threefold.evaluate.beir import iter_tasks
from threefold.evaluate.task import Task
from threefold.retrieve.experiment import run_task
from threefold.retrieve.modes import Protocol
from threefold.score import Weights
from threefold.train.recipe import Validation
from threefold.train.updates import Updates

#: Tokens at a time of a model beside one in training: an eighth of what a GPU reads otherwise.
BESIDE: Final = 8_192

#: Called with a step and its figure.
Told = Callable[[int, float], None]


def beside(folder: Path, device: torch.device) -> Encoder:
    """A model that reads where another one is trained: in small batches, for that one needs the memory."""
    return Encoder(folder, device=str(device), budget=None if device.type == "cpu" else BESIDE)


class Validator:
    """Measures every so many steps and keeps the best model; a `Watch` of a run.

    save    writes the model as it is now into a folder that `Encoder` loads
    folder  holds `candidate`, which is measured, and `best`
    told    called with every figure
    """

    def __init__(
        self,
        wanted: Validation,
        base: Path,
        folder: Path,
        save: Callable[[Path], None],
        device: torch.device,
        told: Told,
    ) -> None:
        self.wanted, self.folder, self.device, self.told = wanted, folder, device, told
        self._save = save
        self.tasks: list[Task] = [task for name in wanted.sets for task in iter_tasks(base / name, split=wanted.split)]

    def __call__(self, run: Updates) -> bool:
        """Whether the run should end: the figure has not become better for too long."""
        due = run.step % self.wanted.every == 0 or run.finished
        if not due or any(step == run.step for step, _ in self._figures(run)):
            return False
        return self.measure(run)

    def measure(self, run: Updates) -> bool:
        """Measure now, keep the model if it is the best so far."""
        figure = run.world.from_first(self._figure() if run.world.first else 0.0)
        figures = self._figures(run)
        better = all(figure > other for _, other in figures)
        figures.append([run.step, figure])
        run.notes["validation"] = figures
        if run.world.first:
            if better:
                self._keep(run.step, figure)
            self.told(run.step, figure)
        run.world.wait()
        best = max(range(len(figures)), key=lambda i: figures[i][1])
        return 0 < self.wanted.patience <= len(figures) - 1 - best

    @staticmethod
    def _figures(run: Updates) -> list[list[float]]:
        return list(run.notes.get("validation", []))

    def _figure(self) -> float:
        candidate = self.folder / "candidate"
        self._save(candidate)
        encoder = beside(candidate, self.device)
        if self.wanted.mode == "hybrid" and len(encoder.card.representations) < 3:
            raise ConfigError("validation.mode hybrid needs three heads; say dense, or the heads that the model has")
        protocol = Protocol(
            modes=(self.wanted.mode,),
            measures=(self.wanted.measure,),
            weights=Weights(*encoder.card.fusion),
            max_tokens=self.wanted.max_tokens or None,
        )
        outcomes = [run_task(task, encoder, protocol) for task in self.tasks]
        values = [outcome.rows[0].values[self.wanted.measure] for outcome in outcomes]
        return sum(values) / len(values)

    def _keep(self, step: int, figure: float) -> None:
        """The candidate becomes the best; file by file, each whole."""
        best = self.folder / "best"
        best.mkdir(parents=True, exist_ok=True)
        for file in (self.folder / "candidate").iterdir():
            file.replace(best / file.name)
        about = {"step": step, self.wanted.measure: figure, "mode": self.wanted.mode}
        (best / "validation.json").write_text(json.dumps(about) + "\n", encoding="utf-8")
