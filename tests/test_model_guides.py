"""The examples of the guides that need a cross-encoder or several processes run, on tiny models."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from tests.encoder.checkpoints import bge_m3
from tests.encoder.cross_checkpoints import bge_reranker
from tests.test_docs import ROOT, blocks


@pytest.fixture
def models(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """What opens a model in the guides -> the folder of a tiny one; the current folder is empty."""
    found = {"CrossEncoder(": bge_reranker(tmp_path / "cross"), "Encoder(": bge_m3(tmp_path / "m3")}
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return found


def run(examples: list[str], models: dict[str, Path]) -> dict[str, Any]:
    """The names that a script of these examples leaves behind, on tiny models and with fewer texts."""
    text = "\n".join(examples).replace("10_000", "100")
    cross, encoder = (repr(str(models[name])) for name in ("CrossEncoder(", "Encoder("))
    text = text.replace("CrossEncoder()", f"CrossEncoder({cross})").replace("EncoderPool(", f"EncoderPool({encoder}, ")
    for said in (" Encoder()", '(Encoder("BAAI/bge-m3")'):
        text = text.replace(said, f"{said[0]}Encoder({encoder})")
    path = Path("example.py").absolute()
    path.write_text(text)
    return runpy.run_path(str(path), run_name="__main__")


def test_the_examples_of_reranking_run(models: dict[str, Path]) -> None:
    scope = run(blocks(ROOT / "docs" / "reranking.md", "python"), models)
    assert scope["judged"].truncated.tolist() == [True]
    assert scope["hits"][0].scores["cross"] == scope["hits"][0].score


def test_the_examples_of_scaling_run(models: dict[str, Path]) -> None:
    examples = blocks(ROOT / "docs" / "scaling.md", "python")
    # Clusters are packages of their own, and tests of their own: tests/integrations/test_ray.py, tests/store.
    examples = [one for one in examples if not re.search(r"^(import|from) ray\b|url=", one, re.MULTILINE)]
    pooled = [one for one in examples if "EncoderPool(" in one]  # its processes run the script again
    assert len(run(pooled, models)["three"]) == 2
    scope = run([one for one in examples if one not in pooled], models)
    assert scope["papers"].encoder.found == 2
    assert scope["windows"].tokens[0] > 5_000
    assert scope["marked"].dense.shape == (1, 32)
