"""A file that is replaced is the old one or the new one, never a part of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from threefold.replacing import replacing


def test_the_draft_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.json.gz"
    path.write_text("old")
    with replacing(path) as draft:
        assert draft.suffix == ".gz"  # says how to pack
        draft.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_after_an_error_the_old_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as draft:
            draft.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_first_error_counts(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"), replacing(tmp_path / "missing" / "a.txt") as draft:
        draft.write_text("nowhere to be")


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.txt", tmp_path / "link.txt"
    link.symlink_to(real)
    with replacing(link) as draft:
        draft.write_text("new")
    assert link.is_symlink()
    assert real.read_text() == "new"
