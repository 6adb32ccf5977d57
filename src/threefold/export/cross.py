"""A cross-encoder -> a Hugging Face folder: what `encoder/cross_model.py` reads, and `transformers` too.

The layout of its backbone decides: `BertForSequenceClassification` or `XLMRobertaForSequenceClassification`.
"""

from __future__ import annotations

from pathlib import Path

from threefold.encoder.cross_model import CrossModel
from threefold.export.hugging_face import (
    as_stored,
    is_bert,
    network_settings,
    network_tensors,
    write_network,
    write_tokenizer,
)
from threefold.text.tokenizer import Tokenizer


def write_cross(model: CrossModel, tokenizer: Tokenizer, folder: Path, precision: str = "float32") -> None:
    """Write the files into `folder`."""
    network, bert = model.config.network, is_bert(model.config.network)
    prefix = "bert." if bert else "roberta."
    names = (
        {"dense": "bert.pooler.dense", "out": "classifier"}
        if bert
        else {"dense": "classifier.dense", "out": "classifier.out_proj"}
    )
    tensors = network_tensors(model.network, precision, prefix)
    for ours, tensor in model.head.state_dict().items():
        layer, part = ours.split(".")
        tensors[f"{names[layer]}.{part}"] = as_stored(tensor, precision, f"head.{ours}")
    family = "Bert" if bert else "XLMRoberta"
    labels = {"num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    settings = {"architectures": [f"{family}ForSequenceClassification"], **labels}
    write_network(folder, settings | network_settings(network, tokenizer, precision), tensors)
    write_tokenizer(folder, tokenizer, model.config.max_tokens, pair_types=model.config.token_types)
