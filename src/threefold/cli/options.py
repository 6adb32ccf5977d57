"""Options that several commands share, and the encoder they describe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from threefold.errors import InputError
from threefold.score import Weights
from threefold.types import Representation

if TYPE_CHECKING:
    from threefold.encoder.cross import CrossEncoder
    from threefold.encoder.encoder import Encoder
    from threefold.encoder.pool import EncoderPool


def given(text: str) -> str:
    """A place that was given. `""`, as of a variable of a script that is not set, would be the current folder."""
    if not text:
        raise typer.BadParameter("'' names nothing; the current folder is '.'")
    return text


def path_of(text: str) -> Path:
    """A path that was given, see `given`."""
    return Path(given(text))


def target_of(text: str) -> Path:
    """The place of a result, which is a file or a folder: `-` would be one of this name."""
    if text == "-":
        raise typer.BadParameter("'-' is no place for a result: it is written to a file, not to standard output")
    return path_of(text)


Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Folder or hub name of a model, such as BAAI/bge-m3. Default: the embedded threefold-mini.",
        envvar="THREEFOLD_MODEL",
    ),
]
Revision = Annotated[str | None, typer.Option(help="Revision of a model from the hub.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", envvar="THREEFOLD_DEVICE")]
PrecisionOption = Annotated[
    str, typer.Option(help="auto, float32, bfloat16, float16 or int8.", envvar="THREEFOLD_PRECISION")
]
Devices = Annotated[
    str, typer.Option(help="Several at once: GPUs such as cuda:0,cuda:1, or a number of processes on the CPU.")
]
RERANKER_ENV = "THREEFOLD_RERANKER"
Cache = Annotated[Path | None, typer.Option(parser=target_of, help="Folder that keeps encoded texts between runs.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]


def open_encoder(
    model: str | None, revision: str | None = None, device: str = "auto", precision: str = "auto"
) -> Encoder:
    """The encoder that the options name. Torch is loaded here and not before."""
    from threefold.encoder.encoder import Encoder
    from threefold.encoder.precision import Precision

    return Encoder(model or None, revision=revision, device=device, precision=cast(Precision, precision))


@contextmanager
def opened_encoder(
    model: str | None, revision: str | None, device: str, precision: str, devices: str
) -> Iterator[Encoder | EncoderPool]:
    """The encoder that the options name; with `--devices` a pool, whose processes end with the block."""
    if not devices:
        yield open_encoder(model, revision, device, precision)
        return
    if device != "auto":
        raise InputError(f"--devices {devices} and --device {device}: give one of them")
    from threefold.encoder.pool import EncoderPool
    from threefold.encoder.precision import Precision

    chosen = cast(Precision, precision)
    if devices.isdecimal():
        pool = EncoderPool(model, processes=int(devices), revision=revision, precision=chosen)
    else:
        names = [name.strip() for name in devices.split(",")]
        pool = EncoderPool(model, devices=names, revision=revision, precision=chosen)
    with pool:
        yield pool


def open_reranker(
    model: str, revision: str | None = None, device: str = "auto", precision: str = "auto"
) -> CrossEncoder:
    """The cross-encoder that the options name."""
    from threefold.encoder.cross import CrossEncoder
    from threefold.encoder.precision import Precision

    return CrossEncoder(model, revision=revision, device=device, precision=cast(Precision, precision))


def parse_weights(text: str | None) -> Weights | None:
    """`1,0.3,1` (dense, sparse, multi) or `dense=1,multi=0.5`; what is not named is 0."""
    if not text:
        return None
    parts = [part.strip() for part in text.split(",")]
    try:
        if any("=" in part for part in parts):
            named = {key.strip(): float(value) for key, _, value in (part.partition("=") for part in parts)}
            if len(named) < len(parts):
                raise InputError(f"--weights {text!r} names a representation twice")
            return Weights.from_dict({"dense": 0.0, "sparse": 0.0, "multi": 0.0} | named, "--weights")
        dense, sparse, multi = map(float, parts)
    except ValueError:
        raise InputError(
            f"--weights {text!r}: expected three numbers like 1,0.3,1 or names like dense=1,multi=0.5"
        ) from None
    return Weights(dense, sparse, multi)


def names_in(text: str) -> tuple[str, ...]:
    """The names of a list with commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def outputs_in(text: str, choice: str) -> tuple[Representation, ...] | None:
    """The representations of `--outputs`; None where it is not given. `choice` says what could be."""
    names = names_in(text)
    if text and not names:
        raise InputError(f"--outputs {text!r} names none; give {choice}")
    return cast("tuple[Representation, ...]", names) or None


def require_no_file(folder: Path | None) -> None:
    """What will be a folder must not be a file: it is made when the first part of the work is done."""
    if folder is not None and folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give the name of a folder")


def require_ordinary(path: Path) -> None:
    """A file that will be replaced is none of the things that only look like one, such as a pipe."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not an ordinary file; give the name of a file that may be replaced")


def require_folder_of(path: Path, *inputs: Path) -> None:
    """The folder in which a result will be written must be there before the work begins, and no input in its place."""
    parent = path.parent if str(path.parent) else Path()
    if not parent.is_dir():
        raise InputError(f"the folder {parent} does not exist; create it, or choose another place for {path.name}")
    require_ordinary(path)
    for given in inputs:
        if path.exists() and given.exists() and path.samefile(given):
            raise InputError(f"{path} is what would be read; choose another name for the result")
    if not os.access(parent, os.W_OK):
        raise InputError(f"the folder {parent} cannot be written to")
