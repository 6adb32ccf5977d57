"""The side of an encoder that faces the caller: what it is, which arguments it takes, what a prompt and a limit do.

Texts become tokens here; what happens to tokens is the business of `Encoder` (one device) and `EncoderPool` (many).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import index
from typing import Any, get_args

import numpy as np

from threefold.encoder.checkpoint import Loaded
from threefold.encoder.model import ModelConfig
from threefold.encoder.sources import Source
from threefold.errors import CheckpointError, InputError, MissingHeadError
from threefold.text.protocol import ModelCard
from threefold.text.tokenizer import Tokenizer, Tokens, Truncate
from threefold.types import REPRESENTATIONS, Encoded, Output, Ragged, Representation, Sparse, offsets_of

_OUTPUTS = get_args(Output)

#: Called after each batch with (texts, tokens) that it had.
Progress = Callable[[int, int], None]

#: A part of `iter_encode` ends here: about 250,000 tokens, 1 GB of token vectors of bge-m3.
BLOCK_CHARACTERS = 1_000_000


class Front(ABC):
    """What every encoder of this package has in common. Immutable; it may be shared between threads."""

    def __init__(self, source: Source, loaded: Loaded, precision: str) -> None:
        self._source = source
        self._missing = loaded.missing
        self._config = loaded.config
        self._tokenizer = Tokenizer.load(source.folder)
        if self._tokenizer.vocab > self._config.network.vocab:
            raise CheckpointError(
                f"{self._tokenizer.name} has {self._tokenizer.vocab:,} tokens, "
                f"the word table of the network {self._config.network.vocab:,} rows: they belong to different models"
            )
        self._card = self._describe(loaded, precision)

    # ---- what it is ----------------------------------------------------------------------------------

    @property
    def card(self) -> ModelCard:
        """Name, fingerprint and sizes of the model."""
        return self._card

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model."""
        return self._tokenizer

    @property
    def prompts(self) -> dict[str, str]:
        """What the model wants before a text, by name: `query` and `document`; empty where it wants nothing."""
        return {"query": self._config.query_prompt, "document": self._config.document_prompt}

    @property
    def config(self) -> ModelConfig:
        """Sizes, heads and prompts of the model."""
        return self._config

    @property
    def pooling(self) -> str:
        """How the dense vector is read from the states: cls, mean or last."""
        return self._config.heads.pooling

    def _describe(self, loaded: Loaded, precision: str) -> ModelCard:
        config = loaded.config
        return ModelCard(
            name=self._source.name,
            hash=loaded.hash,
            tokenizer_hash=self._tokenizer.fingerprint(),
            dense_dim=config.network.hidden,
            multi_dim=config.heads.multi_dim,
            vocab=config.network.vocab if config.heads.sparse else 0,
            max_tokens=config.max_tokens,
            revision=self._source.revision,
            precision=precision,
            matryoshka=config.matryoshka,
            fusion=config.fusion,
        )

    # ---- encoding ------------------------------------------------------------------------------------

    def encode(
        self,
        texts: Sequence[str],
        *,
        outputs: Sequence[Representation] | None = None,
        max_tokens: int | None = None,
        truncate: Truncate = "end",
        prompt: str = "",
        dim: int | None = None,
        progress: Progress | None = None,
    ) -> Encoded:
        """The representations of every text, in the caller's order.

        outputs     None: every representation that the model has; asking for one that it lacks is an error
        max_tokens  longest text, specials included; None: the longest that the model reads
        truncate    "end" keeps the beginning of a longer text, "start" its end, "none" refuses it;
                    `Encoded.truncated` says which texts were cut
        prompt      put before every text
        dim         cut dense vectors to so many dimensions (Matryoshka) and give them unit length again
        progress    called after each batch with the texts and tokens that it had
        """
        wanted, dim = self._wanted(outputs), self._checked_dim(dim)
        tokens = self._tokenized(texts, max_tokens, truncate, prompt)
        return self._encode_tokens(tokens, wanted, dim, progress)

    def encode_ids(
        self,
        tokens: Tokens,
        *,
        outputs: Sequence[Representation] | None = None,
        dim: int | None = None,
        progress: Progress | None = None,
    ) -> Encoded:
        """`encode` of texts that were tokenized already, specials included."""
        wanted, dim = self._wanted(outputs), self._checked_dim(dim)
        self._check_ids(tokens)
        return self._encode_tokens(tokens, wanted, dim, progress)

    def encode_queries(self, texts: Sequence[str], **options: Any) -> Encoded:
        """`encode` with the model's prompt for queries (bge-m3 and the embedded model have none)."""
        return self.encode(texts, **{"prompt": self._config.query_prompt, **options})

    def encode_documents(self, texts: Sequence[str], **options: Any) -> Encoded:
        """`encode` with the model's prompt for documents."""
        return self.encode(texts, **{"prompt": self._config.document_prompt, **options})

    def iter_encode(
        self,
        texts: Iterable[str],
        *,
        block: int = 4_096,
        outputs: Sequence[Representation] | None = None,
        max_tokens: int | None = None,
        truncate: Truncate = "end",
        prompt: str = "",
        dim: int | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Encoded]:
        """Encode a stream of texts in bounded memory, in order, as they are asked for.

        Each part has at most `block` texts, and fewer where they are long: it ends at the text that brings it to
        a million characters. The other arguments are those of `encode`.
        """
        if block < 1:
            raise InputError(f"block must be at least 1; got {block}")
        if isinstance(texts, str):
            raise InputError("expected texts, got one text; put it into a list")
        wanted, dim = self._wanted(outputs), self._checked_dim(dim)

        def tokenize(part: tuple[int, list[str]]) -> Tokens:
            first, given = part
            return self._tokenized(given, max_tokens, truncate, prompt, first)

        return self._encode_parts(self._each(tokenize, parts_of(texts, block)), wanted, dim, progress)

    # ---- inside --------------------------------------------------------------------------------------

    @abstractmethod
    def _encode_parts(
        self, parts: Iterator[Tokens], wanted: Sequence[Representation], dim: int | None, progress: Progress | None
    ) -> Iterator[Encoded]:
        """Each part of a stream as it is asked for, of at least one text, in order; all arguments are checked."""

    def _encode_all(
        self, tokens: Tokens, wanted: Sequence[Representation], dim: int | None, progress: Progress | None
    ) -> Encoded:
        """The representations of at least one text, in order; all arguments are checked."""
        return next(self._encode_parts(iter([tokens]), wanted, dim, progress))

    def _encode_tokens(
        self, tokens: Tokens, wanted: Sequence[Representation], dim: int | None, progress: Progress | None
    ) -> Encoded:
        return self._encode_all(tokens, wanted, dim, progress) if len(tokens) else self._nothing(wanted, dim)

    def _each(self, tokenize: Callable[[tuple[int, list[str]]], Tokens], parts: Iterator[Any]) -> Iterator[Tokens]:
        """The tokens of every part of a stream."""
        return map(tokenize, parts)

    def _tokenized(
        self, texts: Sequence[str], max_tokens: int | None, truncate: Truncate, prompt: str, first: int = 0
    ) -> Tokens:
        limit = self._limit(max_tokens)
        return self._tokenizer.encode(prompted(prompt, texts), max_tokens=limit, truncate=truncate, first=first)

    def _check_ids(self, tokens: Tokens) -> None:
        longest, most = int(tokens.lengths.max(initial=0)), self._config.network.max_tokens
        if longest > most:
            raise InputError(f"{self._source.name} reads at most {most} tokens; got {longest}")
        if len(tokens) and not tokens.lengths.all():
            raise InputError(f"text {int(tokens.lengths.argmin())} has no tokens; the tokenizer gives at least two")
        if len(tokens) and not 0 <= tokens.ids.min() <= tokens.ids.max() < self._config.network.vocab:
            least, most = tokens.ids.min(), tokens.ids.max()
            raise InputError(f"ids must be from 0 to {self._config.network.vocab - 1}; got {least} to {most}")

    def _check_rows(self, tokens: Tokens, outputs: Sequence[Sequence[Output]]) -> None:
        if len(outputs) != len(tokens):
            raise InputError(f"{len(tokens)} texts but {len(outputs)} sets of outputs")
        self._check_ids(tokens)
        for wanted in outputs:
            unknown = [wanted] if isinstance(wanted, str) else [name for name in wanted if name not in _OUTPUTS]
            if unknown:
                raise InputError(f"each text wants some of {', '.join(_OUTPUTS)}, as a list; got {unknown[0]!r}")
        asked = {"sparse" if name == "weights" else name for wanted in outputs for name in wanted} - {"hidden"}
        if asked:
            self._wanted([name for name in REPRESENTATIONS if name in asked])

    def _wanted(self, outputs: Sequence[Representation] | None) -> tuple[Representation, ...]:
        if outputs is None:
            return self._card.representations
        if not isinstance(outputs, str):
            outputs = list(outputs)  # it may be read only once
        unknown = [name for name in outputs if name not in REPRESENTATIONS]
        if unknown or isinstance(outputs, str) or not outputs:
            raise InputError(f"outputs must be some of {', '.join(REPRESENTATIONS)}, as a list; got {outputs!r}")
        for name in outputs:
            if name in self._missing:
                raise MissingHeadError(
                    f"{self._source.name} cannot make {name} vectors: it has no {self._missing[name]}. "
                    'Ask for other outputs, or use a model with that head ("BAAI/bge-m3", or the embedded one)'
                )
        return tuple(name for name in REPRESENTATIONS if name in outputs)

    def _checked_dim(self, dim: int | None) -> int | None:
        allowed = self._config.matryoshka
        if dim is None or dim == self._card.dense_dim:
            return None  # nothing to cut
        if dim in allowed:
            return dim
        known = ", ".join(map(str, allowed)) if allowed else "none: it was not trained for shorter vectors"
        raise InputError(f"{self._source.name} cannot cut dense vectors to {dim} dimensions; allowed are {known}")

    def _limit(self, max_tokens: int | None) -> int:
        longest = self._config.max_tokens
        if max_tokens is None:
            return longest
        try:
            max_tokens = index(max_tokens)
        except TypeError:
            raise InputError(f"max_tokens must be a whole number; got {max_tokens!r}") from None
        if max_tokens > self._config.network.max_tokens:
            most = self._config.network.max_tokens
            raise InputError(f"{self._source.name} reads at most {most} tokens; got max_tokens={max_tokens}")
        return max_tokens

    def _nothing(self, wanted: Sequence[Representation], dim: int | None) -> Encoded:
        card, none = self._card, np.zeros(0, np.int32)
        return Encoded(
            np.zeros((0, dim or card.dense_dim), np.float32) if "dense" in wanted else None,
            Sparse(none, np.zeros(0, np.float32), offsets_of([]), card.vocab) if "sparse" in wanted else None,
            Ragged(np.zeros((0, card.multi_dim), np.float32), offsets_of([])) if "multi" in wanted else None,
            none,
            np.zeros(0, np.bool_),
        )


def prompted(prompt: str, texts: Sequence[str]) -> Sequence[str]:
    """The texts with the prompt before each. What is not a list of texts is left to the tokenizer to refuse."""
    if not prompt or isinstance(texts, str):
        return texts
    return [prompt + text if isinstance(text, str) else text for text in texts]


def parts_of(texts: Iterable[str], block: int) -> Iterator[tuple[int, list[str]]]:
    """A stream of texts in parts of at most `block` texts and about a million characters, with their first numbers."""
    part: list[str] = []
    first = characters = 0
    for text in texts:
        part.append(text)
        characters += len(text) if isinstance(text, str) else 0  # `encode` refuses what is not a string
        if len(part) == block or characters >= BLOCK_CHARACTERS:
            yield first, part
            first, part, characters = first + len(part), [], 0
    if part:
        yield first, part
