"""Cross-encoders on disk -> network and head: query and text in one sequence, one logit from its first state.

XLMRobertaForSequenceClassification  bge-reranker-v2-m3, bge-reranker-base, ...: `classifier.dense`, `.out_proj`
BertForSequenceClassification        ms-marco-MiniLM-L-6-v2 and relatives: `pooler.dense`, `classifier`

Both compute the same: w . tanh(W h + b) + c on the state h of the first token.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from threefold.config import Settings
from threefold.encoder.checkpoint import empty, fill, fingerprint, stored_tensors
from threefold.encoder.files import Weights, check_whole, read_backbone, read_table
from threefold.encoder.foreign import Recipe, longest_text, network_config, network_recipes, prefix_of
from threefold.encoder.network import Network, NetworkConfig
from threefold.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class CrossConfig(Settings):
    """What a cross-encoder is.

    max_tokens   longest pair, specials included
    token_types  whether the second text has token type 1 (BERT), or all tokens have type 0 (XLM-R)
    """

    network: NetworkConfig
    max_tokens: int
    token_types: bool = False


class Head(nn.Module):
    """First states (n, d) -> logits (n,)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, 1)

    def forward(self, states: Tensor) -> Tensor:
        logits: Tensor = self.out(torch.tanh(self.dense(states))).squeeze(-1)
        return logits


class CrossModel(nn.Module):
    """Network and head. The head stays in float32: a logit near 8 has steps of 1/16 in bfloat16."""

    def __init__(self, config: CrossConfig) -> None:
        super().__init__()
        self.config = config
        self.network = Network(config.network)
        self.head = Head(config.network.hidden)


class LoadedCross(NamedTuple):
    """A cross-encoder and its fingerprint."""

    model: CrossModel
    hash: str


def load_cross(folder: Path) -> LoadedCross:
    """A Hugging Face folder with one label -> a float32 model on the CPU, its weights in the mapped file."""
    path = folder / "config.json"
    if folder.is_dir():
        check_whole(folder)
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a cross-encoder: it has no config.json")
    settings = read_table(path)
    network = network_config(settings, path)
    bert = settings["model_type"] == "bert"
    if bert and network.types < 2:
        raise CheckpointError(f"{path}: type_vocab_size is {network.types}; pairs of a BERT need 2")
    config = CrossConfig(network, longest_text(folder, network), token_types=bert)
    backbone = read_backbone(folder)
    recipes = network_recipes(network, backbone) | _head_recipes(folder, backbone, bert)
    model = fill(empty(CrossModel, config), recipes)
    return LoadedCross(model, fingerprint(stored_tensors(recipes), config))


def _head_recipes(folder: Path, backbone: Weights, bert: bool) -> dict[str, Recipe]:
    names = (
        {"dense": f"{prefix_of(backbone)}pooler.dense", "out": "classifier"}
        if bert
        else {"dense": "classifier.dense", "out": "classifier.out_proj"}
    )
    weight = f"{names['out']}.weight"
    if weight not in backbone.tensors:
        raise CheckpointError(f"{folder} is not a cross-encoder: {backbone.path} lacks the tensor {weight}")
    labels = len(backbone.get(weight))
    if labels != 1:
        raise CheckpointError(f"{backbone.path}: {weight} has {labels} labels; a cross-encoder that ranks has 1")
    return {
        f"head.{ours}.{part}": Recipe(backbone, (f"{theirs}.{part}",))
        for ours, theirs in names.items()
        for part in ("weight", "bias")
    }
