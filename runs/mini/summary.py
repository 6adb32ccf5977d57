"""The figures of reports that people ask for first, as Markdown.

    python runs/mini/summary.py results/mini/*.json
    python runs/mini/summary.py results/mini/*.json --into README.md src/threefold/models/mini/README.md

Reads reports of `threefold evaluate ... --save`; computes nothing but averages of their rows. `--into` brings the rows
of tables that stand in a file up to date; the best figure of a row is bold.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

#: As in the tables that `--into` writes.
MODES = ("bm25", "dense", "sparse", "multi", "hybrid")
SINGLE = {
    "cmrc2018": "CMRC 2018, Chinese",
    "iapp": "iApp, Thai",
    "amqa": "AmQA, Amharic",
    "covid_faq": "Covid FAQ",
    "cosqa": "CoSQA, code",
    "tldr": "tldr, commands",
    "milvus_long": "Milvus, long documents",
}

Rows = list[dict[str, Any]]


def languages(row: dict[str, Any]) -> list[str]:
    return str(row["task"]).rsplit("/", 1)[-1].split("-")


def within(rows: Rows) -> Rows:
    return [row for row in rows if len(set(languages(row))) == 1]


def across(rows: Rows) -> Rows:
    return [row for row in rows if len(set(languages(row))) == 2]


def parts(rows: Rows) -> dict[str, tuple[Rows, str]]:
    """Named groups of sets, and the measure that is usual for each."""
    bench: dict[str, Rows] = defaultdict(list)
    for row in rows:
        bench[row["task"].split("/")[0]].append(row)
    groups: dict[str, tuple[Rows, str]] = {}
    for name, title in (("xquad", "XQuAD"), ("mlqa", "MLQA")):
        groups[f"{title}, same language"] = (within(bench[name]), "nDCG@10")
        groups[f"{title}, across languages"] = (across(bench[name]), "Recall@10")
    groups |= {title: (bench[name], "nDCG@10") for name, title in SINGLE.items()}
    groups["UDHR, xx to English"] = (bench["udhr"], "accuracy@1")
    groups["Tatoeba, xx to English"] = ([r for r in bench["tatoeba"] if languages(r)[-1] == "eng"], "accuracy@1")
    groups["Tatoeba, English to xx"] = ([r for r in bench["tatoeba"] if languages(r)[0] == "eng"], "accuracy@1")
    return {titled(title, part): (part, measure) for title, (part, measure) in groups.items() if part}


def titled(title: str, rows: Rows) -> str:
    count = len({row["task"] for row in rows})
    return f"{title} ({count})" if count > 1 else title


def cells(rows: Rows, measure: str) -> list[str]:
    """The mean of each mode; empty where a mode was not run, bold where it is the best."""
    found = {mode: [row["values"][measure] for row in rows if row["mode"] == mode] for mode in MODES}
    said = {mode: f"{100 * sum(one) / len(one):.1f}" for mode, one in found.items() if one}
    best = max(said.values(), key=float)
    return [f"**{said[mode]}**" if said.get(mode) == best else said.get(mode, "") for mode in MODES]


def brought_up_to_date(text: str, table: dict[str, list[str]]) -> str:
    """A Markdown file in which the rows of these titles, linked or not, have these cells."""
    lines = []
    for line in text.splitlines():
        found = re.match(r"\| (?:\[([^\]]+)\]\([^)]*\)|([^|]+?)) \| (\S+) \|", line)
        title = found and (found[1] or found[2])
        lines.append(f"{found[0]} {' | '.join(table[title])} |" if found and title in table else line)
    return "\n".join(lines) + "\n"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("reports", type=Path, nargs="+")
    options.add_argument("--into", type=Path, nargs="+", default=[], help="files whose tables are brought up to date")
    args = options.parse_args()
    rows = [row for path in args.reports for row in json.loads(path.read_text())["rows"]]
    print("| sets | measure | " + " | ".join(MODES) + " |\n|---|---|" + "---|" * len(MODES))
    table = {}
    for title, (part, measure) in parts(rows).items():
        table[title] = cells(part, measure)
        print(f"| {title} | {measure} | {' | '.join(table[title])} |")
    for path in args.into:
        path.write_text(brought_up_to_date(path.read_text(encoding="utf-8"), table), encoding="utf-8")


if __name__ == "__main__":
    main()
