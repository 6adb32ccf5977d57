"""Checkpoints on disk -> parameters, and back. Three layouts, tried in turn; every tensor is checked.

own      `threefold.json` + `model.safetensors` (+ `tokenizer.json`): the only one that we write
bge_m3   Hugging Face backbone + `sparse_linear.pt` + `colbert_linear.pt` (BAAI/bge-m3 and its fine-tunes)
st       sentence-transformers `modules.json`: dense only, by the pooling it declares

Nothing is ever random: a missing or misshaped tensor is an error that names it, and a head whose file is absent
is not loaded and not offered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from threefold.config import Settings
from threefold.encoder.files import read_safetensors, read_table
from threefold.encoder.foreign import Opened, Recipe, open_foreign
from threefold.encoder.model import Model, ModelConfig
from threefold.errors import CheckpointError, ConfigError, InputError, NumericalError
from threefold.types import Representation

__all__ = [
    "SCALE", "Loaded", "Model", "ModelConfig", "empty", "fill", "fingerprint", "load", "quantise_rows", "save",
    "stored_tensors",
]  # fmt: skip

M = TypeVar("M", bound=nn.Module)
C = TypeVar("C")

#: Suffix of the scales of a tensor that is stored in int8, one per row.
SCALE = ".scale"

#: A fingerprint reads so many blocks of so many neighbouring numbers of a tensor: one page of the file each.
_BLOCKS, _BLOCK = 16, 256


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with its fingerprint and what its checkpoint could not offer: representation -> missing file."""

    model: Model
    hash: str
    missing: dict[Representation, str] = field(default_factory=dict)


def load(folder: Path, pooling: str | None = None) -> Loaded:
    """Load any known layout into a float32 `Model` on the CPU. Float32 weights stay in the mapped file."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder")
    if (folder / "threefold.json").is_file():
        opened = _open_own(folder, pooling)
    elif (folder / "config.json").is_file():
        opened = open_foreign(folder, pooling)
    else:
        raise CheckpointError(
            f"{folder} is not a model: it has neither threefold.json nor config.json. "
            "Expected our layout, BGE-M3's (config.json, sparse_linear.pt, ...) or sentence-transformers'"
        )
    model = fill(empty(Model, opened.config), opened.recipes)
    return Loaded(model, fingerprint(stored_tensors(opened.recipes), opened.config), opened.missing)


def save(model: Model, folder: Path, *, int8: bool = False) -> None:
    """Write our layout but the tokenizer. `int8` stores matrices as one byte per number with a scale per row."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise NumericalError(f"{name} has NaN or infinity; the model is not saved to {folder}")
        if int8 and tensor.ndim == 2 and tensor.shape[0] > 1:
            tensors[name], tensors[name + SCALE] = quantise_rows(tensor)
        else:
            tensors[name] = tensor.contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "model.safetensors.part"
    save_file(tensors, part, metadata={"format": "pt"})
    part.replace(folder / "model.safetensors")
    part = folder / "threefold.json.part"
    part.write_text(json.dumps(model.config.to_dict(), indent=1) + "\n", encoding="utf-8")
    part.replace(folder / "threefold.json")


def quantise_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(r, c) float -> (r, c) int8 and (r,) float32 scales: symmetric, the largest of each row becomes 127."""
    matrix = matrix.float()
    scale = matrix.abs().amax(dim=1).clamp_min(1e-12) / 127.0
    return torch.round(matrix / scale[:, None]).to(torch.int8), scale


def fingerprint(tensors: Mapping[str, Tensor], config: Settings) -> str:
    """16 hex digits: equal weights and settings, equal fingerprint; the name of the model does not count.

    Samples of every tensor are read, 16 blocks of 256 neighbours, so a full-size model is named in milliseconds.
    """
    settings = config.to_dict() | {"name": ""}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tensors):
        flat = tensors[name].detach().reshape(-1)
        digest.update(f"{name}{tuple(tensors[name].shape)}".encode())
        if len(flat) > _BLOCKS * _BLOCK:
            starts = [i * (len(flat) - _BLOCK) // (_BLOCKS - 1) for i in range(_BLOCKS)]
            flat = torch.cat([flat[start : start + _BLOCK] for start in starts])
        digest.update(flat.float().numpy().tobytes())
    return digest.hexdigest()[:16]


def _open_own(folder: Path, pooling: str | None) -> Opened:
    path = folder / "threefold.json"
    data = read_table(path)
    if data.get("format", 1) != 1:
        raise CheckpointError(f"{path} has format {data['format']}, this threefold reads format 1; upgrade threefold")
    try:
        config = ModelConfig.from_dict(data)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if pooling not in (None, config.heads.pooling):
        raise InputError(f"{path} says pooling {config.heads.pooling!r}; leave out pooling={pooling!r}")
    weights = read_safetensors(folder / "model.safetensors")
    missing: dict[Representation, str] = {}
    if not config.heads.sparse:
        missing["sparse"] = "sparse head (heads.sparse in threefold.json)"
    if not config.heads.multi_dim:
        missing["multi"] = "multi head (heads.multi_dim in threefold.json)"
    return Opened(config, {name: Recipe(weights, (name,)) for name in empty(Model, config).state_dict()}, missing)


def empty(kind: Callable[[C], M], config: C) -> M:
    """A module without memory or random numbers: every parameter must come from a file."""
    with torch.device("meta"), _NoInitialValues():
        return kind(config)


class _NoInitialValues(TorchFunctionMode):
    """Skips `torch.nn.init`: the first normal distribution without memory imports sympy, which takes a second."""

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if getattr(function, "__module__", "") == "torch.nn.init" and "tensor" in options:
            return options["tensor"]
        return function(*args, **options)


def fill(module: M, recipes: Mapping[str, Recipe]) -> M:
    """Give every parameter its tensor, in float32, checking shapes."""
    state: dict[str, Tensor] = {}
    for name, parameter in module.state_dict().items():
        recipe = recipes[name]
        rows = parameter.shape[0] // len(recipe.names)
        parts = [_read(recipe, part, (rows, *parameter.shape[1:])) for part in recipe.names]
        state[name] = parts[0] if len(parts) == 1 else torch.cat(parts)
    module.load_state_dict(state, assign=True)
    return module


def _read(recipe: Recipe, name: str, shape: tuple[int, ...]) -> Tensor:
    tensor = _checked(recipe, name, shape)
    if tensor.dtype == torch.int8:
        return tensor.float() * _checked(recipe, name + SCALE, shape[:1])[:, None]
    return tensor.float()


def _checked(recipe: Recipe, name: str, shape: tuple[int, ...]) -> Tensor:
    tensor = recipe.file.get(name)
    if tensor.shape != shape:
        raise CheckpointError(
            f"{recipe.file.path}: tensor {name} has shape {tuple(tensor.shape)}, the configuration asks for {shape}"
        )
    return tensor


def stored_tensors(recipes: Mapping[str, Recipe]) -> dict[str, Tensor]:
    """The tensors that make up the model, as they are in the files; those of the heads under our names."""
    raw: dict[str, Tensor] = {}
    for ours, recipe in recipes.items():
        for name in recipe.names:
            key = ours if ours.startswith("heads.") else name
            raw[key] = recipe.file.get(name)
            if raw[key].dtype == torch.int8:
                raw[key + SCALE] = recipe.file.get(name + SCALE)
    return raw
