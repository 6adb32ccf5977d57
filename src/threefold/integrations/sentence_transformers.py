"""Any sentence-transformers model as an encoder, dense only: for evaluation and collections beside our own models.

Models of the BERT and XLM-R families need not come this way: `Encoder` loads them itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from operator import index
from pathlib import Path
from threading import Lock
from typing import Any, get_args

import numpy as np
from tokenizers import Tokenizer as Backend

from threefold.errors import CheckpointError, InputError, MissingExtraError, MissingHeadError, OfflineError
from threefold.hub import offline
from threefold.integrations.texts import cleaned
from threefold.text.protocol import ModelCard
from threefold.text.tokenizer import Tokenizer, Truncate
from threefold.types import Encoded, Representation


class SentenceTransformerEncoder:
    """Texts in, unit dense vectors out, with the model's own prompts.

    model       name on the hub, folder, or a loaded `SentenceTransformer`
    batch_size  texts in one forward pass
    options     passed to `SentenceTransformer`, such as device or revision
    """

    def __init__(self, model: str | Any, *, batch_size: int = 32, **options: Any) -> None:
        self._model = _load(model, options) if isinstance(model, str) else model
        self._batch_size = batch_size
        self._lock = Lock()  # max_seq_length is a setting of the model
        self._longest = int(self._model.max_seq_length or 512)
        backend = Backend.from_str(self._model.tokenizer.backend_tokenizer.to_str())
        self._counter = backend
        backend.no_truncation()
        backend.no_padding()
        name = (
            model if isinstance(model, str) else str(self._model.model_card_data.base_model or "sentence-transformer")
        )
        self._card = ModelCard(
            name=name,
            hash=_fingerprint(self._model),
            tokenizer_hash=hashlib.sha256(backend.to_str().encode()).hexdigest()[:16],
            dense_dim=int(self._model.get_embedding_dimension()),
            multi_dim=0,
            vocab=0,
            max_tokens=self._longest,
        )

    @property
    def card(self) -> ModelCard:
        return self._card

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, if it has the special tokens of BERT or XLM-R."""
        return Tokenizer(Backend.from_str(self._counter.to_str()), name=self._card.name)

    def encode(
        self,
        texts: Sequence[str],
        *,
        outputs: Sequence[Representation] | None = None,
        max_tokens: int | None = None,
        truncate: Truncate = "end",
    ) -> Encoded:
        """Without a prompt."""
        return self._run(self._model.encode, "", texts, outputs, max_tokens, truncate)

    def encode_queries(
        self,
        texts: Sequence[str],
        *,
        outputs: Sequence[Representation] | None = None,
        max_tokens: int | None = None,
        truncate: Truncate = "end",
    ) -> Encoded:
        """With the model's prompt for queries, if it has one."""
        prompt = self._prompt("query")
        return self._run(self._model.encode_query, prompt, texts, outputs, max_tokens, truncate)

    def encode_documents(
        self,
        texts: Sequence[str],
        *,
        outputs: Sequence[Representation] | None = None,
        max_tokens: int | None = None,
        truncate: Truncate = "end",
    ) -> Encoded:
        """With the model's prompt for documents, if it has one."""
        prompt = self._prompt("document", "passage", "corpus")
        return self._run(self._model.encode_document, prompt, texts, outputs, max_tokens, truncate)

    def _prompt(self, *roles: str) -> str:
        """As the library chooses it: of the first role that has one, else the model's default."""
        prompts = self._model.prompts
        role = next((role for role in roles if role in prompts), self._model.default_prompt_name)
        return prompts.get(role) or ""

    def _run(
        self,
        encode: Any,
        prompt: str,
        texts: Sequence[str],
        outputs: Sequence[Representation] | None,
        max_tokens: int | None,
        truncate: Truncate,
    ) -> Encoded:
        dense_only(outputs, self._card.name)
        if truncate not in get_args(Truncate):
            raise InputError(f"truncate must be one of {', '.join(get_args(Truncate))}; got {truncate!r}")
        limit, texts = self._limit(max_tokens), cleaned(texts)
        # The prompt takes room as well: what is counted is what the model reads.
        lengths = np.array([len(one) for one in self._counter.encode_batch(cleaned(texts, prompt))], dtype=np.int32)
        long = lengths > limit
        if truncate == "start" or (truncate == "none" and long.any()):
            raise InputError(
                f"{self._card.name} keeps the first {limit} tokens of a text; truncate={truncate!r} is refused"
            )
        if not len(lengths):
            return Encoded(np.zeros((0, self._card.dense_dim), np.float32), None, None, lengths, long)
        with self._lock:
            self._model.max_seq_length = limit
            try:
                rows = encode(
                    texts,
                    prompt=prompt,
                    batch_size=self._batch_size,
                    normalize_embeddings=True,
                    convert_to_numpy=True,
                    show_progress_bar=False,
                )
            finally:
                self._model.max_seq_length = self._longest
        return Encoded(np.asarray(rows, dtype=np.float32), None, None, np.minimum(lengths, limit), long)

    def _limit(self, max_tokens: int | None) -> int:
        if max_tokens is None:
            return self._longest
        try:
            limit = index(max_tokens)
        except TypeError:
            raise InputError(f"max_tokens must be a whole number; got {max_tokens!r}") from None
        least = self._counter.num_special_tokens_to_add(False) + 1
        if limit < least:
            raise InputError(f"max_tokens must be at least {least}; got {limit}")
        if limit > self._longest:
            raise InputError(f"{self._card.name} reads at most {self._longest} tokens; got max_tokens={limit}")
        return limit


def dense_only(outputs: Sequence[Representation] | None, name: str) -> None:
    """Refuse what only a model with three heads can make."""
    other = [output for output in outputs or () if output != "dense"]
    if other:
        raise MissingHeadError(f"{name} makes dense vectors only, not {other[0]}")


def _load(name: str, options: dict[str, Any]) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingExtraError("sentence-transformers", "evaluate", "a sentence-transformers model") from error
    try:
        return SentenceTransformer(name, **{"local_files_only": offline(), **options})
    except (OSError, ValueError) as error:  # no such folder or name, no connection, files of something else
        if offline() and not Path(name).is_dir():
            raise OfflineError(f"{name} is not in the local cache, and THREEFOLD_OFFLINE forbids downloads") from error
        raise CheckpointError(f"sentence-transformers cannot load {name}: {error}") from error


def _fingerprint(model: Any) -> str:
    """Hash of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
