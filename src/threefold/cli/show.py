"""How results look: JSON for programs on standard output, tables for people, progress and complaints beside them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
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
from rich.text import Text

#: Names of files, keys and models may hold brackets: what is printed is text, never Rich's markup.
out = Console(highlight=False, soft_wrap=True, markup=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


#: C0 and C1 control characters but tab and line feed -> U+FFFD.
_CONTROLS = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}


def print_json(data: Any) -> None:
    """One JSON document on standard output, nothing else."""
    sys.stdout.write(json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def visible(text: str) -> str:
    """Text of others for a terminal, which would obey the control characters in it."""
    return text.translate(_CONTROLS)


def complain(message: str) -> None:
    """One error for a person."""
    err.print(Text.assemble(("error: ", "bold red"), visible(message)))


def note(message: str) -> None:
    """Something worth knowing that is not a result."""
    err.print(Text(visible(message), style="dim"))


def named(name: str, what: str, indent: str = "") -> Text:
    """A line of an explanation: its name, and what there is of it."""
    return Text.assemble(indent, (f"{name}: ", "dim"), visible(what))


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
    with Progress(
        *columns, TimeElapsedColumn(), _TokenRate(), console=err, disable=quiet or not err.is_terminal, transient=True
    ) as progress:
        yield Bar(progress, progress.add_task(what, total=total, tokens=0))


def shorten(text: str, width: int) -> str:
    """One line of at most `width` characters."""
    flat = visible(" ".join(text.split()))
    return flat if len(flat) <= width else flat[: width - 1] + "…"
