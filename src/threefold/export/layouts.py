"""One door for all exports: a model into a folder of another layout.

>>> from threefold.export.layouts import export
>>> export(None, "mini-st", to="sentence-transformers").folder
PosixPath('mini-st')
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

from threefold.errors import InputError
from threefold.export import flagembedding, onnx, sentence_transformers
from threefold.export.opened import Exported, check_target, open_model
from threefold.export.place import new_folder

Layout = Literal["sentence-transformers", "flagembedding", "onnx"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
_WRITERS = {part.LAYOUT: part.write for part in (sentence_transformers, flagembedding, onnx)}


def export(
    model: str | os.PathLike[str] | None,
    folder: str | os.PathLike[str],
    *,
    to: Layout,
    precision: str = "float32",
    revision: str | None = None,
    pooling: str | None = None,
    force: bool = False,
) -> Exported:
    """Write a model for another library. The folder appears whole or not at all.

    model      None for the embedded model, a folder, or a name on the hub
    to         sentence-transformers (dense vectors), flagembedding (all three; `BGEM3FlagModel`), onnx (all three)
    precision  of the weights: float32, or float16 for half the size; weights stored in 8 bits are written back as these
    pooling    how the dense vector is read, for a bare backbone that does not say it
    force      replace an earlier model of that name
    """
    if to not in LAYOUTS:
        raise InputError(f"unknown layout {to!r}; known are {', '.join(LAYOUTS)}")
    target = Path(folder)
    check_target(model, target)
    with new_folder(target, force=force) as part:
        notes = _WRITERS[to](open_model(model, revision=revision, pooling=pooling), part, precision)
        files = {str(path.relative_to(part)): path.stat().st_size for path in sorted(part.rglob("*")) if path.is_file()}
    return Exported(target, to, files, notes)
