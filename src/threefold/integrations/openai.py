"""An OpenAI-compatible endpoint as an encoder, dense only: OpenAI, Novita, Venice, vLLM, or another threefold.

    POST {url}/embeddings   {"model": ..., "input": [...], "encoding_format": "float"}

Texts leave the machine, to the address that the caller gives and nowhere else.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from threefold.characters import clean, clean_value
from threefold.errors import InputError, MissingHeadError, NumericalError, OfflineError
from threefold.integrations.texts import cleaned
from threefold.integrations.web import Connected, connection
from threefold.text.protocol import ModelCard
from threefold.text.tokenizer import Tokenizer, Truncate
from threefold.types import Encoded, Floats, Representation

#: Answers that are worth asking again: too many requests, and failures of the other side.
RETRIED: Final = frozenset({408, 409, 429, 500, 502, 503, 504})
ATTEMPTS: Final = 5
#: Longest wait between two attempts.
PATIENCE_S: Final = 30.0

log = logging.getLogger(__name__)


class RemoteEncoder(Connected):
    """Texts in, unit dense vectors out, over HTTP.

    url         up to and without `/embeddings`, such as https://api.openai.com/v1
    model       the model's name there
    api_key     sent as a bearer token; None: no header
    dimensions  asks for shorter vectors, where the endpoint can
    query_prompt, document_prompt   put before every text
    max_tokens  what the model there reads; for the card only, since the endpoint cuts (or refuses) by itself
    batch_size  texts in one request
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str | None = None,
        dimensions: int | None = None,
        query_prompt: str = "",
        document_prompt: str = "",
        max_tokens: int = 8_192,
        batch_size: int = 64,
        timeout_s: float = 60.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1; got {batch_size}")
        self._client = connection(url, api_key, timeout_s, extra="evaluate", purpose="a remote endpoint")
        self._model, self._dimensions, self._batch_size, self._sleep = model, dimensions, batch_size, sleep
        self._said: set[int] = set()  # limits that were warned of
        self._prompts = {"query": query_prompt, "document": document_prompt}
        made_of = f"{url.rstrip('/')}|{model}|{dimensions}|{query_prompt}|{document_prompt}"
        self._card = ModelCard(
            name=model,
            hash=hashlib.sha256(clean(made_of).encode()).hexdigest()[:16],
            tokenizer_hash="",
            dense_dim=len(self._ask(["dimension"])[0]),
            multi_dim=0,
            vocab=0,
            max_tokens=max_tokens,
        )

    @property
    def card(self) -> ModelCard:
        """The hash is of address, name and settings: what the endpoint's weights are, nobody outside knows."""
        return self._card

    @property
    def tokenizer(self) -> Tokenizer:
        """There is none."""
        raise InputError(
            f"the endpoint of {self._model} has no tokenizer to offer: bm25 is not possible, bm25-words is"
        )

    def encode(
        self,
        texts: Sequence[str],
        *,
        outputs: Sequence[Representation] | None = None,
        max_tokens: int | None = None,
        truncate: Truncate = "end",
    ) -> Encoded:
        """Without a prompt. `tokens` are 0: the endpoint does not say them per text.

        max_tokens  not applied: how an endpoint is told differs, where it can be told at all. A warning says so
                    once, if a text may be longer
        """
        other = [name for name in outputs or () if name != "dense"]
        if other:
            raise MissingHeadError(f"the endpoint of {self._model} makes dense vectors only, not {other[0]}")
        if truncate != "end":
            raise InputError(f"truncate={truncate!r} is not possible over an endpoint, which cuts by itself")
        texts = cleaned(texts)
        self._check_limit(max_tokens, texts)
        rows: list[list[float]] = []
        for first in range(0, len(texts), self._batch_size):
            rows += self._ask(texts[first : first + self._batch_size])
            self._check_dim(rows[first])
        dense = _unit(np.array(rows, dtype=np.float32).reshape(len(texts), self._card.dense_dim))
        return Encoded(dense, None, None, np.zeros(len(texts), np.int32), np.zeros(len(texts), np.bool_))

    def encode_queries(self, texts: Sequence[str], **options: Any) -> Encoded:
        """With the prompt for queries."""
        return self.encode(cleaned(texts, self._prompts["query"]), **options)

    def encode_documents(self, texts: Sequence[str], **options: Any) -> Encoded:
        """With the prompt for documents."""
        return self.encode(cleaned(texts, self._prompts["document"]), **options)

    def _check_limit(self, max_tokens: int | None, texts: list[str]) -> None:
        """Say that a limit is not applied where it would matter. Protocols set one always: refusing ends them all."""
        if max_tokens is None:
            return
        if max_tokens < 1:
            raise InputError(f"max_tokens must be at least 1; got {max_tokens}")
        # A token has at least one byte, and a model reads no more than it can: neither is ever cut by the limit.
        if max_tokens >= self._card.max_tokens or max_tokens in self._said:
            return
        if any(len(text.encode()) > max_tokens for text in texts):
            self._said.add(max_tokens)
            log.warning(
                "max_tokens=%d is not applied: the endpoint of %s reads texts as far as it does",
                max_tokens,
                self._model,
            )

    def _check_dim(self, vector: list[float]) -> None:
        if len(vector) != self._card.dense_dim:
            raise InputError(
                f"{self._client.base_url} answered vectors of {len(vector)} dimensions, "
                f"and of {self._card.dense_dim} at first"
            )

    def _ask(self, texts: list[str]) -> list[list[float]]:
        body: dict[str, Any] = {"model": self._model, "input": texts, "encoding_format": "float"}
        if self._dimensions is not None:
            body["dimensions"] = self._dimensions
        answer = self._post(body)
        try:
            rows = sorted(answer["data"], key=lambda row: row["index"])
            vectors = [[float(value) for value in row["embedding"]] for row in rows]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{self._client.base_url} answered in another format: {str(answer)[:200]}") from error
        if [row["index"] for row in rows] != list(range(len(texts))):
            raise InputError(f"{self._client.base_url} answered {len(rows)} vectors for {len(texts)} texts")
        if len({len(vector) for vector in vectors}) > 1:
            raise InputError(f"{self._client.base_url} answered vectors of different lengths")
        if not all(vectors):
            raise InputError(f"{self._client.base_url} answered vectors without numbers")
        return vectors

    def _post(self, body: dict[str, Any]) -> Any:
        import httpx

        body = clean_value(body)  # JSON cannot carry lone surrogates
        for attempt in range(1, ATTEMPTS + 1):
            try:
                response = self._client.post("embeddings", json=body)
            except httpx.TransportError as error:
                if attempt == ATTEMPTS:
                    raise OfflineError(f"{self._client.base_url} cannot be reached: {error}") from error
                self._sleep(min(2.0**attempt, PATIENCE_S))
                continue
            except httpx.HTTPError as error:  # such as a body that is no gzip: the same again next time
                raise InputError(f"{self._client.base_url} gave an answer that cannot be read: {error}") from error
            if response.status_code in RETRIED and attempt < ATTEMPTS:
                self._sleep(_wait(response.headers.get("retry-after"), attempt))
                continue
            if response.is_error:
                raise InputError(
                    f"{self._client.base_url}embeddings answered {response.status_code}: {response.text[:300]}"
                )
            try:
                return response.json()
            except ValueError as error:
                raise InputError(f"{self._client.base_url} answered no JSON: {response.text[:200]}") from error
        raise AssertionError("unreachable")


def _wait(said: str | None, attempt: int) -> float:
    """Seconds that the endpoint asks for, or twice as long each time."""
    seconds = float(said) if said is not None and said.replace(".", "", 1).isdecimal() else 2.0**attempt
    return min(seconds, PATIENCE_S)


def _unit(rows: Floats) -> Floats:
    if not np.isfinite(rows).all():
        raise NumericalError("the endpoint answered vectors with NaN or infinity")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Floats = rows / np.where(lengths > 0, lengths, np.float32(1))
    return unit
