from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from threefold.errors import EvaluationError
from threefold.evaluate.answers import judge_task
from threefold.evaluate.compare import Detail, best_mode, contrasts, contrasts_with_saved, wins
from threefold.evaluate.html import html_report
from threefold.evaluate.report import Report, Row
from threefold.evaluate.svg import bars, curves, strip
from threefold.evaluate.task import Task
from threefold.evaluate.trec import write_run

MEASURES = ("nDCG@10", "Recall@100")


def detail(name: str, good: str = "dense", answers: bool = False) -> Detail:
    """Ten queries; the good mode finds every document first, the other one last of two."""
    ids = [f"{i}" for i in range(10)]
    task = Task(
        name,
        {f"d{id}": f"text <b>{id}</b> of {name}" for id in ids},
        {id: f"query & {id}" for id in ids},
        {id: {} if answers else {f"d{id}": 1} for id in ids},
        answers={id: (f"{id}",) for id in ids} if answers else None,
    )
    right = {id: {f"d{id}": 2.0, f"d{(int(id) + 1) % 10}": 1.0} for id in ids}
    wrong = {id: {f"d{id}": 1.0, f"d{(int(id) + 1) % 10}": 2.0} for id in ids}
    runs = {"dense": right if good == "dense" else wrong, "bm25": wrong if good == "dense" else right}
    measures = ("answer@20",) if answers else MEASURES
    return Detail(task, runs, {mode: judge_task(task, run, measures) for mode, run in runs.items()})


def report(details: list[Detail]) -> Report:
    rows = [
        Row(one.task.name, mode, judgement.means, 10, 10, f"{mode} & co", {"truncated": 1})
        for one in details
        for mode, judgement in one.judgements.items()
    ]
    return Report(tuple(rows), {"model": "<model>"})


class Balanced(HTMLParser):
    """Counts what is open, and collects text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: object) -> None: ...

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> str:
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    return " ".join(parser.text)


def test_the_page_holds_figures_charts_and_failures() -> None:
    details = [detail("miracl/sw"), detail("miracl/yo"), detail("mine", good="bm25")]
    page = html_report(report(details), details)
    text = read(page)
    assert "<model>" in text
    assert "text <b>0</b> of mine" in text  # shown, not obeyed
    assert "query & 0" in text
    assert page.count("<svg") == 1 + 1 + 3
    assert "bge-m3, published" in text
    assert "79.6" not in text  # the figure of hybrid, which was not run
    assert "78.7" in text
    assert "bm25 against dense, nDCG@10: -12.3; better on 1, worse on 2 of 3 sets" in text
    for outside in ("http://", "https://", "src=", "<script", "<link"):
        assert outside not in page.replace('xmlns="http://www.w3.org/2000/svg"', "")


def test_a_task_with_answers() -> None:
    details = [detail("mkqa/th", answers=True)]
    assert "answers: 0" in read(html_report(report(details), details))


def test_one_mode_has_nobody_to_compare_with() -> None:
    full = detail("a")
    one = Detail(full.task, {"dense": full.runs["dense"]}, {"dense": full.judgements["dense"]})
    assert "the best mode" not in read(html_report(report([one]), [one]))


def test_wins_by_hand() -> None:
    """Dense wins all ten queries of two sets and loses all ten of the third."""
    details = [detail("a"), detail("b"), detail("c", good="bm25")]
    shares = wins(details, "nDCG@10")
    assert shares == {("dense", "bm25"): pytest.approx(2 / 3), ("bm25", "dense"): pytest.approx(1 / 3)}
    text = read(html_report(report(details), details))
    assert "66.7" in text
    assert "33.3" in text


def test_the_worst_queries_are_of_every_set() -> None:
    details = [detail(f"set-{i}") for i in range(5)]
    text = read(html_report(report(details), details))
    assert all(text.count(f"· set-{i} ·") == 6 for i in range(5))  # 30 shown, in turn
    assert "relevant, first on rank 1:" in text


def test_contrasts_by_hand() -> None:
    (one,) = contrasts([detail("a"), detail("b", good="bm25")], "nDCG@10", "dense")
    loss = 1 - 0.6309297535714575  # 1 / log2(3)
    assert (one.a, one.b) == ("bm25", "dense")
    assert one.sets["a"].difference == pytest.approx(-loss)
    assert (one.sets["a"].losses, one.sets["b"].wins) == (10, 10)
    assert one.difference == pytest.approx(0)
    assert (one.better, one.worse) == (1, 1)
    assert one.to_dict()["difference"] == 0
    assert best_mode([detail("a"), detail("b")], "nDCG@10") == "dense"
    with pytest.raises(EvaluationError, match="no mode 'multi' to compare with; there are dense, bm25"):
        contrasts([detail("a")], "nDCG@10", "multi")
    with pytest.raises(EvaluationError, match="nothing was measured by MRR@10"):
        best_mode([detail("a")], "MRR@10")


def test_against_saved_runs(tmp_path: Path) -> None:
    now, before = detail("x/a"), detail("x/a", good="bm25")
    with pytest.raises(EvaluationError, match="no run of these modes and sets"):
        contrasts_with_saved([now], "nDCG@10", tmp_path)
    (tmp_path / "dense/x").mkdir(parents=True)
    write_run(tmp_path / "dense/x/a.trec", before.runs["dense"])
    (one,) = contrasts_with_saved([now], "nDCG@10", tmp_path)
    assert (one.a, one.b, one.better) == ("dense", "dense (saved)", 1)
    assert "dense against dense (saved)" in read(html_report(report([now]), [now], [one]))


def test_charts_are_xml() -> None:
    for chart in (
        bars({"a & b": {"dense": 0.5, "bm25": None}}, ["dense", "bm25"]),
        curves({"dense": [(1, 0.1), (10, 0.9)]}),
        strip(3, 2, 1),
        strip(0, 0, 0),
        curves({}),
    ):
        ElementTree.fromstring(chart)
    assert 'height="90.0"' in bars({"a": {"dense": 0.5}}, ["dense"])
