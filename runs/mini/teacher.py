"""The teacher of threefold-mini: the dense vectors of multilingual-e5-small with its whole vocabulary, remembered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from threefold.encoder.encoder import Encoder
from threefold.types import Floats

MAX_TOKENS, WIDTH = 256, 384


class Teacher:
    """Unit vectors (n, WIDTH) of texts; each distinct text is read once."""

    def __init__(self, folder: Path) -> None:
        self.encoder = Encoder(folder, precision="bfloat16")
        self.known: dict[str, Floats] = {}

    def vectors(self, texts: Sequence[str]) -> Floats:
        new = sorted(set(texts) - self.known.keys())
        if new:
            dense = self.encoder.encode(new, outputs=("dense",), max_tokens=MAX_TOKENS).dense
            assert dense is not None
            self.known.update(zip(new, dense.astype(np.float16), strict=True))
        return np.array([self.known[text] for text in texts], np.float32).reshape(len(texts), WIDTH)
