"""The figures of a report that people ask for first, as Markdown; and the bars that the model has to clear.

    python runs/mini/summary.py results/mini/*.json

Reads a report of `threefold evaluate ... --save`; computes nothing but averages of its rows.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

MODES = ("bm25", "dense", "sparse", "multi", "dense+sparse", "hybrid")

Rows = list[dict[str, Any]]


def mean(values: list[float]) -> float:
    return 100 * sum(values) / len(values) if values else float("nan")


def figure(rows: Rows, mode: str, measure: str) -> str:
    found = [row["values"][measure] for row in rows if row["mode"] == mode]
    return f"{mean(found):.1f}" if found else "-"


def parts(rows: Rows) -> dict[str, tuple[Rows, str]]:
    """Named groups of sets, and the measure that is usual for each."""
    by_bench: dict[str, Rows] = defaultdict(list)
    for row in rows:
        by_bench[row["task"].split("/")[0]].append(row)

    def pair(row: dict[str, Any]) -> list[str]:
        return str(row["task"]).rsplit("/", 1)[-1].split("-")

    def same(part: Rows) -> Rows:
        return [row for row in part if len(set(pair(row))) == 1]

    def cross(part: Rows) -> Rows:
        return [row for row in part if len(set(pair(row))) == 2]

    xquad, mlqa, tatoeba = by_bench["xquad"], by_bench["mlqa"], by_bench["tatoeba"]
    groups: dict[str, tuple[Rows, str]] = {
        "XQuAD, same language": (same(xquad), "nDCG@10"),
        "XQuAD, across languages": (cross(xquad), "Recall@10"),
        "MLQA, same language": (same(mlqa), "nDCG@10"),
        "MLQA, across languages": (cross(mlqa), "Recall@10"),
        "Tatoeba, xx to English": ([row for row in tatoeba if pair(row)[-1] == "eng"], "accuracy@1"),
        "Tatoeba, English to xx": ([row for row in tatoeba if pair(row)[0] == "eng"], "accuracy@1"),
        "UDHR, xx to English": (by_bench["udhr"], "accuracy@1"),
    }
    for name in ("cmrc2018", "iapp", "amqa", "covid_faq", "cosqa", "tldr", "milvus_long"):
        groups[name] = (by_bench[name], "nDCG@10")
    return {name: part for name, part in groups.items() if part[0]}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("reports", type=Path, nargs="+")
    args = options.parse_args()
    report = {"rows": [row for path in args.reports for row in json.loads(path.read_text())["rows"]]}
    modes = [mode for mode in MODES if any(row["mode"] == mode for row in report["rows"])]
    print("| sets | measure | " + " | ".join(modes) + " |")
    print("|---|---|" + "---|" * len(modes))
    for name, (rows, measure) in parts(report["rows"]).items():
        count = len({row["task"] for row in rows})
        cells = " | ".join(figure(rows, mode, measure) for mode in modes)
        print(f"| {name} ({count}) | {measure} | {cells} |")


if __name__ == "__main__":
    main()
