"""Figures of papers to compare with, in percent, one table per benchmark and measure: `published/NAME.MEASURE.tsv`.

The first line of a table names its source. Columns are subsets; `avg` is the mean over all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Final

_FOLDER: Final = Path(__file__).parent / "published"
_AVERAGE = "avg"


@dataclass(frozen=True, slots=True)
class Published:
    """One figure. `mode` is ours where the system is a mode of bge-m3 or BM25, else empty; `value` is a share of 1."""

    system: str
    mode: str
    value: float
    source: str


def published(task: str, measure: str) -> list[Published]:
    """Every figure for a task ("miracl/sw"; "miracl": the mean over its languages) and a measure, as printed."""
    path = PurePosixPath(task)
    name, subset = (path.parts[0], path.parts[1]) if len(path.parts) == 2 else (task, _AVERAGE)
    return list(_table(name, measure).get(subset, ()))


@lru_cache
def _table(name: str, measure: str) -> dict[str, list[Published]]:
    path = _FOLDER / f"{name}.{measure}.tsv"
    if not path.is_file():
        return {}
    first, head, *lines = path.read_text(encoding="utf-8").splitlines()
    columns = head.split("\t")[2:]
    table: dict[str, list[Published]] = {column: [] for column in columns}
    for line in lines:
        system, mode, *cells = line.split("\t")
        for column, cell in zip(columns, cells, strict=True):
            if cell:
                table[column].append(Published(system, mode, float(cell) / 100, first.removeprefix("# ")))
    return table
