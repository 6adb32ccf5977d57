"""Two texts side by side: the three scores, their weighted sum, shared terms and best token pairs."""

from __future__ import annotations

from dataclasses import dataclass

from threefold.retrieve.explain import best_token_pairs, shared_terms
from threefold.score import Weights, pair_scores, weighted_sum
from threefold.text.protocol import TextEncoder
from threefold.types import Representation, TermMatch, TokenMatch


@dataclass(frozen=True, slots=True)
class Comparison:
    """How close two texts are.

    scores  raw score by representation that the model has
    fused   weighted sum of them
    tokens  tokens of both texts; truncated: whether either was cut
    """

    scores: dict[Representation, float]
    fused: float
    weights: Weights
    terms: tuple[TermMatch, ...]
    pairs: tuple[TokenMatch, ...]
    tokens: tuple[int, int]
    truncated: bool


def compare_texts(encoder: TextEncoder, a: str, b: str, *, weights: Weights | None = None, top: int = 10) -> Comparison:
    """Score text `b` for query `a`, fused by `weights` or by those of the model."""
    query, text = encoder.encode_queries([a]), encoder.encode_documents([b])
    arrays = pair_scores(query, text)
    usable = weights or Weights(*encoder.card.fusion).only(*arrays)  # a given weight of what is not there is refused
    scores = {name: float(values[0]) for name, values in arrays.items()}
    return Comparison(
        scores,
        float(weighted_sum(arrays, usable)[0]),
        usable,
        shared_terms(query, text, encoder.tokenizer, top)[0],
        best_token_pairs(encoder, a, [b], top)[0],
        (int(query.tokens[0]), int(text.tokens[0])),
        bool(query.truncated[0] or text.truncated[0]),
    )
