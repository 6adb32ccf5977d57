"""From process start to exit, as a person types it: index the demo corpus, then answer a query. Warm disk.

    python benchmarks/cold.py [--rounds 5] [--output results/cold.json]

Bars: each under 10 s on two cores. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import machine

ROOT = Path(__file__).parent.parent
BAR_S = 10.0


def run(arguments: list[str], home: str) -> float:
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "threefold", *arguments],
        env={**os.environ, "THREEFOLD_HOME": home, "THREEFOLD_OFFLINE": "1"},
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - start


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--output", type=Path, default=ROOT / "results" / "cold.json")
    args = options.parse_args()
    seconds: dict[str, list[float]] = {"version": [], "index": [], "search": []}
    for _ in range(args.rounds + 1):  # the first round warms the disk and is not counted
        with tempfile.TemporaryDirectory() as home:
            seconds["version"].append(run(["--version"], home))
            seconds["index"].append(run(["index", str(ROOT / "examples" / "corpus"), "--into", "demo"], home))
            query = ["search", "why is high water later every day?", "--in", "demo", "--why"]
            seconds["search"].append(run(query, home))
    result = {
        "bar_s": BAR_S,
        "median_s": {name: round(statistics.median(values[1:]), 3) for name, values in seconds.items()},
        "worst_s": {name: round(max(values[1:]), 3) for name, values in seconds.items()},
        "rounds": args.rounds,
        **machine(),
    }
    for name, values in seconds.items():
        print(f"{name:10} median {statistics.median(values[1:]):6.2f} s   worst {max(values[1:]):6.2f} s")
    args.output.parent.mkdir(exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
