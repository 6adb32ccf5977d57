"""Checkpoints of others -> our names: Hugging Face backbones with the heads of BGE-M3, or as sentence-transformers.

Knows their files and settings; `checkpoint.py` fills the network. What this network cannot do is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from threefold.encoder.files import Weights, read_backbone, read_json, read_pickle, read_table
from threefold.encoder.heads import HeadsConfig
from threefold.encoder.model import ModelConfig
from threefold.encoder.network import NetworkConfig
from threefold.errors import CheckpointError, ConfigError
from threefold.text.tokenizer import Tokenizer
from threefold.types import Representation

HEAD_FILES: dict[Representation, str] = {"sparse": "sparse_linear.pt", "multi": "colbert_linear.pt"}

#: Their word for a pooling -> ours; older files say `pooling_mode_cls_token: true`, newer `pooling_mode: cls`.
_POOLINGS = {
    "cls_token": "cls", "cls": "cls", "mean_tokens": "mean", "mean": "mean", "lasttoken": "last",
}  # fmt: skip

_LETTERS = "a b c d e f g h i j k l m n o p q r s t u v w x y z"


class Recipe(NamedTuple):
    """How one parameter of ours is read: from these tensors of a file, stacked."""

    file: Weights
    names: tuple[str, ...]


class Opened(NamedTuple):
    """A checkpoint before its tensors are read.

    recipes  our parameter -> where it comes from
    missing  representation -> what the checkpoint would need to make it
    """

    config: ModelConfig
    recipes: dict[str, Recipe]
    missing: dict[Representation, str]


def open_foreign(folder: Path, pooling: str | None) -> Opened:
    """BGE-M3's layout if a head file is there, else sentence-transformers', else a bare backbone with `pooling`.

    A folder of BGE-M3's layout may say its pooling in sentence-transformers' files; where it does not, it is `cls`.
    """
    network = network_config(read_table(folder / "config.json"), folder / "config.json")
    backbone = read_backbone(folder)
    states = {r: read_pickle(folder / file) for r, file in HEAD_FILES.items() if (folder / file).is_file()}
    declared = (folder / "modules.json").is_file()
    if pooling is not None and declared:
        declared = _is_known(folder / "modules.json")  # of another chain, the backbone alone is read
    if (pooling is not None or states) and not declared:
        how = HeadsConfig.from_dict({"pooling": pooling or "cls"}, "model")
        config = ModelConfig(network, how, network.max_tokens)
    else:
        config = _sentence_transformers(folder, network, pooling)
    heads = HeadsConfig(
        config.heads.pooling,
        config.heads.normalize,
        sparse="sparse" in states,
        multi_dim=len(states["multi"].get("weight")) if "multi" in states else 0,
    )
    config = ModelConfig(
        network, heads, config.max_tokens, config.query_prompt, config.document_prompt, name=folder.name
    )
    recipes = network_recipes(network, backbone)
    for representation, state in states.items():
        recipes |= {f"heads.{representation}.{part}": Recipe(state, (part,)) for part in ("weight", "bias")}
    return Opened(config, recipes, {r: file for r, file in HEAD_FILES.items() if r not in states})


def network_recipes(network: NetworkConfig, backbone: Weights) -> dict[str, Recipe]:
    """Where each parameter of the network is in a Hugging Face backbone."""
    prefix = prefix_of(backbone)
    return {
        f"network.{ours}": Recipe(backbone, tuple(prefix + each for each in theirs))
        for ours, theirs in hugging_face_names(network).items()
    }


def hugging_face_names(config: NetworkConfig) -> dict[str, tuple[str, ...]]:
    """Our parameter name -> theirs; several are stacked (queries, keys and values are one matrix of ours)."""
    names: dict[str, tuple[str, ...]] = {
        "words.weight": ("embeddings.word_embeddings.weight",),
        "positions.weight": ("embeddings.position_embeddings.weight",),
        "types.weight": ("embeddings.token_type_embeddings.weight",),
    }
    modules = {"norm": ["embeddings.LayerNorm"]}
    for i in range(config.layers):
        theirs = f"encoder.layer.{i}"
        modules |= {
            f"layers.{i}.qkv": [f"{theirs}.attention.self.{part}" for part in ("query", "key", "value")],
            f"layers.{i}.attended": [f"{theirs}.attention.output.dense"],
            f"layers.{i}.attended_norm": [f"{theirs}.attention.output.LayerNorm"],
            f"layers.{i}.up": [f"{theirs}.intermediate.dense"],
            f"layers.{i}.down": [f"{theirs}.output.dense"],
            f"layers.{i}.down_norm": [f"{theirs}.output.LayerNorm"],
        }
    for ours, stacked in modules.items():
        for part in ("weight", "bias"):
            names[f"{ours}.{part}"] = tuple(f"{each}.{part}" for each in stacked)
    return names


def network_config(settings: Mapping[str, Any], path: Path) -> NetworkConfig:
    """Sizes from a Hugging Face `config.json`; anything that this network is not is refused by name."""
    family = settings.get("model_type")
    if family not in ("bert", "xlm-roberta", "roberta"):
        raise CheckpointError(f"{path}: model_type {family!r} is not supported; known are bert, roberta, xlm-roberta")
    for key, wanted in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        if settings.get(key, wanted) != wanted:
            raise CheckpointError(f"{path}: {key} {settings[key]!r} is not supported; expected {wanted!r}")
    padding = settings.get("pad_token_id")
    try:
        sizes = {
            "vocab": settings["vocab_size"],
            "hidden": settings["hidden_size"],
            "layers": settings["num_hidden_layers"],
            "heads": settings["num_attention_heads"],
            "ffn": settings["intermediate_size"],
            "positions": settings["max_position_embeddings"],
            "first_position": 0 if family == "bert" else (1 if padding is None else padding) + 1,
            "types": settings.get("type_vocab_size", 1),
            "norm_eps": settings.get("layer_norm_eps", 1e-12),
        }
        return NetworkConfig.from_dict(sizes, str(path))
    except KeyError as error:
        raise CheckpointError(f"{path} lacks the setting {error}") from error
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}" if isinstance(error, TypeError) else str(error)) from error


def _sentence_transformers(folder: Path, network: NetworkConfig, pooling: str | None) -> ModelConfig:
    """Settings of its files, but for a `pooling` that the caller knows better."""
    path = folder / "modules.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} does not say how its dense vector is pooled: it has no modules.json, sparse_linear.pt or "
            'colbert_linear.pt. Say it with pooling="cls" or pooling="mean"'
        )
    modules = _modules(path)
    how = pooling or _pooling(folder / modules["Pooling"] / "config.json")
    about = _optional(folder / "config_sentence_transformers.json")
    # Their similarity is the cosine unless they say otherwise; ours is the inner product, so rows get unit length.
    unit = "Normalize" in modules or about.get("similarity_fn_name") != "dot"
    heads = HeadsConfig.from_dict({"pooling": how, "normalize": unit}, "pooling")
    declared = about.get("prompts") or {}
    prompts = declared if isinstance(declared, dict) else {}
    settings = {
        "network": network,
        "heads": heads,
        "max_tokens": longest_text(folder, network),
        "query_prompt": prompts.get("query") or "",
        "document_prompt": prompts.get("document") or prompts.get("passage") or "",
    }
    _check_case(folder)
    try:
        return ModelConfig.from_dict(settings, str(folder))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def check_prompted(folder: Path) -> None:
    """Refuse a model with prompts whose pooling leaves them out: ours takes every token."""
    for path in sorted(folder.glob("*_Pooling/config.json")):
        if _optional(path).get("include_prompt") is False:
            raise CheckpointError(
                f"{path}: include_prompt false is not supported with prompts: their tokens would be pooled too. "
                'Set include_prompt to true, or go without prompts: query_prompt="", document_prompt=""'
            )


def _check_case(folder: Path) -> None:
    """Refuse lower-casing that sentence-transformers would do and the tokenizer does not."""
    path = folder / "sentence_bert_config.json"
    if _optional(path).get("do_lower_case") is not True:
        return
    tokenizer = Tokenizer.load(folder)
    lower, upper = (tokenizer.encode([text], max_tokens=64)[0].tolist() for text in (_LETTERS, _LETTERS.upper()))
    if upper != lower:
        raise CheckpointError(
            f"{path}: do_lower_case is not supported with a tokenizer that keeps capitals. Put the normalizer "
            "Lowercase into tokenizer.json, or set do_lower_case to false and give lower-case texts"
        )


def _is_known(path: Path) -> bool:
    try:
        return bool(_modules(path))
    except CheckpointError:
        return False


def _modules(path: Path) -> dict[str, str]:
    """Kind -> folder of each module of the chain."""
    try:
        modules = {str(m["type"]).rsplit(".", 1)[-1]: str(m.get("path", "")) for m in read_json(path)}
    except (TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: expected a list of modules, each with its type and path") from error
    if set(modules) - {"Transformer", "Pooling", "Normalize"} or "Pooling" not in modules:
        raise CheckpointError(
            f"{path}: modules {', '.join(modules)} are not supported; known are Transformer, Pooling, Normalize"
        )
    return modules


def _pooling(path: Path) -> str:
    declared = read_table(path)
    if "pooling_mode" in declared:  # sentence-transformers 6
        modes = declared["pooling_mode"]
        modes = modes if isinstance(modes, list) else [modes]
    else:
        prefix = "pooling_mode_"
        modes = [key.removeprefix(prefix) for key, on in declared.items() if key.startswith(prefix) and on is True]
    if len(modes) != 1 or str(modes[0]) not in _POOLINGS:
        raise CheckpointError(f"{path}: pooling {modes} is not supported; known are {', '.join(_POOLINGS)}")
    return _POOLINGS[modes[0]]


def longest_text(folder: Path, network: NetworkConfig) -> int:
    """`max_seq_length`, else the tokenizer's `model_max_length`, as sentence-transformers reads them."""
    declared = _optional(folder / "sentence_bert_config.json").get("max_seq_length")
    if declared is None:
        declared = _optional(folder / "tokenizer_config.json").get("model_max_length")
    return min(declared, network.max_tokens) if isinstance(declared, int) else network.max_tokens


def _optional(path: Path) -> dict[str, Any]:
    return read_table(path) if path.is_file() else {}


def prefix_of(backbone: Weights) -> str:
    """What stands before every name: nothing, `roberta.`, `model.`, ..."""
    tail = "embeddings.word_embeddings.weight"
    found = [name.removesuffix(tail) for name in backbone.tensors if name.endswith(tail)]
    if len(found) != 1:
        raise CheckpointError(f"{backbone.path}: expected one tensor ending in {tail}, found {len(found)}")
    return found[0]
