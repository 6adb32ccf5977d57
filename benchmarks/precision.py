"""What each precision loses in ranking: nDCG@10 of every representation, against float32, on the same sets.

    python benchmarks/precision.py SETS... [--model MODEL] [--precisions int8] [--per-archive 2] [--queries 300]

SETS are folders or archives in BEIR layout; of each archive the first `--per-archive` sets, of each set the first
`--queries` judged queries. A precision that this processor only emulates is left out, and the result says so. Bars: a
change of at most 0.003 (bfloat16) and 0.008 (int8), per representation, in the mean over the sets.
Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from machine import machine

from threefold import Encoder
from threefold.encoder.products import fast_bfloat16
from threefold.evaluate.beir import iter_tasks
from threefold.evaluate.task import Task
from threefold.retrieve.experiment import run_task
from threefold.retrieve.modes import Protocol
from threefold.score import Weights

ROOT = Path(__file__).parent.parent
BARS = {"bfloat16": 0.003, "int8": 0.008}
MODES, MEASURE = ("dense", "sparse", "multi", "hybrid"), "nDCG@10"


def tasks_of(paths: list[Path], per_archive: int, queries: int) -> Iterator[Task]:
    for path in paths:
        for task in islice(iter_tasks(path), per_archive):
            asked = dict(islice(task.qrels.items(), queries))
            yield replace(task, qrels=asked, queries={id: task.queries[id] for id in asked})


def figures(model: str | None, precision: str, tasks: list[Task]) -> dict[str, dict[str, float]]:
    """{set: {mode: nDCG@10}}."""
    encoder = Encoder(model, device="cpu", precision=precision)  # type: ignore[arg-type]
    protocol = Protocol(modes=MODES, measures=(MEASURE,), weights=Weights(*encoder.card.fusion))
    found = {}
    for task in tasks:
        found[task.name] = {row.mode: row.values[MEASURE] for row in run_task(task, encoder, protocol).rows}
        print(
            precision, task.name, {mode: round(100 * value, 1) for mode, value in found[task.name].items()}, flush=True
        )
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("sets", nargs="+", type=Path)
    options.add_argument("--model", default=None)
    options.add_argument("--precisions", default="bfloat16,int8")
    options.add_argument("--per-archive", type=int, default=2)
    options.add_argument("--queries", type=int, default=300)
    options.add_argument("--output", type=Path, default=ROOT / "results" / "precision.json")
    args = options.parse_args()
    tasks = list(tasks_of(args.sets, args.per_archive, args.queries))
    wanted = args.precisions.split(",")
    absent = [name for name in wanted if name == "bfloat16" and not fast_bfloat16()]
    exact = figures(args.model, "float32", tasks)
    result = {"measure": MEASURE, "float32": exact, "precisions": {}, "emulated_here": absent, **machine()}
    print(f"\n{'mean change':12}" + "".join(f"{mode:>10}" for mode in MODES))
    for precision in (name for name in wanted if name not in absent):
        found = figures(args.model, precision, tasks)
        change = {mode: float(np.mean([found[name][mode] - by[mode] for name, by in exact.items()])) for mode in MODES}
        result["precisions"][precision] = {
            "figures": found,
            "mean_change": {mode: round(value, 5) for mode, value in change.items()},
            "bar": BARS[precision],
            "bar_met": max(map(abs, change.values())) <= BARS[precision],
        }
        print(f"{precision:12}" + "".join(f"{change[mode]:+10.4f}" for mode in MODES))
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
