"""Random tiny cross-encoders in the two layouts that others publish, and their score by plain formulas in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tests.encoder.checkpoints import HIDDEN, backbone, bge_m3, sentence_transformer
from tests.encoder.plain import Plain
from torch import Tensor

from threefold.text.tokenizer import Tokenizer


def bge_reranker(folder: Path, *, seed: int = 0) -> Path:
    """BAAI/bge-reranker-v2-m3 in small."""
    return _as_cross_encoder(bge_m3(folder), "XLMRobertaForSequenceClassification", "roberta.", seed)


def minilm_reranker(folder: Path, *, seed: int = 0) -> Path:
    """cross-encoder/ms-marco-MiniLM-L-6-v2 in small: 64 positions, pooler and classifier, token types."""
    folder = _as_cross_encoder(sentence_transformer(folder), "BertForSequenceClassification", "bert.", seed)
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (folder / name).unlink()
    names = {"cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "pad": "[PAD]", "mask": "[MASK]"}
    special = {f"{role}_token": token for role, token in names.items()}
    settings = {"tokenizer_class": "BertTokenizerFast", "do_lower_case": True, "model_max_length": 64, **special}
    _write(folder / "tokenizer_config.json", settings)
    return folder


def _as_cross_encoder(folder: Path, architecture: str, prefix: str, seed: int) -> Path:
    config = json.loads((folder / "config.json").read_text())
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    _write(folder / "config.json", config | labels | {"architectures": [architecture]})
    for name in ("pytorch_model.bin", "sparse_linear.pt", "colbert_linear.pt"):
        (folder / name).unlink(missing_ok=True)
    generator = torch.Generator().manual_seed(seed)
    state = {prefix + name: tensor for name, tensor in backbone(config, generator).items()}
    head = {"out": "classifier"}
    if prefix == "roberta.":
        head = {"dense": "classifier.dense", "out": "classifier.out_proj"}
        state = {name: tensor for name, tensor in state.items() if "pooler" not in name}
    for part, name in head.items():
        state |= _linear(name, 1 if part == "out" else HIDDEN, generator)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _linear(name: str, rows: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {
        f"{name}.weight": torch.randn(rows, HIDDEN, generator=generator) * 0.5,
        f"{name}.bias": torch.randn(rows, generator=generator) * 0.5,
    }


def _write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1), encoding="utf-8")


def plain_score(folder: Path, query: str, text: str) -> float:
    """The logit of a pair that is not cut, in float64, one pair at a time."""
    config = json.loads((folder / "config.json").read_text())
    bert = config["model_type"] == "bert"
    state = {name: tensor.double().numpy() for name, tensor in load_file(folder / "model.safetensors").items()}
    prefix = "bert." if bert else "roberta."
    network = {name.removeprefix(prefix): values for name, values in state.items()}
    tokenizer = Tokenizer.load(folder)
    first = tokenizer.encode([query], max_tokens=8000)[0].tolist()
    second = tokenizer.encode([text], max_tokens=8000)[0].tolist()[1:]
    ids = first + ([] if bert else [tokenizer.sep_id]) + second
    types = [0] * (len(ids) - len(second)) + [1] * len(second) if bert else None
    h = Plain(config, network, {}, {}).hidden(ids, types)[0]
    dense, out = (prefix + "pooler.dense", "classifier") if bert else ("classifier.dense", "classifier.out_proj")
    squashed = np.tanh(state[f"{dense}.weight"] @ h + state[f"{dense}.bias"])
    return float((state[f"{out}.weight"] @ squashed + state[f"{out}.bias"])[0])
