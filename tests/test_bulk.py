"""A folder of Parquet files that is filled in several runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.fakes import FakeEncoder

from threefold.bulk import Job, Order, Part, read_job, write_part
from threefold.errors import InputError
from threefold.shards import Written, read_parquet, read_written, write_parquet
from threefold.text.tokenizer import Tokenizer

ROWS = [(str(i), f"quick fox {i}") for i in range(10)]
ORDER = Order(texts=4)


def run(folder: Path, encoder: FakeEncoder, rows: Iterable[tuple[str, str]] = ROWS, order: Order = ORDER) -> list[int]:
    """Do what is missing; the numbers of the files that were written."""
    with Job(folder, order, encoder.card) as job:
        numbers = []
        for part in job.missing(rows):
            job.add(part, write_part(job.path(part.number), part, order, encoder))
            numbers.append(part.number)
        job.finish()
    return numbers


def contents(folder: Path) -> list[tuple[str, str]]:
    files = sorted(folder.glob("part-*.parquet"))
    return [row for file in files for row in zip(*read_parquet(file)[:2], strict=True)]


def test_the_files_have_all_rows_in_order_and_the_job_its_totals(encoder: FakeEncoder, tmp_path: Path) -> None:
    assert run(tmp_path / "out", encoder) == [0, 1, 2]
    assert contents(tmp_path / "out") == ROWS
    job = read_job(tmp_path / "out")
    assert job is not None
    tokens = int(encoder.encode([text for _, text in ROWS]).tokens.sum())
    assert job["done"] == {"files": 3, "texts": 10, "tokens": tokens, "truncated": 0}
    assert (job["texts_per_file"], job["outputs"], job["max_tokens"]) == (4, ["dense", "sparse", "multi"], 512)


def test_the_folder_is_one_table_for_others(encoder: FakeEncoder, tmp_path: Path) -> None:
    run(tmp_path / "out", encoder)
    assert pq.read_table(tmp_path / "out")["id"].to_pylist() == [id for id, _ in ROWS]


def test_only_what_is_missing_is_encoded(encoder: FakeEncoder, tmp_path: Path) -> None:
    run(tmp_path / "out", encoder)
    (tmp_path / "out" / "part-000001.parquet").unlink()
    encoder.calls.clear()
    assert run(tmp_path / "out", encoder) == [1]
    assert encoder.calls == [[text for _, text in ROWS[4:8]]]
    assert contents(tmp_path / "out") == ROWS
    assert run(tmp_path / "out", encoder) == []


def test_a_run_that_stops_leaves_whole_files_and_says_that_it_is_not_done(encoder: FakeEncoder, tmp_path: Path) -> None:
    def rows() -> Iterator[tuple[str, str]]:
        yield from ROWS[:6]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", encoder, rows())
    assert contents(tmp_path / "out") == ROWS[:4]
    assert (read_job(tmp_path / "out") or {})["done"] is None
    assert run(tmp_path / "out", encoder) == [1, 2]


def test_what_was_there_is_counted_apart(encoder: FakeEncoder, tmp_path: Path) -> None:
    run(tmp_path / "out", encoder)
    (tmp_path / "out" / "part-000002.parquet").unlink()
    with Job(tmp_path / "out", ORDER, encoder.card) as job:
        assert [part.number for part in job.missing(ROWS)] == [2]
        assert (job.found.texts, job.files) == (8, 3)


def test_drafts_of_a_process_that_was_killed_are_removed(encoder: FakeEncoder, tmp_path: Path) -> None:
    run(tmp_path / "out", encoder)
    (tmp_path / "out" / ".123.part-000001.parquet").write_bytes(b"half")
    run(tmp_path / "out", encoder)
    assert not list((tmp_path / "out").glob(".*"))


def test_more_rows_go_on_where_the_last_file_was_full(encoder: FakeEncoder, tmp_path: Path) -> None:
    run(tmp_path / "out", encoder, ROWS[:8])
    assert run(tmp_path / "out", encoder) == [2]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (ROWS[:9], r"part-000002\.parquet was made of other rows"),
        ([("0", "other"), *ROWS[1:]], r"part-000000\.parquet was made of other rows"),
        ([("00", "quick fox 0"), *ROWS[1:]], r"part-000000\.parquet was made of other rows"),
        (ROWS[:8], r"part-000002\.parquet is there, but the input ends before it"),
    ],
)
def test_another_input_is_refused(encoder: FakeEncoder, tmp_path: Path, rows: list[tuple[str, str]], said: str) -> None:
    run(tmp_path / "out", encoder)
    with pytest.raises(InputError, match=said):
        run(tmp_path / "out", encoder, rows)
    assert contents(tmp_path / "out") == ROWS


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (ORDER._replace(texts=5), "texts_per_file 4, not 5"),
        (ORDER._replace(outputs=("dense",)), r"outputs \['dense', 'sparse', 'multi'\], not \['dense'\]"),
        (ORDER._replace(max_tokens=8), "max_tokens 512, not 8"),
        (ORDER._replace(truncate="start"), "truncate 'end', not 'start'"),
    ],
)
def test_another_order_is_refused(encoder: FakeEncoder, tmp_path: Path, order: Order, said: str) -> None:
    run(tmp_path / "out", encoder)
    with pytest.raises(InputError, match=f"was begun with {said}"):
        run(tmp_path / "out", encoder, order=order)


def test_another_model_is_refused(encoder: FakeEncoder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    run(tmp_path / "out", encoder)
    with pytest.raises(InputError, match="was begun with a model of the hash"):
        run(tmp_path / "out", FakeEncoder(tokenizer, name="other"))


def test_settings_that_made_nothing_do_not_bind(encoder: FakeEncoder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="max_tokens must be at least"):
        run(tmp_path / "out", encoder, order=ORDER._replace(max_tokens=1))
    assert run(tmp_path / "out", encoder) == [0, 1, 2]


def test_nobody_else_writes_meanwhile(encoder: FakeEncoder, tmp_path: Path) -> None:
    with (
        Job(tmp_path / "out", ORDER, encoder.card),
        pytest.raises(InputError, match="another run writes into this folder"),
    ):
        Job(tmp_path / "out", ORDER, encoder.card)
    assert run(tmp_path / "out", encoder) == [0, 1, 2]


def test_a_folder_of_other_files_is_refused(encoder: FakeEncoder, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="holds other files"):
        run(tmp_path, encoder)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("said", ["", "[]", "{}", '{"format_version": 9, "texts_per_file": 4}'])
def test_a_job_that_cannot_be_read(encoder: FakeEncoder, tmp_path: Path, said: str) -> None:
    run(tmp_path / "out", encoder)
    (tmp_path / "out" / "_job" / "job.json").write_text(said)
    with pytest.raises(InputError, match=r"job\.json (cannot be read|is of another version)"):
        run(tmp_path / "out", encoder)


def test_a_damaged_file_is_named(encoder: FakeEncoder, tmp_path: Path) -> None:
    run(tmp_path / "out", encoder)
    (tmp_path / "out" / "part-000001.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"part-000001\.parquet is damaged"):
        run(tmp_path / "out", encoder)


def test_half_characters_are_the_same_rows_again(encoder: FakeEncoder, tmp_path: Path) -> None:
    rows = [("\ud800", "nul \0 fox")]
    assert run(tmp_path / "out", encoder, rows) == [0]
    assert run(tmp_path / "out", encoder, rows) == []


def test_a_fingerprint_tells_where_fields_end() -> None:
    assert Part(0, [("ab", "c")]).digest != Part(0, [("a", "bc")]).digest


def test_a_file_says_its_totals(encoder: FakeEncoder, tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", ROWS, encoder, max_tokens=4, source="mine")
    assert read_written(tmp_path / "x.parquet") == (Written(10, 40, 10), "mine")
    pq.write_table(pq.read_table(tmp_path / "x.parquet").replace_schema_metadata({}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="is damaged, or was not written by this version"):
        read_written(tmp_path / "x.parquet")


def test_the_row_of_an_error_is_named(encoder: FakeEncoder, tmp_path: Path) -> None:
    rows = [*ROWS, ("long", "fox " * 600)]
    with pytest.raises(InputError, match=r"the text with the id 'long' has [0-9,]+ tokens, the limit is 512"):
        write_parquet(tmp_path / "x.parquet", rows, encoder, truncate="none")
    with pytest.raises(InputError, match=r"^max_tokens must be at least"):  # no row is to blame
        write_parquet(tmp_path / "x.parquet", rows, encoder, max_tokens=1)
    assert not list(tmp_path.iterdir())
