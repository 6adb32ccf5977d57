"""A model with three heads as a folder of FlagEmbedding: backbone, `sparse_linear.pt`, `colbert_linear.pt`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from threefold.errors import MissingHeadError
from threefold.export import card
from threefold.export.hugging_face import (
    as_stored,
    is_bert,
    network_settings,
    network_tensors,
    unread_pooler,
    write_network,
    write_tokenizer,
)
from threefold.export.opened import Opened
from threefold.export.sentence_transformers import write_modules

#: Our word for a pooling -> that of FlagEmbedding 1.4 `finetune/embedder/encoder_only/m3/modeling.py`.
_POOLINGS = {"cls": "cls", "mean": "mean", "last": "last_token"}
LAYOUT = "flagembedding"


def write(opened: Opened, folder: Path, precision: str = "float32") -> tuple[str, ...]:
    """Write the files into `folder`; returns what a reader must know. Both learned heads must be there."""
    config, heads = opened.config, opened.model.heads
    if heads.sparse is None or heads.multi is None:
        lacking = "sparse" if heads.sparse is None else "multi"
        raise MissingHeadError(
            f"{opened.name} has no {lacking} head, and FlagEmbedding's BGEM3FlagModel needs all three. "
            "Export --to sentence-transformers, or train the head first"
        )
    if not config.heads.normalize:
        raise MissingHeadError(
            f"{opened.name} does not normalise its dense vectors. FlagEmbedding has one switch for dense and token "
            "vectors, so it cannot make both as this model does. Export --to onnx instead"
        )
    tensors = network_tensors(opened.model.network, precision) | unread_pooler(config.network.hidden, precision)
    kind = "BertModel" if is_bert(config.network) else "XLMRobertaModel"
    settings = network_settings(config.network, opened.tokenizer, precision)
    write_network(folder, {"architectures": [kind], **settings}, tensors)
    write_tokenizer(folder, opened.tokenizer, config.max_tokens)
    write_modules(folder, opened)  # as in the published bge-m3: other tools read the pooling there
    _write_head(folder / "sparse_linear.pt", heads.sparse, precision)
    _write_head(folder / "colbert_linear.pt", heads.multi, precision)
    notes = _notes(opened)
    card.write(folder, opened, LAYOUT, notes, arguments(opened))
    return notes


def arguments(opened: Opened) -> dict[str, str | int]:
    """What `BGEM3FlagModel` must be told because its folder has no place for it."""
    config = opened.config
    told: dict[str, str | int] = {}
    if config.heads.pooling != "cls":
        told["pooling_method"] = _POOLINGS[config.heads.pooling]
    if config.heads.multi_dim != config.network.hidden:
        told["colbert_dim"] = config.heads.multi_dim
    if config.query_prompt:
        told["query_instruction_for_retrieval"] = config.query_prompt
    return told


def _write_head(path: Path, head: nn.Linear, precision: str) -> None:
    parts = {"weight": head.weight, "bias": head.bias}
    torch.save({name: as_stored(tensor, precision, f"{path.stem}.{name}") for name, tensor in parts.items()}, path)


def _notes(opened: Opened) -> tuple[str, ...]:
    notes = []
    if told := arguments(opened):
        call = ", ".join(f"{name}={value!r}" for name, value in told.items())
        notes.append(f"FlagEmbedding cannot read this from the folder, so say it: BGEM3FlagModel(folder, {call}).")
    if prompt := opened.config.document_prompt:
        notes.append(f"FlagEmbedding puts nothing before documents; this model wants {prompt!r}.")
    return tuple(notes)
