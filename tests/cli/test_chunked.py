"""`threefold encode --chunks`, and `threefold index --vectors`, which takes what that wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.test_cli import run, run_json

from threefold.shards import read_parquet

LONG = " ".join(f"The quick brown fox number {i} jumps over the lazy dog." for i in range(30))


@pytest.fixture
def docs(use: Path, tmp_path: Path) -> Path:
    """Two documents of several chunks, a table and a file that cannot be read; a tiny model and an empty home."""
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.md").write_text(f"# Foxes\n\n{LONG}")
    (folder / "b.txt").write_text(LONG[::-1])
    (folder / "rows.jsonl").write_text("\n".join(json.dumps({"id": f"r{i}", "text": f"row {i}"}) for i in range(3)))
    (folder / "c.bin").write_bytes(b"\0\1\2")
    return folder


def hits(capsys: pytest.CaptureFixture[str], name: str) -> Any:
    return [(hit["id"], hit["text"]) for hit in run_json(capsys, "search", "lazy fox", "--in", name, "-k", "20")]


@pytest.mark.parametrize("cut", [[], ["--max-tokens", "40", "--overlap", "10"]])
@pytest.mark.parametrize("way", [[], ["--shard", "3"]])
def test_chunks_are_encoded_once(
    docs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], cut: list[str], way: list[str]
) -> None:
    vectors = tmp_path / ("vectors" if way else "vectors.parquet")
    done = run_json(capsys, "encode", docs, "--chunks", "-o", vectors, *cut, *way)
    assert [reason.split("docs/")[1] for reason in done["skipped"]] == ["c.bin: the file is binary"]
    kept = run_json(capsys, "index", docs, "--into", "kept", "--vectors", vectors, *cut)
    plain = run_json(capsys, "index", docs, "--into", "plain", *cut)
    assert kept["precomputed"] == kept["chunks"] == done["texts"] == plain["chunks"] > 4
    assert "precomputed" not in plain
    assert (kept["tokens"], kept["total_chunks"]) == (plain["tokens"], plain["total_chunks"])
    assert hits(capsys, "kept") == hits(capsys, "plain")


def test_ids_are_those_of_the_chunks(docs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_json(capsys, "encode", docs, "--chunks", "--max-tokens", "40", "-o", tmp_path / "v.parquet")
    run_json(capsys, "index", docs, "--into", "plain", "--max-tokens", "40")
    ids, texts, _ = read_parquet(tmp_path / "v.parquet")
    found = dict(hits(capsys, "plain"))
    assert len(found) > 4
    assert found.items() <= dict(zip(ids, texts, strict=True)).items()


def test_index_passes_over_the_vectors_that_it_takes(
    docs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the files nor the job's own, through a link too."""
    (tmp_path / "link").symlink_to(docs)
    for _ in range(2):
        done = run_json(capsys, "encode", tmp_path / "link", "--chunks", "-o", docs / "vectors", "--shard", "3")
        assert done["files"] > 1
    kept = run_json(capsys, "index", docs, "--into", "kept", "--vectors", tmp_path / "link" / "vectors")
    assert kept["precomputed"] == kept["chunks"] == done["texts"]
    assert [one["path"].split("docs/")[1] for one in kept["skipped"]] == ["c.bin"]


def test_vectors_that_lack_what_a_collection_keeps(
    docs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said before the collection is made, which would then not be the one that is wanted."""
    vectors = tmp_path / "v.parquet"
    run_json(capsys, "encode", docs, "--chunks", "-o", vectors, "--outputs", "dense,sparse")
    code, _, err = run(capsys, "index", docs, "--into", "kept", "--vectors", vectors)
    assert (code, "has no multi vectors" in err, "(--multi none)" in " ".join(err.split())) == (3, True, True)
    for _ in range(2):
        done = run_json(capsys, "index", docs, "--into", "kept", "--vectors", vectors, "--multi", "none")
        assert done["precomputed"] == done["chunks"]
    run_json(capsys, "index", docs, "--into", "kept", "--vectors", vectors)


def test_what_has_changed_is_encoded_and_said(docs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_json(capsys, "encode", docs, "--chunks", "-o", tmp_path / "v.parquet")
    (docs / "d.txt").write_text("A new text.")
    code, _, err = run(capsys, "index", docs, "--into", "kept", "--vectors", tmp_path / "v.parquet")
    said = " ".join(err.split())
    assert code == 0
    assert "1 of the first" in said
    assert "are not among the vectors, and are encoded: were they cut as here" in said
    again = run_json(capsys, "index", docs, "--into", "kept", "--vectors", tmp_path / "v.parquet")
    assert (again["precomputed"], again["chunks"], again["unchanged"]) == (0, 0, 6)


def test_what_git_ignores(docs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (docs / ".gitignore").write_text("b.txt\n")
    some = run_json(capsys, "encode", docs, "--chunks", "-o", tmp_path / "some.parquet")
    assert [reason.split("docs/")[1] for reason in some["skipped"]] == [
        "b.txt: a .gitignore leaves it out; --ignored reads it",
        "c.bin: the file is binary",
    ]
    every = run_json(capsys, "encode", docs, "--chunks", "--ignored", "-o", tmp_path / "every.parquet")
    assert every["texts"] > some["texts"]
    for into, flags, chunks in (("some", [], some["texts"]), ("every", ["--ignored"], every["texts"])):
        assert run_json(capsys, "index", docs, "--into", into, *flags)["chunks"] == chunks


def test_several_places(docs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vectors = []
    for name in ("a.md", "b.txt", "rows.jsonl"):
        run_json(capsys, "encode", docs / name, "--chunks", "-o", tmp_path / f"{name}.parquet")
        vectors += ["--vectors", tmp_path / f"{name}.parquet"]
    done = run_json(capsys, "index", docs, "--into", "kept", *vectors)
    assert done["precomputed"] == done["chunks"]


def test_vectors_among_the_documents_are_no_documents(
    docs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        done = run_json(capsys, "encode", docs, "--chunks", "-o", docs / "vectors", "--shard", "3")
        assert len(done["skipped"]) == 1
    assert done["before"] == done["texts"]


def test_other_chunks_into_the_same_folder(docs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_json(capsys, "encode", docs, "--chunks", "-o", tmp_path / "v", "--shard", "3")
    code, _, err = run(capsys, "encode", docs, "--chunks", "--max-tokens", "40", "-o", tmp_path / "v")
    assert (code, "was made of other rows" in " ".join(err.split())) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["encode", "docs", "-o", "v.parquet"], "docs is not a file"),
        (["encode", "lines.txt", "-o", "v.parquet", "--overlap", "3"], "--overlap does nothing without --chunks"),
        (["encode", "docs", "--chunks", "-o", "v.parquet", "--title-field", "t"], "--title-field does nothing with"),
        (["encode", "docs", "--chunks", "-o", "v.parquet", "--truncate", "none"], "--truncate does nothing with"),
        (["encode", "absent", "--chunks", "-o", "v.parquet"], "absent does not exist"),
        (["encode", "docs", "--chunks", "-o", "v.parquet", "--max-tokens", "4"], "max_tokens must be at least 8"),
        (["encode", "docs", "--chunks", "-o", "v.parquet", "--max-tokens", "9000"], "reads at most"),
        (["index", "docs", "--into", "x", "--vectors", "absent.parquet"], "cannot read absent.parquet"),
        (["index", "docs", "--into", "x", "--vectors", "docs"], "docs has no Parquet files"),
        (["index", "docs", "--into", "x", "--vectors", "lines.txt"], "cannot read lines.txt"),
    ],
)
def test_what_is_refused(
    docs: Path,
    tmp_path: Path,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert (code, out, said in " ".join(err.split())) == (2, "", True), err
    assert not (tmp_path / "v.parquet").exists()
    assert not (home / "collections" / "x").exists()


def test_the_vectors_of_another_model(
    docs: Path, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_json(capsys, "encode", docs / "b.txt", "--chunks", "-o", tmp_path / "v.parquet", "--model", "threefold-mini")
    code, _, err = run(capsys, "index", docs, "--into", "x", "--vectors", tmp_path / "v.parquet")
    assert (code, "was made by threefold-mini" in " ".join(err.split())) == (2, True)
    assert not (home / "collections" / "x").exists()
