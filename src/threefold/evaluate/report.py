"""Rows of figures, their averages, and their writing as JSON, Markdown or plain cells. Knows no terminal.

Figures are shares of 1 in JSON and percent with one decimal in tables, as in the papers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from threefold.errors import EvaluationError

#: Name of the row of means in tables.
AVERAGE = "average"


@dataclass(frozen=True, slots=True)
class Row:
    """What one mode reached on one set.

    values       {measure: mean over all judged queries}
    protocol     how the runs were made, in words: depths, weights, lengths
    warnings     {what is odd: how often}: truncated documents, broken judgements, ...
    seconds      {step: wall-clock}
    """

    task: str
    mode: str
    values: Mapping[str, float]
    documents: int
    queries: int
    protocol: str = ""
    warnings: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """The collection of the set: `xquad` of `xquad/ar`."""
        parent = str(PurePosixPath(self.task).parent)
        return self.task if parent == "." else parent

    def to_dict(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "mode": self.mode,
            "values": {name: round(value, 6) for name, value in self.values.items()},
            "documents": self.documents,
            "queries": self.queries,
            "protocol": self.protocol,
            "warnings": dict(self.warnings),
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }


@dataclass(frozen=True, slots=True)
class Report:
    """All rows of one evaluation, and what they were made with (model, settings, versions; the caller says)."""

    rows: tuple[Row, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        keys = [(row.task, row.mode) for row in self.rows]
        if len(set(keys)) != len(keys):
            task, mode = next(key for i, key in enumerate(keys) if key in keys[:i])
            raise EvaluationError(f"two rows for set {task!r} in mode {mode!r}: give the sets different names")

    @property
    def tasks(self) -> list[str]:
        """The sets, in the order of the rows."""
        return list(dict.fromkeys(row.task for row in self.rows))

    @property
    def modes(self) -> list[str]:
        """The modes, in the order of the rows."""
        return list(dict.fromkeys(row.mode for row in self.rows))

    @property
    def measures(self) -> list[str]:
        """The measures, in the order of the rows."""
        return list(dict.fromkeys(name for row in self.rows for name in row.values))

    @property
    def groups(self) -> list[str]:
        """The collections, in the order of the rows."""
        return list(dict.fromkeys(row.group for row in self.rows))

    @property
    def warnings(self) -> dict[str, dict[str, int]]:
        """{set: {what is odd: how often}} for the sets that have any."""
        found: dict[str, dict[str, int]] = {}
        for row in self.rows:
            if row.warnings:
                found.setdefault(row.task, {}).update(row.warnings)
        return found

    def value(self, task: str, mode: str, measure: str) -> float | None:
        """One figure; None where that mode was not run on that set."""
        return next((r.values.get(measure) for r in self.rows if r.task == task and r.mode == mode), None)

    def averages(self, group: str | None = None) -> dict[str, dict[str, float]]:
        """{mode: {measure: mean over sets}}, of one collection or of all; sets count alike, whatever their size."""
        means: dict[str, dict[str, float]] = {}
        for mode in self.modes:
            rows = [row for row in self.rows if row.mode == mode and group in (None, row.group)]
            if rows:
                names = [name for name in self.measures if all(name in row.values for row in rows)]
                means[mode] = {name: math.fsum(row.values[name] for row in rows) / len(rows) for name in names}
        return means

    def incomplete(self) -> list[str]:
        """Modes that were not run on every set: their averages cannot be compared with the others'."""
        full = len(self.tasks)
        return [mode for mode in self.modes if sum(row.mode == mode for row in self.rows) < full]

    def cells(self, measure: str) -> list[list[str]]:
        """A table for one measure: a head, a row per set, and the averages when there is more than one set."""
        figures = {(row.task, row.mode): row.values[measure] for row in self.rows if measure in row.values}
        if not figures:
            raise EvaluationError(f"the report has no {measure}; it has {', '.join(self.measures)}")
        table = [[measure, *self.modes]]
        table += [[task, *(_percent(figures.get((task, mode))) for mode in self.modes)] for task in self.tasks]
        if len(self.tasks) > 1:
            table += self._average_cells(measure)
        return table

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        groups = self.groups if len(self.groups) > 1 else []
        return {
            "about": dict(self.about),
            "averages": _rounded(self.averages()),
            "averages_by_collection": {group: _rounded(self.averages(group)) for group in groups},
            "incomplete_modes": self.incomplete(),
            "rows": [row.to_dict() for row in self.rows],
        }

    def to_markdown(self, measures: Sequence[str] | None = None) -> str:
        """A table per measure, then the protocol of every mode and the warnings."""
        parts = [_markdown_table(self.cells(measure)) for measure in measures or self.measures]
        protocols = {(row.mode, row.protocol): None for row in self.rows if row.protocol}
        if protocols:
            parts.append("\n".join(f"- {mode}: {protocol}" for mode, protocol in protocols))
        if self.incomplete():
            parts.append(f"Not run on every set: {', '.join(self.incomplete())}.")
        if self.warnings:
            lines = [f"- {task}: {_counts(counts)}" for task, counts in self.warnings.items()]
            parts.append("Warnings:\n\n" + "\n".join(lines))
        return "\n\n".join(parts) + "\n"

    def _average_cells(self, measure: str) -> list[list[str]]:
        sets = {row.task: row.group for row in self.rows}
        several = [group for group in self.groups if list(sets.values()).count(group) > 1]
        named = {f"{AVERAGE} {group}": self.averages(group) for group in several if len(self.groups) > 1}
        named[AVERAGE] = self.averages()
        return [
            [name, *(_percent(means.get(mode, {}).get(measure)) for mode in self.modes)]
            for name, means in named.items()
        ]


def _rounded(means: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {mode: {name: round(value, 6) for name, value in values.items()} for mode, values in means.items()}


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counts.items())


def _markdown_table(cells: list[list[str]]) -> str:
    head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in cells]
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ruler, *rows])
