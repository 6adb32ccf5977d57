"""`--devices`: several processes behind the commands that encode much."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.cli.conftest import LINES
from tests.cli.test_cli import run, run_json
from tests.fakes import hear_interrupts

from threefold.shards import read_parquet


def test_encode_with_two_processes_writes_what_one_writes(
    use: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one.parquet", tmp_path / "two.parquet"
    run_json(capsys, "encode", use, "-o", one)
    assert run_json(capsys, "encode", use, "-o", two, "--devices", "2")["texts"] == len(LINES)
    (ids, texts, a), (other_ids, other_texts, b) = read_parquet(one), read_parquet(two)
    assert (ids, texts) == (other_ids, other_texts)
    assert a.dense is not None
    assert b.dense is not None
    np.testing.assert_allclose(a.dense, b.dense, atol=2e-5)


def test_index_on_named_devices(use: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run_json(capsys, "index", use, "--into", "mine", "--devices", "cpu, cpu")
    assert report["added"] == 1
    assert run_json(capsys, "search", "quick fox", "--in", "mine", "--mode", "sparse")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--devices", "0"], "processes must be at least 1"),
        (["--devices", "99999999"], "processes must be at most"),
        (["--devices", "cpu,abacus"], "unknown device 'abacus'"),
        (["--devices", "cpu,cpu:5"], "device 'cpu:5' was asked for, but there is one only; use 'cpu'"),
        (["--device", "cpu:5"], "device 'cpu:5' was asked for, but there is one only; use 'cpu'"),
        (["--devices", "2", "--device", "cpu"], "give one of them"),
    ],
)
def test_bad_devices(
    use: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    code, out, err = run(capsys, "encode", use, "-o", tmp_path / "x.parquet", *arguments)
    assert (code, out) == (2, "")
    assert said in " ".join(err.split())
    assert not list(tmp_path.glob("*.parquet*"))


def in_session(leader: int) -> list[int]:
    """Processes of a session that are not zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_ctrl_c_is_one_clear_line_and_leaves_nobody_behind(use: Path, tmp_path: Path) -> None:
    many = tmp_path / "many.txt"
    many.write_text("\n".join(LINES * 20_000))
    process = subprocess.Popen(
        [sys.executable, "-m", "threefold", "encode", str(many), "-o", str(tmp_path / "x.parquet"), "--devices", "2"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_interrupts,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".*.x.parquet")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(in_session(process.pid)) >= 3
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == "error: interrupted"  # of one file nothing is kept
    while in_session(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert in_session(process.pid) == []
    assert not list(tmp_path.glob("*.parquet*"))
