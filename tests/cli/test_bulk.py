"""`threefold encode` into a folder, without Ray; with it see `tests/integrations/test_ray.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import LINES
from tests.cli.test_cli import run, run_json

from threefold.shards import read_parquet


def test_a_folder_has_what_one_file_has(use: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = run_json(capsys, "encode", use, "-o", tmp_path / "one.parquet")
    many = run_json(capsys, "encode", use, "-o", tmp_path / "many", "--shard", "20")
    assert (one["texts"], one["tokens"]) == (many["texts"], many["tokens"])
    assert (many["folder"], many["files"], many["before"]) == (str(tmp_path / "many"), 3, 0)
    files = sorted((tmp_path / "many").glob("*.parquet"))
    assert [file.name for file in files] == [f"part-{i:06}.parquet" for i in range(3)]
    assert [text for file in files for text in read_parquet(file)[1]] == LINES


def test_a_folder_goes_on_by_itself(use: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_json(capsys, "encode", use, "-o", tmp_path / "many", "--shard", "20")
    (tmp_path / "many" / "part-000001.parquet").unlink()
    again = run_json(capsys, "encode", use, "-o", tmp_path / "many")
    assert (again["before"], again["texts"]) == (30, 50)
    code, out, err = run(capsys, "encode", use, "-o", tmp_path / "many")
    assert (code, out) == (0, "")
    assert "50 of the texts were there already, from an earlier run" in err
    assert "tokens/s" not in err  # nothing was encoded


@pytest.mark.parametrize("command", [["encode", "-o", "x.parquet"], ["classify", "--labels", "a,b"]])
def test_a_document_is_no_list_of_texts(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "invoice.PDF").write_bytes(b"%PDF-1.4\n1 0 obj\n")
    code, out, err = run(capsys, command[0], tmp_path / "invoice.PDF", *command[1:])
    assert (code, out, "is a document and not a list of texts" in " ".join(err.split())) == (2, "", True)


def test_no_texts(use: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    use.write_text("")
    code, out, _ = run(capsys, "encode", use, "-o", tmp_path / "many", "--shard", "20", "--json")
    assert (code, '"files": 0' in out) == (1, True)


def test_an_earlier_file_is_not_replaced_by_nothing(
    use: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, rows = tmp_path / "one.parquet", tmp_path / "rows.jsonl"
    run_json(capsys, "encode", use, "-o", target)
    rows.write_text('{"body": "a"}\n')
    code, out, err = run(capsys, "encode", rows, "-o", target)
    assert (code, out, "one.parquet was not written" in " ".join(err.split())) == (1, "", True)
    assert "no text in the field 'text'" in err
    assert read_parquet(target)[1] == LINES
    code, out, _ = run(capsys, "encode", rows, "-o", target, "--json")
    assert (code, '"file": null' in out) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-o", "lines.txt", "--shard", "20"], "cannot make the folder lines.txt"),
        (["-o", ".", "--shard", "20"], "holds other files"),
        (["-o", "many", "--shard", "21"], "many was begun with texts_per_file 20, not 21"),
        (["-o", "many", "--outputs", "dense"], "many was begun with outputs"),
        (["-o", "many", "--precision", "bfloat16"], "many was begun with a model of the precision 'float32'"),
        (["-o", "s3://mine/vectors", "--shard", "20"], "s3://mine/vectors is in an object store"),
        (["-o", "model"], "model is a folder; give the name of a file"),
    ],
)
def test_what_is_refused(
    use: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    run_json(capsys, "encode", use, "-o", "many", "--shard", "20")
    code, out, err = run(capsys, "encode", "lines.txt", *arguments)
    assert (code, out) == (2, "")
    assert said in " ".join(err.split())
    assert not Path("s3:").exists()


def test_an_input_in_an_object_store(use: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "encode", "s3://mine/rows.jsonl", "-o", tmp_path / "x.parquet")
    assert (code, "is in an object store" in err) == (2, True)


@pytest.mark.parametrize("where", ["local", "auto", "10.0.0.1:6379"])
def test_ray_that_is_not_installed(
    use: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any, where: str
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code, out, err = run(capsys, "encode", use, "-o", tmp_path / "many", "--ray", where)
    assert (code, out) == (7, "")
    assert 'Install it with: pip install "threefold[ray]"' in " ".join(err.split())
    assert not (tmp_path / "many").exists()
