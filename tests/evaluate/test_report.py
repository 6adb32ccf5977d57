from __future__ import annotations

import json

import pytest

from threefold.errors import EvaluationError
from threefold.evaluate.report import Report, Row


def row(task: str, mode: str, value: float, **warnings: int) -> Row:
    return Row(task, mode, {"nDCG@10": value}, documents=2, queries=3, protocol=f"{mode} as is", warnings=warnings)


REPORT = Report(
    (
        row("xquad/ar", "dense", 0.5),
        row("xquad/ar", "bm25", 0.25),
        row("xquad/de", "dense", 0.75, truncated=4),
        row("xquad/de", "bm25", 1.0),
        row("udhr/fra", "dense", 0.1),
        row("udhr/fra", "bm25", 0.3),
    ),
    {"model": "fake"},
)


def test_averages_worked_by_hand() -> None:
    assert REPORT.averages() == {
        "dense": {"nDCG@10": pytest.approx((0.5 + 0.75 + 0.1) / 3)},
        "bm25": {"nDCG@10": pytest.approx((0.25 + 1.0 + 0.3) / 3)},
    }
    assert REPORT.averages("xquad")["dense"]["nDCG@10"] == 0.625
    assert REPORT.incomplete() == []


def test_cells() -> None:
    assert REPORT.cells("nDCG@10") == [
        ["nDCG@10", "dense", "bm25"],
        ["xquad/ar", "50.0", "25.0"],
        ["xquad/de", "75.0", "100.0"],
        ["udhr/fra", "10.0", "30.0"],
        ["average xquad", "62.5", "62.5"],
        ["average", "45.0", "51.7"],
    ]
    with pytest.raises(EvaluationError, match="the report has no MRR@10; it has nDCG@10"):
        REPORT.cells("MRR@10")


def test_markdown() -> None:
    small = Report((row("a|b", "dense", 0.5, truncated=1_000),))
    assert small.to_markdown() == (
        "| nDCG@10 | dense |\n| --- | ---: |\n| a\\|b | 50.0 |\n\n"
        "- dense: dense as is\n\n"
        "Warnings:\n\n- a|b: 1,000 truncated\n"
    )


def test_json() -> None:
    data = json.loads(json.dumps(REPORT.to_dict()))
    assert data["about"] == {"model": "fake"}
    assert data["averages"]["bm25"] == {"nDCG@10": 0.516667}
    assert data["averages_by_collection"]["udhr"]["dense"] == {"nDCG@10": 0.1}
    assert data["rows"][2] == {
        "task": "xquad/de",
        "mode": "dense",
        "values": {"nDCG@10": 0.75},
        "documents": 2,
        "queries": 3,
        "protocol": "dense as is",
        "warnings": {"truncated": 4},
        "seconds": {},
    }


def test_a_mode_that_was_not_run_everywhere_says_so() -> None:
    report = Report((*REPORT.rows[:3], row("xquad/de", "multi", 0.2)))
    assert report.incomplete() == ["bm25", "multi"]
    assert report.cells("nDCG@10")[1:3] == [["xquad/ar", "50.0", "25.0", ""], ["xquad/de", "75.0", "", "20.0"]]
    assert "Not run on every set: bm25, multi." in report.to_markdown()
    assert report.to_dict()["incomplete_modes"] == ["bm25", "multi"]
    assert report.value("xquad/de", "bm25", "nDCG@10") is None
    assert report.value("xquad/de", "multi", "nDCG@10") == 0.2


def test_two_rows_for_one_figure_are_refused() -> None:
    with pytest.raises(EvaluationError, match="two rows for set 'a' in mode 'dense'"):
        Report((row("a", "dense", 0.1), row("a", "dense", 0.2)))


def test_an_empty_report() -> None:
    assert Report(()).to_dict()["averages"] == {}
