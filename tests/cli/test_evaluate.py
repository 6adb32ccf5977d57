from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.encoder.cross_checkpoints import bge_reranker
from tests.evaluate import copies
from tests.fakes import FakeEncoder
from tests.retrieve.test_choose import own_data

from threefold.cli.main import main
from threefold.encoder.checkpoint import Model, ModelConfig, save
from threefold.encoder.heads import HeadsConfig
from threefold.encoder.network import NetworkConfig, initialise
from threefold.retrieve import experiment
from threefold.text.tokenizer import Tokenizer

DOCUMENTS = ["The quick brown fox", "The lazy dog", "five dozen liquor jugs", "dense sparse multi", "a folder on disk"]
QUERIES = ["lazy dog", "quick fox", "liquor jugs", "sparse head", "disk folder", "brown fox", "five dozen", "the dog"]
RELEVANT = [1, 0, 2, 3, 4, 0, 2, 1]


@pytest.fixture(autouse=True)
def model(tokenizer: Tokenizer, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny random model, which every command takes."""
    folder = tmp_path / "model"
    network = NetworkConfig(vocab=tokenizer.vocab, hidden=16, layers=1, heads=2, ffn=32, positions=66, first_position=2)
    random = Model(ModelConfig(network, HeadsConfig(multi_dim=8), max_tokens=64))
    initialise(random, std=0.2)
    save(random, folder)
    tokenizer.save(folder / "tokenizer.json")
    monkeypatch.setenv("THREEFOLD_MODEL", str(folder))
    return folder


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "pets"
    rows = [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(DOCUMENTS)]
    copies.write(folder / "corpus.jsonl", copies.json_lines(rows))
    asked = [{"_id": f"q{i}", "text": text} for i, text in enumerate(QUERIES)]
    copies.write(folder / "queries.jsonl", copies.json_lines(asked))
    judged = "".join(f"q{i}\td{document}\t1\n" for i, document in enumerate(RELEVANT))
    copies.write(folder / "qrels/test.tsv", f"query-id\tcorpus-id\tscore\n{judged}")
    copies.write(folder / "qrels/dev.tsv", f"query-id\tcorpus-id\tscore\n{judged}")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_a_benchmark_by_name_with_its_protocol(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copies.miracl(tmp_path / "data")
    copies.mkqa(tmp_path / "data")
    report = run_json(capsys, "evaluate", "miracl:sw", "mkqa:th", "--data", tmp_path / "data", "--modes", "bm25,hybrid")
    assert [(row["task"], row["mode"]) for row in report["rows"]] == [
        ("miracl/sw", "bm25"),
        ("miracl/sw", "hybrid"),
        ("mkqa/th", "bm25"),
        ("mkqa/th", "hybrid"),
    ]
    assert report["rows"][0]["values"] == {"nDCG@10": 1.0, "Recall@100": 1.0}
    assert set(report["rows"][2]["values"]) == {"answer@20", "answer@100"}
    assert report["about"]["protocol"]["mkqa"]["multi_depth"] == 100
    code, out, _ = run(capsys, "evaluate", "miracl:sw", "--data", tmp_path / "data", "--modes", "bm25")
    assert code == 0
    assert re.search(r"miracl/sw, published +35\.1", out)


def test_averages_alone_leave_out_the_sets_but_not_a_single_one(
    beir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = ["evaluate", beir, "--modes", "bm25", "--measures", "nDCG@10", "--averages"]
    assert re.search(rf"^{beir.name} +\d", run(capsys, *one)[1], re.MULTILINE)
    other = shutil.copytree(beir, tmp_path / "other")
    several = run(capsys, *one, other)[1]
    assert re.search(r"^average +\d", several, re.MULTILINE)
    assert "other" not in several


def test_the_page_and_the_comparison(beir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, runs = tmp_path / "report.html", tmp_path / "runs"
    common = ["evaluate", beir, "--modes", "bm25,dense,dense@8,bm25-words", "--language", "en"]
    report = run_json(capsys, *common, "--html", page, "--baseline", "bm25", "--runs", runs)
    assert [(one["a"], one["b"]) for one in report["comparisons"]] == [
        ("dense", "bm25"),
        ("dense@8", "bm25"),
        ("bm25-words", "bm25"),
    ]
    assert "lazy dog" in page.read_text()
    code, out, _ = run(capsys, *common, "--baseline", runs, "--html", page)
    assert code == 0
    assert "dense against dense (saved), nDCG@10" in out
    assert "dense against dense (saved)" in page.read_text()


def test_a_store_beside_exact_scores(beir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run_json(
        capsys, "evaluate", beir, "--modes", "dense", "--store", "--stream", "--cache", tmp_path / "cache"
    )
    exact, through = report["rows"]
    assert through["mode"] == "dense (store)"
    assert through["values"]["kept@10"] == 1.0
    assert through["values"]["nDCG@10"] == pytest.approx(exact["values"]["nDCG@10"], abs=0.1)
    assert list((tmp_path / "cache").glob("*.blocks/dense"))


def test_tuned_weights_are_never_judged_on_their_own_queries(
    beir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights.json"
    tuned = run_json(capsys, "tune", beir, "--share", "0.5", "--step", "0.5", "-o", weights)
    assert json.loads(weights.read_text()) == tuned
    report = run_json(capsys, "evaluate", beir, "--weights", f"@{weights}", "--modes", "hybrid")
    (row,) = report["rows"]
    assert (row["queries"], row["warnings"]["queries used for tuning, not run"]) == (4, 4)
    code, out, err = run(capsys, "tune", beir, "--split", "dev", "--mode", "dense+sparse", "--step", "1", "-o", weights)
    assert (code, "tuned: " in out) == (0, True)
    assert "8 queries of 1 set;" in err


def test_tune_and_evaluate_refuse_before_they_encode(
    beir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [beir, "--step", "1", "--cache", tmp_path / "cache"]
    weights = tmp_path / "weights.json"
    assert run(capsys, "tune", *given, tmp_path / "absent", "--split", "dev", "-o", weights)[0] == 5
    code, _, err = run(capsys, "tune", *given, "-o", weights)
    assert (code, "'test' is the split that figures are reported on" in err) == (2, True)
    code, _, err = run(capsys, "tune", "mldr:hi", "miracl:sw", "--split", "dev", "-o", weights)
    assert (code, "miracl:sw: 'dev' is the split that figures" in err) == (2, True)
    code, _, err = run(capsys, "tune", beir, "--split", "dev", "-o", weights, "--cache", beir / "queries.jsonl")
    assert (code, "is a file; give the name of a folder" in err) == (2, True)
    corpus = beir / "corpus.jsonl"
    before = corpus.read_bytes()
    code, _, err = run(capsys, "tune", *given, "--split", "dev", "-o", corpus)
    assert (code, "is one of the files of" in err) == (2, True)
    for option in ("--save", "--html"):
        code, _, err = run(capsys, "evaluate", beir, option, corpus)
        assert (code, "is one of the files of" in err) == (2, True)
    code, _, err = run(capsys, "evaluate", beir, "--save", tmp_path / "x", "--html", tmp_path / "x")
    assert (code, "give each a file of its own" in err) == (2, True)
    assert corpus.read_bytes() == before
    assert not (tmp_path / "cache").exists()
    for _ in range(2):  # beside the data, and once more
        run_json(capsys, "tune", beir, "--split", "dev", "--step", "1", "-o", beir / "weights.json")


def test_saved_vectors_instead_of_a_model(beir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"_id": f"d{i}", "title": f"T{i}" * (i % 2), "text": text} for i, text in enumerate(DOCUMENTS)]
    copies.write(beir / "corpus.jsonl", copies.json_lines(rows))
    for name in ("corpus", "queries"):
        fields = ["--title-field", "title", "--id-field", "_id"]
        run_json(capsys, "encode", beir / f"{name}.jsonl", *fields, "-o", tmp_path / f"{name}.parquet")
    saved = f"{tmp_path / 'corpus.parquet'},{tmp_path / 'queries.parquet'}"
    (theirs,) = run_json(capsys, "evaluate", beir, "--modes", "dense", "--vectors", saved)["rows"]
    (ours,) = run_json(capsys, "evaluate", beir, "--modes", "dense")["rows"]
    assert theirs["values"] == ours["values"]
    code, out, err = run(capsys, "evaluate", beir, "--modes", "dense", "--vectors", saved, "--max-tokens", "3")
    assert (code, out) == (2, "")  # the vectors are of whole texts, and the report would say 3
    assert "which max_tokens=3 does not give" in " ".join(err.split())


def test_a_second_stage(beir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cross, runs = bge_reranker(tmp_path / "cross"), tmp_path / "runs"
    second = ["--rerank", "bm25", "--rerank-depth", "2", "--reranker", cross]
    report = run_json(capsys, "evaluate", beir, "--modes", "bm25", *second, "--runs", runs)
    assert [row["mode"] for row in report["rows"]] == ["bm25", "bm25 + cross"]
    assert report["rows"][1]["protocol"] == f"bm25, its top 2 reordered by {cross}"
    assert list((runs / "bm25-cross").rglob("*.trec"))
    report = run_json(capsys, "evaluate", beir, "--modes", "bm25", *second, "--baseline", runs)
    assert [one["difference"] for one in report["comparisons"]] == [0, 0]


def test_models_side_by_side_on_own_data(
    model: Path,
    tokenizer: Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = tmp_path / "other"
    changed = Model(ModelConfig.from_dict(json.loads((model / "threefold.json").read_text())))
    initialise(changed, std=0.2, seed=1)
    save(changed, other)
    tokenizer.save(other / "tokenizer.json")
    folder = own_data(tmp_path / "mine")
    found = run_json(capsys, "choose", folder, "--model", model, "--model", other)
    assert [one["model"] for one in found["models"]] == [str(model), str(other)]
    assert len(found["against_best"]) == 1
    code, out, err = run(capsys, "choose", folder)
    assert code == 0, err
    for said in ("similarity, Spearman", "clustering, V-measure", "texts/s", "mine/web"):
        assert said in out
    assert run(capsys, "choose", folder, "-m", model, "-m", model)[0] == 2
    monkeypatch.setenv("THREEFOLD_MODEL", str(other))
    assert [one["model"] for one in run_json(capsys, "choose", folder)["models"]] == [str(other)]
    assert run(capsys, "choose", tmp_path / "absent")[0] == 5


def test_documents_by_mcls(beir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "evaluate", beir, "--modes", "dense", "--mcls", "4")
    assert code == 0
    assert "pets" in out
    assert "(MCLS 4)" in err


def test_a_report_does_not_say_what_an_endpoint_keeps_to_itself(
    beir: Path,
    tokenizer: Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its precision, and the lengths that a benchmark sets and an endpoint does not apply."""
    copies.miracl(tmp_path / "data")
    there = FakeEncoder(tokenizer, heads=["dense"], name="theirs")
    monkeypatch.setattr("threefold.integrations.openai.RemoteEncoder", lambda *_, **__: there)
    one = ["evaluate", "miracl:sw", beir, "--data", tmp_path / "data", "--modes", "dense", "--measures", "nDCG@10"]
    ours = run_json(capsys, *one)["about"]
    theirs = run_json(capsys, *one, "--endpoint", "http://host/v1", "--model", "theirs")["about"]
    lengths = {"max_tokens", "max_query_tokens"}
    assert theirs["model"] == "theirs"
    assert ours.keys() - theirs.keys() == {"precision"}
    for name in ("miracl", "given"):
        assert ours["protocol"][name].keys() - theirs["protocol"][name].keys() == lengths
    _, _, err = run(capsys, *one, "--endpoint", "http://host/v1", "--model", "theirs")
    assert err.splitlines()[-1] == "theirs; figures in percent"


def test_named_weights(beir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, said in (("mldr", "dense 0.15, sparse 0.5, multi 0.35"), ("model", "dense 1, sparse 0.3, multi 1")):
        (row,) = run_json(capsys, "evaluate", beir, "--modes", "hybrid", "--weights", text)["rows"]
        assert said in row["protocol"]


def never(*_: object, **__: object) -> None:
    raise AssertionError("the work began")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["PETS", "--baseline", "bm52"], 5, "no mode 'bm52' to compare with; there are dense, sparse"),
        (["PETS", "--baseline", "EMPTY"], 5, "empty: no run of these modes; expected files such as MODE/SET.trec"),
        (["PETS", "OTHER"], 5, "two sets are named 'pets': give the sets different names"),
        (["OTHER", "SPACE", "--runs", "RUNS"], 5, "document id 'd 9' is empty or has a space"),
        (["OTHER", "--runs", "FILE"], 2, "is a file; give the name of a folder"),
        (["PETS", "--measures", "nDCG@2000"], 2, "nDCG@2000 looks at more than the 1,000 results that are kept"),
        (["PETS", "--measures", ","], 2, "names none; give some, such as nDCG@10"),
        (["PETS", "--measures", "answer@20"], 5, "answer@20 cannot be measured"),
        (["mkqa:th", "miracl:sw", "--measures", "answer@20"], 5, "miracl/sw is judged by judgements"),
        (["miracl:sw,xx"], 5, "miracl has no 'xx'"),
        (["miracl:sw,sw"], 5, "two sets are named 'miracl/sw'"),
        (["miracl:sw", "mkqa:th", "--split", "dev"], 5, "mkqa/th has no split 'dev'"),
        (["PETS", "--cache", "FILE"], 2, "is a file; give the name of a folder"),
        (["PETS", "--rerank", ","], 2, "--rerank names no mode"),
        (
            ["PETS", "--rerank", "dense", "--rerank-depth", "0", "--model", "/nonexistent"],
            2,
            "--rerank-depth must be at least 1; got 0",
        ),
        (["PETS", "--modes", "dense", "--rerank", "bm25", "--reranker", "CROSS"], 2, "'bm25' is not run and cannot be"),
    ],
)
def test_what_would_be_refused_after_the_work_is_refused_before_it(
    beir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.setattr(experiment, "run_task", never)
    places = {"PETS": beir, "FILE": beir / "corpus.jsonl"}
    places |= {"RUNS": tmp_path / "runs", "OTHER": tmp_path / "b" / beir.name, "SPACE": tmp_path / "space"}
    shutil.copytree(beir, places["OTHER"])
    shutil.copytree(beir, places["SPACE"])
    with (places["SPACE"] / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "d 9", "text": "x"}\n')
    (places.setdefault("EMPTY", tmp_path / "empty")).mkdir()
    if "CROSS" in arguments:
        places["CROSS"] = bge_reranker(tmp_path / "cross")
    got, out, err = run(capsys, "evaluate", *[places.get(argument, argument) for argument in arguments])
    assert (got, out) == (code, ""), err
    assert said in " ".join(err.split())
    assert not (tmp_path / "runs").exists()


def test_a_comparison_that_cannot_be_made_does_not_cost_the_report(
    beir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, report = tmp_path / "runs/bm25" / f"{beir.name}.trec", tmp_path / "report.json"
    copies.write(saved, "no run\n")
    one = ["evaluate", beir, "--modes", "bm25", "--save", report, "--baseline", tmp_path / "runs"]
    assert run(capsys, *one)[0] == 5
    assert json.loads(report.read_text())["rows"][0]["mode"] == "bm25"
    run_json(capsys, "evaluate", beir, "--modes", "bm25", "--runs", tmp_path / "runs")
    assert run(capsys, *one)[0] == 0
    assert json.loads(report.read_text())["comparisons"][0]["difference"] == 0


def test_an_earlier_report_is_replaced_in_one_step(
    beir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk, or a file that may not be written to, must not cost both of them."""
    for name in ("--save", "--html"):
        report, other = tmp_path / f"report{name}", tmp_path / f"other{name}"
        report.write_text("earlier")
        other.hardlink_to(report)
        assert run(capsys, "evaluate", beir, "--modes", "bm25", name, report)[0] == 0
        assert "bm25" in report.read_text()
        assert other.read_text() == "earlier"


def test_half_a_character_in_a_text_reaches_the_page(
    beir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queries = beir / "queries.jsonl"
    queries.write_text(queries.read_text().replace("lazy dog", "lazy \\ud800 dog"))
    code, _, err = run(capsys, "evaluate", beir, "--modes", "bm25", "--html", tmp_path / "page.html")
    assert code == 0, err
    assert "lazy \ufffd dog" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["evaluate", "miracl:xx"], 5, "miracl has no 'xx'"),
        (["evaluate", "PETS", "--modes", "best"], 2, "unknown mode 'best'"),
        (["evaluate", "PETS", "--modes", "dense@999"], 2, "have 16 dimensions"),
        (["evaluate", "PETS", "--baseline", "multi", "--modes", "dense"], 5, "no mode 'multi' to compare with"),
        (["evaluate", "PETS", "--stream", "--modes", "dense"], 2, "--stream does nothing without --cache"),
        (["evaluate", "PETS", "--weights", "@absent"], 2, "cannot read tuned weights"),
        (["evaluate", "PETS", "--vectors", "a", "--endpoint", "b"], 2, "exclude each other"),
        (["evaluate", "PETS", "--vectors", "a", "--mcls", "256"], 2, "--vectors and --mcls exclude each other"),
        (["evaluate", "PETS", "--vectors", "a,b,nonexist.parquet"], 2, "expected DOCUMENTS.parquet, or"),
        (["evaluate", "PETS", "--vectors", "a,"], 2, "expected DOCUMENTS.parquet, or"),
        (["evaluate", "PETS", "--html", "absent/x.html"], 2, "absent does not exist"),
        (["tune", "PETS", "-o", "w.json"], 2, "is the split that figures are reported on"),
        (["tune", "PETS", "-o", "absent/w.json"], 2, "absent does not exist"),
    ],
)
def test_bad_input(beir: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str) -> None:
    got, out, err = run(capsys, *[beir if argument == "PETS" else argument for argument in arguments])
    assert (got, out) == (code, "")
    assert said in " ".join(err.split())
    assert "Traceback" not in err
