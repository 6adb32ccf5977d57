"""A folder that appears whole or not at all, and never over something else unasked."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from threefold.characters import check_name
from threefold.errors import InputError

#: A folder with one of these is a model, which `force` may replace; any other folder is somebody's work.
_MARKS = ("config.json", "threefold.json", "model.onnx")


@contextmanager
def new_folder(target: Path, *, force: bool = False) -> Iterator[Path]:
    """An empty folder beside `target`, which takes its name when the block ends well and is removed when it does not.

    force  an earlier model of that name is replaced; without it anything but an empty folder is refused
    """
    target = target.resolve()  # a link stays one
    check_free(target, force=force)
    part = target.parent / f".{target.name}.{secrets.token_hex(6)}.part"  # of this call alone
    old = part.with_suffix(".old")
    try:
        part.mkdir(parents=True)
        yield part
        if target.exists():
            target.rename(old)
        part.rename(target)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        for rest in (part, old):
            shutil.rmtree(rest, ignore_errors=True)


def check_free(target: Path, *, force: bool = False) -> None:
    """Whether `new_folder` may write there: to be asked before hours of work."""
    check_name(target)
    if not target.exists():
        return
    if target.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise InputError(f"{target} is, or holds, the current folder and cannot be replaced; name one inside of it")
    if not target.is_dir():
        raise InputError(f"{target} is a file; name a folder that is not there yet")
    if not any(target.iterdir()):
        return
    if not force:
        raise InputError(f"{target} is there already. Name another folder, or say --force to replace it")
    if not any((target / mark).is_file() for mark in _MARKS):
        raise InputError(f"{target} is not a model ({', '.join(_MARKS)}) and is not replaced; name another folder")
