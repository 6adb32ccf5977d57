"""An encoder for one request: what every contract does with it, and the limits of a request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import numpy as np

from threefold.errors import InputError, MissingHeadError
from threefold.serve.errors import TOO_LARGE, RequestError
from threefold.serve.models import Answer, Embedder, Read
from threefold.serve.queue import ends_within
from threefold.serve.schedule import Lane
from threefold.text.tokenizer import Truncate
from threefold.types import Floats, Output

if TYPE_CHECKING:
    from threefold.serve.http import Call

#: A request may say how long it can wait.
TIMEOUT_HEADER = "x-timeout-ms"
#: Digits that it may have: 31 years.
TIMEOUT_DIGITS = 12


class Encoding:
    """Texts of one request -> tokens -> representations, counted for its key."""

    def __init__(self, call: Call, embedder: Embedder) -> None:
        self._call = call
        self.embedder = embedder

    async def read(
        self, texts: Sequence[str], *, truncate: Truncate, prompt_name: str | None = None, max_tokens: int | None = None
    ) -> Read:
        """Tokens of the texts of a request, before its deadline: of megabytes it takes seconds."""
        prompt = self.prompt(prompt_name)
        async with by_deadline(self._call):
            return await self.embedder.read(texts, truncate=truncate, prompt=prompt, max_tokens=max_tokens)

    def prompt(self, name: str | None) -> str:
        """What is put before a text; without a name as the server is set."""
        if name is None:
            return self.embedder.prompts.get(self._call.server.config.default_prompt, "")
        if name not in self.embedder.prompts:
            known = ", ".join(self.embedder.prompts)
            raise RequestError(f"the model has no prompt {name!r}; known are {known}", param="prompt_name")
        return self.embedder.prompts[name]

    async def embed(self, read: Read, outputs: Sequence[Output], *, lane: Lane | None = None) -> Answer:
        """Representations of the texts of a request, within the limits of a request."""
        self.check_outputs(outputs)
        check_size(self._call, read.tokens, outputs)
        answer = await self.embedder.embed(read, outputs, lane=lane, deadline_s=deadline_of(self._call))
        self._call.use(self.embedder.name, "embed", read.tokens, texts=len(read.rows))
        self._call.trace(read.seconds, answer.queue_s, answer.run_s)
        return answer

    def check_outputs(self, outputs: Sequence[Output]) -> None:
        """Refuse heads that the model does not have."""
        card = self.embedder.card
        for name in outputs:
            head = "sparse" if name == "weights" else name
            if head != "hidden" and head not in card.representations:
                raise MissingHeadError(f"{card.name} has no {head} head; it has {', '.join(card.representations)}")

    def check_dimensions(
        self, dimensions: int | None, outputs: Sequence[Output] = ("dense",), instead: str = ""
    ) -> None:
        """Refuse dimensions for which the model was not trained. Only dense vectors can be cut: those of tokens have
        the size that they have, and weights none; `instead` says how to ask for dense ones.
        """
        card = self.embedder.card
        if dimensions is None:
            return
        if "dense" not in outputs:
            if "multi" in outputs and dimensions == card.multi_dim:
                return
            raise RequestError(
                f"nothing of what was asked for can be cut to {dimensions} dimensions: only dense vectors can. Leave "
                f"`dimensions` out, or {instead}",
                param="dimensions",
            )
        if dimensions == card.dense_dim or dimensions in card.matryoshka:
            return
        allowed = ", ".join(map(str, dict.fromkeys((card.dense_dim, *card.matryoshka))))
        why = "" if card.matryoshka else " (it was not trained for shorter vectors)"
        raise RequestError(
            f"{card.name} cannot give {dimensions} dimensions; allowed: {allowed}{why}", param="dimensions"
        )


def check_size(call: Call, tokens: int, outputs: Sequence[Output] = ()) -> None:
    """Refuse a request that has become too large. What it reads is added up: one of /vertex holds several."""
    config = call.server.config
    call.size += tokens
    if call.size > config.max_request_tokens:
        raise RequestError(
            f"the request has {call.size:,} tokens, the limit is {config.max_request_tokens:,}. Send less at once",
            code=TOO_LARGE,
        )
    if not {"multi", "hidden"} & set(outputs):
        return
    call.multi_size += tokens
    if call.multi_size > config.max_multi_tokens:
        raise RequestError(
            f"the request has {call.multi_size:,} tokens; with a vector for each the limit is "
            f"{config.max_multi_tokens:,}. Send less at once",
            code=TOO_LARGE,
        )


def cut_dense(vector: Floats, dimensions: int | None) -> Floats:
    """The first dimensions, at unit length again; only where the model was trained for it."""
    if dimensions is None or dimensions == len(vector):
        return vector
    cut = vector[:dimensions]
    shorter: Floats = cut / np.linalg.norm(cut)
    return shorter


def deadline_of(call: Call) -> float | None:
    """Seconds that the client is ready to wait, if it says so."""
    said = call.request.headers.get(TIMEOUT_HEADER)
    if said is None:
        return None
    is_number = said.isascii() and said.isdigit() and len(said) <= TIMEOUT_DIGITS  # more int() may not read
    if not is_number or not int(said):
        got = said if len(said) <= TIMEOUT_DIGITS else f"{said[:TIMEOUT_DIGITS]}..."
        raise InputError(
            f"{TIMEOUT_HEADER} must be a number of milliseconds with at most {TIMEOUT_DIGITS} digits; got {got!r}"
        )
    return int(said) / 1000


@asynccontextmanager
async def by_deadline(call: Call) -> AsyncIterator[float]:
    """What is done inside ends at the deadline of the request, with its error; gives the seconds."""
    deadline = deadline_of(call) or call.server.config.limits.deadline_s
    async with ends_within(deadline):
        yield deadline
