from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.test_cli import run, run_json
from tests.encoder.checkpoints import bge_m3

from threefold.encoder.encoder import Encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model; read only."""
    return bge_m3(tmp_path_factory.mktemp("models") / "tiny")


def test_bench_compares_precisions_on_own_texts(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("The quick brown fox.\n今天天气很好。\n")
    options = ("--texts", lines, "--rounds", 1, "--threads", 1, "--precisions", "float32,int8", "--price-per-hour", 1)
    report = run_json(capsys, "bench", folder, *options)
    exact, int8 = report["precisions"]
    assert (exact["precision"], int8["precision"]) == ("float32", "int8")
    assert exact["cosines"]["dense"] == pytest.approx(1.0)
    assert 0.98 <= int8["cosines"]["dense"] < 1.0
    assert int8["cost_per_million_tokens"] == pytest.approx(1e6 / 3600 / int8["tokens_per_second"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--precisions", "half"), "expected some of float32, bfloat16, float16, int8"),
        (("--precisions", ","), "--precisions is empty"),
        (("--price-per-hour", "0"), "--price-per-hour must be above 0"),
        (("--price-per-hour", "nan"), "--price-per-hour must be above 0 and finite; got nan"),
        (("--price-per-hour", "inf"), "--price-per-hour must be above 0 and finite; got inf"),
        (("--threads", "0"), "threads must be at least 1; got 0"),
        (("--threads", "999999999"), "threads must be at most"),
    ],
)
def test_bench_refuses(options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "bench", *options)
    assert code == 2
    assert message in err


def test_bench_says_why_a_file_has_no_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.jsonl"
    file.touch()
    assert run(capsys, "bench", "--texts", file)[2].endswith("own.jsonl: there is no text in it\n")
    file.write_text('{"body": "a fox"}\n')
    code, _, err = run(capsys, "bench", "--texts", file)
    assert code == 2
    assert err.endswith("there is no text in it; own.jsonl, row 1: no text in the field 'text'\n")


def test_convert(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run_json(capsys, "convert", folder, "-o", tmp_path / "int8", "--precision", "int8")
    assert report["bytes"] == (tmp_path / "int8" / "model.safetensors").stat().st_size
    assert Encoder(tmp_path / "int8", precision="int8").card.hash == Encoder(folder, precision="float32").card.hash
    code, _, err = run(capsys, "convert", folder, "-o", tmp_path / "int8")
    assert code == 2
    assert "is not empty; choose another folder, or say --force" in err
