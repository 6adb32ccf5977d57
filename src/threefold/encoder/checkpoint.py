"""Checkpoints on disk -> parameters. Three layouts, tried in turn; every tensor is checked by name and shape.

own      `threefold.json` + `model.safetensors` (+ `tokenizer.json`): the only one that we write
bge_m3   Hugging Face backbone + `sparse_linear.pt` + `colbert_linear.pt` (BAAI/bge-m3 and its fine-tunes)
st       sentence-transformers `modules.json`: dense only, by the pooling it declares

Nothing is ever random: a missing or misshaped tensor is an error that names it, and a head whose file is absent
is not loaded and not offered.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from threefold.config import Settings
from threefold.encoder.heads import Heads, HeadsConfig
from threefold.encoder.network import Network, NetworkConfig
from threefold.errors import CheckpointError, ConfigError, MissingHeadError
from threefold.types import Representation

#: Read a tensor by its name in the file.
Reader = Callable[[str], Tensor]

#: Suffix of the scales of a tensor that is stored in int8, one per row.
SCALE = ".scale"

_HEAD_FILES: dict[Representation, str] = {"sparse": "sparse_linear.pt", "multi": "colbert_linear.pt"}


@dataclass(frozen=True, slots=True)
class ModelConfig(Settings):
    """`threefold.json`: the whole model but its weights.

    max_tokens       longest text, specials included
    query_prompt     put before every query
    document_prompt  put before every document
    matryoshka       dimensions at which the dense vector may be cut, largest first; empty: never
    """

    network: NetworkConfig
    heads: HeadsConfig
    max_tokens: int
    query_prompt: str = ""
    document_prompt: str = ""
    matryoshka: tuple[int, ...] = ()
    format: int = 1
    name: str = ""


class Model(nn.Module):
    """Network and heads together: what is trained, saved and loaded."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.network = Network(config.network)
        self.heads = Heads(config.heads, config.network.hidden)


@dataclass(slots=True)
class Loaded:
    """A model with its fingerprint and what its checkpoint could not offer: representation -> missing file."""

    model: Model
    hash: str
    missing: dict[Representation, str] = field(default_factory=dict)

    def require(self, representation: Representation, folder: str) -> None:
        """Raise `MissingHeadError`, naming the file, unless the checkpoint can make this representation."""
        if representation in self.missing:
            raise MissingHeadError(
                f"{folder} cannot make {representation} vectors: it has no {self.missing[representation]}. "
                "Ask for other outputs, or use a checkpoint with that head (BAAI/bge-m3, or the embedded model)"
            )


def load(folder: Path, pooling: str | None = None) -> Loaded:
    """Load any known layout into a float32 `Model` on the CPU."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder")
    if (folder / "threefold.json").is_file():
        return _load_own(folder)
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} is not a model: it has neither threefold.json nor config.json. "
            "Expected our layout, BGE-M3's (config.json, sparse_linear.pt, ...) or sentence-transformers'"
        )
    return _load_foreign(folder, pooling)


def save(model: Model, folder: Path, *, int8: bool = False) -> None:
    """Write our layout but the tokenizer. `int8` stores matrices as one byte per number with a scale per row."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if int8 and tensor.ndim == 2 and tensor.shape[0] > 1:
            tensors[name], tensors[name + SCALE] = quantise_rows(tensor)
        else:
            tensors[name] = tensor.contiguous()
    save_file(tensors, folder / "model.safetensors.part", metadata={"format": "pt"})
    (folder / "model.safetensors.part").replace(folder / "model.safetensors")
    (folder / "threefold.json").write_text(json.dumps(model.config.to_dict(), indent=1) + "\n")


def quantise_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(r, c) float -> (r, c) int8 and (r,) float32 scales: symmetric, the largest of each row becomes 127."""
    scale = matrix.abs().amax(dim=1).clamp_min(1e-12).float() / 127.0
    return torch.round(matrix / scale[:, None]).to(torch.int8), scale


# ---- our layout ------------------------------------------------------------------------------------------


def _load_own(folder: Path) -> Loaded:
    config = _own_config(folder / "threefold.json")
    tensors = _open_safetensors(folder / "model.safetensors")

    def read(name: str) -> Tensor:
        tensor = _require(tensors, name, folder / "model.safetensors")
        if tensor.dtype != torch.int8:
            return tensor
        return tensor.float() * _require(tensors, name + SCALE, folder / "model.safetensors")[:, None]

    model = _empty(config)
    names = {name: name for name in model.state_dict()}
    _fill(model, names, read, folder / "model.safetensors")
    missing: dict[Representation, str] = {}
    if model.heads.sparse is None:
        missing["sparse"] = "sparse head (heads.sparse in threefold.json)"
    if model.heads.multi is None:
        missing["multi"] = "multi head (heads.multi_dim in threefold.json)"
    return Loaded(model, fingerprint(tensors), missing)


def _own_config(path: Path) -> ModelConfig:
    data = read_json(path)
    if isinstance(data, dict) and data.get("format", 1) != 1:
        raise CheckpointError(f"{path} has format {data['format']}, this threefold reads format 1; upgrade threefold")
    try:
        return ModelConfig.from_dict(data)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


# ---- foreign layouts -------------------------------------------------------------------------------------


def _load_foreign(folder: Path, pooling: str | None) -> Loaded:
    settings = read_json(folder / "config.json")
    network = network_config(settings, folder / "config.json")
    tensors = _backbone(folder)
    states = {r: _head_file(folder / file) for r, file in _HEAD_FILES.items() if (folder / file).is_file()}
    if states or pooling == "cls":
        how, max_tokens, prompts = HeadsConfig(), network.max_tokens, ("", "")
    elif pooling is not None:
        how = HeadsConfig.from_dict({"pooling": pooling}, "pooling")
        max_tokens, prompts = network.max_tokens, ("", "")
    else:
        how, max_tokens, prompts = _sentence_transformers(folder, network)
    heads = HeadsConfig(
        how.pooling, how.normalize, "sparse" in states, len(states["multi"]["weight"]) if "multi" in states else 0
    )
    config = ModelConfig(network, heads, max_tokens, *prompts, name=str(folder))
    model = _empty(config)
    prefix = _prefix(tensors, folder)
    names = {f"network.{ours}": theirs for ours, theirs in hugging_face_names(network).items()}
    names |= {f"heads.{r}.{part}": f"{r}.{part}" for r in states for part in ("weight", "bias")}

    def read(name: str) -> Tensor:
        representation, _, part = name.partition(".")
        if representation in states:
            return _require(states[representation], part, folder / _HEAD_FILES[representation])
        parts = [_require(tensors, prefix + each, folder) for each in name.split("|")]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    _fill(model, names, read, folder)
    missing: dict[Representation, str] = {r: file for r, file in _HEAD_FILES.items() if r not in states}
    everything = {name: read(name) for name in sorted(names.values())}
    return Loaded(model, fingerprint(everything), missing)


def hugging_face_names(config: NetworkConfig) -> dict[str, str]:
    """Our parameter name -> theirs; `a|b|c` are stacked (queries, keys and values are one matrix of ours)."""
    names = {
        "words.weight": "embeddings.word_embeddings.weight",
        "positions.weight": "embeddings.position_embeddings.weight",
        "types.weight": "embeddings.token_type_embeddings.weight",
    }
    modules = {"norm": "embeddings.LayerNorm"}
    for i in range(config.layers):
        theirs = f"encoder.layer.{i}"
        modules |= {
            f"layers.{i}.qkv": "|".join(f"{theirs}.attention.self.{part}" for part in ("query", "key", "value")),
            f"layers.{i}.attended": f"{theirs}.attention.output.dense",
            f"layers.{i}.attended_norm": f"{theirs}.attention.output.LayerNorm",
            f"layers.{i}.up": f"{theirs}.intermediate.dense",
            f"layers.{i}.down": f"{theirs}.output.dense",
            f"layers.{i}.down_norm": f"{theirs}.output.LayerNorm",
        }
    for ours, theirs in modules.items():
        for part in ("weight", "bias"):
            names[f"{ours}.{part}"] = "|".join(f"{each}.{part}" for each in theirs.split("|"))
    return names


def network_config(settings: Mapping[str, Any], path: Path) -> NetworkConfig:
    """Sizes from a Hugging Face `config.json`; anything that this network is not is refused by name."""
    family = settings.get("model_type")
    if family not in ("bert", "xlm-roberta", "roberta"):
        raise CheckpointError(f"{path}: model_type {family!r} is not supported; known are bert, roberta, xlm-roberta")
    for key, wanted in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        if settings.get(key, wanted) != wanted:
            raise CheckpointError(f"{path}: {key} {settings[key]!r} is not supported; expected {wanted!r}")
    try:
        return NetworkConfig(
            vocab=settings["vocab_size"],
            hidden=settings["hidden_size"],
            layers=settings["num_hidden_layers"],
            heads=settings["num_attention_heads"],
            ffn=settings["intermediate_size"],
            positions=settings["max_position_embeddings"],
            first_position=0 if family == "bert" else settings.get("pad_token_id", 1) + 1,
            types=settings.get("type_vocab_size", 1),
            norm_eps=settings.get("layer_norm_eps", 1e-12),
        )
    except KeyError as error:
        raise CheckpointError(f"{path} lacks the setting {error}") from error


def _sentence_transformers(folder: Path, network: NetworkConfig) -> tuple[HeadsConfig, int, tuple[str, str]]:
    path = folder / "modules.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} does not say how its dense vector is pooled: it has no modules.json, sparse_linear.pt or "
            'colbert_linear.pt. Say it with pooling="cls" or pooling="mean"'
        )
    modules = {str(m["type"]).rsplit(".", 1)[-1]: m.get("path", "") for m in read_json(path)}
    unknown = sorted(set(modules) - {"Transformer", "Pooling", "Normalize"})
    if unknown or "Pooling" not in modules:
        raise CheckpointError(
            f"{path}: modules {', '.join(modules)} are not supported; known are Transformer, Pooling, Normalize"
        )
    declared = read_json(folder / modules["Pooling"] / "config.json")
    pooling = _pooling(declared, folder)
    body = folder / "sentence_bert_config.json"
    longest = read_json(body).get("max_seq_length") if body.is_file() else None
    prompts_file = folder / "config_sentence_transformers.json"
    prompts = read_json(prompts_file).get("prompts") or {} if prompts_file.is_file() else {}
    heads = HeadsConfig.from_dict({"pooling": pooling, "normalize": "Normalize" in modules}, "pooling")
    document = prompts.get("document") or prompts.get("passage") or ""
    return heads, min(longest or network.max_tokens, network.max_tokens), (prompts.get("query") or "", document)


def _pooling(declared: Mapping[str, Any], folder: Path) -> str:
    if "pooling_mode" in declared:  # sentence-transformers 6
        modes = [declared["pooling_mode"]]
    else:
        prefix = "pooling_mode_"
        modes = [key.removeprefix(prefix) for key, on in declared.items() if key.startswith(prefix) and on is True]
    known = {"cls_token": "cls", "cls": "cls", "mean_tokens": "mean", "mean": "mean", "lasttoken": "last"}
    if len(modes) != 1 or modes[0] not in known:
        raise CheckpointError(f"{folder}: pooling {modes} is not supported; known are {', '.join(known)}")
    return known[modes[0]]


def _backbone(folder: Path) -> Mapping[str, Tensor]:
    for pattern in ("model.safetensors", "pytorch_model.bin"):
        if (folder / pattern).is_file():
            return (
                _open_safetensors(folder / pattern) if pattern.endswith("safetensors") else _open_bin(folder / pattern)
            )
        index = folder / f"{pattern}.index.json"
        if index.is_file():
            shards = sorted(set(read_json(index)["weight_map"].values()))
            opener = _open_safetensors if pattern.endswith("safetensors") else _open_bin
            merged: dict[str, Tensor] = {}
            for shard in shards:
                merged |= opener(folder / shard)
            return merged
    raise CheckpointError(f"{folder} has no weights: expected model.safetensors or pytorch_model.bin")


def _prefix(tensors: Mapping[str, Tensor], folder: Path) -> str:
    tail = "embeddings.word_embeddings.weight"
    found = [name.removesuffix(tail) for name in tensors if name.endswith(tail)]
    if len(found) != 1:
        raise CheckpointError(f"{folder}: expected one tensor ending in {tail}, found {len(found)}")
    return found[0]


# ---- files -----------------------------------------------------------------------------------------------


def read_json(path: Path) -> Any:
    """Parsed JSON; a broken or missing file is an error that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:  # memory-mapped: pages are shared between processes
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def _open_bin(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, RuntimeError, UnpicklingError, EOFError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def _head_file(path: Path) -> dict[str, Tensor]:
    return _open_bin(path)


def _require(tensors: Mapping[str, Tensor], name: str, where: Path) -> Tensor:
    if name not in tensors:
        raise CheckpointError(f"{where} lacks the tensor {name}")
    return tensors[name]


def _empty(config: ModelConfig) -> Model:
    with torch.device("meta"):  # no memory, no random numbers: every parameter must come from the file
        return Model(config)


def _fill(model: Model, names: Mapping[str, str], read: Reader, where: Path) -> None:
    """Give every parameter its tensor, in float32, checking shapes."""
    state: dict[str, Tensor] = {}
    for name, parameter in model.state_dict().items():
        if name not in names:
            raise CheckpointError(f"{where} lacks a tensor for {name}")
        tensor = read(names[name])
        if tensor.shape != parameter.shape:
            raise CheckpointError(
                f"{where}: tensor {names[name]} has shape {tuple(tensor.shape)}, "
                f"the configuration asks for {tuple(parameter.shape)}"
            )
        state[name] = tensor.float()
    model.load_state_dict(state, assign=True)


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits over names, shapes and samples of every tensor: equal weights, equal fingerprint.

    At most 4,096 evenly spaced numbers of a tensor are read, so that a full-size model is named in milliseconds.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        flat = tensors[name].detach().reshape(-1)
        step = max(1, flat.numel() // 4096)
        digest.update(f"{name}{tuple(tensors[name].shape)}".encode())
        digest.update(flat[::step].float().numpy().tobytes())
    return digest.hexdigest()[:16]
