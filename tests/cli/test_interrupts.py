"""Ctrl-C before a command has begun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

#: Stands for the first large import: Ctrl-C comes while it runs.
INTERRUPTED_IMPORT = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit('still here')\n"


@pytest.fixture
def heard() -> Iterator[None]:
    """Processes that are started hear Ctrl-C, also where the tests run in the background of a shell and do not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("program", [("-m", "threefold"), ("-c", "from threefold.cli.main import entry; entry()")])
def test_ctrl_c_while_the_commands_are_imported_is_quiet(program: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text(INTERRUPTED_IMPORT, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, *program, "info"], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("before", ["default_int_handler", "SIG_IGN"])
def test_what_ctrl_c_does_afterwards_is_what_it_did_before(before: str) -> None:
    code = (
        f"import signal; signal.signal(signal.SIGINT, signal.{before}); import threefold.cli.main; "
        f"assert signal.getsignal(signal.SIGINT) == signal.{before}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
