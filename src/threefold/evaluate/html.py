"""A report as one HTML page that needs nothing else: tables, charts, significance, and the queries that failed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, Final

from threefold.evaluate.answers import judge_task
from threefold.evaluate.compare import LEVEL, Contrast, Detail, best_mode, contrasts
from threefold.evaluate.measures import Measure, ranking
from threefold.evaluate.published import published
from threefold.evaluate.report import AVERAGE, Report
from threefold.evaluate.svg import bars, curves, legend, strip

#: Ranks of the recall curves.
RANKS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
#: Queries shown at the end, and characters of a text.
WORST: Final = 20
CHARACTERS: Final = 400

_STYLE: Final = """
body { font: 15px/1.5 sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: .5rem 0 1.5rem } th, td { padding: .15rem .6rem; text-align: right }
th:first-child, td:first-child { text-align: left } thead th { border-bottom: 1px solid #888 }
tr.mean td { border-top: 1px solid #888; font-weight: bold } tr.published td { color: #777 }
td.best { font-weight: bold } .legend i { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 1em }
.chart { overflow-x: auto } details { margin: .3rem 0 } blockquote { margin: .2rem 0 .2rem 1.2rem; color: #444 }
small, .note { color: #666 }
"""


def html_report(report: Report, details: Sequence[Detail], saved: Sequence[Contrast] = ()) -> str:
    """The page. `saved` are comparisons with earlier runs; the modes are compared with the best one anyway."""
    main = report.measures[0]
    body = [
        f"<h1>{escape(str(report.about.get('model', 'evaluation')))}</h1>",
        f"<p>{len(report.tasks):,} sets, {len(report.modes)} modes. Figures in percent.</p>",
        *(_table(report, measure) for measure in report.measures),
        f"<h2>{escape(main)} by set</h2>",
        legend(report.modes),
        f'<div class="chart">{bars(_values(report, main), report.modes)}</div>',
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


def _table(report: Report, measure: str) -> str:
    head, *body = report.cells(measure)
    rows = [_row(cells, "mean" if cells[0].startswith(AVERAGE) else "") for cells in body]
    rows += _published_rows(report, measure)
    return f"<h2>{escape(measure)}</h2><table><thead>{_row(head, '', 'th')}</thead>{''.join(rows)}</table>"


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
        yield f"<h2>Against {escape(best)}, the best mode</h2>"
        yield from (_contrast(one) for one in contrasts(comparable, measure, best))


def _contrast(one: Contrast) -> str:
    rows = []
    for name, by in one.sets.items():
        cells = [f"{100 * by.difference:+.1f}", f"{100 * by.low:+.1f} … {100 * by.high:+.1f}", _p(by.p)]
        numbers = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f"<tr><td>{escape(name)}</td>{numbers}<td>{strip(*by.counts)}</td></tr>")
    head = "<thead><tr><th>set</th><th>difference</th><th>95 % interval</th><th>p</th><th>queries</th></tr></thead>"
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
    cases = [
        (value, detail, query)
        for detail in comparable
        if mode in detail.judgements
        for query, value in detail.judgements[mode].values[measure].items()
    ]
    cases.sort(key=lambda case: (case[0], case[1].task.name, case[2]))
    yield f"<h2>The queries that {escape(mode)} answers worst</h2>"
    yield from (_case(value, detail, query, mode, measure) for value, detail, query in cases[:WORST])


def _case(value: float, detail: Detail, query: str, mode: str, measure: str) -> str:
    task = detail.task
    found = ranking(detail.runs[mode].get(query, {}), Measure.parse(measure).cutoff, query)[:3]
    parts = ["<p class='note'>found first:</p>"]
    parts += [_quote(id, task.documents.get(id)) for id in found] or ["<blockquote>nothing</blockquote>"]
    if task.answers is not None:
        parts.append(f"<p class='note'>answers: {escape('; '.join(task.answers[query]))}</p>")
    else:
        wanted = [id for id, grade in task.qrels[query].items() if grade > 0][:3]
        parts.append("<p class='note'>relevant:</p>")
        parts += [_quote(id, task.documents.get(id)) for id in wanted]
    title = f"{100 * value:.1f} · {escape(task.name)} · {escape(_short(task.queries[query]))}"
    return f"<details><summary>{title} <small>{escape(query)}</small></summary>{''.join(parts)}</details>"


def _quote(id: str, text: str | None) -> str:
    shown = "not in the corpus" if text is None else _short(text)
    return f"<blockquote><small>{escape(id)}</small> {escape(shown)}</blockquote>"


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
