"""A report as one HTML page that needs nothing else: tables, charts, significance, and the queries that failed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import islice, zip_longest
from typing import Any, Final

from threefold.evaluate.answers import judge_task
from threefold.evaluate.compare import LEVEL, Contrast, Detail, best_mode, contrasts, wins
from threefold.evaluate.measures import ranking
from threefold.evaluate.published import published
from threefold.evaluate.report import AVERAGE, Report
from threefold.evaluate.svg import bars, curves, legend, per_row, strip

#: Ranks of the recall curves.
RANKS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
#: Queries shown at the end, taken from the sets in turn, and characters of a text.
WORST: Final = 30
CHARACTERS: Final = 400
#: Pixels of the page that a chart may take; more sets go into further rows.
WIDTH: Final = 1_080

_STYLE: Final = """
body { font: 15px/1.5 sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: .5rem 0 1.5rem } th, td { padding: .15rem .6rem; text-align: right }
th:first-child, td:first-child { text-align: left } thead th { border-bottom: 1px solid #888 }
tr.mean td { border-top: 1px solid #888; font-weight: bold } tr.published td { color: #777 }
td.best, td.real { font-weight: bold }
.legend i { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 1em }
.chart { overflow-x: auto } .chart svg { display: block } details { margin: .3rem 0 } summary { cursor: pointer }
blockquote { margin: .2rem 0 .2rem 1.2rem; color: #444 }
small, .note { color: #666 }
"""


def html_report(report: Report, details: Sequence[Detail], saved: Sequence[Contrast] = ()) -> str:
    """The page. `saved` are comparisons with earlier runs; the modes are compared with the best one anyway."""
    main = report.measures[0]
    body = [
        f"<h1>{escape(str(report.about.get('model', 'evaluation')))}</h1>",
        f"<p>{len(report.tasks):,} sets, {len(report.modes)} modes. Figures in percent.</p>",
        *_summary(report),
        f"<h2>{escape(main)} by set</h2>",
        legend(report.modes),
        f'<div class="chart">{"".join(_bars(_values(report, main), report.modes))}</div>',
        *(_table(report, measure, shown=measure == main) for measure in report.measures),
        *_curves(details),
        *_contrasts(details, main),
        *(_contrast(one) for one in saved),
        *_worst(details, main),
        *_notes(report),
    ]
    head = f"<meta charset='utf-8'><title>threefold evaluate</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(body)}</body></html>\n"


# ---- figures ------------------------------------------------------------------------------------------------


def _values(report: Report, measure: str) -> dict[str, dict[str, float | None]]:
    return {task: {mode: report.value(task, mode, measure) for mode in report.modes} for task in report.tasks}


def _summary(report: Report) -> Iterator[str]:
    """A row per mode and a column per measure: the means over the sets."""
    if len(report.tasks) < 2:
        return
    means = report.averages()
    best = {
        name: max(by[name] for by in means.values() if name in by)
        for name in report.measures
        if any(name in by for by in means.values())
    }
    rows = []
    for mode, by in means.items():
        cells = [f"<td>{escape(mode)}{' *' if mode in report.incomplete() else ''}</td>"]
        for name in report.measures:
            mark = ' class="best"' if name in by and by[name] == best[name] else ""
            cells.append(f"<td{mark}>{_percent(by.get(name))}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = _row(["mode", *report.measures], "", "th")
    yield f"<h2>Means over the sets</h2><table><thead>{head}</thead>{''.join(rows)}</table>"
    if report.incomplete():
        yield "<p class='note'>* not run on every set: not comparable with the others</p>"


def _bars(values: Mapping[str, Mapping[str, float | None]], modes: Sequence[str]) -> Iterator[str]:
    """Rows of about equal length, none wider than the page."""
    names = list(values)
    rows = -(-len(names) // per_row(len(modes), WIDTH))
    for row in range(rows):
        part = names[row * len(names) // rows : (row + 1) * len(names) // rows]
        yield bars({name: values[name] for name in part}, modes)


def _table(report: Report, measure: str, *, shown: bool) -> str:
    """The table of one measure; only the first is open where there are several."""
    head, *body = report.cells(measure)
    rows = [_row(cells, "mean" if cells[0].startswith(AVERAGE) else "") for cells in body]
    rows += _published_rows(report, measure)
    table = f"<table><thead>{_row(head, '', 'th')}</thead>{''.join(rows)}</table>"
    return f"<details{' open' if shown else ''}><summary>{escape(measure)}, every set</summary>{table}</details>"


def _published_rows(report: Report, measure: str) -> Iterator[str]:
    """Systems of the papers: under our columns where a mode is the same, else under the first."""
    for task in [*report.tasks, *(group for group in report.groups if group not in report.tasks)]:
        systems: dict[str, dict[str, float]] = {}
        for one in published(task, measure):
            systems.setdefault(one.system, {})[one.mode or report.modes[0]] = one.value
        for system, values in systems.items():
            cells = [f"{100 * values[mode]:.1f}" if mode in values else "" for mode in report.modes]
            if any(cells):
                yield _row([f"{task}: {system}, published", *cells], "published")
    sources = {one.source for task in report.tasks for one in published(task, measure)}
    for source in sorted(sources):
        yield f'<tr class="published"><td colspan="{len(report.modes) + 1}"><small>{escape(source)}</small></td></tr>'


def _row(cells: Sequence[str], kind: str = "", tag: str = "td") -> str:
    numbers = [float(cell) for cell in cells[1:] if _is_number(cell)]
    best = max(numbers, default=None) if kind != "published" else None
    found = [f"<{tag}>{escape(cells[0])}</{tag}>"]
    for cell in cells[1:]:
        mark = ' class="best"' if best is not None and _is_number(cell) and float(cell) == best else ""
        found.append(f"<{tag}{mark}>{escape(cell)}</{tag}>")
    return f'<tr class="{kind}">{"".join(found)}</tr>'


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _is_number(cell: str) -> bool:
    return cell.replace(".", "", 1).isdecimal()


def _curves(details: Sequence[Detail]) -> Iterator[str]:
    """Recall by rank, mean over the sets; for tasks with answer strings the share of queries with a hit."""
    lines: dict[str, dict[int, list[float]]] = {}
    depth = max((len(scores) for one in details for run in one.runs.values() for scores in run.values()), default=0)
    if any(one.task.answers is not None for one in details):
        depth = min(depth, 100)  # every passage is searched for the answers
    ranks = [rank for rank in RANKS if rank <= max(depth, 1)]  # the same for all sets, so that means can be compared
    for detail in details:
        name = "Recall" if detail.task.answers is None else "answer"
        for mode, run in detail.runs.items():
            means = judge_task(detail.task, run, [f"{name}@{rank}" for rank in ranks]).means
            for rank in ranks:
                lines.setdefault(mode, {}).setdefault(rank, []).append(means[f"{name}@{rank}"])
    if lines:
        points = {
            mode: [(rank, sum(values) / len(values)) for rank, values in by.items()] for mode, by in lines.items()
        }
        yield "<h2>Recall by rank</h2>"
        yield f'{legend(list(points))}<div class="chart">{curves(points)}</div>'


# ---- comparisons --------------------------------------------------------------------------------------------


def _contrasts(details: Sequence[Detail], measure: str) -> Iterator[str]:
    comparable = [detail for detail in details if any(measure in one.values for one in detail.judgements.values())]
    if comparable and len({mode for detail in comparable for mode in detail.judgements}) > 1:
        best = best_mode(comparable, measure)
        yield f"<h2>Query by query, {escape(measure)}</h2>"
        yield _pairs(comparable, measure)
        yield f"<h2>Against {escape(best)}, the best mode</h2>"
        yield from (_contrast(one) for one in contrasts(comparable, measure, best))


def _pairs(details: Sequence[Detail], measure: str) -> str:
    """How often the mode of the row is better than the mode of the column, in percent of the queries of all sets."""
    shares = wins(details, measure)
    modes = list(dict.fromkeys(mode for pair in shares for mode in pair))
    rows = []
    for a in modes:
        cells = [f"<td>{escape(a)}</td>"]
        for b in modes:
            share = shares.get((a, b))
            paint = f' style="background: rgb(0 114 178 / {share:.2f})"' if share is not None else ""
            cells.append(f"<td{paint}>{_percent(share)}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = _row(["better / than", *modes], "", "th")
    note = "Percent of the queries on which the mode of the row is better than that of the column; the rest are equal."
    return f"<p class='note'>{note}</p><table><thead>{head}</thead>{''.join(rows)}</table>"


def _contrast(one: Contrast) -> str:
    rows = []
    for name, by in one.sets.items():
        cells = [f"{100 * by.difference:+.1f}", f"{100 * by.low:+.1f} … {100 * by.high:+.1f}"]
        numbers = "".join(f"<td>{cell}</td>" for cell in cells)
        numbers += f"<td{' class=real' if by.p < LEVEL else ''}>{_p(by.p)}</td>"
        counts = " / ".join(f"{count:,}" for count in by.counts)
        rows.append(f"<tr><td>{escape(name)}</td>{numbers}<td>{strip(*by.counts)}</td><td>{counts}</td></tr>")
    head = "<thead><tr><th>set</th><th>difference</th><th>95 % interval</th><th>p</th>"
    head += "<th colspan='2'>queries better / equal / worse</th></tr></thead>"
    summary = (
        f"{escape(one.a)} against {escape(one.b)}, {escape(one.measure)}: {100 * one.difference:+.1f}; "
        f"better on {one.better}, worse on {one.worse} of {len(one.sets)} sets (p &lt; {LEVEL:g}, Fisher's paired "
        "randomisation over queries, Holm's correction over sets)"
    )
    return f"<details><summary>{summary}</summary><table>{head}{''.join(rows)}</table></details>"


def _p(value: float) -> str:
    return "&lt; 0.001" if value < 0.001 else f"{value:.3f}"


# ---- queries that failed ------------------------------------------------------------------------------------


def _worst(details: Sequence[Detail], measure: str) -> Iterator[str]:
    comparable = [detail for detail in details if any(measure in one.values for one in detail.judgements.values())]
    if not comparable:
        return
    mode = best_mode(comparable, measure)
    by_set = [sorted(_ranked(one, mode, measure)) for one in comparable if mode in one.judgements]
    turns = zip_longest(*(cases[:WORST] for cases in by_set))
    chosen = set(islice((case for turn in turns for case in turn if case is not None), WORST))
    yield f"<h2>The queries that {escape(mode)} answers worst</h2>"
    yield f"<p class='note'>{escape(measure)}, set, query; from every set in turn, the worst first.</p>"
    for detail in comparable:
        yield from (
            _case(case, detail, mode) for case in sorted(case for case in chosen if case[2] == detail.task.name)
        )


def _ranked(detail: Detail, mode: str, measure: str) -> Iterator[tuple[float, float, str, str]]:
    """(value, minus the rank of the first relevant document, set, query): the worst is the smallest."""
    for query, value in detail.judgements[mode].values[measure].items():
        yield value, -_first(detail, mode, query), detail.task.name, query


def _first(detail: Detail, mode: str, query: str) -> float:
    """Rank of the first relevant document; infinite where none was found, or answers stand for judgements."""
    grades, scores = detail.task.qrels[query], detail.runs[mode].get(query, {})
    found = ranking(scores, len(scores), query)
    return next((float(rank) for rank, id in enumerate(found, start=1) if grades.get(id, 0) > 0), math.inf)


def _case(case: tuple[float, float, str, str], detail: Detail, mode: str) -> str:
    value, first, _, query = case
    task = detail.task
    scores = detail.runs[mode].get(query, {})
    parts = ["<p class='note'>found first:</p>"]
    parts += [_quote(id, task.documents.get(id)) for id in ranking(scores, 3, query)] or [
        "<blockquote>nothing</blockquote>"
    ]
    if task.answers is not None:
        parts.append(f"<p class='note'>answers: {escape('; '.join(task.answers[query]))}</p>")
    else:
        wanted = [id for id, grade in task.qrels[query].items() if grade > 0][:3]
        place = f"first on rank {-first:,.0f}" if math.isfinite(first) else f"not among the {len(scores):,} found"
        parts.append(f"<p class='note'>relevant, {place}:</p>")
        parts += [_quote(id, task.documents.get(id)) for id in wanted]
    title = f"{100 * value:.1f} · {escape(task.name)} · <bdi>{escape(_short(task.queries[query]))}</bdi>"
    return f"<details><summary>{title} <small>{escape(query)}</small></summary>{''.join(parts)}</details>"


def _quote(id: str, text: str | None) -> str:
    shown = "not in the corpus" if text is None else _short(text)
    return f"<blockquote dir='auto'><small>{escape(id)}</small> {escape(shown)}</blockquote>"


def _short(text: str) -> str:
    return text if len(text) <= CHARACTERS else text[:CHARACTERS] + " …"


def _notes(report: Report) -> Iterator[str]:
    protocols = dict.fromkeys((row.mode, row.protocol) for row in report.rows if row.protocol)
    items = [f"<li>{escape(mode)}: {escape(protocol)}</li>" for mode, protocol in protocols]
    warnings: Mapping[str, Mapping[str, Any]] = report.warnings
    for task, counts in warnings.items():
        said = ", ".join(f"{count:,} {what}" for what, count in counts.items())
        items.append(f"<li>{escape(task)}: {escape(said)}</li>")
    if report.incomplete():
        items.append(f"<li>not run on every set: {escape(', '.join(report.incomplete()))}</li>")
    about = escape(json.dumps(dict(report.about), ensure_ascii=False, indent=1, default=str))
    yield f"<h2>How</h2><ul>{''.join(items)}</ul><details><summary>settings</summary><pre>{about}</pre></details>"
