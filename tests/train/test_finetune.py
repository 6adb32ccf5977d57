"""The guide's example: its data are what `write.py` writes, nothing leaks, and a small run of it gains."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from threefold.train.recipe import read_recipe, read_toml

EXAMPLES = Path(__file__).parents[2] / "examples"
DATA = EXAMPLES / "finetune"


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_data_are_what_the_script_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = module(DATA / "write.py")
    monkeypatch.setattr(write, "HERE", tmp_path)
    write.main()
    for name in ("train.jsonl", "corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes(), name


def test_nothing_that_is_measured_was_trained_on() -> None:
    train, corpus, queries = (rows(DATA / f"{name}.jsonl") for name in ("train", "corpus", "queries"))
    assert (len(train), len(corpus), len(queries)) == (500, 624, 124)
    texts = {row["_id"]: row["text"] for row in corpus}
    answers = {line.split("\t")[1] for line in (DATA / "qrels/test.tsv").read_text().splitlines()[1:]}
    assert len(answers) == 124
    trained = {text for row in train for text in row["pos"]}
    assert not trained & {texts[id] for id in answers}
    assert not {row["query"] for row in train} & {row["text"] for row in queries}
    assert max(Counter(texts.values()).values()) == 1


def test_a_small_run_gains(tmp_path: Path) -> None:
    """80 of the 500 pairs, two passes, and 40 of the held-out questions with their answers to choose from."""
    example = module(EXAMPLES / "finetune.py")
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(DATA / "train.jsonl")[:80]))
    judged = (DATA / "qrels/test.tsv").read_text().splitlines()[:41]
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels/test.tsv").write_text("\n".join(judged) + "\n")
    kept = {id for line in judged for id in line.split("\t")[:2]}
    for name in ("queries.jsonl", "corpus.jsonl"):
        chosen = [json.dumps(row) + "\n" for row in rows(DATA / name) if row["_id"] in kept]
        (tmp_path / name).write_text("".join(chosen))

    table = read_toml(DATA / "recipe.toml")
    read_recipe(table)  # as it stands
    table["data"] |= {"budget": 1_024}
    table |= {"stages": [{"epochs": 2}], "device": "cpu"}
    table["train"] |= {"body_lr": 3e-4, "freeze": ["words"], "precision": "float32"}
    folder = example.fine_tune(table, tmp_path)
    before, after = example.measure(table["model"], tmp_path), example.measure(folder, tmp_path)
    assert folder == tmp_path / "millers"
    assert all(after[mode] > before[mode] + 0.02 for mode in ("dense", "multi", "hybrid")), (before, after)
