"""What anything that turns texts into representations must offer: our encoder, a remote one, someone else's.

Collections, evaluation and the server know encoders and rerankers only by these protocols.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from threefold.text.tokenizer import Tokenizer, Truncate
from threefold.types import REPRESENTATIONS, Encoded, Floats, Representation


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a model is, for manifests and reports.

    name            as the user named it
    hash            fingerprint of the weights
    tokenizer_hash  fingerprint of the tokenizer; empty where there is none to be had
    dense_dim       dimensions of the dense vector; 0 when the model has none
    multi_dim       dimensions of a token vector; 0 when the model has none
    vocab           size of the sparse vocabulary; 0 when the model has no sparse head
    max_tokens      longest text, specials included
    matryoshka      dimensions at which the dense vector may be cut; empty: never
    fusion          weights of dense, sparse and multi in a hybrid search, where the user gives none
    """

    name: str
    hash: str
    tokenizer_hash: str
    dense_dim: int
    multi_dim: int
    vocab: int
    max_tokens: int
    revision: str = ""
    precision: str = "float32"
    matryoshka: tuple[int, ...] = ()
    fusion: tuple[float, ...] = (1.0, 0.3, 1.0)

    @property
    def representations(self) -> tuple[Representation, ...]:
        """The representations that the model can make."""
        sizes = dict(zip(REPRESENTATIONS, (self.dense_dim, self.vocab, self.multi_dim), strict=True))
        return tuple(name for name in REPRESENTATIONS if sizes[name])

    def is_same_model(self, other: ModelCard) -> bool:
        """Whether vectors of both can be compared; the numbers in which they were computed may differ."""
        return (self.hash, self.tokenizer_hash) == (other.hash, other.tokenizer_hash)


class TextEncoder(Protocol):
    """Texts in, representations out."""

    @property
    def card(self) -> ModelCard:
        """What the model is."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model; chunk budgets, explanations and BM25 use it."""
        ...

    def encode(
        self,
        texts: Sequence[str],
        *,
        outputs: Sequence[Representation] | None = None,
        max_tokens: int | None = None,
        truncate: Truncate = "end",
    ) -> Encoded:
        """Encode as they are, without a prompt.

        outputs     None: every representation that the model has; asking for one that it lacks is an error
        max_tokens  None: the longest that the model reads
        """
        ...

    def encode_queries(
        self,
        texts: Sequence[str],
        *,
        outputs: Sequence[Representation] | None = None,
        max_tokens: int | None = None,
        truncate: Truncate = "end",
    ) -> Encoded:
        """Encode with the model's prompt for queries, if it has one."""
        ...

    def encode_documents(
        self,
        texts: Sequence[str],
        *,
        outputs: Sequence[Representation] | None = None,
        max_tokens: int | None = None,
        truncate: Truncate = "end",
    ) -> Encoded:
        """Encode with the model's prompt for documents, if it has one."""
        ...


class Reranker(Protocol):
    """A query and texts in, one score per text out: our cross-encoder, a remote one, someone else's."""

    def score(self, query: str, texts: Sequence[str]) -> Floats:
        """(n,) how well each text answers the query; higher is better, any scale."""
        ...
