"""Fine-tune the embedded model on 500 pairs of one's own, and see what it gained: docs/finetuning.md.

    python examples/finetune.py                 (minutes on two cores)

The pairs are of an invented trade with its own words (`examples/finetune/`): questions in plain words, answers in the
millers'. The gain is measured on 124 questions that were in no pair, among all 624 answers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from threefold import Encoder
from threefold.evaluate.beir import load_task
from threefold.retrieve.experiment import Mode, Protocol, run_task
from threefold.score import Weights
from threefold.train.recipe import read_recipe, read_toml
from threefold.train.run import Listener, train

DATA = Path(__file__).parent / "finetune"
MODES: tuple[Mode, ...] = ("dense", "sparse", "multi", "hybrid")
MEASURE = "nDCG@10"

out = Console(highlight=False, width=110)


def main() -> None:
    arguments = _arguments()
    began = time.perf_counter()
    table = read_toml(DATA / "recipe.toml") | {"output": str(arguments.output.resolve())}
    fine_tune(table, DATA)
    out.print(f"\ntrained in {time.perf_counter() - began:.0f} s; the new model is in {arguments.output}\n")
    show(measure(table["model"], DATA), measure(arguments.output, DATA))
    out.print(f"\nUse it: threefold index YOUR_FOLDER --into mine --model {arguments.output}")


def fine_tune(table: Mapping[str, Any], base: Path) -> Path:
    """What `threefold train recipe.toml` does: the settings of a recipe -> the folder of a model."""
    return train(read_recipe(table), base, listener=Lines()).folder


class Lines(Listener):
    """Progress, line by line."""

    def line(self, stage: str, line: Mapping[str, float]) -> None:
        losses = ", ".join(f"{name} {line[name]:.2f}" for name in ("dense", "sparse", "multi") if name in line)
        out.print(f"step {line['step']:.0f} of {line['of']:.0f}   loss: {losses}")


def measure(model: str | Path, data: Path) -> dict[Mode, float]:
    """nDCG@10 of every mode on the questions that were held out."""
    encoder = Encoder(model)
    weights = Weights(*encoder.card.fusion)
    outcome = run_task(load_task(data), encoder, Protocol(modes=MODES, measures=(MEASURE,), weights=weights))
    return {mode: outcome.judgements[mode].means[MEASURE] for mode in MODES}


def show(before: Mapping[Mode, float], after: Mapping[Mode, float]) -> None:
    """Both models side by side."""
    out.print(f"{MEASURE} on questions that were held out")
    table = Table(box=None)
    for column in ("", "before", "after"):
        table.add_column(column, justify="right" if column else "left")
    for mode in before:
        table.add_row(mode, f"{before[mode]:.3f}", f"{after[mode]:.3f}")
    out.print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fine-tune on examples/finetune and measure the gain.")
    parser.add_argument("--output", type=Path, default=Path("millers"), help="folder of the result")
    return parser.parse_args()


if __name__ == "__main__":
    main()
