"""How results look: JSON for programs on standard output, tables for people, progress and complaints beside them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column, Table
from rich.text import Text


def silence(stream: TextIO) -> None:
    """From now on nobody reads this stream: what is still to be written to it cannot fail any more."""
    with suppress(OSError, ValueError):  # it is no file, or closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Aside(Console):
    """Standard error. That nobody reads it, or that its disk is full, is no failure of a command."""

    def print(self, *objects: Any, **options: Any) -> None:
        try:
            super().print(*objects, **options)
        except OSError:
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        self.quiet = True
        silence(sys.stderr)


#: Names of files, keys and models may hold brackets: what is printed is text, never Rich's markup.
out = Console(highlight=False, soft_wrap=True, markup=False)
err = _Aside(stderr=True, highlight=False, soft_wrap=True, markup=False)

#: C0 and C1 control characters but tab and line feed, and the two by which letters are shown in another order than
#: they are in (CVE-2021-42574) -> U+FFFD.
_CONTROLS = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0), 0x202D, 0x202E) if chr(code) not in "\t\n"}
_BREAKS = str.maketrans("\t\n", "\ufffd\ufffd")
#: Wider than any table.
_WIDEST = 1_000_000
#: Characters that stay of the cells of a column that gives way.
_LEAST = 10


def print_json(data: Any) -> None:
    """One JSON document on standard output, nothing else."""
    sys.stdout.write(json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def visible(text: str) -> str:
    """Text of others for a terminal, which would obey the control characters in it."""
    return text.translate(_CONTROLS)


def one_line(name: str) -> str:
    """A name for a terminal: with line feeds in it, it could write lines of its own."""
    return visible(name).translate(_BREAKS)


def complain(message: str) -> None:
    """One error for a person, on one line: names and the words of other libraries may hold line feeds."""
    err.print(Text.assemble(("error: ", "bold red"), _joined(message)))


def note(message: str) -> None:
    """Something worth knowing that is not a result, on one line."""
    err.print(Text(_joined(message), style="dim"))


def _joined(message: str) -> str:
    return " ".join(line.strip() for line in visible(message).splitlines() if line.strip())


def of_system(error: OSError) -> str:
    """An error of the operating system that no part has made one of its own: the file, if it is about one, and why."""
    return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)


def named(name: str, what: str, indent: str = "") -> Text:
    """A line of an explanation: its name, and what there is of it."""
    return Text.assemble(indent, (f"{name}: ", "dim"), visible(what))


def print_table(
    head: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    title: str | None = None,
    left: int = 1,
    words: int | None = None,
) -> None:
    """A table as wide as its cells, whatever the terminal or the pipe: half a figure says nothing.

    head   empty: none
    left   so many columns begin at the left, as words do; the others end at the right, as numbers do
    words  the column that is shortened where a terminal is too narrow; None: none is
    """
    table = Table(
        title=title, title_justify="left", show_header=bool(head), header_style="bold", box=None, pad_edge=False
    )
    for i, name in enumerate(head):
        table.add_column(visible(name), justify="left" if i < left else "right")
    for row in rows:
        table.add_row(*(one_line(cell) if isinstance(cell, str) else cell for cell in row))
    if words is not None and out.is_terminal:
        _fit(table, table.columns[words])
    table.width = _width(table)
    for line in out.render_lines(table, out.options.update(width=table.width), pad=False):
        text = Text.assemble(*((part.text, part.style or "") for part in line))
        text.rstrip()  # the last column is padded as the others are
        out.print(text)


def _width(table: Table) -> int:
    return Measurement.get(out, out.options.update(max_width=_WIDEST), table).maximum


def _fit(table: Table, column: Column) -> None:
    """Shorten a column where the terminal would break the rows."""
    if (over := _width(table) - out.width) > 0:
        widest = max(cell_len(str(cell)) for cell in (column.header, *column.cells))
        column.max_width, column.no_wrap, column.overflow = max(widest - over, _LEAST), True, "ellipsis"


class _TokenRate(ProgressColumn):
    """Tokens per second since the start of the task."""

    def render(self, task: Task) -> Text:
        tokens = task.fields.get("tokens", 0)
        if not tokens or not task.elapsed:
            return Text("")
        return Text(f"{tokens:,} tokens, {tokens / task.elapsed:,.0f}/s", style="dim")


class Bar:
    """One line of progress on standard error."""

    def __init__(self, progress: Progress, task: Any) -> None:
        self._progress, self._task = progress, task

    def update(self, done: int, tokens: int) -> None:
        """So many items and tokens are done in all."""
        self._progress.update(self._task, completed=done, tokens=tokens)


@contextmanager
def progress_bar(what: str, total: int | None = None, *, quiet: bool = False) -> Iterator[Bar]:
    """A bar with elapsed time and tokens per second; without a terminal it stays silent until the end."""
    columns = [SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()]
    rate = _TokenRate(Column(no_wrap=True))
    with Progress(
        *columns, TimeElapsedColumn(), rate, console=err, disable=quiet or not err.is_terminal, transient=True
    ) as progress:
        yield Bar(progress, progress.add_task(what, total=total, tokens=0))


def many(number: int, word: str, several: str = "") -> str:
    """A number of things: "1 group", "2 groups"."""
    return f"{number:,} {word if number == 1 else several or f'{word}s'}"


def note_cut(number: int, word: str, more: str = "") -> None:
    """That so many texts were too long, if any were."""
    if number:
        were = "was" if number == 1 else "were"
        note(f"{many(number, word)} {were} longer than the model reads and {were} cut{more}")


def shorten(text: str, width: int) -> str:
    """One line of at most `width` characters."""
    flat = visible(" ".join(text.split()))
    return flat if len(flat) <= width else flat[: width - 1] + "…"
