from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from threefold.characters import clean
from threefold.errors import EvaluationError
from threefold.evaluate.beir import iter_tasks, load_task, task_names
from threefold.evaluate.task import Task

DOCS: list[dict[str, Any]] = [{"_id": "d1", "title": "Cats", "text": "They purr."}, {"_id": "d2", "text": "Dogs bark."}]
QUERIES: list[dict[str, Any]] = [{"_id": "q1", "text": "who purrs"}, {"_id": "q2", "text": "who barks"}]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t2\n"


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(
    folder: Path, *, corpus: str = lines(DOCS), queries: str = lines(QUERIES), qrels: str = QRELS, at: str = "qrels.tsv"
) -> Path:
    (folder / at).parent.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.jsonl").write_text(corpus, encoding="utf-8")
    (folder / "queries.jsonl").write_text(queries, encoding="utf-8")
    (folder / at).write_text(qrels, encoding="utf-8")
    return folder


def test_a_folder(tmp_path: Path) -> None:
    task = load_task(write(tmp_path / "pets"))
    assert task.name == "pets"
    assert task.documents == {"d1": "Cats\nThey purr.", "d2": "Dogs bark."}
    assert task.queries == {"q1": "who purrs", "q2": "who barks"}
    assert task.qrels == {"q1": {"d1": 1}, "q2": {"d2": 2}}
    assert task.template == "{title}\n{text}"
    assert not task.warnings
    assert not task.ignore_identical_ids


def test_the_official_place_of_judgements(tmp_path: Path) -> None:
    write(tmp_path, at="qrels/dev.tsv")
    assert load_task(tmp_path, split="dev").qrels["q1"] == {"d1": 1}
    with pytest.raises(EvaluationError, match=r"no judgements; expected .*qrels\.tsv or .*test\.tsv"):
        load_task(tmp_path)


def flag(folder: Path, split: str = "test") -> Path:
    """The same data as `write` makes, as `FlagEmbedding.evaluation.custom` has them."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [{"id": row["_id"], **{key: row[key] for key in row if key != "_id"}} for row in (*DOCS, *QUERIES)]
    judged = [{"qid": "q1", "docid": "d1", "relevance": 1}, {"qid": "q2", "docid": "d2", "relevance": 2}]
    (folder / "corpus.jsonl").write_text(lines(texts[:2]), encoding="utf-8")
    (folder / f"{split}_queries.jsonl").write_text(lines(texts[2:]), encoding="utf-8")
    (folder / f"{split}_qrels.jsonl").write_text(lines(judged), encoding="utf-8")
    return folder


def test_a_folder_of_flagembedding(tmp_path: Path) -> None:
    task, same = load_task(flag(tmp_path / "pets")), load_task(write(tmp_path / "beir"))
    assert (task.documents, task.queries, task.qrels) == (same.documents, same.queries, same.qrels)
    dev = flag(tmp_path / "dev", "dev")
    assert load_task(dev, split="dev").qrels == {"q1": {"d1": 1}, "q2": {"d2": 2}}
    with pytest.raises(EvaluationError, match=r"test_queries\.jsonl"):
        load_task(dev)
    (dev / "dev_qrels.jsonl").unlink()
    with pytest.raises(EvaluationError, match=r"no judgements; expected .*dev_qrels\.jsonl$"):
        load_task(dev, split="dev")
    write(dev, corpus=lines(DOCS))  # BEIR's files are there too, and come first
    assert load_task(dev).qrels == {"q1": {"d1": 1}, "q2": {"d2": 2}}


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_flagembedding_reads_that_folder_alike(tmp_path: Path) -> None:
    from FlagEmbedding.evaluation.custom.data_loader import CustomEvalDataLoader

    folder = flag(tmp_path / "pets")
    theirs = CustomEvalDataLoader("custom", dataset_dir=str(folder), cache_dir=str(tmp_path / "cache"))
    task = load_task(folder, template="{title} {text}")
    corpus = {id: f"{one['title'] or ''} {one['text']}".strip() for id, one in theirs.load_corpus().items()}
    assert (task.documents, task.queries) == (corpus, dict(theirs.load_queries()))
    assert task.qrels == dict(theirs.load_qrels())


def test_qrels_without_a_header(tmp_path: Path) -> None:
    assert load_task(write(tmp_path, qrels="q1\td1\t1\n")).qrels == {"q1": {"d1": 1}}


def test_byte_order_mark_blank_lines_and_windows_line_ends(tmp_path: Path) -> None:
    task = load_task(
        write(
            tmp_path,
            corpus="\ufeff" + lines(DOCS).replace("\n", "\r\n\r\n"),
            qrels="\ufeff" + QRELS.replace("\n", "\r\n"),
        )
    )
    assert list(task.documents) == ["d1", "d2"]
    assert task.qrels["q2"] == {"d2": 2}


def test_another_template(tmp_path: Path) -> None:
    assert load_task(write(tmp_path), template="{title} {text}").documents["d1"] == "Cats They purr."
    for template in ("{title}", "{text} {body}", "{text", "{0} {text}"):
        with pytest.raises(EvaluationError, match="template"):
            load_task(tmp_path, template=template)


# ---- many at once -------------------------------------------------------------------------------------------


def names(path: Path) -> list[str]:
    loaded = [task.name for task in iter_tasks(path)]
    assert task_names(path) == loaded
    return loaded


def test_a_folder_of_folders(tmp_path: Path) -> None:
    root = tmp_path / "bench"
    for place in ("xquad/de", "xquad/ar", "udhr/fra"):
        write(root / place)
    assert names(root) == ["udhr/fra", "xquad/ar", "xquad/de"]
    assert names(root / "xquad") == ["xquad/ar", "xquad/de"]
    assert names(root / "xquad" / "de") == ["de"]


@pytest.mark.parametrize("mode", ["w:xz", "w:gz", "w"])
def test_an_archive(tmp_path: Path, mode: Any) -> None:
    write(tmp_path / "xquad" / "de")
    archive = tmp_path / f"some.tar{mode[1:].replace(':', '.')}"
    with tarfile.open(archive, mode) as tar:
        tar.add(tmp_path / "xquad", "xquad")
    assert names(archive) == ["xquad/de"]
    with tarfile.open(archive, mode) as tar:
        tar.add(tmp_path / "xquad" / "de", ".")
    assert names(archive) == ["some"]


@pytest.mark.parametrize("name", ["../corpus.jsonl", "/corpus.jsonl", "a/../../corpus.jsonl"])
def test_an_archive_that_leads_outside(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "bad.tar"
    with tarfile.open(archive, "w") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(EvaluationError, match="leads outside"):
        names(archive)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz", ".tar.bz2"])
def test_a_broken_archive(tmp_path: Path, suffix: str) -> None:
    archive = tmp_path / f"bad{suffix}"
    archive.write_bytes(b"this is not an archive" * 100)
    with pytest.raises(EvaluationError, match="cannot be read as an archive"):
        names(archive)


def test_a_truncated_archive(tmp_path: Path) -> None:
    write(tmp_path / "a")
    whole = tmp_path / "whole.tar.xz"
    with tarfile.open(whole, "w:xz") as tar:
        tar.add(tmp_path / "a", "a")
    cut = tmp_path / "cut.tar.xz"
    cut.write_bytes(whole.read_bytes()[:-60])
    with pytest.raises(EvaluationError, match="cannot be read as an archive"):
        names(cut)


def test_what_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"no corpus\.jsonl in it or below it"):
        names(tmp_path)
    with pytest.raises(EvaluationError, match="neither a folder nor an archive"):
        names(tmp_path / "missing")
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(EvaluationError, match="neither a folder nor an archive"):
        names(tmp_path / "file.txt")
    write(tmp_path)
    (tmp_path / "queries.jsonl").unlink()
    with pytest.raises(EvaluationError, match=r"queries\.jsonl: cannot be read: No such file"):
        load_task(tmp_path)


# ---- broken data --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"corpus": lines(DOCS) + "{broken\n"}, r"corpus\.jsonl:3: not JSON"),
        ({"corpus": lines(DOCS) + '["a"]\n'}, r'corpus\.jsonl:3: expected an object with "_id", got'),
        ({"corpus": '{"text": "x"}\n'}, r'corpus\.jsonl:1: expected an object with "_id"'),
        ({"corpus": '{"_id": 7, "text": "x"}\n'}, r'corpus\.jsonl:1: "_id" must be text, got 7'),
        ({"corpus": '{"_id": "d1", "text": null}\n'}, r'corpus\.jsonl:1: "text" must be text, got None'),
        ({"corpus": '{"_id": "d1", "title": 3, "text": ""}\n'}, r'corpus\.jsonl:1: "title" must be text'),
        ({"queries": '{"_id": "q1"}\n'}, r'queries\.jsonl:1: expected an object with "text"'),
        ({"qrels": "q1\td1\t1\nq1\td1\n"}, r"qrels\.tsv:2: expected 3 cells .*, got 2"),
        ({"qrels": "q1\td1\t1\nq1\td2\tyes\n"}, r"qrels\.tsv:2: the score must be a whole number, got 'yes'"),
        ({"qrels": "q1\td1\t0.5\n"}, r"qrels\.tsv:1: the score must be a whole number"),
        ({"qrels": "q1\td1\t+-5\n"}, r"qrels\.tsv:1: the score must be a whole number, got '\+-5'"),
        ({"qrels": "q1\td1\t-0.5\n"}, r"qrels\.tsv:1: the score must be a whole number, got '-0.5'"),
        ({"qrels": "q1\td1\t4294967297\n"}, r"qrels\.tsv:1: the score must be at most 1,000,000 .*, got 4294967297"),
        ({"qrels": f"q1\td1\t{'9' * 5000}\n"}, r"qrels\.tsv:1: the score must be at most 1,000,000"),
        ({"corpus": '{"_id": "d1", "text": "", "n": ' + "9" * 5000 + "}\n"}, r"corpus\.jsonl:1: not JSON: Exceeds"),
        ({"corpus": '{"_id": "d\\ud8001", "text": ""}\n'}, r"corpus\.jsonl:1: the id 'd\\ud8001' has half a character"),
        ({"queries": '{"_id": "\\udc00", "text": ""}\n'}, r"queries\.jsonl:1: the id '\\udc00' has half a character"),
        ({"corpus": ""}, r"corpus\.jsonl: is empty"),
        ({"qrels": "query-id\tcorpus-id\tscore\n"}, r"qrels\.tsv: no judgements in it"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, files: Mapping[str, str], message: str) -> None:
    write(tmp_path, **files)
    for strict in (True, False):
        with pytest.raises(EvaluationError, match=message):
            load_task(tmp_path, strict=strict)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ("NaN", "the score must be a whole number, got nan"),
        ("1e999", "the score must be a whole number, got inf"),
        ("1.5", "the score must be a whole number, got 1.5"),
        ('"1"', "the score must be a whole number, got 1"),
        ("1" + "0" * 400, "the score must be at most 1,000,000"),
        ("1e12", "the score must be at most 1,000,000"),
    ],
)
def test_a_score_of_json_that_is_no_grade(tmp_path: Path, score: str, message: str) -> None:
    line = f'{{"query-id": "q1", "corpus-id": "d1", "score": {score}}}\n'
    with pytest.raises(EvaluationError, match=rf"test\.jsonl:1: {message}"):
        load_task(write(tmp_path, qrels=line, at="qrels/test.jsonl"))


def test_what_no_file_can_hold_is_replaced_in_texts(tmp_path: Path) -> None:
    corpus = '{"_id": "d1", "title": "a\\u0000", "text": "b\\ud800"}\n' + lines(DOCS[1:])
    task = load_task(write(tmp_path, corpus=corpus, queries=lines(QUERIES).replace("who purrs", "c\\udfff")))
    assert task.documents["d1"] == "a\ufffd\nb\ufffd"
    assert task.queries["q1"] == "c\ufffd"
    everything = "".join(map(chr, [*range(0x300), *range(0xD7F0, 0xE010), 0xFFFD, 0x1F600]))
    kept = ["\ufffd" if char == "\0" or "\ud800" <= char <= "\udfff" else char for char in everything]
    assert clean(everything) == "".join(kept)


def test_a_field_that_nobody_reads_may_be_what_python_writes(tmp_path: Path) -> None:
    corpus = lines([*DOCS, {"_id": "d3", "text": "x", "metadata": {"year": float("nan")}}])
    assert load_task(write(tmp_path, corpus=corpus)).documents["d3"] == "x"


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "corpus.jsonl").write_bytes(lines(DOCS).encode() + b'{"_id": "d3", "text": "\xff"}\n')
    with pytest.raises(EvaluationError, match=r"corpus\.jsonl:3: not UTF-8"):
        load_task(tmp_path)


@pytest.mark.parametrize(
    ("files", "message", "counted"),
    [
        ({"corpus": lines([*DOCS, DOCS[0]])}, r"corpus\.jsonl:3: id twice.*'d1'", "id twice, the first one counts"),
        (
            {"queries": lines([*QUERIES, QUERIES[1]])},
            r"queries\.jsonl:3: id twice.*'q2'",
            "id twice, the first one counts",
        ),
        ({"qrels": QRELS + "q1\td1\t0\n"}, r"qrels\.tsv:4: judgement twice", "judgement twice, the first one counts"),
        (
            {"qrels": QRELS + "q9\td1\t1\n"},
            "qrels: judged query that is not in the queries.*'q9'",
            "judged query that is not in the queries, not counted",
        ),
        (
            {"qrels": QRELS + "q1\td9\t1\n"},
            "qrels: judged document that is not in the corpus.*'d9'",
            "judged document that is not in the corpus, never found",
        ),
    ],
)
def test_a_contradiction_is_an_error_or_counted(
    tmp_path: Path, files: Mapping[str, str], message: str, counted: str
) -> None:
    write(tmp_path, **files)
    with pytest.raises(EvaluationError, match=message):
        load_task(tmp_path)
    task = load_task(tmp_path, strict=False)
    assert task.warnings == {counted: 1}
    assert task.qrels["q1"]["d1"] == 1  # the first one counts


def test_a_missing_document_stays_in_the_denominator(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, qrels=QRELS + "q1\td9\t1\n"), strict=False)
    assert task.qrels["q1"] == {"d1": 1, "d9": 1}


def test_oddities_that_are_no_contradiction_are_counted(tmp_path: Path) -> None:
    corpus = [*DOCS, {"_id": "d3", "title": "", "text": " "}]
    queries = [*QUERIES, {"_id": "q3", "text": ""}, {"_id": "q4", "text": "unjudged"}]
    task = load_task(write(tmp_path, corpus=lines(corpus), queries=lines(queries), qrels=QRELS + "q3\td3\t0\n"))
    assert task.warnings == {
        "documents without text": 1,
        "queries without text": 1,
        "queries without judgements, not run": 1,
        "judged queries without a relevant document": 1,
    }
    assert list(task.queries) == ["q1", "q2", "q3"]


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    one, same = load_task(write(tmp_path / "a")), load_task(write(tmp_path / "b"))
    other = load_task(write(tmp_path / "c", qrels=QRELS.replace("\t2\n", "\t1\n")))
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
    shifted = Task("t", {"a": "bc"}, {"q": "x"}, {"q": {"a": 1}})
    assert shifted.fingerprint() != Task("t", {"ab": "c"}, {"q": "x"}, {"q": {"a": 1}}).fingerprint()


def test_a_task_judges_only_its_own_queries() -> None:
    with pytest.raises(EvaluationError, match="judge query 'p', which is not in the queries"):
        Task("t", {"a": "b"}, {"q": "x"}, {"p": {"a": 1}})
