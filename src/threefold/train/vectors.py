"""Another model's dense vectors as a teacher: of every text whose pair it may judge."""

from __future__ import annotations

import numpy as np

from threefold.text.protocol import TextEncoder
from threefold.text.tokenizer import Tokenizer, Tokens
from threefold.train.batches import PairTable
from threefold.train.objective import Targets
from threefold.types import Floats, Ints


class VectorTeacher:
    """Reads what the student reads: the texts are spelled out from the student's tokens, as they were cut.

    Reimers and Gurevych 2020 (arXiv 2004.09813).
    """

    def __init__(self, encoder: TextEncoder, tokenizer: Tokenizer, table: PairTable) -> None:
        self.encoder, self.tokenizer, self.table = encoder, tokenizer, table

    def __call__(self, rows: Ints) -> tuple[Targets, Targets]:
        places = np.flatnonzero(self.table.teacher[rows] > 0)
        chosen = rows[places]
        queries, passages = (self._texts(side, chosen) for side in (self.table.query, self.table.positive))
        asked = self.encoder.encode_queries(queries, outputs=("dense",)).dense
        said = self.encoder.encode_documents(passages, outputs=("dense",)).dense
        assert asked is not None
        assert said is not None
        return Targets(places, _unit(asked)), Targets(places, _unit(said))

    def _texts(self, tokens: Tokens, rows: Ints) -> list[str]:
        return [self.tokenizer.decode(tokens[int(row)].tolist()) for row in rows]


def _unit(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Floats = vectors / np.maximum(lengths, 1e-12)
    return unit
