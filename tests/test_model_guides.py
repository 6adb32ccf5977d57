"""The examples of the guides that need a cross-encoder or several processes run, on tiny models."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from tests.encoder.checkpoints import bge_m3
from tests.encoder.cross_checkpoints import bge_reranker
from tests.test_docs import ROOT, blocks


@pytest.mark.parametrize("name", ["reranking", "scaling"])
def test_the_python_examples_run(name: str, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {"CrossEncoder(": bge_reranker(tmp_path / "cross"), "Encoder(": bge_m3(tmp_path / "m3")}
    examples = blocks(ROOT / "docs" / f"{name}.md", "python")
    # Clusters are packages of their own, and tests of their own: tests/integrations/test_ray.py, tests/store.
    text = "\n".join(one for one in examples if not re.search(r"^(import|from) ray\b|url=", one, re.MULTILINE))
    text = text.replace("CrossEncoder()", f"CrossEncoder({str(folders['CrossEncoder('])!r})")
    for said in (" Encoder()", '(Encoder("BAAI/bge-m3")'):
        assert name != "scaling" or said in text
        text = text.replace(said, f"{said[0]}Encoder({str(folders['Encoder('])!r})")
    text = text.replace("EncoderPool(", f"EncoderPool({str(folders['Encoder('])!r}, ").replace("10_000", "100")
    path = tmp_path / f"{name}.py"
    path.write_text(text)
    monkeypatch.chdir(tmp_path)
    scope = runpy.run_path(str(path), run_name="__main__")
    if name == "reranking":
        assert scope["judged"].truncated.tolist() == [True]
        assert scope["hits"][0].scores["cross"] == scope["hits"][0].score
    else:
        assert len(scope["three"]) == 2
        assert scope["windows"].tokens[0] > 5_000
        assert scope["marked"].dense.shape == (1, 32)
