"""Packages of extras, loaded where they are used: they take seconds, and most of what is here needs none."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

from threefold.errors import MissingExtraError

#: Module -> (package, extra).
PACKAGES: Final = {"sklearn": ("scikit-learn", "analyze"), "umap": ("umap-learn", "umap")}


def load(module: str, purpose: str) -> Any:
    """The module; where its package is not installed, an error that names the way to it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError(*PACKAGES[module.partition(".")[0]], purpose) from error
