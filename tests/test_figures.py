"""The tables of README and model card say what the reports in results/ say."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
SUMMARY = runpy.run_path(str(ROOT / "runs" / "mini" / "summary.py"))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("*.json")) for row in json.loads(path.read_text())["rows"]]


@pytest.mark.parametrize("file", ["README.md", "src/threefold/models/mini/README.md"])
def test_every_figure_of_the_embedded_model_is_in_its_report(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    table = {title: SUMMARY["cells"](*part) for title, part in SUMMARY["parts"](rows_of(ROOT / "results/mini")).items()}
    shown = [title for title in table if f"| {title} |" in text or f"[{title}]" in text]
    assert len(shown) >= 13
    assert SUMMARY["brought_up_to_date"](text, table) == text


def test_a_row_is_the_mean_of_its_sets_and_the_best_is_bold() -> None:
    def row(task: str, mode: str, value: float) -> dict[str, Any]:
        return {"task": task, "mode": mode, "values": {"nDCG@10": value, "Recall@10": value}}

    rows = [row("xquad/de-de", "dense", 0.5), row("xquad/en-en", "dense", 0.6), row("xquad/en-en", "hybrid", 0.7)]
    rows += [row("xquad/de-en", "bm25", 0.25), row("cosqa/en-python", "sparse", 0.125)]
    table = {title: SUMMARY["cells"](*part) for title, part in SUMMARY["parts"](rows).items()}
    assert table == {
        "XQuAD, same language (2)": ["", "55.0", "", "", "**70.0**"],
        "XQuAD, across languages": ["**25.0**", "", "", "", ""],
        "CoSQA, code": ["", "", "**12.5**", "", ""],
    }
    text = "| [XQuAD, same language (2)](x.json) | nDCG@10 | 1 | 2 | 3 | 4 | 5 |\n| other | nDCG@10 | 1 |\n"
    assert SUMMARY["brought_up_to_date"](text, table) == (
        "| [XQuAD, same language (2)](x.json) | nDCG@10 |  | 55.0 |  |  | **70.0** |\n| other | nDCG@10 | 1 |\n"
    )
