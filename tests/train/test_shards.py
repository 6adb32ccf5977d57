from __future__ import annotations

import json
import os
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from threefold.errors import ConfigError, DataError
from threefold.text.tokenizer import Tokenizer, Tokens
from threefold.train import tokenise
from threefold.train.batches import PairTable, plan
from threefold.train.columns import read_column, write_columns
from threefold.train.shards import Shards, load_shards, prepare
from threefold.train.tokenise import Group, Limits

ROWS: list[dict[str, Any]] = [
    {"query": "fox", "pos": ["the fox jumps", "lazy dog"], "neg": ["liquor"], "pos_scores": [2, 1], "neg_scores": [-1],
     "prompt": "Find: ", "group": 1},
    {"query": "park", "positive": "wir gehen in den Park", "query_lang": "en", "positive_lang": "de"},
    {"query": "box", "positive": "pack my box", "negatives": ["one", "two", "three"]},
    {"query": "dog", "positive": "the fox jumps", "group": "1", "kind": "parallel"},
]  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data.jsonl", ROWS)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def texts(tokens: Tokens, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(tokens[i].tolist()) for i in range(len(tokens))]


def plain(table: PairTable) -> dict[str, Any]:
    """Everything in a table, comparable."""
    found: dict[str, Any] = {}
    for one in fields(PairTable):
        value = getattr(table, one.name)
        parts = (
            {"": value} if not isinstance(value, Tokens) else {"i": value.ids, "o": value.offsets, "a": value.available}
        )
        found |= {one.name + key: [repr(item) for item in np.asarray(part).tolist()] for key, part in parts.items()}
    return found


# ---- what is in a table ----------------------------------------------------------------------------------


def test_every_positive_makes_a_pair(data: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    table = prepare([data], tokenizer, tmp_path / "cache").table
    queries = ["Find: fox", "Find: fox", "park", "box", "dog"]
    positives = ["the fox jumps", "lazy dog", "wir gehen in den Park", "pack my box", "the fox jumps"]
    assert plain(table)["queryi"] == plain_tokens(tokenizer, queries)
    assert plain(table)["positivei"] == plain_tokens(tokenizer, positives)
    assert plain(table)["negativei"] == plain_tokens(tokenizer, ["liquor", "liquor", "one", "two", "three"])
    assert table.negatives.tolist() == [0, 1, 2, 2, 5, 5]
    np.testing.assert_equal(table.positive_score, np.array([2, 1, np.nan, np.nan, np.nan], np.float32))
    np.testing.assert_equal(table.negative_score, np.array([-1, -1, np.nan, np.nan, np.nan], np.float32))
    assert table.symmetric.tolist() == [False] * 4 + [True]
    assert table.alone.tolist() == [False] * 5
    assert table.teacher.tolist() == [1] * 5


def plain_tokens(tokenizer: Tokenizer, said: list[str]) -> list[str]:
    return [str(id) for id in tokenizer.encode(said, max_tokens=512).ids]


def test_meanings_are_groups_or_texts(data: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [
        *ROWS,
        {"query": "cat", "positive": "pack my box"},
        {"query": "x", "positive": "y", "group": 1, "source": "b"},
    ]
    meaning = prepare([write(data, rows)], tokenizer, tmp_path / "cache").table.meaning.tolist()
    first, second, park, box, dog, cat, other = meaning
    assert first == second == dog  # one group of one source
    assert box == cat  # equal positives
    assert len({first, park, box, other}) == 4


def test_groups_are_sources_kinds_and_language_pairs_of_some_size(
    data: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    many = [{"query": f"q{i}", "positive": f"p{i}", "query_lang": "en", "positive_lang": "de"} for i in range(40)]
    few = [{"query": f"q{i}", "positive": f"p{i}", "query_lang": "en", "positive_lang": str(i)} for i in range(5)]
    rows = [*few, *many, *({**row, "source": "b", "kind": "faq"} for row in many)]
    shards = prepare([write(data, rows)], tokenizer, tmp_path / "cache")
    assert shards.groups == (Group("b", "faq", "en", "de"), Group("data", "", "*", "*"), Group("data", "", "en", "de"))
    assert shards.pairs == (40, 5, 40)
    assert shards.table.source.tolist() == [1] * 5 + [2] * 40 + [0] * 40
    assert shards.shares(1) == {0: 1.0, 1: 1.0, 2: 1.0}
    assert shards.shares(float("inf"), "source") == pytest.approx({0: 42.5 / 40, 1: 42.5 / 45, 2: 42.5 / 45})
    assert shards.shares(float("inf"), "language", most=2) == pytest.approx({0: 42.5 / 80, 1: 2.0, 2: 42.5 / 80})
    with pytest.raises(ConfigError, match="by must be one of group, source, language; got 'kind'"):
        shards.shares(2, "kind")  # type: ignore[arg-type]


def test_limits_cut_and_draw_and_are_counted(data: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    limits = Limits(max_query=3, max_passage=4, negatives=2)
    shards = prepare([data], tokenizer, tmp_path / "cache", limits)
    assert shards.table.query.lengths.max() == 3
    assert shards.table.positive.lengths.max() == 4
    assert np.diff(shards.table.negatives).tolist() == [1, 1, 0, 2, 0]
    longer = int(
        (tokenizer.count(["the fox jumps", "lazy dog", ROWS[1]["positive"], "pack my box", "the fox jumps"]) > 4).sum()
    )
    assert shards.counts["positive texts of more than 4 tokens, cut"] == longer
    drawn = {
        tuple(
            prepare([data], tokenizer, tmp_path / "cache", Limits(negatives=2, seed=seed)).table.negative.ids.tolist()
        )
        for seed in range(8)
    }
    assert len(drawn) > 1


def test_only_one_negative_where_the_type_says_so(data: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    row = {"query": "q", "pos": ["a"], "neg": ["b", "c"], "type": "only_1neg"}
    assert len(prepare([write(data, [row])], tokenizer, tmp_path / "cache").table.negative) == 1


# ---- on disk ---------------------------------------------------------------------------------------------


def test_a_table_is_made_once_and_again_when_anything_changes(
    data: Path, tmp_path: Path, tokenizer: Tokenizer, wordpiece: Tokenizer
) -> None:
    cache, calls = tmp_path / "cache", list[tuple[int, int]]()

    def made(tokenizer: Tokenizer, limits: Limits | None = None) -> tuple[Shards, int]:
        calls.clear()
        return prepare([data], tokenizer, cache, limits, progress=lambda *done: calls.append(done)), len(calls)

    first, blocks = made(tokenizer)
    assert blocks == 1
    assert calls[-1] == (5, first.counts["tokens"])
    again, blocks = made(tokenizer)
    assert blocks == 0
    assert (again.folder, plain(again.table)) == (first.folder, plain(first.table))
    folders = {first.folder, made(wordpiece)[0].folder, made(tokenizer, Limits(max_query=5))[0].folder}
    write(data, ROWS[1:])
    folders.add(made(tokenizer)[0].folder)
    assert len(folders) == 4
    assert set(cache.iterdir()) == folders  # nothing half-made stays


def test_blocks_do_not_show(data: Path, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepare([data], tokenizer, tmp_path / "one")
    monkeypatch.setattr(tokenise, "BLOCK_PAIRS", 2)
    calls: list[tuple[int, int]] = []
    cut = prepare([data], tokenizer, tmp_path / "two", progress=lambda *done: calls.append(done))
    assert [pairs for pairs, _ in calls] == [2, 4, 5]
    monkeypatch.setattr(tokenise, "BLOCK_PAIRS", 100)
    monkeypatch.setattr(tokenise, "BLOCK_CHARACTERS", 10)
    finer = prepare([data], tokenizer, tmp_path / "three")
    assert plain(whole.table) == plain(cut.table) == plain(finer.table)
    assert whole.counts == cut.counts == finer.counts


def test_a_table_that_another_process_finished_first_is_used(
    data: Path, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, other = tmp_path / "cache", prepare([data], tokenizer, tmp_path / "other").folder

    def overtaken(part: Path, folder: Path) -> Path:
        shutil.copytree(other, folder)
        return rename(part, folder)

    rename = Path.rename
    monkeypatch.setattr(Path, "rename", overtaken)
    shards = prepare([data], tokenizer, cache)
    assert list(cache.iterdir()) == [shards.folder]
    assert len(shards.table) == 5


def test_a_wrong_line_leaves_no_table(data: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    write(data, [*ROWS, {"query": "q", "pos": []}])
    with pytest.raises(DataError, match=r"data\.jsonl:5: \"pos\" is empty"):
        prepare([data], tokenizer, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_oddities_are_kept_with_the_table(data: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    write(data, [*ROWS, ROWS[1] | {"id": 3}])
    for _ in range(2):
        counts = prepare([data], tokenizer, tmp_path / "cache").counts
        assert counts["field 'id', not used"] == 1
        assert counts["pairs that were there before"] == 1


def test_a_damaged_table_says_what_to_do(data: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = prepare([data], tokenizer, tmp_path / "cache").folder
    ids = folder / "query.ids.npy"
    ids.write_bytes(ids.read_bytes()[:-4])
    with pytest.raises(DataError, match="Delete the folder"):
        load_shards(folder)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="not a table of training data"):
        load_shards(folder)


def test_a_mapped_table_is_planned_and_its_arrays_may_be_written_to(
    data: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    rows = [{"query": f"q {i}", "positive": f"p {i}"} for i in range(30)]
    shards = prepare([write(data, rows)], tokenizer, tmp_path / "cache")
    batches = plan(shards.table, shares=shards.shares(2), budget=60, window=30, seed=0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(30))
    shards.table.source[0] = 9  # torch wants writable memory; the file stays as it is
    assert load_shards(shards.folder).table.source[0] == 0


def test_a_column_grows_and_is_an_ordinary_npy_file(tmp_path: Path) -> None:
    with write_columns(tmp_path) as columns:
        column = columns.column("x", np.int32)
        for part in ([1, 2], [], np.arange(1000)):
            column.extend(part)
        columns.column("nothing", np.float32)
    assert np.load(tmp_path / "x.npy").tolist() == [1, 2, *range(1000)]
    assert read_column(tmp_path, "nothing").shape == (0,)


def test_what_another_process_is_making_is_no_obstacle_and_stays(
    data: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """In two containers that share a cache, both processes have number 1."""
    made = prepare([data], tokenizer, tmp_path / "cache").folder
    part = made.with_name(f"{made.name}.{os.getpid()}.part")
    made.rename(part)
    assert prepare([data], tokenizer, tmp_path / "cache").folder == made
    assert (part / "manifest.json").is_file()


def test_pairs_that_only_have_negatives_of_their_own_need_them(tmp_path: Path, tokenizer: Tokenizer) -> None:
    row = {"query": "fox", "pos": ["the fox"], "neg": ["a dog"], "in_batch_negatives": False}
    path = write(tmp_path / "data.jsonl", [row])
    with pytest.raises(DataError, match=r"data\.jsonl:1: limits\.negatives is 0, and negatives of other records must"):
        prepare([path], tokenizer, tmp_path / "cache", Limits(negatives=0))
    assert len(prepare([path], tokenizer, tmp_path / "cache", Limits(negatives=1)).table) == 1


@pytest.mark.parametrize("limits", [{"max_query": 2}, {"max_passage": 0}, {"negatives": -1}])
def test_limits_that_mean_nothing_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be at least 3"):
        Limits(**limits)
