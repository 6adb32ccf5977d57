"""A report of figures on a terminal: a table per measure, what was odd, and comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from threefold.cli.show import err, note, out, print_table

if TYPE_CHECKING:
    from threefold.evaluate.compare import Contrast
    from threefold.evaluate.report import Report


def show_report(report: Report, per_set: bool) -> None:
    """Every measure of the report, set by set or as averages."""
    one_by_one = per_set or len(report.tasks) == 1  # a single set is its own average
    for measure in report.measures:
        header, *body = report.cells(measure)
        rows = [row for row in body if one_by_one or row[0] not in report.tasks]
        rows += _published(report, measure) if per_set else []
        _print(measure, header, rows)
    for task, counts in report.warnings.items():
        note(f"{task}: " + ", ".join(f"{count:,} {what}" for what, count in counts.items()))
    made_with = [report.about[name] for name in ("model", "precision") if name in report.about]
    err.print(f"{', '.join(made_with)}; figures in percent")


def show_contrasts(contrasts: Sequence[Contrast]) -> None:
    """A table per comparison, a row per set."""
    for one in contrasts:
        rows = [
            [name, *(f"{100 * x:+.1f}" for x in (by.difference, by.low, by.high)), f"{by.p:.4f}", *map(str, by.counts)]
            for name, by in one.sets.items()
        ]
        header = ["set", "difference", "95 % from", "to", "p (Holm)", "better", "equal", "worse"]
        _print(f"{one.a} against {one.b}, {one.measure}", header, rows)


def _published(report: Report, measure: str) -> list[list[str]]:
    """bge-m3 as the papers report it, under the same modes."""
    from threefold.evaluate.published import published

    rows = []
    for task in report.tasks:
        known = {one.mode: one.value for one in published(task, measure) if one.mode in report.modes}
        if known:
            cells = [f"{100 * known[mode]:.1f}" if mode in known else "" for mode in report.modes]
            rows.append([f"{task}, published", *cells])
    return rows


def _print(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print_table(header, rows, title=title)
    out.print()
