from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.cli.test_cli import run, run_json
from tests.encoder.checkpoints import bge_m3
from tests.encoder.cross_checkpoints import bge_reranker
from tests.fakes import hear_interrupts

from threefold.encoder.cross import CrossEncoder
from threefold.encoder.encoder import Encoder
from threefold.retrieve.pairs import compare_texts

PAIRS = [
    ("fox", "The quick brown fox jumps."),
    ("dog", "The lazy dog sleeps."),
    ("park", "Wir gehen in den Park."),
    ("погода", "Сегодня хорошая погода."),
    ("box", "Pack my box with five dozen liquor jugs."),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny encoder and a tiny cross-encoder."""
    folder = tmp_path_factory.mktemp("models")
    return bge_m3(folder / "model"), bge_reranker(folder / "cross")


@pytest.fixture
def data(models: tuple[Path, Path], tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("THREEFOLD_MODEL", str(models[0]))
    monkeypatch.setenv("THREEFOLD_PRECISION", "float32")
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"query": q, "positive": p}) + "\n" for q, p in PAIRS))
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_mine_writes_the_record_of_the_community(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    corpus = tmp_path / "more.txt"
    corpus.write_text("今天天气很好。\n")
    report = run_json(capsys, "mine", data, "-o", out, "--corpus", corpus, "--ranks", "1:9", "--negatives", "3")
    assert (report["records"], report["negatives"], report["texts in the pool"]) == (5, 15, 6)
    for row, (query, positive) in zip(rows(out), PAIRS, strict=True):
        assert (row["query"], row["pos"], row["source"]) == (query, [positive], "data")
        assert len(set(row["neg"]) - {positive}) == 3
        assert set(row["neg"]) <= {text for _, text in PAIRS} | {"今天天气很好。"}
    again = tmp_path / "again.jsonl"
    run_json(capsys, "mine", data, "-o", again, "--corpus", corpus, "--ranks", "1:9", "--negatives", "3")
    assert again.read_bytes() == out.read_bytes()


def test_mine_with_scores_of_the_mode(
    data: Path, models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    code, _, err = run(
        capsys, "mine", data, "-o", out, "--ranks", "1:2", "--pick", "hardest", "--scores", "--margin", "-9"
    )
    assert code == 0, err
    assert "5 records" in err
    encoder = Encoder(models[0], precision="float32")
    for row in rows(out):
        scores = [compare_texts(encoder, row["query"], text).fused for text in (*row["pos"], *row["neg"])]
        assert row["pos_scores"] + row["neg_scores"] == pytest.approx(scores, abs=1e-5)
        assert len(row["neg"]) == 2


def test_mine_with_a_teacher(
    data: Path, models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    report = run_json(
        capsys, "mine", data, "-o", out, "--ranks", "1:9", "--negatives", "2", "--teacher", models[1], "--scores"
    )  # fmt: skip
    cross = CrossEncoder(models[1], device="cpu", precision="float32")
    for row in rows(out):
        expected = cross.score(row["query"], [*row["pos"], *row["neg"]])
        assert row["pos_scores"] + row["neg_scores"] == pytest.approx(expected.tolist(), abs=1e-5)
        assert max(row["neg_scores"], default=-9e9) < row["pos_scores"][0]
    assert report["negatives"] == sum(len(row["neg"]) for row in rows(out))


def test_nothing_found_is_said(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "mine", data, "-o", tmp_path / "out.jsonl", "--ranks", "50:60")
    assert code == 1
    assert "widen --ranks" in err
    assert [row["neg"] for row in rows(tmp_path / "out.jsonl")] == [[]] * 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ranks", "ten"], "--ranks 'ten'"),
        (["--mode", "best"], "unknown mode 'best'"),
        (["--seed", "-1"], "seed must be 0 or more; got -1"),
        (["--mode", "rrf", "--scores"], "does not score a query with one text"),
        (["--margin", "much"], "margin 'much'"),
        (["--pick", "best"], "'best' is not one of 'random', 'hardest'"),
        (["--corpus", "nowhere.txt"], "no such file"),
    ],
)
def test_mine_refuses(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    code, _, err = run(capsys, "mine", data, "-o", tmp_path / "out.jsonl", *options)
    assert code == 2
    assert message in err
    assert not (tmp_path / "out.jsonl").exists()


def test_bad_data_is_named_before_a_model_is_loaded(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THREEFOLD_MODEL", str(tmp_path / "no model"))
    data.write_text(data.read_text() + '{"query": "q", "pos": []}\n')
    for command in ("mine", "distil"):
        more = ["--reranker", "none"] if command == "distil" else []
        code, _, err = run(capsys, command, data, "-o", tmp_path / "out.jsonl", *more)
        assert code == 2
        assert 'data.jsonl:6: "pos" is empty' in err


def test_distil_by_a_cross_encoder_and_by_an_embedding_model(
    data: Path, models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mined, out = tmp_path / "mined.jsonl", tmp_path / "out.jsonl"
    run_json(capsys, "mine", data, "-o", mined, "--ranks", "1:9", "--negatives", "2")
    report = run_json(capsys, "distil", mined, "-o", out, "--reranker", models[1])
    assert (report["records"], report["pairs"], report["teacher"]) == (5, 15, str(models[1]))
    cross = CrossEncoder(models[1], device="cpu", precision="float32")
    for row, before in zip(rows(out), rows(mined), strict=True):
        scores = {name: row.pop(name) for name in ("pos_scores", "neg_scores")}
        assert row == before
        expected = cross.score(row["query"], [*row["pos"], *row["neg"]]).tolist()
        assert scores["pos_scores"] + scores["neg_scores"] == pytest.approx(expected, abs=1e-5)
    assert run_json(capsys, "distil", mined, "-o", out, "--model", models[0])["pairs"] == 15
    encoder = Encoder(models[0], precision="float32")
    for row in rows(out):
        expected = [compare_texts(encoder, row["query"], text).fused for text in (*row["pos"], *row["neg"])]
        assert row["pos_scores"] + row["neg_scores"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("teacher", "place", "odd"), [("--model", 0, "texts"), ("--reranker", 1, "pairs")])
def test_distil_says_what_the_teacher_did_not_read_to_its_end(
    teacher: str, place: int, odd: str, data: Path, models: tuple[Path, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data.write_text(json.dumps({"query": "fox", "pos": ["fox " * 9000], "neg": ["dog"]}) + "\n")
    report = run_json(capsys, "distil", data, "-o", tmp_path / "out.jsonl", teacher, models[place])
    assert report["odd"] == {f"{odd} longer than the teacher reads, cut": 1}


def test_distil_wants_one_teacher(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in ([], ["--reranker", "a", "--model", "b"]):
        code, _, err = run(capsys, "distil", data, "-o", tmp_path / "out.jsonl", *options)
        assert code == 2
        assert "give --reranker, or --model, and not both" in err


def test_an_interrupted_run_leaves_no_half_file(data: Path, models: tuple[Path, Path], tmp_path: Path) -> None:
    """Ctrl-C while a teacher reads: status 130 and nothing in the folder of the result."""
    folder = tmp_path / "results"
    folder.mkdir()
    many = tmp_path / "many.jsonl"
    lines = [{"query": f"fox {i}", "positive": f"The quick brown fox {i} jumps. " * 20} for i in range(3_000)]
    many.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-m", "threefold", "distil", many, "-o", folder / "out.jsonl", "--reranker", models[1]]
    process = subprocess.Popen([*map(str, command)], preexec_fn=hear_interrupts, stderr=subprocess.PIPE, text=True)
    while not any(folder.iterdir()) and process.poll() is None:  # the file under another name
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert list(folder.iterdir()) == []
