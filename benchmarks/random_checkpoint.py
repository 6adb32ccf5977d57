"""A random checkpoint of any size in the published layout of BAAI/bge-m3, for benchmarks; written once into build/.

Its tokenizer gives every word `w0` to `w7999` one token, so that a benchmark can ask for texts of an exact length.
Loads in threefold, FlagEmbedding and sentence-transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
#: hidden, layers, heads, ffn.
SIZES = {
    "tiny": (64, 2, 4, 128),
    "full": (1024, 24, 16, 4096),
    "base": (768, 12, 12, 3072),
    "small": (384, 6, 12, 1536),
    "thin": (64, 24, 4, 256),  # as many layers as the full one
}
VOCAB = 8_000  # distinct words of the synthetic language
SPECIALS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "cls_token": "<s>",
    "sep_token": "</s>",
}


def checkpoint(size: str) -> Path:
    """The folder of the checkpoint of this size."""
    folder = ROOT / "build" / f"random-bge-m3-{size}"
    if not (folder / "done").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _network(folder, size)
        _tokenizer(folder)
        _layout(folder, SIZES[size][0])
        (folder / "done").touch()
    return folder


def _network(folder: Path, size: str) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import XLMRobertaConfig, XLMRobertaModel

    hidden, layers, heads, ffn = SIZES[size]
    config = XLMRobertaConfig(
        architectures=["XLMRobertaModel"],
        vocab_size=250_002,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=ffn,
        max_position_embeddings=8194,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    state = XLMRobertaModel(config, add_pooling_layer=False).state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors", {"format": "pt"})
    config.save_pretrained(folder)
    for name, rows in (("sparse_linear", 1), ("colbert_linear", hidden)):
        layer = torch.nn.Linear(hidden, rows)
        torch.save({k: v.half() for k, v in layer.state_dict().items()}, folder / f"{name}.pt")


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -9.0)]
    words += [(f"▁w{i}", -5.0) for i in range(VOCAB)]
    backend = Tokenizer(models.Unigram(words, unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192, **SPECIALS}
    _write(folder / "tokenizer_config.json", settings)
    _write(folder / "special_tokens_map.json", SPECIALS)


def _layout(folder: Path, hidden: int) -> None:
    """The files of sentence-transformers: first token, unit length."""
    modules = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    chain = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    _write(folder / "modules.json", chain)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": hidden, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    _write(folder / "1_Pooling" / "config.json", pooling)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": 8192, "do_lower_case": False})


def _write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n")
