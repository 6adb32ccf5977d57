"""Paths as people write them."""

from __future__ import annotations

import os
from pathlib import Path

from threefold.errors import InputError


def expanded(path: str | os.PathLike[str]) -> Path:
    """With the folder of a user in the place of `~` or `~name`."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: {error} Write the whole path") from error
