"""Texts for an encoder that is not ours: refused and cleaned as our own tokenizer does it."""

from __future__ import annotations

from collections.abc import Sequence

from threefold.characters import clean, listed


def cleaned(texts: Sequence[str], prompt: str = "") -> list[str]:
    """The prompt and each text, without characters that no wire or file can carry."""
    return [clean(prompt + text) for text in listed(texts)]
