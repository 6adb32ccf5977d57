"""Texts for an encoder that is not ours: refused and cleaned as our own tokenizer does it."""

from __future__ import annotations

from collections.abc import Sequence

from threefold.errors import InputError
from threefold.text.decode import clean


def listed(texts: Sequence[str], prompt: str = "") -> list[str]:
    """The prompt and each text, without characters that no wire or file can carry."""
    if isinstance(texts, str):
        raise InputError("expected a list of texts, got one text; put it into a list")
    return [clean(prompt + _text(text, i)) for i, text in enumerate(texts)]


def _text(text: object, i: int) -> str:
    if isinstance(text, str):
        return text
    raise InputError(f"text {i} must be a string; got {type(text).__name__}")
