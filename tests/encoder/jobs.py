"""What the processes of tests/encoder/test_workers.py do. Importable, and without torch, so that they start fast."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from threefold.errors import NumericalError


class Unsendable(Exception):
    """Cannot be pickled back: its constructor needs two values."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def make(setting: str) -> Callable[[tuple[str, Any]], Any]:
    """Tasks are (name of a function below, its argument)."""
    if setting == "fails":
        raise NumericalError("cannot start")
    if setting == "ends":
        os._exit(3)

    def call(task: tuple[str, Any]) -> Any:
        name, argument = task
        return getattr(sys.modules[__name__], name)(setting, argument)

    return call


def say(setting: str, argument: Any) -> Any:
    return setting, os.getpid(), argument


def sleep(setting: str, seconds: float) -> str:
    time.sleep(seconds)
    return setting


def fail(setting: str, words: str) -> None:
    raise NumericalError(words)


def fail_strangely(setting: str, words: str) -> None:
    raise Unsendable(words, "more")


def unsendable(setting: str, _: Any) -> Any:
    return lambda: setting


def size(setting: str, data: bytes) -> int:
    return len(data)


def bytes_of(setting: str, n: int) -> bytes:
    return b"x" * n


def array_of(setting: str, n: int) -> Any:
    return np.full(n, 7, np.uint8)
