from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.test_cli import run, run_json
from tests.encoder.checkpoints import bge_m3
from tests.encoder.cross_checkpoints import bge_reranker

from threefold.cli import options
from threefold.encoder.cross import CrossEncoder
from threefold.retrieve.stages import Candidates, Rerank, Retriever

LINES = ["The quick brown fox.", "今天天气很好。", "the lazy dog " * 40]


@pytest.fixture(scope="module")
def cross(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny cross-encoder."""
    return bge_reranker(tmp_path_factory.mktemp("models") / "cross")


@pytest.fixture
def use(cross: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A collection of two texts by a tiny model, in an empty home."""
    monkeypatch.setenv("THREEFOLD_MODEL", str(bge_m3(tmp_path / "model")))
    monkeypatch.setenv("THREEFOLD_PRECISION", "float32")
    monkeypatch.setenv("THREEFOLD_RERANKER", str(cross))
    folder = tmp_path / "texts"
    folder.mkdir()
    for i, line in enumerate(LINES[:2]):
        (folder / f"{i}.txt").write_text(line)
    return folder


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(LINES) + "\n")
    return path


def test_rerank_orders_the_lines_of_a_file(
    use: Path, lines: Path, cross: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = CrossEncoder(cross, device="cpu", precision="float32").score("fox", [line.strip() for line in LINES])
    report = run_json(capsys, "rerank", "fox", lines)
    assert (report["model"], report["precision"], report["skipped"]) == (str(cross), "float32", [])
    hits = report["hits"]
    assert [hit["score"] for hit in hits] == pytest.approx(sorted(scores.tolist(), reverse=True), abs=1e-5)
    assert {hit["id"]: hit["text"].strip() for hit in hits} == {
        str(i): line.strip() for i, line in enumerate(LINES, start=1)
    }
    best = run_json(capsys, "rerank", "fox", lines, "-k", "1", "--normalize")["hits"]
    assert [hit["id"] for hit in best] == [hits[0]["id"]]
    assert 0 < best[0]["score"] < 1


def test_rerank_for_people_says_what_was_cut(use: Path, lines: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "rerank", "fox", lines, "--max-tokens", "30")
    assert code == 0
    assert "The quick brown fox." in out
    assert "1 text was longer than the model reads and was cut" in err


def test_rerank_reads_rows_and_names_the_bad_ones(
    use: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"id": "a", "text": "fox"}\nnot json\n{"id": "b", "text": "dog"}\n')
    report = run_json(capsys, "rerank", "fox", source)
    assert sorted(hit["id"] for hit in report["hits"]) == ["a", "b"]
    assert report["skipped"][0].startswith("rows.jsonl, row 2")


def test_search_with_a_cross_encoder(use: Path, cross: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_json(capsys, "index", use, "--into", "mine")
    scores = CrossEncoder(cross, device="cpu", precision="float32").score("fox", LINES[:2])
    hits = run_json(capsys, "search", "fox", "--in", "mine", "--rerank", cross)
    assert [hit["score"] for hit in hits] == pytest.approx(sorted(scores.tolist(), reverse=True), abs=1e-5)
    assert all(hit["scores"]["cross"] == hit["score"] for hit in hits)
    assert len(run_json(capsys, "search", "fox", "--in", "mine", "--rerank", cross, "--rerank-depth", "1")) == 1


def test_saved_stages_take_their_model_from_the_option(
    use: Path, cross: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_json(capsys, "index", use, "--into", "mine")
    saved = home / "collections/mine/retrievers"
    saved.mkdir()
    stages = {"careful": Rerank("cross"), "quick": None}
    for name, rerank in stages.items():
        retriever = Retriever((Candidates("dense"),), rerank=rerank)
        (saved / f"{name}.json").write_text(json.dumps(retriever.to_dict()))
    hits = run_json(capsys, "search", "fox", "--in", "mine", "--retriever", "careful", "--rerank", cross)
    assert "cross" in hits[0]["scores"]
    code, _, err = run(capsys, "search", "fox", "--in", "mine", "--retriever", "careful")
    assert (code, "--rerank MODEL" in " ".join(err.split())) == (2, True)
    code, _, err = run(capsys, "search", "fox", "--in", "mine", "--retriever", "quick", "--rerank", cross)
    assert (code, "do not rerank by" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["rerank", "", "{lines}"], 2, "query is empty"),
        (["rerank", "fox", "{lines}", "-k", "0"], 2, "-k must be at least 1"),
        (["rerank", "fox", "absent.txt"], 2, "absent.txt is not a file"),
        (["rerank", "fox", "{lines}", "--model", "no-such-model"], 3, "neither a folder nor a name on the hub"),
        (["rerank", "fox", "{lines}", "--max-tokens", "3"], 2, "max_tokens must be at least"),
        (["search", "fox", "--in", "mine", "--rerank", "no-such-model"], 3, "neither a folder nor a name on the hub"),
        (["search", "fox", "--in", "no", "--rerank", "{cross}", "--retriever", "x"], 4, "no collection"),
    ],
)
def test_bad_input_gets_one_clear_line(
    use: Path, lines: Path, cross: Path, capsys: pytest.CaptureFixture[str], arguments: Any, code: int, said: str
) -> None:
    run(capsys, "index", use, "--into", "mine")
    got, out, err = run(capsys, *(argument.format(lines=lines, cross=cross) for argument in arguments))
    assert (got, out) == (code, "")
    assert said in " ".join(err.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rerank", "fox", "{lines}", "--max-tokens", "0"], "--max-tokens must be at least 1; got 0"),
        (["search", "fox", "--in", "mine", "--rerank-depth", "0"], "--rerank-depth must be at least 1; got 0"),
        (["search", "fox", "--in", "mine", "--rerank-depth", "-3"], "--rerank-depth must be at least 1; got -3"),
        (["search", "fox", "--in", "mine", "--retriever", "quick"], "'quick' do not rerank by \"cross\""),
        (["search", "fox", "--in", "mine", "--retriever", "x"], "no retriever 'x'; saved are: quick"),
    ],
)
def test_options_are_refused_before_a_model_is_loaded(
    use: Path,
    lines: Path,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    run(capsys, "index", use, "--into", "mine")
    saved = home / "collections/mine/retrievers"
    saved.mkdir()
    (saved / "quick.json").write_text(json.dumps(Retriever((Candidates("dense"),)).to_dict()))
    for name in ("open_encoder", "open_reranker"):
        monkeypatch.setattr(options, name, lambda *_: pytest.fail("a model was loaded"))
    given = [one.format(lines=lines) for one in arguments] + ["--rerank", "any"] * (arguments[0] == "search")
    code, out, err = run(capsys, *given)
    assert (code, out) == (2, "")
    assert said in " ".join(err.split())


def test_a_file_without_texts(use: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    assert run(capsys, "rerank", "fox", tmp_path / "empty.txt")[0] == 1
