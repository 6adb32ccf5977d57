"""What a terminal, a pipe or a full disk does to the output of a command, and never to its exit status."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
from rich.cells import cell_len
from rich.console import Console
from tests.cli.test_cli import model, run, texts, use

from threefold.cli import show

__all__ = ["model", "texts", "use"]

FULL = Path("/dev/full")


def threefold(*arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "threefold", *arguments]
    return subprocess.run(command, text=True, timeout=60, **{"stderr": subprocess.PIPE, **how})


def closed_pipe() -> IO[str]:
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "w")


@pytest.mark.parametrize("arguments", [["--version"], ["list"], ["list", "--json"]])
def test_a_closed_standard_output(home: Path, arguments: list[str]) -> None:
    """`>&-`: as if nobody read it, and no file of ours gets its number."""
    done = threefold(*arguments, preexec_fn=lambda: os.close(1))
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)


@pytest.mark.parametrize("stream", [closed_pipe, lambda: FULL.open("w")], ids=["pipe", "full"])
@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["list"], 0), (["search", "fox", "--in", "absent"], 4), (["search"], 2), (["no-such-command"], 2)],
)
def test_complaints_that_nobody_can_read_leave_the_status(
    home: Path, stream: Callable[[], IO[str]], arguments: list[str], status: int
) -> None:
    if stream is not closed_pipe and not FULL.exists():
        pytest.skip("this system has no /dev/full")
    with stream() as target:
        assert threefold(*arguments, stderr=target, stdout=subprocess.DEVNULL).returncode == status


def test_a_narrow_terminal_reads_the_names_of_options_in_full(home: Path) -> None:
    narrow = {**os.environ, "COLUMNS": "40"}
    said = threefold("index", "--help", stdout=subprocess.PIPE, env=narrow).stdout
    assert "--delete-missing" in said
    assert "…" not in said


def test_a_table_is_as_wide_as_its_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe counts as 80 columns: with every mode of evaluate, half of each figure would be dots."""
    printed = io.StringIO()
    monkeypatch.setattr(show, "out", Console(file=printed, width=12, soft_wrap=True))
    show.print_table(("set", "dense+sparse"), [("a-name-that-is-long", "100.0"), ("two\nlines\x1b[31m", "1.0")])
    assert printed.getvalue().splitlines() == [
        "set                  dense+sparse",
        "a-name-that-is-long         100.0",
        "two\ufffdlines\ufffd[31m                1.0",
    ]


def test_words_give_way_in_a_terminal_and_figures_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        ("0.1", "a.md", "The quick brown fox jumps over the lazy dog."),
        ("0.25", "b.md", "\u65e5\u672c\u8a9e " * 9),
    ]

    def lines(width: int, words: int | None, terminal: bool = True) -> list[str]:
        printed = io.StringIO()
        console = Console(file=printed, width=width, force_terminal=terminal, color_system=None, soft_wrap=True)
        monkeypatch.setattr(show, "out", console)
        show.print_table(("score", "document", "text"), rows, left=3, words=words)
        return [re.sub(r"\x1b\[\d*m", "", line) for line in printed.getvalue().splitlines()]

    full = lines(200, 2)
    assert full[1] == "0.1    a.md      The quick brown fox jumps over the lazy dog."
    assert full == [line.rstrip() for line in full] == lines(20, None) == lines(20, 2, terminal=False)
    narrow = lines(40, 2)
    assert narrow[1] == "0.1    a.md      The quick brown fox ju\u2026"
    assert max(map(cell_len, narrow)) <= 40
    assert lines(5, 2)[1] == "0.1    a.md      The quick\u2026"  # so much stays


def test_text_of_others_does_what_it_says() -> None:
    """Nothing that a terminal obeys, and no order of letters but their own; what languages need stays."""
    assert show.visible("a\x1b[2Jb\x07\u202ecba\u202c\tc\n") == "a\ufffd[2Jb\ufffd\ufffdcba\u202c\tc\n"
    assert show.one_line("a\nb\u202d") == "a\ufffdb\ufffd"
    assert (
        show.visible("\u05d0\u200f \u2067b\u2069 \u0915\u094d\u200d") == "\u05d0\u200f \u2067b\u2069 \u0915\u094d\u200d"
    )


def test_progress_stays_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = io.StringIO()
    monkeypatch.setattr(show, "err", Console(file=printed, width=40, force_terminal=True))
    with show.progress_bar("indexing") as bar:
        bar.update(1_000, 12_345_678)
        bar._progress.refresh()
        assert "\n" not in printed.getvalue()


def test_a_name_writes_no_lines_of_its_own(use: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fox\n2. 0.999 forged.txt").write_text("The quick brown fox.")
    (tmp_path / "bad\nskipped forged.txt").write_bytes(b"\x00\x01\x02\x03" * 64)
    code, _, err = run(capsys, "index", tmp_path, "--into", "two\nlines")
    assert code == 0
    assert not [line for line in err.splitlines() if line.startswith("skipped forged")]
    _, out, _ = run(capsys, "search", "quick fox", "--in", "two\nlines")
    assert not [line for line in out.splitlines() if line.startswith("2. ")]
    assert "two\ufffdlines" in run(capsys, "list")[1]
