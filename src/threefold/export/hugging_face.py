"""Our parameters -> a Hugging Face folder: `config.json`, `model.safetensors`, tokenizer. Inverse of `encoder/foreign`.

Stock `BertModel` and `XLMRobertaModel` of `transformers` load it without remote code.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from threefold.encoder.files import write_safetensors
from threefold.encoder.foreign import hugging_face_names
from threefold.encoder.network import Network, NetworkConfig
from threefold.errors import InputError, NumericalError
from threefold.export.opened import PRECISIONS
from threefold.text.tokenizer import Tokenizer


def is_bert(config: NetworkConfig) -> bool:
    """The two families differ in where positions start: BERT at row 0, XLM-R after the row of the padding."""
    return config.first_position == 0


def network_tensors(network: Network, precision: str = "float32", prefix: str = "") -> dict[str, Tensor]:
    """{their name: tensor}; what is one matrix of ours (queries, keys, values) is cut into theirs."""
    if precision not in PRECISIONS:
        raise InputError(f"weights are exported as {' or '.join(PRECISIONS)}; got {precision!r}")
    ours = network.state_dict()
    found: dict[str, Tensor] = {}
    for name, theirs in hugging_face_names(network.config).items():
        for their, part in zip(theirs, ours[name].chunk(len(theirs)), strict=True):
            found[prefix + their] = as_stored(part, precision, name)
    return found


def as_stored(tensor: Tensor, precision: str, name: str) -> Tensor:
    """A tensor of its own memory in this precision; what does not fit into 16 bits is an error, not infinity."""
    stored = tensor.detach().to(getattr(torch, precision)).clone(memory_format=torch.contiguous_format)
    if not torch.isfinite(stored).all():
        raise NumericalError(f"{name} has numbers that {precision} cannot hold; export float32")
    return stored


def unread_pooler(hidden: int, precision: str) -> dict[str, Tensor]:
    """The pooler of published backbones, which no embedding reads. Where it is missing, loaders warn and draw one."""
    dtype = getattr(torch, precision)
    return {
        "pooler.dense.weight": torch.zeros(hidden, hidden, dtype=dtype),
        "pooler.dense.bias": torch.zeros(hidden, dtype=dtype),
    }


def network_settings(config: NetworkConfig, tokenizer: Tokenizer, precision: str = "float32") -> dict[str, Any]:
    """`config.json` without `architectures`."""
    bert = is_bert(config)
    if not bert and tokenizer.pad_id != config.first_position - 1:
        raise InputError(
            f"positions start at row {config.first_position}, which XLM-R reads as padding id "
            f"{config.first_position - 1}; that of {tokenizer.name} is {tokenizer.pad_id}. It cannot be expressed there"
        )
    return {
        "model_type": "bert" if bert else "xlm-roberta",
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.ffn,
        "max_position_embeddings": config.positions,
        "type_vocab_size": config.types,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "bos_token_id": tokenizer.cls_id,
        "eos_token_id": tokenizer.sep_id,
        "pad_token_id": tokenizer.pad_id,
        "torch_dtype": precision,
    }


def write_network(folder: Path, settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """`config.json` and `model.safetensors`."""
    write_json(folder / "config.json", settings)
    write_safetensors(folder / "model.safetensors", tensors)
    shutil.copymode(folder / "config.json", folder / "model.safetensors")  # it was written for its owner only


def write_tokenizer(folder: Path, tokenizer: Tokenizer, max_tokens: int, *, pair_types: bool = False) -> None:
    """Tokenizer files that `AutoTokenizer` reads as they are, and that give the ids which our tokenizer gives.

    pair_types  the second text of a pair has token type 1 (cross-encoders on BERT)
    """
    path = folder / "tokenizer.json"
    tokenizer.save(path)
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["post_processor"] = _frame(tokenizer, pair_types)
    path.write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
    ids = {"cls": tokenizer.cls_id, "bos": tokenizer.cls_id, "sep": tokenizer.sep_id, "eos": tokenizer.sep_id}
    ids |= {"pad": tokenizer.pad_id, "unk": tokenizer.unk_id}
    special = {f"{role}_token": tokenizer.token(id) for role, id in ids.items()}
    names = ["input_ids", *(["token_type_ids"] if pair_types else []), "attention_mask"]
    common = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_tokens,
        "padding_side": "right",
        "truncation_side": "right",
        "model_input_names": names,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # "<s>" in a user's text is text, as in our tokenizer
    }
    write_json(folder / "tokenizer_config.json", common | special)
    write_json(folder / "special_tokens_map.json", special)


def _frame(tokenizer: Tokenizer, pair_types: bool) -> dict[str, Any]:
    """What stands around a text and around a pair, as `Tokenizer.encode` and `encode_pairs` do it."""
    cls, sep = tokenizer.token(tokenizer.cls_id), tokenizer.token(tokenizer.sep_id)
    second = int(pair_types)

    def token(name: str, kind: int = 0) -> dict[str, Any]:
        return {"SpecialToken": {"id": name, "type_id": kind}}

    def text(name: str, kind: int = 0) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": kind}}

    middle = [token(sep)] * (2 if cls == "<s>" else 1)  # RoBERTa and its children write two
    return {
        "type": "TemplateProcessing",
        "single": [token(cls), text("A"), token(sep)],
        "pair": [token(cls), text("A"), *middle, text("B", second), token(sep, second)],
        "special_tokens": {
            name: {"id": name, "ids": [id], "tokens": [name]}
            for name, id in ((cls, tokenizer.cls_id), (sep, tokenizer.sep_id))
        },
    }


def write_json(path: Path, data: Any) -> None:
    """Indented JSON with a last line end."""
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
