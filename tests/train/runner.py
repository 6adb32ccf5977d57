"""A training run for the test that kills it: one JSON line per step, flushed. `python runner.py FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.train.small import trainer


def main() -> None:
    torch.set_num_threads(1)
    run = trainer(Path(sys.argv[1]))
    run.resume()

    def report(line: dict[str, float]) -> None:
        sys.stdout.write(json.dumps([line["step"], line["total"]]) + "\n")
        sys.stdout.flush()

    run.run(report)


if __name__ == "__main__":
    main()
