"""What an export begins with and what it ends with."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from threefold.encoder.checkpoint import load
from threefold.encoder.model import Model, ModelConfig
from threefold.encoder.sources import find
from threefold.errors import InputError
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
    """The folder of the model is mapped into memory while it is read: it cannot be the target."""
    if model is not None and Path(model).expanduser().resolve() == folder.resolve():
        raise InputError(f"{folder} is the model itself; name another folder")
