from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tests.fakes import hear_interrupts

from threefold.cli.main import main
from threefold.encoder.checkpoint import Model, ModelConfig, save
from threefold.encoder.heads import HeadsConfig
from threefold.encoder.network import NetworkConfig, initialise
from threefold.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model in our layout. Only its mechanics count here; quality is tested with the embedded one."""
    folder = tmp_path_factory.mktemp("model")
    network = NetworkConfig(vocab=tokenizer.vocab, hidden=16, layers=1, heads=2, ffn=32, positions=66, first_position=2)
    config = ModelConfig(network, HeadsConfig(multi_dim=8), max_tokens=64)
    random = Model(config)
    initialise(random, std=0.2)
    save(random, folder)
    tokenizer.save(folder / "tokenizer.json")
    return folder


@pytest.fixture
def use(model: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The commands use the tiny model and an empty home."""
    monkeypatch.setenv("THREEFOLD_MODEL", str(model))
    return home


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "fox.md").write_text("# Fox\n\nThe quick brown fox jumps over the lazy dog.")
    (folder / "wetter.txt").write_text("Сегодня хорошая погода. Мы идём гулять в парк.")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_index_then_search_finds_the_file_and_says_why(
    use: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run_json(capsys, "index", texts, "--into", "mine")
    assert (report["added"], report["total_chunks"]) == (2, 2)
    hits = run_json(capsys, "search", "quick fox", "--in", "mine", "--mode", "sparse", "--why")
    assert hits[0]["document_id"] == "fox.md"
    assert {match["term"] for match in hits[0]["why"]["terms"]} & {"▁quick", "▁fox", "▁"}
    code, out, _ = run(capsys, "search", "quick fox", "--in", "mine", "--why")
    assert code == 0
    assert "shared terms" in out


def test_indexing_again_skips_what_is_unchanged_and_replaces_what_is_not(
    use: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_json(capsys, "index", texts, "--into", "mine")
    (texts / "fox.md").write_text("# Fox\n\nThe fox sleeps.")
    (texts / "wetter.txt").unlink()
    report = run_json(capsys, "index", texts, "--into", "mine", "--delete-missing")
    assert (report["added"], report["replaced"], report["unchanged"], report["deleted"]) == (0, 1, 0, 1)


def test_list_and_delete(use: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_json(capsys, "index", texts, "--into", "mine")
    assert [entry["name"] for entry in run_json(capsys, "list")] == ["mine"]
    assert run_json(capsys, "delete", "fox.md", "--in", "mine") == {"deleted_chunks": 1}
    assert run(capsys, "delete", "fox.md", "--in", "mine")[0] == 1


def test_encode_writes_parquet_with_the_three_representations(
    use: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"id": "a", "text": "The lazy dog."}\nnot json\n{"id": "b", "text": ""}\n{"id": "c"}\n')
    target = tmp_path / "rows.parquet"
    summary = run_json(capsys, "encode", source, "-o", target)
    assert summary["texts"] == 2
    assert [reason.split(":")[0] for reason in summary["skipped"]] == ["rows.jsonl, row 2", "rows.jsonl, row 4"]
    table = pq.read_table(target)
    assert table["id"].to_pylist() == ["a", "b"]
    assert {"dense", "sparse_indices", "sparse_values", "multi", "tokens", "truncated"} <= set(table.column_names)
    assert not list(tmp_path.glob("*.part"))


def test_compare_and_info(use: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = run_json(capsys, "compare", "lazy dog", "lazy dog")
    assert same["scores"]["dense"] == pytest.approx(1.0, abs=0.01)
    assert same["scores"]["multi"] == pytest.approx(1.0, abs=0.01)
    facts = run_json(capsys, "info")
    assert (facts["dense_dim"], facts["multi_dim"], facts["max_tokens"]) == (16, 8, 64)


def test_evaluate_a_folder_in_beir_layout(use: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    documents = ["The quick brown fox", "The lazy dog", "five dozen liquor jugs"]
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": str(i), "title": "", "text": text}) + "\n" for i, text in enumerate(documents))
    )
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "lazy dog"}\n')
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\t1\t1\n")
    report = run_json(capsys, "evaluate", folder, "--modes", "bm25,sparse")
    bm25 = next(row for row in report["rows"] if row["mode"] == "bm25")
    assert bm25["values"]["nDCG@10"] == 1.0  # the only document with both words
    code, out, _ = run(capsys, "evaluate", folder, "--modes", "bm25", "--runs", tmp_path / "runs")
    assert (code, "nDCG@10" in out) == (0, True)
    assert list((tmp_path / "runs").rglob("*.trec"))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["search", "", "--in", "mine"], 2, "query is empty"),
        (["search", "fox", "--in", "mine", "-k", "0"], 2, "at least 1; got 0"),
        (["search", "fox", "--in", "mine", "--mode", "best"], 2, "unknown mode 'best'"),
        (["search", "fox", "--in", "mine", "--weights", "1,2"], 2, "expected three numbers"),
        (["search", "fox", "--in", "mine", "--where", "{"], 2, "--where is not JSON"),
        (["search", "fox", "--in", "absent"], 4, "no collection here"),
        (["search", "fox"], 2, "--in"),
        (["index", "no-such-folder", "--into", "mine"], 2, "no-such-folder"),
        (["info", "--model", "no-such-model"], 3, "neither a folder nor a name on the hub"),
        (["info", "--precision", "float8"], 2, "unknown precision 'float8'"),
        (["info", "--device", "abacus"], 2, "unknown device 'abacus'"),
        (["encode", "absent.txt", "-o", "x.parquet"], 2, "absent.txt is not a file"),
        (["evaluate", "absent"], 5, "absent"),
    ],
)
def test_bad_input_gets_one_clear_line_and_its_own_exit_status(
    use: Path, texts: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    run(capsys, "index", texts, "--into", "mine")
    got, out, err = run(capsys, *arguments)
    assert (got, out) == (code, "")
    assert said in " ".join(err.split())
    assert "Traceback" not in err


def test_a_folder_of_trouble_is_indexed_as_far_as_it_goes_and_the_rest_is_named(
    use: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything that goes wrong with files at once: one command, one summary, the good ones are found."""
    skipped = {
        "binary.txt": b"\x00\x01\x02\x03" * 64,
        "broken.pdf": b"%PDF-1.7\n1 0 obj\n<<garbage",
        "empty.md": b" \n\t\n",
        "latin.txt": "Stra\u00dfe".encode("latin-1"),
        "table.csv": b"name\nno such column\n",
    }
    taken = {
        "long.txt": b"The lazy dog sleeps. " * 500,
        "nul.txt": b"The fox " + b"is quick and brown, as everybody knows. " * 300 + b"\x00 end",
        "rows.jsonl": b'{"text": "a lone \\ud800 surrogate"}\nnot json\n',
    }
    for name, content in {**skipped, **taken}.items():
        (texts / name).write_bytes(content)
    report = run_json(capsys, "index", texts, "--into", "mine")
    assert report["added"] == 2 + len(taken)
    named = sorted(Path(one["path"]).name for one in report["skipped"])
    assert named == sorted([*skipped, "rows.jsonl:2"])
    assert all(one["reason"] for one in report["skipped"])
    hits = run_json(capsys, "search", "quick fox", "--in", "mine", "--mode", "sparse", "-k", "3")
    assert {hit["document_id"] for hit in hits} & {"fox.md", "nul.txt"}
    code, out, err = run(capsys, "index", texts, "--into", "mine")
    assert code == 0
    assert all(name in out + err for name in skipped)


def test_a_collection_of_another_model_is_refused_by_name(
    use: Path, texts: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tokenizer: Tokenizer
) -> None:
    run(capsys, "index", texts, "--into", "mine")
    other = tmp_path / "other"
    config = ModelConfig.from_dict(json.loads((model / "threefold.json").read_text()))
    changed = Model(config)
    initialise(changed, std=0.2, seed=1)
    save(changed, other)
    tokenizer.save(other / "tokenizer.json")
    code, _, err = run(capsys, "search", "fox", "--in", "mine", "--model", other)
    assert code == 4
    assert str(model) in err.replace("\n", "")
    assert str(other) in err.replace("\n", "")


def test_interrupting_an_index_run_keeps_what_was_finished(use: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(4000):
        (folder / f"{i:04}.txt").write_text(f"The quick brown fox number {i} jumps over the lazy dog.")
    command = [sys.executable, "-m", "threefold", "index", str(folder), "--into", "many"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=hear_interrupts)
    shard = use / "collections" / "many" / "shard"
    deadline = time.monotonic() + 60
    while not shard.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("this machine indexed 4,000 files before it could be interrupted")
    assert process.returncode == 130, err
    assert "Traceback" not in err
    again = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=120, check=True)
    report = json.loads(again.stdout)
    assert report["total_chunks"] == 4000
    assert report["added"] + report["unchanged"] == 4000


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version")[0] == 0
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for command in ("index", "search", "list", "delete", "encode", "compare", "info", "evaluate"):
        assert command in out
