from __future__ import annotations

from pathlib import Path

import pytest
from tests.encoder.checkpoints import bge_m3

LINES = [f"The quick brown fox number {i} jumps over the lazy dog." for i in range(50)]


@pytest.fixture
def use(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of texts, a tiny model, an empty home."""
    monkeypatch.setenv("THREEFOLD_MODEL", str(bge_m3(tmp_path / "model")))
    monkeypatch.setenv("THREEFOLD_PRECISION", "float32")
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(LINES))
    return path
