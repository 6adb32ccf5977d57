"""Texts in, `Encoded` out. Owns the device, the precision and the batching; nothing else in threefold does.

    tokens -> packed batches -> hidden states -> heads -> the caller's order

An encoder is immutable after construction and may be shared between threads.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from threefold.encoder.attention import Layout
from threefold.encoder.checkpoint import Loaded, load
from threefold.encoder.heads import gather_multi, gather_sparse
from threefold.encoder.model import Model
from threefold.encoder.network import Batch
from threefold.encoder.precision import Precision, cast, choose_device, choose_precision
from threefold.encoder.rows import assemble, head_arrays
from threefold.encoder.sources import find
from threefold.errors import CheckpointError, InputError, MissingHeadError, NumericalError
from threefold.text.packing import plan_batches, restore_order
from threefold.text.protocol import ModelCard
from threefold.text.tokenizer import Tokenizer, Tokens, Truncate
from threefold.types import REPRESENTATIONS, Encoded, Floats, Output, Ragged, Representation, Row, Sparse, offsets_of

#: Called after each batch with (texts, tokens) that it had.
Progress = Callable[[int, int], None]

#: A part of `iter_encode` ends here: about 250,000 tokens, 1 GB of token vectors of bge-m3.
BLOCK_CHARACTERS = 1_000_000

log = logging.getLogger(__name__)


class Encoder:
    """A model that reads texts.

    model      None for the embedded model; a folder; or a name on the hub such as "BAAI/bge-m3"
    device     "auto", "cpu", "cuda", "cuda:1", "mps"
    precision  "auto" (what this processor does fast), "float32", "bfloat16", "float16"
    revision   commit on the hub; None takes the one that threefold was written against, or the newest
    pooling    how the dense vector is read, for a bare backbone that does not say it
    budget     tokens in one forward pass; None chooses by device

    >>> encoder = Encoder()
    >>> three = encoder.encode(["What is BGE M3?"])
    >>> three.dense.shape, len(three.sparse), three.multi[0].shape[1]
    ((1, 384), 1, 128)
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        revision: str | None = None,
        pooling: str | None = None,
        budget: int | None = None,
    ) -> None:
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self.budget = budget if budget is not None else (4_096 if self.device.type == "cpu" else 65_536)
        if self.budget < 1:
            raise InputError(f"the token budget must be at least 1; got {self.budget}")
        self._source = find(model, revision)
        self._pooling = pooling
        loaded = load(self._source.folder, pooling)
        self._tokenizer = Tokenizer.load(self._source.folder)
        self._missing = loaded.missing
        self._config = loaded.model.config
        if self._tokenizer.vocab > self._config.network.vocab:
            raise CheckpointError(
                f"{self._tokenizer.name} has {self._tokenizer.vocab:,} tokens, "
                f"the word table of the network {self._config.network.vocab:,} rows: they belong to different models"
            )
        self._model = cast(loaded.model, self.precision, self.device)
        self._exact: Model | None = self._model if self.precision == "float32" else None
        self._exact_lock = Lock()
        self._card = self._describe(loaded)

    # ---- what it is ----------------------------------------------------------------------------------

    @property
    def card(self) -> ModelCard:
        """Name, fingerprint and sizes of the model."""
        return self._card

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model."""
        return self._tokenizer

    def _describe(self, loaded: Loaded) -> ModelCard:
        config = loaded.model.config
        return ModelCard(
            name=self._source.name,
            hash=loaded.hash,
            tokenizer_hash=self._tokenizer.fingerprint(),
            dense_dim=config.network.hidden,
            multi_dim=config.heads.multi_dim,
            vocab=config.network.vocab if config.heads.sparse else 0,
            max_tokens=config.max_tokens,
            revision=self._source.revision,
            precision=self.precision,
            matryoshka=config.matryoshka,
        )

    def __repr__(self) -> str:
        return f"Encoder({self._source.name!r}, device={str(self.device)!r}, precision={self.precision!r})"

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
        wanted = self._wanted(outputs)
        dim = self._checked_dim(dim)
        limit = self._limit(max_tokens)
        tokens = self._tokenizer.encode(_prompted(prompt, texts), max_tokens=limit, truncate=truncate)
        if not len(tokens):
            return self._nothing(wanted, dim)
        batches = plan_batches(tokens.lengths, self.budget)
        parts = []
        for batch in batches:
            parts.append(self._forward(tokens, batch, wanted, dim))
            if progress is not None:
                progress(len(batch), int(tokens.lengths[batch].sum()))
        return Encoded.concat(parts).take(restore_order(batches))

    def encode_tokens(self, tokens: Tokens, outputs: Sequence[Sequence[Output]]) -> list[Row]:
        """One row per text that was tokenized already, in the caller's order; what a server packs together.

        outputs  what each text wants: one forward pass for all, each head only over the texts that asked for it
        """
        if len(outputs) != len(tokens):
            raise InputError(f"{len(tokens)} texts but {len(outputs)} sets of outputs")
        longest, most = int(tokens.lengths.max(initial=0)), self._config.network.max_tokens
        if longest > most:
            raise InputError(f"{self._source.name} reads at most {most} tokens; got {longest}")
        asked = {"sparse" if name == "weights" else name for wanted in outputs for name in wanted} - {"hidden"}
        if asked:
            self._wanted([name for name in REPRESENTATIONS if name in asked])
        batches = plan_batches(tokens.lengths, self.budget)
        found = [row for batch in batches for row in self._rows(tokens, batch, [outputs[int(i)] for i in batch])]
        return [found[int(i)] for i in restore_order(batches)]

    def encode_queries(self, texts: Sequence[str], **options: Any) -> Encoded:
        """`encode` with the model's prompt for queries (bge-m3 and the embedded model have none)."""
        return self.encode(texts, **{"prompt": self._config.query_prompt, **options})

    def encode_documents(self, texts: Sequence[str], **options: Any) -> Encoded:
        """`encode` with the model's prompt for documents."""
        return self.encode(texts, **{"prompt": self._config.document_prompt, **options})

    def iter_encode(self, texts: Iterable[str], *, block: int = 4_096, **options: Any) -> Iterator[Encoded]:
        """Encode a stream of texts in bounded memory, in order, as they are asked for.

        Each part has at most `block` texts, and fewer where they are long: it ends at the text that brings it to
        a million characters.
        """
        if block < 1:
            raise InputError(f"block must be at least 1; got {block}")
        if isinstance(texts, str):
            raise InputError("expected texts, got one text; put it into a list")
        return (self.encode(part, **options) for part in _parts(texts, block))

    # ---- inside --------------------------------------------------------------------------------------

    def _wanted(self, outputs: Sequence[Representation] | None) -> tuple[Representation, ...]:
        if outputs is None:
            return self._card.representations
        unknown = [name for name in outputs if name not in REPRESENTATIONS]
        if unknown or isinstance(outputs, str) or not outputs:
            raise InputError(f"outputs must be some of {', '.join(REPRESENTATIONS)}; got {outputs!r}")
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

    def _forward(
        self, tokens: Tokens, rows: np.ndarray[Any, Any], wanted: Sequence[Representation], dim: int | None
    ) -> Encoded:
        layout = Layout.of(tokens.lengths[rows])
        ids = np.concatenate([tokens[int(i)] for i in rows])
        raw = self._checked(lambda model: self._run(model, ids, layout, wanted, dim))
        sparse = multi = None
        if "sparse" in wanted:
            sparse = gather_sparse(raw["sparse"], ids, layout, self._card.vocab, self._tokenizer.special_ids)
        if "multi" in wanted:
            multi = gather_multi(raw["multi"], layout)
        counts = tokens.lengths[rows].astype(np.int32)
        return Encoded(raw.get("dense"), sparse, multi, counts, tokens.truncated[rows])

    @torch.inference_mode()
    def _run(
        self, model: Model, ids: np.ndarray[Any, Any], layout: Layout, wanted: Sequence[Representation], dim: int | None
    ) -> dict[str, Floats]:
        hidden = self._states(model, ids, layout)  # (T, d)
        heads, found = model.heads, {}
        if "dense" in wanted:
            found["dense"] = heads.dense_vectors(hidden, layout)
            if dim is not None:
                found["dense"] = torch.nn.functional.normalize(found["dense"][:, :dim], dim=-1)
        if "sparse" in wanted:
            found["sparse"] = heads.sparse_weights(hidden)
        if "multi" in wanted:
            found["multi"] = heads.multi_vectors(hidden)
        return {name: tensor.cpu().numpy() for name, tensor in found.items()}

    def _rows(self, tokens: Tokens, rows: np.ndarray[Any, Any], wanted: Sequence[Sequence[Output]]) -> list[Row]:
        layout = Layout.of(tokens.lengths[rows])
        ids = np.concatenate([tokens[int(i)] for i in rows])

        @torch.inference_mode()
        def run(model: Model) -> dict[str, Floats]:
            return head_arrays(model.heads, self._states(model, ids, layout), layout, wanted)

        return assemble(self._checked(run), ids, layout, wanted, self._card.vocab, self._tokenizer.special_ids)

    def _states(self, model: Model, ids: np.ndarray[Any, Any], layout: Layout) -> Tensor:
        hidden: Tensor = model.network(
            Batch.of(ids, layout, self._config.network.first_position, self.device)
        )  # (T, d)
        return hidden

    def _checked(self, run: Callable[[Model], dict[str, Floats]]) -> dict[str, Floats]:
        """The arrays of one batch; once more in float32 where half precision overflowed. NaN is an error."""
        raw = run(self._model)
        if all(np.isfinite(array).all() for array in raw.values()):
            return raw
        with self._exact_lock:  # loaded once, by the first batch that needs it
            if self._exact is None:
                log.warning("%s overflows in %s; such batches run in float32", self._source.name, self.precision)
                self._exact = cast(load(self._source.folder, self._pooling).model, "float32", self.device)
        if self._exact is not self._model:
            raw = run(self._exact)
            if all(np.isfinite(array).all() for array in raw.values()):
                return raw
        raise NumericalError(f"{self._source.name} gave NaN or infinity in float32: its weights are damaged")


def _prompted(prompt: str, texts: Sequence[str]) -> Sequence[str]:
    """The texts with the prompt before each. What is not a list of texts is left to the tokenizer to refuse."""
    if not prompt or isinstance(texts, str):
        return texts
    return [prompt + text if isinstance(text, str) else text for text in texts]


def _parts(texts: Iterable[str], block: int) -> Iterator[list[str]]:
    part: list[str] = []
    characters = 0
    for text in texts:
        part.append(text)
        characters += len(text) if isinstance(text, str) else 0  # `encode` refuses what is not a string
        if len(part) == block or characters >= BLOCK_CHARACTERS:
            yield part
            part, characters = [], 0
    if part:
        yield part
