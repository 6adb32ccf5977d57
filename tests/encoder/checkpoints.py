"""Random tiny checkpoints in the layouts that others publish, with the tokenizers of `tests/fakes.py`.

Written by plain names and formulas, without the package's own loader, so that a test may compare the two.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests.fakes import unigram_tokenizer, wordpiece_tokenizer
from torch import Tensor

_unigram, _wordpiece = cache(unigram_tokenizer), cache(wordpiece_tokenizer)

HIDDEN, LAYERS, HEADS, FFN, POSITIONS = 32, 2, 4, 64, 8194


def bge_m3(folder: Path, *, weights: str = "bin", seed: int = 0, multi_dim: int = HIDDEN) -> Path:
    """BAAI/bge-m3 in small: `weights` is "bin", "safetensors" or "shards"."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _unigram()
    config = _config("xlm-roberta", tokenizer.vocab, POSITIONS) | {
        "architectures": ["XLMRobertaModel"], "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
        "type_vocab_size": 1, "layer_norm_eps": 1e-5,
    }  # fmt: skip
    _write(folder / "config.json", config)
    tokenizer.save(folder / "tokenizer.json")
    names = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
    special = {f"{role}_token": token for role, token in names.items()}
    _write(folder / "special_tokens_map.json", special)
    _write(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": POSITIONS - 2, **special},
    )
    generator = torch.Generator().manual_seed(seed)
    _write_weights(folder, backbone(config, generator), weights)
    _save_head(folder / "sparse_linear.pt", 1, generator)
    _save_head(folder / "colbert_linear.pt", multi_dim, generator)
    return folder


def sentence_transformer(
    folder: Path, *, pooling: str = "mean_tokens", normalize: bool = True, max_seq_length: int = 20, seed: int = 0
) -> Path:
    """A BERT of sentence-transformers in small."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _wordpiece()
    config = _config("bert", tokenizer.vocab, 64) | {
        "architectures": ["BertModel"], "pad_token_id": 0, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
    }  # fmt: skip
    _write(folder / "config.json", config)
    tokenizer.save(folder / "tokenizer.json")
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=False))
    ]
    _write(folder / "modules.json", modules)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    _write(folder / "1_Pooling/config.json", {"word_embedding_dimension": HIDDEN, f"pooling_mode_{pooling}": True})
    _write(folder / "sentence_bert_config.json", {"max_seq_length": max_seq_length, "do_lower_case": False})
    prompts = {"query": "query: ", "passage": "passage: "}
    _write(folder / "config_sentence_transformers.json", {"prompts": prompts})
    _write_weights(folder, backbone(config, torch.Generator().manual_seed(seed)), "safetensors")
    return folder


def backbone(config: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    """Parameters of a BERT or XLM-R by their names at Hugging Face, large enough that texts differ clearly."""
    d, f = config["hidden_size"], config["intermediate_size"]
    state = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], d),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], d),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], d),
        **_affine("embeddings.LayerNorm", d),
        **_affine("pooler.dense", d, d),  # published and unused
    }
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            state |= _affine(f"{layer}.attention.self.{part}", d, d)
        state |= _affine(f"{layer}.attention.output.dense", d, d) | _affine(f"{layer}.attention.output.LayerNorm", d)
        state |= _affine(f"{layer}.intermediate.dense", f, d)
        state |= _affine(f"{layer}.output.dense", d, f) | _affine(f"{layer}.output.LayerNorm", d)
    tensors = {}
    for name, shape in state.items():
        scale = 1.0 if "word_embeddings" in name else 0.05 if "LayerNorm" in name or name.endswith("bias") else 0.2
        tensors[name] = torch.randn(shape, generator=generator) * scale
        if name.endswith("LayerNorm.weight"):
            tensors[name] += 1.0
    return tensors


def _affine(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _config(family: str, vocab: int, positions: int) -> dict[str, Any]:
    return {
        "model_type": family, "vocab_size": vocab, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "intermediate_size": FFN, "max_position_embeddings": positions,
        "hidden_act": "gelu", "position_embedding_type": "absolute", "torch_dtype": "float32",
        "attention_probs_dropout_prob": 0.1, "hidden_dropout_prob": 0.1,
    }  # fmt: skip


def _write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1), encoding="utf-8")


def _write_weights(folder: Path, state: dict[str, Tensor], how: str) -> None:
    if how == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    elif how == "safetensors":
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        names, files = sorted(state), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
        halves = [names[: len(names) // 2], names[len(names) // 2 :]]
        for file, half in zip(files, halves, strict=True):
            save_file({name: state[name] for name in half}, folder / file, metadata={"format": "pt"})
        where = {name: file for file, half in zip(files, halves, strict=True) for name in half}
        _write(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": where})


def _save_head(path: Path, rows: int, generator: torch.Generator) -> None:
    weight = torch.randn(rows, HIDDEN, generator=generator) * 0.2
    bias = torch.randn(rows, generator=generator) * 0.1 + (rows == 1)  # most tokens get a sparse weight
    torch.save({"weight": weight.half(), "bias": bias.half()}, path)  # published in 16 bits
