from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tests.fakes import hear_interrupts

from threefold.cli import options
from threefold.cli.main import main
from threefold.encoder.checkpoint import Model, ModelConfig, save
from threefold.encoder.heads import HeadsConfig
from threefold.encoder.network import NetworkConfig, initialise
from threefold.opening import collection_folder
from threefold.serve.keys import create_key
from threefold.text.tokenizer import Tokenizer

#: A name of a file as Python reads it where its bytes are no UTF-8.
NOT_UTF_8 = os.fsdecode(b"caf\xe9")


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
    assert "mine: 1 added, 1 unchanged; 2 chunks in all\n1 chunk, " in run(capsys, "index", texts, "--into", "mine")[2]
    assert run(capsys, "delete", "fox.md", "--in", "mine")[2] == "1 chunk deleted from mine\n"


def test_encode_writes_parquet_with_the_three_representations(
    use: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "rows.jsonl"
    rows = ['{"id": "a", "text": "The lazy dog."}', "not json", '{"id": null, "text": ""}', '{"id": "c"}']
    source.write_text("\n".join([*rows, '{"id": {"a": 1}, "text": "fox"}']))
    target = tmp_path / "rows.parquet"
    summary = run_json(capsys, "encode", source, "-o", target)
    assert summary["texts"] == 2
    assert [reason.split(":")[0] for reason in summary["skipped"]] == [f"rows.jsonl, row {i}" for i in (2, 4, 5)]
    table = pq.read_table(target)
    assert table["id"].to_pylist() == ["a", "3"]
    assert {"dense", "sparse_indices", "sparse_values", "multi", "tokens", "truncated"} <= set(table.column_names)
    assert not list(tmp_path.glob(".*"))


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
        (["serve", "--set", "=1", "--show-config"], 2, "--set =1: expected name=value"),
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
    _, _, err = run(capsys, "index", texts, "--into", "mine")
    assert f"skipped {texts / 'latin.txt'}: the file is not valid UTF-8: " in err
    assert all(line.count(str(texts)) == 1 for line in err.splitlines() if line.startswith("skipped"))
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


# ---- what a newcomer tried -------------------------------------------------------------------------------


def test_a_result_never_takes_the_place_of_what_is_read_or_of_a_device(
    use: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "same.jsonl"
    file.write_text('{"text": "a fox"}\n')
    code, _, err = run(capsys, "encode", file, "-o", file)
    assert (code, "is what would be read" in err.replace("\n", " ")) == (2, True)
    assert file.read_text() == '{"text": "a fox"}\n'
    for command in (["mine", file], ["distil", file, "--model", "x"]):
        assert run(capsys, *command, "-o", file)[0] == 2
    assert file.read_text() == '{"text": "a fox"}\n'
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    code, _, err = run(capsys, "encode", file, "-o", pipe)
    assert (code, "not an ordinary file" in err.replace("\n", " ")) == (2, True)
    assert pipe.is_fifo()
    target, link = tmp_path / "real.parquet", tmp_path / "link.parquet"
    target.write_bytes(b"old")
    link.symlink_to(target)
    assert run(capsys, "encode", file, "-o", link)[0] == 0
    assert link.is_symlink()
    assert pq.read_table(target).num_rows == 1
    assert not list(tmp_path.glob(".*"))


def test_a_collection_of_a_local_model_opens_from_anywhere(
    home: Path, texts: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.delenv("THREEFOLD_MODEL", raising=False)
    monkeypatch.chdir(model.parent)
    assert run(capsys, "index", texts, "--into", "here", "--model", model.name)[0] == 0
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "search", "quick fox", "--in", "here")[0] == 0
    assert run_json(capsys, "optimize", "--in", "here") == {"collection": "here", "optimized": True}


def test_the_revision_of_a_collection_is_remembered(
    use: Path, texts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model from the hub; here its manifest says so."""
    run(capsys, "index", texts, "--into", "mine")
    monkeypatch.delenv("THREEFOLD_MODEL")
    file = collection_folder("mine") / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model": "me/mini", "revision": "a" * 40}))
    asked: list[tuple[str | None, str | None]] = []

    def stop(model: str | None, revision: str | None = None, *_: object) -> None:
        asked.append((model, revision))
        raise KeyboardInterrupt

    monkeypatch.setattr(options, "open_encoder", stop)
    for command in (["search", "x"], ["delete", "x"], ["optimize"]):
        main([*command, "--in", "mine"])
    main(["search", "x", "--in", "mine", "--revision", "b" * 40])
    assert asked == [("me/mini", "a" * 40)] * 3 + [("me/mini", "b" * 40)]


def test_names_with_brackets_are_names(use: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("papers[v2]", "we[-bold]ird"):
        code, _, err = run(capsys, "index", texts, "--into", name)
        assert code == 0
        assert f"{name}: 2 added" in err
    assert "papers[v2]" in run(capsys, "list")[1]


def test_a_terminal_does_not_obey_the_texts_that_are_shown(
    use: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad\x1b[2J.md").write_text("# A\x1b[31m title\n\nThe fox \x1b[31m is\x9b red.")
    code, _, err = run(capsys, "index", tmp_path, "--into", "mine")
    assert code == 0
    _, out, _ = run(capsys, "search", "fox", "--in", "mine", "--why")
    assert "fox \ufffd[31m is\ufffd red." in out
    assert not {"\x1b", "\x9b"} & {*out, *err}


def test_what_a_search_on_the_command_line_refuses(use: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_json(capsys, "index", texts, "--into", "mine")
    for arguments, message in [
        (["--rerank-depth", "5"], "give that as well, or leave it out"),
        (["--where", "[" * 100_000], "--where is not JSON"),
        (["-k", "0"], "k must be a whole number of at least 1"),
    ]:
        code, _, err = run(capsys, "search", "fox", "--in", "mine", *arguments)
        assert (code, message in err) == (2, True)


def test_two_folders_with_files_of_one_name(use: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "readme.md").write_text(f"The fox of folder {name}.")
    assert run_json(capsys, "index", tmp_path / "one", "--into", "both")["added"] == 1
    code, out, _ = run(capsys, "index", tmp_path / "two", "--into", "both", "--json")
    assert code == 1  # nothing was taken, whatever was there before
    assert "--prefix" in json.loads(out)["skipped"][0]["reason"]
    assert run_json(capsys, "index", tmp_path / "two", "--into", "both", "--prefix", "two")["added"] == 1
    again = run_json(capsys, "index", tmp_path / "two", "--into", "both", "--prefix", "two/")  # as people write folders
    assert (again["added"], again["unchanged"]) == (0, 1)


def test_a_folder_that_is_named_without_its_path(
    use: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run(capsys, "index", texts, "--into", "./here")
    code, _, err = run(capsys, "search", "fox", "--in", "here")
    assert (code, "There is one in a folder of this name: say ./here" in " ".join(err.split())) == (4, True)
    code, _, err = run(capsys, "search", "fox", "--in", "nowhere")
    assert (code, "Create it, or correct the path" in " ".join(err.split())) == (4, True)


def test_texts_from_a_pipe(
    use: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "made.parquet"
    for name in ("-", "/dev/stdin"):
        given = io.BytesIO(b"\xef\xbb\xbfa quick fox\n\n\xc3\xa4 lazy dog\n")
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(given))
        run_json(capsys, "encode", name, "-o", target)
        assert pq.read_table(target)["text"].to_pylist() == ["a quick fox", "\u00e4 lazy dog"]
        assert pq.read_table(target)["id"].to_pylist() == ["1", "3"]
    pipe = tmp_path / "pipe"  # as the shell makes one of <(...)
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("a fox\n",))
    writer.start()
    assert run_json(capsys, "encode", pipe, "-o", target)["texts"] == 1
    writer.join()
    code, _, err = run(capsys, "encode", "-", "-o", target, "--text-field", "body")
    assert (code, "--text-field does nothing without a table" in err) == (2, True)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a fox\n\xff\n")))
    code, _, err = run(capsys, "encode", "-", "-o", target)
    assert (code, "standard input is not valid UTF-8: invalid start byte at byte 6" in err) == (2, True)


@pytest.mark.parametrize(
    "line",
    [
        "encode FILE -o -",
        "map --in x -o -",
        "map --in x -o a.html --points -",
        "mine FILE -o -",
        "distil FILE -o - --model x",
        "tune FILE -o -",
        "export -o -",
        "convert x -o -",
        "classify --examples FILE --save -",
        "evaluate FILE --save -",
        "evaluate FILE --html -",
        "evaluate FILE --runs -",
        "evaluate FILE --cache -",
        "train recipe.toml --output -",
    ],
)
def test_no_result_is_called_by_a_dash(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("file.jsonl", '{"text": "a fox"}\n'), ("recipe.toml", "")):
        (tmp_path / name).write_text(text)
    code, _, err = run(capsys, *(part.replace("FILE", "file.jsonl") for part in line.split()))
    assert (code, "'-' is no place for a result" in " ".join(err.split())) == (2, True)
    assert not (tmp_path / "-").exists()


def test_one_damaged_collection_does_not_hide_the_others(
    use: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "index", texts, "--into", "good")
    broken = collection_folder("broken")
    broken.mkdir()
    (broken / "manifest.json").write_text("{")
    code, out, err = run(capsys, "list", "--json")
    assert (code, [one["name"] for one in json.loads(out)]) == (4, ["good"])
    assert "broken" in err


def test_a_collection_that_cannot_be_read_does_not_hide_the_others(
    use: Path, texts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ours", "theirs"):
        run(capsys, "index", texts, "--into", name)
    (collection_folder("ours").parent / "notes.txt").write_text("no collection")
    lstat = Path.lstat

    def guarded(path: Path) -> os.stat_result:
        if path.parent.name == "theirs":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", guarded)
    code, out, err = run(capsys, "list", "--json")
    assert (code, [one["name"] for one in json.loads(out)]) == (4, ["ours"])
    assert err.endswith("theirs/manifest.json: Permission denied\n")


def test_a_home_that_cannot_be_read_is_not_one_without_collections(
    use: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_json(capsys, "list") == []
    (tmp_path / "file").touch()
    monkeypatch.setenv("THREEFOLD_HOME", str(tmp_path / "file"))
    code, out, err = run(capsys, "list", "--json")
    assert (code, out) == (2, "")
    assert "file/collections: Not a directory" in err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["search", "x", "--in", "FILE"], 4, "no collection here"),
        (["index", "TEXTS", "--into", "a" * 300], 2, "File name too long"),
        (["index", "TEXTS", "--into", "x", "--multi", "foo"], 2, "multi_storage 'foo'"),
        (["index", "TEXTS", "no-such-file", "--into", "x"], 2, "no-such-file does not exist"),
        (["convert", "MODEL", "-o", "BELOW"], 2, "fox.md/model: Not a directory"),
        (["convert", "MODEL", "-o", NOT_UTF_8], 2, "the name is not UTF-8"),
        (["export", "MODEL", "-o", NOT_UTF_8], 2, "the name is not UTF-8"),
        (["encode", "FILE", "-o", NOT_UTF_8], 2, "the name is not UTF-8"),
        (["choose", "TEXTS", "--cache", "FILE"], 2, "is a file; give the name of a folder"),
        (["search", "x", "--in", "mine", "-k", str(2**70)], 2, "k must be at most"),
        (["search", "x", "--in", "mine", "--where", '{"": 1}'], 2, "needs the name of a field"),
        (["search", "x", "--in", "mine", "--weights", "dense=1,dense=0.3"], 2, "names a representation twice"),
        (["index", "no\nfile", "--into", "x"], 2, "error: no file does not exist"),
        (["keys", "create", "ann", "--file", "nowhere/keys.json"], 2, "the folder nowhere does not exist"),
        (["keys", "create", "ann", "--file", ""], 2, "--file '.': expected the name of a file"),
        (["keys", "revoke", "key-1", "--file", "/"], 2, "--file '/': expected the name of a file"),
        (["keys", "credit", "key-1", "--file", "KEYS", "--make", "--amount", "nan"], 2, "--amount nan"),
        (["keys", "create", "ann", "--file", "PIPE"], 2, "is not an ordinary file"),
        (["keys", "revoke", "key-1", "--file", "PIPE"], 2, "is not an ordinary file"),
        (["index", "", "--into", "x"], 2, "'' names nothing; the current folder is '.'"),
        (["convert", "MODEL", "-o", ""], 2, "'' names nothing"),
        (["choose", ""], 2, "'' names nothing"),
        (["choose", "TEXTS", "--cache", ""], 2, "'' names nothing"),
        (["mine", "", "-o", "x.jsonl"], 2, "'' names nothing"),
        (["mine", "FILE", "-o", "x.jsonl", "--corpus", ""], 2, "'' names nothing"),
        (["evaluate", ""], 2, "'' names nothing"),
        (["evaluate", "TEXTS", "--runs", ""], 2, "'' names nothing"),
        (["evaluate", "TEXTS", "--data", ""], 2, "'' names nothing"),
        (["tune", "", "-o", "x.json"], 2, "'' names nothing"),
    ],
)
def test_what_nobody_meant_is_one_line_too(
    arguments: list[str], status: int, message: str, use: Path, texts: Path, model: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run(capsys, "index", texts, "--into", "mine")
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"keys": [], "version": 1}))
    _, key = create_key(tmp_path / "own.json", "ann", ["embed"])
    places = {"TEXTS": texts, "FILE": texts / "fox.md", "KEYS": tmp_path / "own.json", "key-1": key.id}
    os.mkfifo(tmp_path / "pipe")
    places |= {"PIPE": tmp_path / "pipe"}
    places |= {"MODEL": model, "BELOW": texts / "fox.md/model", NOT_UTF_8: tmp_path / NOT_UTF_8}
    code, _, err = run(capsys, *(places.get(one, one) for one in arguments))
    assert code == status
    assert message in err.replace("\n", " ")
    assert err.startswith("Usage") or len(err.splitlines()) == 1
    assert not collection_folder("x").exists()


def test_json_is_utf_8_whatever_the_terminal_says(use: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "index", texts, "--into", "mine")
    command = [sys.executable, "-m", "threefold", "search", "погода", "--in", "mine", "--json"]
    said = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}, check=True)
    assert "погода" in json.loads(said.stdout.decode("utf-8"))[0]["text"]


def test_a_reader_who_has_seen_enough_is_no_failure(use: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "index", texts, "--into", "mine")
    for arguments in (["list"], ["search", "fox", "--in", "mine"], ["search", "fox", "--in", "mine", "--json"]):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run([sys.executable, "-m", "threefold", *arguments], stdout=write, stderr=subprocess.PIPE)
        os.close(write)
        assert (done.returncode, done.stderr) == (0, b""), arguments


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version")[0] == 0
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for command in ("index", "search", "list", "delete", "encode", "compare", "info", "evaluate"):
        assert command in out
