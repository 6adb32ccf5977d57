"""A module imports only from the layers below its own, at any depth of the file; heavy packages have their places.

Layers as in the design. Its fourth layer is two here: a collection stands on the retriever, on ingest and on what
opens a folder; those know no collection.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import threefold

ROOT = Path(threefold.__file__).parent
LAYERS = [
    "errors",
    "characters types config hub paths replacing",
    "text score evaluate",
    "encoder store",
    "attempts described export ingest opening remote retrieve shards",
    "bulk collection precomputed",
    "analyze client train serve integrations",
    "cli",
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names.split()}
#: Not a layer: they name others late, on purpose.
DOORS = {"__init__", "__main__"}
ONLY_IN = {
    "torch": {"encoder", "export", "train"},
    "qdrant_edge": {"store"},
    "qdrant_client": {"store"},
    "pymilvus": {"store"},
    "milvus_lite": {"store"},
    "fastapi": {"serve"},
    "starlette": {"serve"},
    "pydantic": {"serve"},
    "orjson": {"serve"},
    "prometheus_client": {"serve"},
    "opentelemetry": {"serve"},
    "uvicorn": {"serve"},
    "langchain_core": {"integrations"},
    "llama_index": {"integrations"},
    "haystack": {"integrations"},
    "typer": {"cli"},
    "rich": {"cli"},
    "FlagEmbedding": set[str](),
    "sentence_transformers": {"integrations"},
    "transformers": {"integrations"},
    "ray": {"integrations"},
    "mcp": {"integrations"},
}


def imported(tree: ast.Module) -> list[tuple[int, str]]:
    """Line and full name of everything that a module imports."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found += [(node.lineno, f"{'.' * node.level}{node.module or ''}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
    return found


def violations(here: str, source: str) -> list[str]:
    """What a module of part `here` may not import."""
    wrong = []
    for line, name in imported(ast.parse(source)):
        top, *rest = name.split(".")
        there = rest[0] if top == "threefold" and rest else ""
        if top == "":
            wrong.append(f"{line}: {name} is relative; say threefold.{here}")
        if there in LEVEL and there != here and LEVEL[there] >= LEVEL[here]:
            wrong.append(f"{line}: {here} must not import {there}")
        if here not in ONLY_IN.get(top, {here}):
            wrong.append(f"{line}: {top} does not belong in {here}")
    return wrong


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


FILES = [path for path in sorted(ROOT.rglob("*.py")) if part_of(path) not in DOORS]


def test_every_part_has_a_layer() -> None:
    assert {part_of(path) for path in FILES} <= LEVEL.keys()
    assert len(FILES) > 40


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    assert violations(part_of(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("here", "source", "message"),
    [
        ("errors", "from threefold.types import Hit", "1: errors must not import types"),
        ("types", "from threefold import config", "1: types must not import config"),
        ("score", "import threefold.text.tokenizer", "1: score must not import text"),
        ("evaluate", "def f():\n    from threefold.encoder import heads", "2: evaluate must not import encoder"),
        ("store", "if True:\n    import threefold.encoder", "2: store must not import encoder"),
        ("encoder", "from threefold.train.loop import Trainer", "1: encoder must not import train"),
        ("retrieve", "from threefold.collection import Collection", "1: retrieve must not import collection"),
        ("serve", "from threefold.train import loop", "1: serve must not import train"),
        ("train", "from threefold.cli.main import main", "1: train must not import cli"),
        ("store", "import torch.nn as nn", "1: torch does not belong in store"),
        ("cli", "from torch import Tensor", "1: torch does not belong in cli"),
        ("collection", "import qdrant_edge", "1: qdrant_edge does not belong in collection"),
        ("cli", "from starlette.app import App", "1: starlette does not belong in cli"),
        ("encoder", "from transformers import AutoModel", "1: transformers does not belong in encoder"),
        ("text", "from .tokenizer import Tokenizer", "1: .tokenizer.Tokenizer is relative; say threefold.text"),
    ],
)  # fmt: skip
def test_planted_violations_are_seen(here: str, source: str, message: str) -> None:
    assert violations(here, source) == [message]


@pytest.mark.parametrize(
    ("here", "source"),
    [
        ("collection", "from threefold.retrieve.stages import Ranked"),
        ("encoder", "import torch\nfrom threefold.encoder.model import Model"),
        ("cli", "from threefold.train.loop import Trainer\nfrom threefold import __version__"),
    ],
)
def test_what_is_allowed_passes(here: str, source: str) -> None:
    assert violations(here, source) == []
