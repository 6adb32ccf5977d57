"""Options that would do nothing are refused, with the option that is missing or stands in their way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.test_cli import run
from tests.encoder.checkpoints import bge_m3
from tests.evaluate import copies

from threefold.errors import InputError
from threefold.retrieve.pairs import compare_texts
from threefold.score import Weights
from threefold.serve.keys import create_key
from threefold.train.examples import Example
from threefold.train.judge import ModeJudge
from threefold.train.mine import MineSettings, mine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bge_m3(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def place(model: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one file of every kind, which is the current one."""
    monkeypatch.setenv("THREEFOLD_MODEL", str(model))
    monkeypatch.setenv("THREEFOLD_RERANKER", "of/the-environment")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text('{"query": "fox", "pos": ["The quick brown fox"], "neg": ["dog"]}\n')
    (tmp_path / "texts.txt").write_text("The quick brown fox\n")
    copies.write(tmp_path / "pets/corpus.jsonl", '{"_id": "d", "title": "", "text": "The lazy dog"}\n')
    copies.write(tmp_path / "pets/queries.jsonl", '{"_id": "q", "text": "dog"}\n')
    for split in ("test", "dev"):
        copies.write(tmp_path / f"pets/qrels/{split}.tsv", "query-id\tcorpus-id\tscore\nq\td\t1\n")
    copies.miracl(tmp_path / "copies")
    tuned = {"mode": "dense+sparse", "weights": {"dense": 1, "sparse": 1, "multi": 0}, "measure": "nDCG@10"}
    about = {"value": 1, "model": "m", "model_hash": "h", "step": 1, "sets": [], "queries": {}, "compared": {}}
    (tmp_path / "tuned.json").write_text(json.dumps(tuned | about))
    return tmp_path


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("evaluate pets --rerank-depth 9", "--rerank-depth does nothing without --rerank; give that as well"),
        ("evaluate pets --reranker a/b", "--reranker does nothing without --rerank"),
        ("evaluate pets --rerank-depth 9 --reranker a/b", "--rerank-depth and --reranker do nothing without --rerank"),
        ("evaluate pets --api-key k", "--api-key does nothing without --endpoint"),
        ("evaluate pets --modes bm25 --stream", "--stream does nothing without --cache"),
        ("evaluate pets --data copies", "--data does nothing without a benchmark by name, such as miracl:sw"),
        ("evaluate miracl:sw --data copies --lenient", "--lenient does nothing without data of your own"),
        ("evaluate miracl:sw --data copies --language sw", "--language does nothing without data of your own"),
        ("evaluate pets --averages --json", "--averages does nothing with --json, which has all of it; leave one"),
        ("evaluate pets --vectors a.parquet --model a/b", "--model does nothing with --vectors; leave one of them out"),
        ("evaluate pets --vectors a.parquet --precision int8", "--precision does nothing with --vectors"),
        ("evaluate pets --endpoint http://h/v1 --model m --device cpu", "--device does nothing with --endpoint"),
        ("evaluate pets --endpoint http://h/v1 --model m --revision r", "--revision does nothing with --endpoint"),
        ("evaluate pets --sentence-transformer --model m --precision int8", "--precision does nothing with --sent"),
        ("evaluate pets --modes dense,rrf --weights 1,1,1", "--weights does nothing without a mode that adds scores"),
        ("evaluate pets --modes dense,sparse --multi-depth 9", "--multi-depth does nothing without a mode that has m"),
        ("evaluate pets --modes bm25 --max-tokens 9", "--max-tokens does nothing without a mode that reads texts by"),
        ("evaluate pets --modes bm25,hybrid --store", "--store does nothing without the mode dense, sparse or multi"),
        ("evaluate pets --modes bm25 --language en", "--language does nothing without the mode bm25-words"),
        ("tune pets --split dev -o w.json --data copies", "--data does nothing without a benchmark by name"),
        ("tune pets --split dev -o w.json --mode dense+sparse --multi-depth 9", "--multi-depth does nothing with --mo"),
        ("mine pairs.jsonl -o out.jsonl --mode sparse --weights 1,0,0", "--weights does nothing without --mode dense+"),
        ("mine pairs.jsonl -o out.jsonl --teacher-margin 1", "--teacher-margin does nothing without --teacher"),
        ("mine pairs.jsonl -o out.jsonl --pick hardest --seed 1", "--seed does nothing without --pick random"),
        ("mine pairs.jsonl -o out.jsonl --mode bm25 --stream", "--stream does nothing without --cache"),
        ("mine pairs.jsonl -o out.jsonl --mode bm25 --max-tokens 9", "--max-tokens does nothing with --mode bm25"),
        ("distil pairs.jsonl -o out.jsonl --reranker a/b --mode dense", "--mode does nothing with --reranker"),
        ("distil pairs.jsonl -o out.jsonl --reranker a/b --weights 1,1,1", "--weights does nothing with --reranker"),
        ("distil pairs.jsonl -o out.jsonl --reranker a/b --revision r", "--revision does nothing with --reranker"),
        ("distil pairs.jsonl -o out.jsonl --model m --mode dense --weights 1,1,1", "--weights does nothing without"),
        ("search fox --in c --rerank-depth 9", "--rerank-depth does nothing without --rerank"),
        ("search fox --in c --retriever r --mode dense", "--mode does nothing with --retriever"),
        ("search fox --in c --retriever r --rerank a/b --rerank-depth 9", "--rerank-depth does nothing with --retr"),
        ("index texts.txt --into c --text-field body", "--text-field does nothing without a table (.csv"),
        ("encode texts.txt -o out.parquet --id-field key", "--id-field does nothing without a table"),
        ("encode texts.txt -o out.parquet --title-field t --text-field b", "--text-field and --title-field do nothin"),
        ("encode texts.txt -o out.parquet --outputs ,", "--outputs ',' names none; give some of dense, sparse, multi"),
        ("rerank fox texts.txt --text-field body", "--text-field does nothing without a table"),
        ("bench --text-field body", "--text-field does nothing without --texts"),
        ("bench --texts texts.txt --text-field body", "--text-field does nothing without a table"),
    ],
)  # fmt: skip
def test_what_would_do_nothing_is_refused(
    line: str, said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(place.iterdir())
    code, out, err = run(capsys, *line.split())
    assert (code, out) == (2, ""), err
    assert said in err
    assert sorted(place.iterdir()) == before


def test_weights_of_a_mode_that_is_not_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads((place / "tuned.json").read_text())
    code, info, _ = run(capsys, "info", "--json")
    assert code == 0
    (place / "tuned.json").write_text(json.dumps(data | {"model_hash": json.loads(info)["hash"]}))
    given = ["evaluate", "pets", "--weights", f"@{place / 'tuned.json'}", "--modes"]
    code, _, err = run(capsys, *given, "hybrid,dense")
    assert (code, "tuned for the mode 'dense+sparse', which is not run; there are hybrid, dense" in err) == (2, True)
    assert run(capsys, *given, "dense+sparse")[0] == 0


def test_what_the_environment_says_is_no_option(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "evaluate", "pets", "--modes", "bm25")[0] == 0  # THREEFOLD_RERANKER without --rerank


def test_a_note_without_an_amount(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create_key(place / "keys.json", "ann", ("embed",), "default")
    (key,) = json.loads(run(capsys, "keys", "list", "--file", "keys.json", "--json")[1])
    code, _, err = run(capsys, "keys", "credit", key["id"], "--file", "keys.json", "--note", "invoice 7", "--make")
    assert (code, "--note does nothing without --amount" in err) == (2, True)


@pytest.mark.parametrize("amount", ["nan", "inf", "1e300", "-1e300"])
def test_what_is_no_amount_of_money(amount: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = create_key(place / "keys.json", "ann", ("embed",), "default")[1].id
    code, _, err = run(capsys, "keys", "credit", key, "--file", "keys.json", "--amount", amount, "--make")
    assert (code, "expected an amount of money" in err) == (2, True)


def test_the_library_refuses_weights_that_add_nothing(model: Path) -> None:
    from threefold.encoder.encoder import Encoder

    encoder = Encoder(model)
    with pytest.raises(InputError, match="mode 'dense' adds no scores, so weights do nothing; they are of dense\\+sp"):
        mine([Example("q", ("p",), ())], encoder, MineSettings(mode="dense"), weights=Weights(1, 1, 1))
    with pytest.raises(InputError, match="mode 'sparse' adds no scores"):
        ModeJudge(encoder, "sparse", Weights(1, 1, 1))


def test_a_weight_of_a_head_that_the_model_lacks(tmp_path: Path) -> None:
    from tests.encoder.checkpoints import sentence_transformer

    from threefold.encoder.encoder import Encoder

    encoder = Encoder(sentence_transformer(tmp_path / "st"))
    assert compare_texts(encoder, "fox", "dog").weights.used == ("dense",)
    with pytest.raises(InputError, match="weight 2 for multi, but it was not scored"):
        compare_texts(encoder, "fox", "dog", weights=Weights(1, 0, 2))
