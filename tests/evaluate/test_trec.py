from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ir_measures
import pytest

from threefold.errors import EvaluationError
from threefold.evaluate.trec import check_ids, read_qrels, read_run, write_qrels, write_run

RUN = {"q1": {"b": 1.0, "a": 1.0, "c": 0.1 + 0.2}, "q2": {"x": -2.5}}
QRELS = {"q1": {"a": 1, "b": 0}, "q2": {"x": 2}}


def test_a_run_as_text(tmp_path: Path) -> None:
    write_run(tmp_path / "run", RUN, "mine")
    assert (tmp_path / "run").read_text().splitlines() == [
        "q1 Q0 a 1 1.0 mine",
        "q1 Q0 b 2 1.0 mine",
        "q1 Q0 c 3 0.30000000000000004 mine",
        "q2 Q0 x 1 -2.5 mine",
    ]
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]


def test_back_and_forth_and_read_by_ir_measures(tmp_path: Path) -> None:
    write_run(tmp_path / "run", RUN)
    write_qrels(tmp_path / "qrels", QRELS)
    assert read_run(tmp_path / "run") == RUN
    assert read_qrels(tmp_path / "qrels") == QRELS
    library: Any = ir_measures
    theirs = {(doc.query_id, doc.doc_id): doc.score for doc in library.read_trec_run(str(tmp_path / "run"))}
    assert theirs == {(query, doc): score for query, scores in RUN.items() for doc, score in scores.items()}
    judged = {(one.query_id, one.doc_id): one.relevance for one in library.read_trec_qrels(str(tmp_path / "qrels"))}
    assert judged == {(query, doc): grade for query, grades in QRELS.items() for doc, grade in grades.items()}


def test_tabs_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("q Q0\td 1 0.5 tag\n\n")
    assert read_run(tmp_path / "run") == {"q": {"d": 0.5}}
    (tmp_path / "qrels").write_text("q 0 d -1\n")
    assert read_qrels(tmp_path / "qrels") == {"q": {"d": -1}}


def test_a_byte_order_mark_is_no_part_of_the_first_query(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("\ufeffq Q0 d 1 0.5 tag\n", encoding="utf-8")
    (tmp_path / "qrels").write_text("\ufeffq 0 d +1\n", encoding="utf-8")
    assert read_run(tmp_path / "run") == {"q": {"d": 0.5}}
    assert read_qrels(tmp_path / "qrels") == {"q": {"d": 1}}


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (read_run, "q Q0 d 1 0.5\n", "run:1: expected 6 columns .*, got 5"),
        (read_run, "q Q0 d 1 0.5 t\nq Q0 e 1 high t\n", "run:2: the score must be a number, got 'high'"),
        (read_run, "q Q0 d 1 nan t\n", "run:1: the score must be a number, got 'nan'"),
        (read_run, "q Q0 d 1 2 t\nq Q0 d 2 1 t\n", "run:2: document 'd' is twice under query 'q'"),
        (read_qrels, "q 0 d\n", "run:1: expected 4 columns"),
        (read_qrels, "q 0 d 1.5\n", "run:1: the grade must be a whole number, got '1.5'"),
        (read_qrels, "q 0 d 1\nq 0 d 2\n", "run:2: document 'd' is twice"),
        (read_qrels, "q 0 d +-3\n", r"run:1: the grade must be a whole number, got '\+-3'"),
        (read_qrels, "q 0 d 1\nq 0 e 99999999999999999999\n", "run:2: the grade must be at most 1,000,000"),
    ],
)
def test_broken_lines_are_named(tmp_path: Path, read: Callable[[Path], object], text: str, message: str) -> None:
    (tmp_path / "run").write_text(text)
    with pytest.raises(EvaluationError, match=message):
        read(tmp_path / "run")


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="none: cannot be read: No such file"):
        read_run(tmp_path / "none")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(EvaluationError, match="not UTF-8"):
        read_qrels(tmp_path / "bytes")
    with pytest.raises(EvaluationError, match="cannot be written: No such file"):
        write_run(tmp_path / "no" / "run", RUN)
    with pytest.raises(EvaluationError, match="cannot be written: Not a directory"):
        write_run(tmp_path / "bytes" / "run", RUN)


def test_ids_that_the_format_cannot_hold(tmp_path: Path) -> None:
    for run, what in (({"a b": {"d": 1.0}}, "query id 'a b'"), ({"q": {"": 1.0}}, "document id ''")):
        with pytest.raises(EvaluationError, match=f"{what} is empty or has a space"):
            write_run(tmp_path / "run", run)
        with pytest.raises(EvaluationError, match=f"{what} is empty or has a space"):  # before the work
            check_ids(tmp_path, next(iter(run.values())), run)
    with pytest.raises(EvaluationError, match="tag"):
        write_run(tmp_path / "run", RUN, tag="")
    assert list(tmp_path.iterdir()) == []  # nothing half written
