"""Files of a checkpoint -> parsed JSON and named tensors. Weights are memory-mapped, never copied, never executed.

Knows file formats; knows nothing of networks. Every failure is a `CheckpointError` that names the file.
"""

from __future__ import annotations

import errno
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from threefold.errors import CheckpointError

#: Backbone files, the preferred one first; each may be cut into shards that `<file>.index.json` lists.
BACKBONE_FILES = ("model.safetensors", "pytorch_model.bin")

#: Endings of the files that a model is read from.
_READ = (".json", ".safetensors", ".bin", ".pt", ".model")


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """The tensors of one file, or of all shards of one index, by name."""

    path: Path
    tensors: Mapping[str, Tensor]

    def get(self, name: str) -> Tensor:
        """The tensor of this name, or an error that names it and the file."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.path} lacks the tensor {name}")
        return self.tensors[name]


def check_whole(folder: Path) -> None:
    """Refuse a folder that would open as another model: a download that was interrupted, an adapter beside weights."""
    try:
        broken = sorted(path.name for path in folder.iterdir() if path.suffix in _READ and not path.exists())
    except OSError as error:
        raise CheckpointError(f"cannot read {folder}: {error}") from error
    if broken:
        raise CheckpointError(
            f"{folder} is not complete: {', '.join(broken)} {'is a link' if len(broken) == 1 else 'are links'} "
            "to nothing; download the model again"
        )
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        raise CheckpointError(
            f"{adapter}: the weights would be read without their adapter. Merge the adapter first "
            "(peft: model.merge_and_unload(), then save), or delete the file if the weights already have it"
        )


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors; a disk that is full is an error of the system, as of every other file."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(path.parent)) from error  # `path` may be a draft


def read_json(path: Path) -> Any:
    """Parsed JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def read_table(path: Path) -> dict[str, Any]:
    """Parsed JSON that must be an object."""
    data = read_json(path)
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def read_safetensors(path: Path) -> Weights:
    """Tensors that share their memory with the page cache: opening 2 GB reads the header only."""
    try:
        path.open("rb").close()  # safetensors calls what may not be read "not found"
        with safe_open(path, framework="pt") as file:
            return Weights(path, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def read_pickle(path: Path) -> Weights:
    """A `.bin` or `.pt` state dict, by PyTorch's restricted unpickler: tensors only, no code."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        # not the words of torch, which advise to run what is in the file
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        held = f" ({found[1]})" if found else ""
        raise CheckpointError(
            f"cannot read {path}: it is damaged, or holds more than tensors{held}, which is never run. "
            "Download it again, or take the weights as safetensors"
        ) from None
    except Exception as error:  # a damaged pickle fails in any way that it likes
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: expected a dictionary of tensors, got {type(state).__name__}")
    return Weights(path, {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)})


def read_weights(path: Path) -> Weights:
    """By suffix."""
    return read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)


def read_backbone(folder: Path) -> Weights:
    """The weights of a Hugging Face folder: one file, or shards."""
    for name in BACKBONE_FILES:
        if (folder / name).is_file():
            return read_weights(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_shards(index)
    raise CheckpointError(f"{folder} has no weights: expected {' or '.join(BACKBONE_FILES)}")


def _read_shards(index: Path) -> Weights:
    shards = read_table(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(file, str) for file in shards.values()):
        raise CheckpointError(f"{index} lacks weight_map, the table of tensors and their files")
    merged: dict[str, Tensor] = {}
    for shard in sorted(set(shards.values())):
        if not (index.parent / shard).is_file():
            raise CheckpointError(f"{index} names {shard}, which is not there; download the checkpoint again")
        merged |= read_weights(index.parent / shard).tensors
    return Weights(index, merged)
