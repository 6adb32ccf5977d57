"""The commands that look at a collection without a query, by the embedded model and on a few of the examples."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import pyarrow.parquet as pq
import pytest
from tests.cli.test_cli import run, run_json

from threefold import Encoder
from threefold.analyze.duplicates import THRESHOLD

EXAMPLES = Path(__file__).parents[2] / "examples" / "corpus"
CODE = {path.name for path in (EXAMPLES / "code").iterdir()}
LABELLED = [
    ("The volcano erupted and lava flowed.", "geology"),
    ("An earthquake shook the coast.", "geology"),
    ("Glaciers carve valleys.", "geology"),
    ("He won the marathon.", "sport"),
    ("The goal came in the last minute.", "sport"),
    ("She plays tennis every week.", "sport"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the collection `demo`: the English and German examples and the code."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("THREEFOLD_HOME", str(home))
        environment.delenv("THREEFOLD_MODEL", raising=False)
        from threefold import Collection, Encoder

        with Collection("demo", Encoder()) as made:
            made.add_files([EXAMPLES / name for name in ("en", "de", "code")])
    return home


@pytest.fixture(autouse=True)
def use(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREEFOLD_HOME", str(base))
    monkeypatch.delenv("THREEFOLD_MODEL", raising=False)


def test_groups_and_their_words(capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, "cluster", "--in", "demo", "-n", "4")
    assert [group["number"] for group in found["groups"]] == [0, 1, 2, 3]
    sizes = [group["size"] for group in found["groups"]]
    assert sizes == sorted(sizes, reverse=True)
    assert [sum(item["group"] == i for item in found["items"]) for i in range(4)] == sizes
    assert all(group["keywords"] for group in found["groups"])
    code = {item["group"] for item in found["items"] if item["id"] in CODE}
    assert len(code) == 1  # programs are together, whatever their language
    status, out, err = run(capsys, "cluster", "--in", "demo", "-n", "4")
    assert status == 0
    assert found["groups"][0]["keywords"][0] in out
    assert f"{len(found['items'])} documents in 4 groups" in err
    chunks = run_json(capsys, "cluster", "--in", "demo", "-n", "2", "--by", "chunk", "--where", '{"number": 0}')
    assert all(item["id"].endswith("#0") for item in chunks["items"])


def test_a_map_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, points = tmp_path / "map.html", tmp_path / "points.parquet"
    found = run_json(capsys, "map", "--in", "demo", "-o", page, "--points", points, "--color", "source")
    rows = pq.read_table(points).to_pylist()
    assert found == {"page": str(page), "points": str(points), "items": len(rows), "method": "tsne"}
    assert all(row["id"] in page.read_text() for row in rows)
    status, _, err = run(capsys, "map", "--in", "demo", "-o", page, "--method", "pca")
    assert (status, f"documents -> {page}" in err) == (0, True)
    status, _, err = run(capsys, "map", "--in", "demo", "-o", tmp_path / "none" / "map.html")
    assert (status, "does not exist" in err) == (2, True)
    status, _, err = run(capsys, "map", "--in", "demo", "-o", page, "--color", "author")
    assert (status, "no item has a field 'author'" in err) == (2, True)


def test_strangers_and_those_that_stand_for_all(capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, "outliers", "--in", "demo", "-k", "3")
    assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)
    assert all(one["nearest"] != one["id"] for one in found)
    assert run(capsys, "outliers", "--in", "demo", "-k", "3")[1].count("\n") == 4
    picked = run_json(capsys, "diverse", "--in", "demo", "-k", "5")
    assert len({one["id"] for one in picked["items"]}) == 5
    assert picked["vendi"] > 5
    status, out, err = run(capsys, "diverse", "--in", "demo", "-k", "5")
    assert (status, picked["items"][0]["id"] in out, "Vendi score" in err) == (0, True, True)


def test_duplicates_are_named_and_their_absence_is_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, "duplicates", "--in", "demo", "--threshold", "0.4")
    assert found
    assert all(one["similarity"] >= 0.4 for one in found)
    assert run(capsys, "duplicates", "--in", "demo", "--threshold", "0.4")[0] == 0
    assert run(capsys, "duplicates", "--in", "demo", "--threshold", "1.0")[0] == 1
    status, _, err = run(capsys, "duplicates", "--in", "demo", "--threshold", "2")
    assert (status, "a cosine above 0 and at most 1" in err) == (2, True)


def test_numbers_and_limits_are_said_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    one = run(capsys, "cluster", "--in", "demo", "-n", "1")
    assert (one[0], one[2].split(", ")[0].endswith("in 1 group\n")) == (0, True)
    status, _, err = run(capsys, "duplicates", "--in", "demo", "--threshold", "0")
    assert (status, "a cosine above 0 and at most 1" in err) == (2, True)
    status, _, err = run(capsys, "outliers", "--in", "demo", "--by", "page")
    assert (status, "--by 'page': expected document or chunk" in err) == (2, True)
    status, out, _ = run(capsys, "duplicates", "--help")
    assert f"Default: {THRESHOLD}" in " ".join(out.replace("│", " ").split())


def test_more_like_these(capsys: pytest.CaptureFixture[str]) -> None:
    hits = run_json(capsys, "recommend", "bloom_filter.py", "--in", "demo", "--unlike", "glaciers.md", "-k", "3")
    assert hits[0]["document_id"] in CODE
    assert not {"bloom_filter.py", "glaciers.md"} & {hit["document_id"] for hit in hits}
    status, out, _ = run(capsys, "recommend", "bloom_filter.py", "--in", "demo")
    assert (status, hits[0]["document_id"] in out) == (0, True)
    assert run(capsys, "recommend", "nobody", "--in", "demo")[0] == 2
    assert run(capsys, "recommend", "bloom_filter.py", "--in", "demo", "--where", '{"language": "xx"}')[0] == 1


@pytest.mark.parametrize(
    ("command", "nothing"),
    [
        (["cluster"], {"groups": [], "silhouette": None, "items": []}),
        (["map", "-o", "MAP"], {"page": None, "points": None, "items": 0, "method": None}),
        (["outliers"], []),
        (["duplicates"], []),
        (["diverse"], {"vendi": 0.0, "items": []}),
        (["recommend", "bloom_filter.py"], []),
    ],
)
def test_nothing_that_matches_is_a_status(
    command: list[str], nothing: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [str(tmp_path / "map.html") if word == "MAP" else word for word in command]
    status, out, err = run(capsys, *places, "--in", "demo", "--where", '{"language": "xx"}', "--json")
    assert (status, json.loads(out), "matches" in err) == (1, nothing, True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("map -o m.html --method magic", "unknown method 'magic'"),
        ("map -o m.html --points ./m.html", "--output and --points are both m.html"),
        ("map -o m.html --method pca --color language --seed 1", "--seed does nothing without --method tsne or umap"),
        ("recommend bloom_filter.py --half-life 3", "--half-life does nothing without two IDs or more"),
        ("recommend bloom_filter.py --unlike bloom_filter.py", "'bloom_filter.py' is both liked and not"),
    ],
)
def test_what_would_do_nothing_is_refused(
    line: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *line.split(), "--in", "demo")
    assert (status, out, list(tmp_path.iterdir())) == (2, "", [])
    assert words in err


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    path = tmp_path / "examples.jsonl"
    rows = [*({"text": text, "label": label} for text, label in LABELLED), {"text": "no label"}]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("Der Vulkan ist ausgebrochen.\nElle joue au tennis.\n")
    return path


def test_labels_from_examples_and_how_good_they_are(
    examples: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judged = run_json(capsys, "classify", "--examples", examples)
    assert judged["skipped"] == ["examples.jsonl, row 7: no text in 'text', or no label in 'label'"]
    assert judged["cross_validation"]["folds"] == 3
    plain = Encoder.encode_documents
    with patch.object(Encoder, "encode_documents", autospec=True, side_effect=plain) as encoding:
        status, out, err = run(capsys, "classify", "--examples", examples, "--save", tmp_path / "c")
    assert (status, encoding.call_count) == (0, 1)  # once for both
    assert f"accuracy {100 * judged['cross_validation']['accuracy']:.1f} %" in out
    assert "saved in" in err
    said = run_json(capsys, "classify", texts, "--examples", examples)
    assert [row["label"] for row in said["texts"]] == ["geology", "sport"]
    assert said["cross_validation"] is None
    for saved in (tmp_path / "c", tmp_path / "c" / "classifier.safetensors"):
        again = run_json(capsys, "classify", texts, "--classifier", saved)
        assert again["texts"] == said["texts"]
        assert again["labels"] == ["geology", "sport"]


def test_a_classifier_takes_no_place_of_others(
    examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def saved(folder: Path, *more: str) -> tuple[int, str]:
        status, _, err = run(capsys, "classify", "--examples", examples, "--save", folder, *more)
        return status, " ".join(err.split())

    docs, new = tmp_path / "docs", tmp_path / "new"
    for folder in (docs, new):
        folder.mkdir()
    (docs / "notes.md").write_text("# Notes")
    for more in ([], ["--force"]):
        assert saved(docs, *more) == (2, f"error: {docs} is not empty and holds no classifier; name another folder")
    assert [one.name for one in docs.iterdir()] == ["notes.md"]
    assert saved(new)[0] == 0
    earlier = (new / "classifier.safetensors").read_bytes()
    with patch.object(Encoder, "encode_documents") as encoding:
        status, said = saved(new)
    assert (status, "say --force to replace it" in said, encoding.call_count) == (2, True, 0)
    assert (new / "classifier.safetensors").read_bytes() == earlier
    assert saved(new, "--force")[0] == 0


def test_labels_by_their_names(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = run_json(capsys, "classify", texts, "--labels", "volcanoes, tennis")
    assert [row["label"] for row in said["texts"]] == ["volcanoes", "tennis"]
    assert run(capsys, "classify", texts, "--labels", "volcanoes, tennis")[1].splitlines()[2].startswith("tennis ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["TEXTS"], "give one of --examples"),
        (["TEXTS", "--labels", "a,b", "--examples", "EXAMPLES"], "give one of --examples"),
        (["--labels", "a,b"], "which texts?"),
        (["TEXTS", "--labels", "a,b", "--save", "x"], "--save does nothing without --examples"),
        (["--examples", "EXAMPLES", "--force"], "--force does nothing without --save"),
        (["--examples", "TEXTS"], "expected a table"),
        (["--examples", "EXAMPLES", "--label-field", "nope"], "has no row with 'text' and 'nope'"),
        (["--examples", "EXAMPLES", "--outputs", "multi"], "a classifier reads dense, sparse, or both"),
        (["--examples", "EXAMPLES", "--outputs", ","], "--outputs ',' names none"),
        (["nowhere.txt", "--examples", "EXAMPLES", "--save", "never"], "nowhere.txt is not a file"),
        (["--examples", "EXAMPLES", "--id-field", "x"], "--id-field does nothing without a file of texts"),
    ],
)
def test_what_classify_refuses(
    arguments: list[str], words: str, examples: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"TEXTS": texts, "EXAMPLES": examples}
    status, out, err = run(capsys, "classify", *[places.get(one, one) for one in arguments])
    assert (status, out) == (2, "")
    assert words in err


def test_what_was_cut_is_said(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "lava and ash " * 9_000
    texts.write_text(f"tennis\n{long}\n")
    table = tmp_path / "table.jsonl"
    rows = [*({"text": text, "label": label} for text, label in LABELLED), {"text": long, "label": "geology"}]
    table.write_text("\n".join(map(json.dumps, rows)))
    said = run_json(capsys, "classify", texts, "--examples", table)
    assert [row["truncated"] for row in said["texts"]] == [False, True]
    assert said["examples_truncated"] == 1
    _, _, err = run(capsys, "classify", texts, "--examples", table)
    assert "1 text was longer than the model reads and was cut" in err
    assert "1 example was longer" in err
    assert run_json(capsys, "classify", "--examples", table)["examples_truncated"] == 1


def test_labels_are_read_as_people_write_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "table.jsonl"
    labels: list[object] = [" geology", "geology ", True, True, 1, 1, 2.5, 2.5]
    rows: list[object] = [
        {"text": text, "label": label} for (text, _), label in zip(LABELLED * 2, labels, strict=False)
    ]
    nothing: list[object] = ["  ", None, [], {}]
    rows += [{"text": "x", "label": label} for label in nothing]
    table.write_text("\n".join(map(json.dumps, rows)))
    judged = run_json(capsys, "classify", "--examples", table)
    assert list(judged["cross_validation"]["labels"]) == ["1", "2.5", "geology", "true"]
    assert len(judged["skipped"]) == 4


def test_a_file_without_texts_is_a_status(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts.write_text("\n")
    status, out, err = run(capsys, "classify", texts, "--labels", "a,b", "--json")
    assert (status, json.loads(out)["texts"], "has no texts" in err) == (1, [], True)
