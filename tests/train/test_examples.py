from __future__ import annotations

import gzip
import json
import lzma
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from threefold.errors import DataError
from threefold.train.examples import Example, data_files, read_all, read_examples
from threefold.train.lines import records, text_lines, write_records

COMMUNITY = {
    "query": "q",
    "pos": ["a", "b"],
    "neg": ["c", "d", "e"],
    "pos_scores": [1, 0.5],
    "neg_scores": [-1.5, 0, 2],
    "prompt": "Answer: ",
    "type": "normal",
}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def one(tmp_path: Path, row: Any, name: str = "data.jsonl") -> Example:
    (example,) = read_examples([write(tmp_path / name, row)])
    return example


# ---- what is read ----------------------------------------------------------------------------------------


def test_a_record_of_the_community(tmp_path: Path) -> None:
    example = one(tmp_path, COMMUNITY)
    assert example == Example(
        "q", ("a", "b"), ("c", "d", "e"), (1.0, 0.5), (-1.5, 0.0, 2.0), "Answer: ", "normal", source="data"
    )
    assert example.where.endswith("data.jsonl:1")
    assert example.asked == "Answer: q"
    assert example.said("a") == "a"
    assert example.to_row() == {**COMMUNITY, "source": "data"}


def test_a_pair_with_what_is_known_about_it(tmp_path: Path) -> None:
    row = {"query": "qunxaama", "positive": "a little", "query_lang": "aa", "positive_lang": "en", "kind": "lexicon"}
    example = one(tmp_path, row | {"group": 7, "source": "gatitos", "negative": "a lot"})
    assert example == Example(
        "qunxaama", ("a little",), ("a lot",), kind="lexicon", query_lang="aa", positive_lang="en", group="7",
        source="gatitos",
    )  # fmt: skip
    assert example.symmetric


def test_the_prompt_of_symmetric_types_is_in_front_of_passages_too(tmp_path: Path) -> None:
    example = one(tmp_path, {"query": "q", "pos": ["a"], "prompt": "P: ", "type": "symmetric_sts"})
    assert (example.asked, example.said("a"), example.symmetric) == ("P: q", "P: a", True)


@pytest.mark.parametrize(
    ("name", "text", "pairs"),
    [
        ("two.tsv", 'q1\ta "quoted\n\nq2\tb\n', [("q1", 'a "quoted', ()), ("q2", "b", ())]),
        ("two.csv", 'q1,"a\nsecond line"\n', [("q1", "a\nsecond line", ())]),
        ("head.csv", "query,positive,negative\nq1,a,c\nq2,b,\n", [("q1", "a", ("c",)), ("q2", "b", ())]),
        ("head.csv", "Query, POSITIVE\nq1,a\n", [("q1", "a", ())]),
        (
            "odd.csv",
            'question,answer\n5" disk,"a ""quote"""\n',
            [("question", "answer", ()), ('5" disk', 'a "quote"', ())],
        ),
        ("open.tsv", 'q1\t"a\nq2\tb\n', [("q1", '"a', ()), ("q2", "b", ())]),
    ],
)
def test_tables(tmp_path: Path, name: str, text: str, pairs: list[tuple[str, str, tuple[str, ...]]]) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert [(e.query, e.positives[0], e.negatives) for e in read_examples([path])] == pairs


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress), ("", bytes)])
def test_packed_files_read_alike_and_blank_lines_count(tmp_path: Path, suffix: str, pack: Any) -> None:
    path = tmp_path / f"name.more.jsonl{suffix}"
    path.write_bytes(pack('\ufeff\n{"query": "q", "pos": ["ä"]}\n'.encode()))
    (example,) = read_examples([path])
    assert example.positives == ("ä",)
    assert example.where == f"{path}:2"
    assert example.source == "name"


def test_a_folder_is_its_files_by_name(tmp_path: Path) -> None:
    """But for what a killed run and a notebook leave there."""
    hidden = (".123.b.jsonl", ".ipynb_checkpoints/b-checkpoint.jsonl", "deep/.c.jsonl.gz")
    for name in ("b.jsonl", "a.tsv", "deep/c.jsonl.gz", "notes.md", *hidden):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [file.name for file in data_files([tmp_path])] == ["a.tsv", "b.jsonl", "c.jsonl.gz"]
    assert data_files([tmp_path / hidden[0]]) == [tmp_path / hidden[0]]  # named, so it is meant


def test_what_is_odd_is_counted(tmp_path: Path) -> None:
    rows = [
        {"query": "q", "pos": ["a"], "neg": ["a", "b"], "neg_scores": [1, 2], "id": 1},
        {"query": "q", "pos": ["a"], "id": 2, "extra": None},
    ]
    found = Counter[str]()
    examples = read_all([write(tmp_path / "data.jsonl", *rows)], found)
    assert found == {
        "field 'id', not used": 2,
        "field 'extra', not used": 1,
        "negatives that are positives too, left out": 1,
        "pairs that were there before": 1,
    }
    assert (examples[0].negatives, examples[0].negative_scores) == (("b",), (2.0,))


def test_pairs_that_must_not_be_negatives_of_each_other(tmp_path: Path) -> None:
    row = {"query": "q", "pos": ["a"], "neg": ["b"]}
    assert not one(tmp_path, row).alone
    assert one(tmp_path, row | {"in_batch_negatives": False}).alone
    assert one(tmp_path, row, "labels_no_in_batch_neg.jsonl").alone
    with pytest.raises(DataError, match=r"data.jsonl:1: no negatives, and those of other records"):
        one(tmp_path, {"query": "q", "pos": ["a"], "in_batch_negatives": False})


# ---- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"pos": ["a"]}, '"query" is missing'),
        ({"query": " ", "pos": ["a"]}, '"query" is blank'),
        ({"query": 3, "pos": ["a"]}, '"query" must be text, got 3'),
        ({"query": "q"}, 'either "pos", a list, or "positive", a text; got query'),
        ({"query": "q", "pos": ["a"], "positive": "a"}, "got query, pos, positive"),
        ({"query": "q", "pos": []}, '"pos" is empty'),
        ({"query": "q", "pos": "a"}, "\"pos\" must be a list of texts, got 'a'"),
        ({"query": "q", "pos": ["a", ""]}, r'"pos\[1\]" is blank'),
        ({"query": "q", "pos": ["a"], "neg": ["b", None]}, r'"neg\[1\]" is blank'),
        ({"query": "q", "pos": ["a"], "neg": [["b"]]}, r'"neg\[0\]" must be text'),
        ({"query": "q", "pos": ["a"], "negative": "b"}, '"negative" does not go with "pos"'),
        ({"query": "q", "positive": "a", "neg": ["b"]}, '"neg" does not go with "positive"'),
        ({"query": "q", "positive": "a", "negative": "b", "negatives": []}, "mean the same"),
        ({"query": "q", "pos": ["a"], "pos_scores": [1, 2]}, '"pos_scores" has 2 numbers for 1 texts'),
        ({"query": "q", "pos": ["a"], "neg": ["b"], "neg_scores": []}, '"neg_scores" has 0 numbers for 1 texts'),
        ({"query": "q", "pos": ["a"], "pos_scores": 1}, '"pos_scores" must be a list of numbers'),
        ({"query": "q", "pos": ["a"], "pos_scores": ["1"]}, r'"pos_scores\[0\]" must be a finite number'),
        ({"query": "q", "pos": ["a"], "pos_scores": [True]}, r'"pos_scores\[0\]" must be a finite number, got True'),
        ({"query": "q", "pos": ["a"], "pos_scores": [1e999]}, "not JSON: Infinity"),
        (
            {"query": "q", "pos": ["a"], "pos_scores": [10**400]},
            r'"pos_scores\[0\]" must be a finite number, got 10000',
        ),
        ({"query": "q", "pos": ["a"], "prompt": 1}, '"prompt" must be text, got 1'),
        ({"query": "q", "pos": ["a"], "group": True}, '"group" must be text, got True'),
        ({"query": "q", "pos": ["a"], "in_batch_negatives": 0}, "must be true or false, got 0"),
        (["q", "a"], "expected one object per line, got list"),
    ],
)
def test_a_wrong_record_is_named_by_file_and_line(tmp_path: Path, row: Any, message: str) -> None:
    path = write(tmp_path / "data.jsonl", COMMUNITY, row)
    with pytest.raises(DataError, match=rf"data\.jsonl:2: .*{message}"):
        list(read_examples([path]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.jsonl", b'{"query": "q", "pos": ["a"]}\n{"query": "\xe4"}\n', r"data\.jsonl:2: not UTF-8"),
        ("data.jsonl", b'{"query": "q",\n', r"data\.jsonl:1: not JSON"),
        ("data.jsonl", b"[" * 200_000, r"data\.jsonl:1: not JSON"),
        ("data.jsonl", b"\n \n", r"data\.jsonl: is empty"),
        ("data.tsv", b"q\ta\nq\ta\tb\n", r"data\.tsv:2: 3 columns, expected 2: query, positive"),
        ("data.csv", b'query,positive\nq1,"p1\nq2,p2\nq3,p3\n', r"data\.csv:2: unexpected end of data, on line 4"),
        ("data.csv", b'q1,p1\nq2,"p2\nq3,"p3"\n', r"data\.csv:2: ',' expected after '\"', on line 3"),
        ("data.csv", b"query,positive,Positive\nq,a,b\n", r"data\.csv:1: two columns are named 'positive'"),
        ("data.jsonl.gz", b"no gzip", r"data\.jsonl\.gz: cannot be read"),
        ("data.jsonl.xz", lzma.compress(b"x" * 100)[:30], r"data\.jsonl\.xz: cannot be read"),
        ("data.parquet", b"", r"data\.parquet: not a file of training data"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_examples([path]))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for paths, message in (([tmp_path / "no.jsonl"], "no such file"), ([tmp_path], "no training data"), ([], "named")):
        with pytest.raises(DataError, match=message):
            data_files(paths)


# ---- writing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.jsonl.xz"])
def test_what_is_written_reads_the_same(tmp_path: Path, name: str) -> None:
    example = Example("ü?", ("a",), ("b",), (1.0,), (0.5,), "P: ", "only_1neg", "de", "en", "g", "s", True)
    assert write_records(tmp_path / name, [example.to_row()]) == 1
    assert list(read_examples([tmp_path / name])) == [example]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_link_is_packed_as_its_own_name_says(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"")
    (tmp_path / "data.jsonl.gz").symlink_to("blob")
    write_records(tmp_path / "data.jsonl.gz", [{"query": "a", "pos": ["b"]}])
    assert gzip.decompress((tmp_path / "blob").read_bytes()) == b'{"query": "a", "pos": ["b"]}\n'


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.jsonl.xz"])
def test_equal_records_are_equal_bytes(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever, by whichever process and under whichever name they are written."""
    written = []
    for folder, time, process in (("a", 1e9, 1), ("b", 2e9, 22)):
        monkeypatch.setattr("time.time", lambda time=time: time)
        monkeypatch.setattr("os.getpid", lambda process=process: process)
        (tmp_path / folder).mkdir()
        write_records(tmp_path / folder / f"{folder}-{name}", [COMMUNITY])
        written.append((tmp_path / folder / f"{folder}-{name}").read_bytes())
    assert written[0] == written[1]


def test_a_file_that_cannot_be_finished_leaves_nothing_and_spoils_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "out.jsonl", COMMUNITY)
    before = path.read_bytes()

    def rows() -> Any:
        yield {"query": "q"}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_records(path, rows())
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_lines_of_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    assert list(text_lines(tmp_path / "a.txt")) == [(f"{tmp_path}/a.txt:1", "one"), (f"{tmp_path}/a.txt:3", "two")]
    assert [row for _, row in records(write(tmp_path / "b.json", {"x": 1}), ("x",))] == [{"x": 1}]


# ---- the reference ---------------------------------------------------------------------------------------


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_the_reference_reads_what_we_write_and_means_the_same(tmp_path: Path) -> None:
    """FlagEmbedding's data set gives the same query, one of our positives, our negatives and their scores."""
    from FlagEmbedding.abc.finetune.embedder.AbsArguments import AbsEmbedderDataArguments
    from FlagEmbedding.abc.finetune.embedder.AbsDataset import AbsEmbedderSameDatasetTrainDataset

    row = COMMUNITY | {"type": "symmetric_sts"}
    example = one(tmp_path, row)
    out = tmp_path / "out.jsonl"
    write_records(out, [example.to_row()] * 4)
    arguments = AbsEmbedderDataArguments(
        train_data=[str(out)], train_group_size=4, knowledge_distillation=True, cache_path=str(tmp_path / "cache"),
        query_instruction_for_retrieval="", query_instruction_format="{}{}",
    )  # fmt: skip
    data = AbsEmbedderSameDatasetTrainDataset(arguments, default_batch_size=4, seed=0, tokenizer=None)
    queries, passages, scores, _ = data[0]
    assert queries == [example.asked] * len(queries)
    known = dict(zip(map(example.said, example.positives), example.positive_scores, strict=True))
    known |= dict(zip(map(example.said, example.negatives), example.negative_scores, strict=True))
    assert set(passages[:1]) <= set(map(example.said, example.positives))
    assert set(passages[1:4]) == set(map(example.said, example.negatives))
    assert scores == [known[text] for text in passages]
