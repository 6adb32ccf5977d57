"""What is run first on a real GPU runs on a pretended one."""

from __future__ import annotations

import pytest
from tests.gpu import real
from tests.gpu.pretend import Gpu


def test_every_check_runs(gpu: Gpu, capsys: pytest.CaptureFixture[str]) -> None:
    assert real.main(["--full"]) == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    assert said.count("ok      ") == len(real.CHECKS)
    assert "3 x 5 tokens" in said
    assert "attention alone, 2 x 5: varlen" in said
