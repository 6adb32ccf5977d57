"""A checkpoint of any layout -> our layout, in the numbers in which it will run.

The converted model keeps the fingerprint of its origin: its vectors differ by rounding only, and a collection that
was made with the one may be searched with the other.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from threefold.encoder.checkpoint import Form, load, save
from threefold.encoder.sources import find
from threefold.errors import InputError
from threefold.replacing import replacing
from threefold.text.tokenizer import Tokenizer


def convert(
    model: str | os.PathLike[str] | None,
    folder: str | os.PathLike[str],
    form: Form = "bfloat16",
    *,
    revision: str | None = None,
    pooling: str | None = None,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
) -> int:
    """Write the model into `folder` with its tokenizer; returns the bytes of its weights.

    form  bfloat16 opens without converting for that precision; int8 is read as it is by `precision="int8"`
    pooling, query_prompt, document_prompt
          as in `Encoder`; the converted model declares them
    """
    source, folder = find(model, revision), Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder that is not there yet")
    if folder.exists() and source.folder.resolve() == folder.resolve():
        raise InputError(f"{folder} is the model itself; choose another folder")
    loaded = load(source.folder, pooling, query_prompt=query_prompt, document_prompt=document_prompt)
    exact = loaded.model
    exact.config = replace(loaded.config, origin=loaded.hash)
    tokenizer = Tokenizer.load(source.folder)
    save(exact, folder, form=form)
    with replacing(folder / "tokenizer.json") as draft:
        tokenizer.save(draft)
    return (folder / "model.safetensors").stat().st_size
