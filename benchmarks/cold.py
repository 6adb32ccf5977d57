"""From process start to exit, as a person types it: index the demo corpus, then answer a query. Warm disk.

Also `import threefold` in a process of its own, less what an empty process takes, and `threefold --version`.

    python benchmarks/cold.py [--rounds 5] [--output results/cold.json]

Bars: index and search each under 10 s on two cores, the import under 0.2 s. Prints a table, then one line of JSON.
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
BAR_S, IMPORT_BAR_S = 10.0, 0.2


def run(arguments: list[str], home: str) -> float:
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments],
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
    jobs = {
        "import": ["-c", "import threefold"],
        "version": ["-m", "threefold", "--version"],
        "index": ["-m", "threefold", "index", str(ROOT / "examples" / "corpus"), "--into", "demo"],
        "search": ["-m", "threefold", "search", "why is high water later every day?", "--in", "demo", "--why"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(args.rounds + 1):  # the first round warms the disk and is not counted
        with tempfile.TemporaryDirectory() as home:
            empty = run(["-c", ""], home)
            for name, arguments in jobs.items():
                seconds[name].append(run(arguments, home) - (empty if name == "import" else 0.0))
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    result = {
        "bar_s": BAR_S,
        "import_bar_s": IMPORT_BAR_S,
        "bars_met": {
            name: medians[name] < (IMPORT_BAR_S if name == "import" else BAR_S)
            for name in ("import", "index", "search")
        },
        "median_s": {name: round(value, 3) for name, value in medians.items()},
        "worst_s": {name: round(max(values[1:]), 3) for name, values in seconds.items()},
        "rounds": args.rounds,
        **machine(),
    }
    for name, values in seconds.items():
        print(f"{name:10} median {medians[name]:6.2f} s   worst {max(values[1:]):6.2f} s")
    args.output.parent.mkdir(exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
