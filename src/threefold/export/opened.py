"""What an export begins with and what it ends with."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from threefold.encoder.checkpoint import load
from threefold.encoder.model import Model, ModelConfig
from threefold.encoder.sources import EMBEDDED, embedded_folder, find
from threefold.errors import InputError
from threefold.paths import expanded
from threefold.text.tokenizer import Tokenizer

#: Numbers that weights may be written in.
PRECISIONS = ("float32", "float16")


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A model with its tokenizer, its name and its fingerprint. Float32, on the CPU, mapped from its files."""

    model: Model
    tokenizer: Tokenizer
    name: str
    hash: str

    @property
    def config(self) -> ModelConfig:
        return self.model.config


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    files  name -> bytes
    notes  what a reader of the folder must know, one sentence each
    """

    folder: Path
    layout: str
    files: dict[str, int]
    notes: tuple[str, ...]


def open_model(
    model: str | os.PathLike[str] | None, *, revision: str | None = None, pooling: str | None = None
) -> Opened:
    """None: the embedded model; a folder; a name on the hub. `pooling` is for a bare backbone that does not say it."""
    source = find(model, revision)
    loaded = load(source.folder, pooling)
    return Opened(loaded.model, Tokenizer.load(source.folder), source.name, loaded.hash)


def check_target(model: str | os.PathLike[str] | None, folder: Path) -> None:
    """The folder of the model is mapped into memory while it is read: neither it nor one above it can be replaced."""
    place = embedded_folder() if model is None or model == EMBEDDED else expanded(model)
    source, target = place.resolve(), folder.resolve()
    if source == target:
        raise InputError(f"{folder} is the model itself; name another folder")
    if source.is_dir() and target in source.parents:
        raise InputError(f"{folder} holds the model that would be read, {place}; name another folder")
