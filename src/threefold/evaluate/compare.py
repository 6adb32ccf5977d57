"""Modes against each other, or against runs that were saved: paired over queries, corrected over sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

from threefold.errors import EvaluationError
from threefold.evaluate.answers import judge_task
from threefold.evaluate.measures import Judgement, Run
from threefold.evaluate.significance import Comparison, compare, holm
from threefold.evaluate.task import Task
from threefold.evaluate.trec import read_run, write_run

#: After the correction, a smaller p is called a difference.
LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Detail:
    """One task with what was run on it, by mode."""

    task: Task
    runs: Mapping[str, Run]
    judgements: Mapping[str, Judgement]

    def also(self, runs: Mapping[str, Run], judgements: Mapping[str, Judgement]) -> Detail:
        """With these modes as well."""
        return Detail(self.task, {**self.runs, **runs}, {**self.judgements, **judgements})


@dataclass(frozen=True, slots=True)
class Contrast:
    """System a against system b on every set that both were run on."""

    a: str
    b: str
    measure: str
    sets: Mapping[str, Comparison]

    @property
    def difference(self) -> float:
        """Mean over sets of the mean difference."""
        return sum(one.difference for one in self.sets.values()) / len(self.sets)

    @property
    def better(self) -> int:
        """Sets on which a is better beyond chance."""
        return sum(one.p < LEVEL and one.difference > 0 for one in self.sets.values())

    @property
    def worse(self) -> int:
        """Sets on which b is better beyond chance."""
        return sum(one.p < LEVEL and one.difference < 0 for one in self.sets.values())

    def to_dict(self) -> dict[str, object]:
        sets = {
            name: {
                "difference": round(one.difference, 6),
                "interval": [round(one.low, 6), round(one.high, 6)],
                "p": round(one.p, 6),
                "wins": one.wins,
                "losses": one.losses,
                "queries": one.queries,
            }
            for name, one in self.sets.items()
        }
        return {
            "a": self.a,
            "b": self.b,
            "measure": self.measure,
            "difference": round(self.difference, 6),
            "sets": sets,
        }


def compared(details: Sequence[Detail], measure: str, baseline: str) -> list[Contrast]:
    """Every mode against one of them or, where `baseline` is a folder, against its runs there."""
    comparable = [one for one in details if any(measure in judgement.values for judgement in one.judgements.values())]
    if Path(baseline).is_dir():
        return contrasts_with_saved(comparable, measure, Path(baseline))
    return contrasts(comparable, measure, baseline)


def contrasts(details: Sequence[Detail], measure: str, baseline: str) -> list[Contrast]:
    """Every other mode against one of them."""
    modes = list(dict.fromkeys(mode for detail in details for mode in detail.judgements))
    if baseline not in modes:
        raise EvaluationError(f"no mode {baseline!r} to compare with; there are {', '.join(modes)}")
    others = [mode for mode in modes if mode != baseline]
    return [one for mode in others if (one := _contrast(details, measure, mode, baseline)) is not None]


def contrasts_with_saved(details: Sequence[Detail], measure: str, folder: Path) -> list[Contrast]:
    """Every mode against its runs in a folder that `write_runs` wrote (`MODE/TASK.trec`)."""
    found: list[Contrast] = []
    for mode in dict.fromkeys(mode for detail in details for mode in detail.judgements):
        sets: dict[str, Comparison] = {}
        for detail in details:
            path = folder / run_folder(mode) / f"{detail.task.name}.trec"
            if path.is_file() and mode in detail.judgements:
                saved = judge_task(detail.task, read_run(path), [measure])
                sets[detail.task.name] = compare(_values(detail, mode, measure), next(iter(saved.values.values())))
        if sets:
            found.append(Contrast(mode, f"{mode} (saved)", measure, holm(sets)))
    if not found:
        raise EvaluationError(f"{folder}: no run of these modes and sets; expected files such as MODE/SET.trec")
    return found


def write_runs(folder: Path, detail: Detail) -> None:
    """Write every run of a task to `MODE/TASK.trec` below a folder."""
    for mode, run in detail.runs.items():
        name = run_folder(mode)
        target = folder / name / f"{detail.task.name}.trec"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_run(target, run, f"threefold-{name}")


def run_folder(mode: str) -> str:
    """Where the runs of a mode are kept: its name without spaces."""
    return mode.replace(" (store)", "-store").replace(" + ", "-")


def best_mode(details: Sequence[Detail], measure: str) -> str:
    """The mode with the highest mean over the sets; of equals, the first."""
    sums: dict[str, list[float]] = {}
    for detail in details:
        for mode, judgement in detail.judgements.items():
            if measure in judgement.values:
                sums.setdefault(mode, []).append(judgement.means[measure])
    if not sums:
        raise EvaluationError(f"nothing was measured by {measure}")
    return max(sums, key=lambda mode: sum(sums[mode]) / len(sums[mode]))


def wins(details: Sequence[Detail], measure: str) -> dict[tuple[str, str], float]:
    """{(a, b): share of the queries on which mode a is better than mode b}, over the sets that both were run on."""
    counts: dict[tuple[str, str], list[int]] = {}
    for detail in details:
        values = {mode: one.values[measure] for mode, one in detail.judgements.items() if measure in one.values}
        for a, b in permutations(values, 2):
            better = sum(value > values[b][query] for query, value in values[a].items())
            pair = counts.setdefault((a, b), [0, 0])
            pair[0] += better
            pair[1] += len(values[a])
    return {pair: better / queries for pair, (better, queries) in counts.items()}


def _contrast(details: Sequence[Detail], measure: str, a: str, b: str) -> Contrast | None:
    sets = {
        detail.task.name: compare(_values(detail, a, measure), _values(detail, b, measure))
        for detail in details
        if measure in detail.judgements.get(a, _NOTHING).values and measure in detail.judgements.get(b, _NOTHING).values
    }
    return Contrast(a, b, measure, holm(sets)) if sets else None


def _values(detail: Detail, mode: str, measure: str) -> Mapping[str, float]:
    values = detail.judgements[mode].values
    if measure not in values:
        raise EvaluationError(f"{detail.task.name} was not measured by {measure} in mode {mode}")
    return values[measure]


_NOTHING = Judgement({})
