"""Texts as they are given: a list of strings, and without what no wire, file or database can hold.

Two kinds of character are legal in a Python string and nowhere else: NUL and lone surrogates. `clean` replaces each by
U+FFFD, one for one, as CommonMark and HTML do, so character offsets hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from threefold.errors import InputError

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def clean(text: str) -> str:
    """`text` with NUL and lone surrogates replaced by U+FFFD; the length stays."""
    return _UNSTORABLE.sub("\ufffd", text)


def clean_value(value: Any) -> Any:
    """`clean` for every string inside a JSON-like value."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean_value(key): clean_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean_value(item) for item in value]
    return value


def check_name(path: Path) -> None:
    """Refuse a name that is not UTF-8: the libraries that write models, tokenizers and Parquet files take no other."""
    if clean(str(path)) != str(path):
        raise InputError(f"{str(path)!r}: the name is not UTF-8; choose another one for the result")


def listed(texts: Iterable[str], first: int = 0) -> list[str]:
    """The texts of anything that may be readable only once; `first` is the number of the first one in messages."""
    if isinstance(texts, str):
        raise InputError("expected a list of texts, got one text; put it into a list")
    return [_text(text, i) for i, text in enumerate(texts, start=first)]


def _text(text: object, i: int) -> str:
    if isinstance(text, str):
        return text
    raise InputError(f"text {i} must be a string; got {type(text).__name__}")
