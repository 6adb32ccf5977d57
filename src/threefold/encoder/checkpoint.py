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
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from threefold.config import Settings
from threefold.encoder.files import check_whole, read_safetensors, read_table, write_safetensors
from threefold.encoder.foreign import Opened, Recipe, check_prompted, open_foreign
from threefold.encoder.model import Model, ModelConfig
from threefold.encoder.stored import BLOCK, SCALE, Stored, quantise_blocks, quantise_rows, stack
from threefold.errors import CheckpointError, ConfigError, InputError, NumericalError
from threefold.replacing import replacing
from threefold.types import Representation

__all__ = [
    "SCALE", "Form", "Loaded", "Model", "ModelConfig", "empty", "fill", "fingerprint", "load", "quantise_rows", "save",
    "stored_tensors",
]  # fmt: skip

M = TypeVar("M", bound=nn.Module)
C = TypeVar("C")

#: In which numbers a saved model keeps its matrices; norms and biases stay in float32.
#: int8 means the matrices of the layers alone, as the int8 precision reads them; tables and heads are bfloat16.
Form = Literal["float32", "bfloat16", "int8"]

#: Types of stored numbers that mean something only with their scales.
_SCALED = (torch.int8, torch.uint8)

#: A fingerprint reads so many blocks of so many neighbouring numbers of a tensor: one page of the file each.
_BLOCKS, _BLOCK = 16, 256


@dataclass(frozen=True)
class Loaded:
    """An opened checkpoint. Its tensors stay in the mapped file until they are read.

    hash     fingerprint of weights and settings; that of the origin where a conversion changed only the numbers' form
    recipes  our parameter -> where it comes from
    missing  representation -> the file that the checkpoint would need to make it
    """

    config: ModelConfig
    hash: str
    recipes: Mapping[str, Recipe]
    missing: dict[Representation, str]

    @cached_property
    def model(self) -> Model:
        """Everything in float32 on the CPU. Float32 weights stay in the mapped file."""
        return fill(empty(Model, self.config), self.recipes)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every parameter, as the configuration asks for them."""
        return {name: tuple(tensor.shape) for name, tensor in empty(Model, self.config).state_dict().items()}

    def stored(self, name: str) -> Stored:
        """One parameter as the file has it."""
        return _read(self.recipes[name])


def load(
    folder: Path, pooling: str | None = None, *, query_prompt: str | None = None, document_prompt: str | None = None
) -> Loaded:
    """Open any known layout and check that every tensor is there in its shape.

    pooling                        where the folder does not say how its dense vector is made
    query_prompt, document_prompt  instead of those that the folder declares; another model then, by its hash
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder")
    check_whole(folder)
    if (folder / "threefold.json").is_file():
        opened = _open_own(folder, pooling)
    elif (folder / "config.json").is_file():
        opened = open_foreign(folder, pooling)
    else:
        raise CheckpointError(
            f"{folder} is not a model: it has neither threefold.json nor config.json. "
            "Expected our layout, BGE-M3's (config.json, sparse_linear.pt, ...) or sentence-transformers'"
        )
    config = _prompted(opened.config, query_prompt, document_prompt)
    if config.query_prompt or config.document_prompt:
        check_prompted(folder)
    name = config.origin or fingerprint(stored_tensors(opened.recipes), config)
    loaded = Loaded(config, name, opened.recipes, opened.missing)
    for parameter, shape in loaded.shapes.items():
        _check(opened.recipes[parameter], shape)
    return loaded


def _prompted(config: ModelConfig, query_prompt: str | None, document_prompt: str | None) -> ModelConfig:
    query = config.query_prompt if query_prompt is None else query_prompt
    document = config.document_prompt if document_prompt is None else document_prompt
    changed = replace(config, query_prompt=query, document_prompt=document)
    return config if changed == config else replace(changed, origin="")  # its vectors are no longer those of the origin


def save(
    model: Model, folder: Path, *, int8: bool = False, four_bit: Collection[str] = (), form: Form = "float32"
) -> None:
    """Write our layout but the tokenizer.

    int8      every matrix, tables included, as one byte per number with a scale per row
    four_bit  names of matrices to keep as half a byte per number with a scale per 32
    form      in which numbers matrices are kept otherwise
    """
    if form not in get_args(Form):
        raise InputError(f"unknown form {form!r}; use one of {', '.join(get_args(Form))}")
    tensors: dict[str, Tensor] = {}
    for name, held in model.state_dict().items():
        tensor = held.cpu()
        if not torch.isfinite(tensor).all():
            raise NumericalError(f"{name} has NaN or infinity; the model is not saved to {folder}")
        matrix = tensor.ndim == 2 and tensor.shape[0] > 1
        if name in four_bit:
            tensors[name], tensors[name + SCALE] = quantise_blocks(tensor)
        elif matrix and (int8 or (form == "int8" and name.startswith("network.layers."))):
            tensors[name], tensors[name + SCALE] = quantise_rows(tensor)
        else:
            tensors[name] = tensor.to(torch.bfloat16 if matrix and form != "float32" else tensor.dtype).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "model.safetensors") as draft:
        write_safetensors(draft, tensors)
    with replacing(folder / "threefold.json") as draft:
        draft.write_text(json.dumps(model.config.to_dict(), indent=1) + "\n", encoding="utf-8")
    shutil.copymode(folder / "threefold.json", folder / "model.safetensors")  # it was written for its owner only


def fingerprint(tensors: Mapping[str, Tensor], config: Settings) -> str:
    """16 hex digits: equal weights and settings, equal fingerprint; the name of the model does not count.

    Samples of every tensor are read, 16 blocks of 256 neighbours, so a full-size model is named in milliseconds.
    """
    settings = config.to_dict() | {"name": ""}
    settings.pop("origin", None)  # younger than the first fingerprints
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
    state = {}
    for name, parameter in module.state_dict().items():
        _check(recipes[name], tuple(parameter.shape))
        state[name] = _read(recipes[name]).float()
    module.load_state_dict(state, assign=True)
    return module


def _check(recipe: Recipe, shape: tuple[int, ...]) -> None:
    """Every part of a parameter of this shape is in the file, with its scales, in the right shape."""
    rows = shape[0] // len(recipe.names)
    for name in recipe.names:
        dtype = recipe.file.get(name).dtype
        if dtype == torch.uint8:  # four bits
            _shaped(recipe, name, (rows, shape[1] // 2))
            _shaped(recipe, name + SCALE, (rows, shape[1] // BLOCK))
            continue
        _shaped(recipe, name, (rows, *shape[1:]))
        if dtype == torch.int8:
            _shaped(recipe, name + SCALE, (rows,))


def _read(recipe: Recipe) -> Stored:
    """Its parts, one below the other."""
    parts = []
    for name in recipe.names:
        tensor = recipe.file.get(name)
        parts.append(Stored(tensor, recipe.file.get(name + SCALE) if tensor.dtype in _SCALED else None))
    return stack(parts)


def _shaped(recipe: Recipe, name: str, shape: tuple[int, ...]) -> Tensor:
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
            if raw[key].dtype in _SCALED:
                raw[key + SCALE] = recipe.file.get(name + SCALE)
    return raw
