"""What the routes share: the models, the limits of a request, who may call, what is counted.

Every contract is a thin reading and writing of the same two calls: `embed` and `judge`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from threefold.errors import InputError, MissingHeadError
from threefold.serve.bridge import QueuedEncoder, QueuedReranker
from threefold.serve.errors import RequestError
from threefold.serve.judges import CrossJudge, HeadsJudge, Judge, Judgement, Pair, PairEncoder
from threefold.serve.keys import Keys
from threefold.serve.library import Library
from threefold.serve.logs import log_request
from threefold.serve.meters import Meters
from threefold.serve.models import Answer, Embedder, Read, RowEncoder
from threefold.serve.queue import Engine
from threefold.serve.rates import Rates
from threefold.serve.schedule import Lane
from threefold.serve.settings import ServeConfig
from threefold.serve.threads import Threads
from threefold.text.tokenizer import Truncate
from threefold.types import Floats, Output

if TYPE_CHECKING:
    from threefold.serve.http import Call

Load = Callable[[], RowEncoder]
LoadCross = Callable[[], PairEncoder]

#: Threads that search collections, and that add to them; more requests wait.
SEARCHING, ADDING = 16, 8
#: A request may say how long it can wait.
TIMEOUT_HEADER = "x-timeout-ms"


class Server:
    """One encoder, and perhaps a cross-encoder, behind every route."""

    def __init__(self, config: ServeConfig, load: Load, load_cross: LoadCross | None = None) -> None:
        self.config = config
        self.meters = Meters()
        limits, observer = config.limits, self.meters.batches("encoder")
        self.embedder = Embedder(load, limits, max_tokens=config.max_input_tokens, observer=observer)
        self.meters.watch("encoder", cast("Engine[object]", self.embedder.engine))
        self.cross: CrossJudge | None = None
        if load_cross is not None:
            self.cross = CrossJudge(load_cross, limits, observer=self.meters.batches("reranker"))
            self.meters.watch("reranker", cast("Engine[object]", self.cross.engine))
        self.scorer: Judge = self.cross or HeadsJudge(self.embedder)
        self.keys = Keys(Path(config.keys_file)) if config.keys_file else None
        self.rates = Rates()
        self.searching, self.adding = Threads("search", SEARCHING), Threads("add", ADDING)
        self.library: Library | None = None
        self.created = int(time.time())
        self._running = False

    # ---- life --------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Load and warm up every model. A second call does nothing."""
        if self._running:
            return
        self._running = True
        await self.embedder.engine.start()
        if self.cross is not None:
            await self.cross.engine.start()
        if self.config.collections:
            self.library = self._open_library(Path(self.config.collections).expanduser())

    def _open_library(self, root: Path) -> Library:
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{root} cannot be a folder of collections: {error.strerror}") from error
        loop = asyncio.get_running_loop()
        reranker = QueuedReranker(self.cross, loop) if self.cross else None
        return Library(root, QueuedEncoder(self.embedder, loop), reranker)

    async def stop(self) -> None:
        """Finish what is running, then stop."""
        await self.embedder.engine.drain(self.config.drain_s)
        if self.cross is not None:
            await self.cross.engine.drain(self.config.drain_s)
        for threads in (self.searching, self.adding):
            threads.close()
        if self.library is not None:
            await asyncio.to_thread(self.library.close)

    def problem(self) -> str | None:
        """Why the server is not ready; None when it is."""
        return self.embedder.engine.problem() or (self.cross.engine.problem() if self.cross else None)

    # ---- who and what ------------------------------------------------------------------------------------

    def authorize(self, call: Call, scope: str) -> None:
        """Refuse who may not call. Without a file of keys everybody may."""
        if self.keys is None:
            return
        secret = _secret(call)
        if secret is None:
            raise RequestError("no API key: send the header Authorization: Bearer <key>", status=401)
        call.key = self.keys.find(secret)
        if call.key is None:
            raise RequestError("the API key is not known, or was revoked", status=401)
        if scope not in call.key.scopes:
            raise RequestError(f"this API key may not {scope}; it may {', '.join(call.key.scopes)}", status=403)
        self.rates.check(call.key)

    def finished(self, call: Call, status: int) -> None:
        """Count and log one request."""
        seconds = time.perf_counter() - call.began
        key = call.key.id if call.key else ""
        self.meters.request(call.route, status, seconds)
        if status < 300 and "tokens" in call.notes:
            self.charge(call, call.notes["model"], call.notes["tokens"])
        facts = {"method": call.request.method, "route": call.route, "status": status, "ms": round(1000 * seconds, 1)}
        log_request(facts | {"id": call.id} | ({"key": key} if key else {}) | call.notes)

    def charge(self, call: Call, model: str, tokens: int) -> None:
        """Count the tokens that a request has used."""
        self.meters.tokens(model, call.key.id if call.key else "", tokens)
        if call.key is not None:
            self.rates.charge(call.key, tokens)

    def rate_headers(self, call: Call) -> dict[str, str]:
        """What a key with a limit is told in every answer."""
        left = self.rates.left(call.key) if call.key is not None else None
        if call.key is None or left is None:
            return {}
        return {
            "x-ratelimit-limit-tokens": str(call.key.tokens_per_minute),
            "x-ratelimit-remaining-tokens": str(max(left, 0)),
        }

    def names(self) -> tuple[str, ...]:
        """The names under which the models answer."""
        own = (self.embedder.card.name, *self.config.served_names)
        return own if self.cross is None else (*own, self.cross.name)

    def check_model(self, name: str | None) -> None:
        """Refuse a model that is not served."""
        if name is not None and name not in self.names():
            served = ", ".join(map(repr, self.names()))
            raise RequestError(
                f"the model {name!r} does not exist here; served: {served}",
                status=404,
                param="model",
                code="model_not_found",
            )

    # ---- the two calls -----------------------------------------------------------------------------------

    async def read(
        self, texts: Sequence[str], *, truncate: Truncate, prompt_name: str | None = None, max_tokens: int | None = None
    ) -> Read:
        """Tokens of the texts of a request."""
        prompt = ""
        if prompt_name is not None:
            if prompt_name not in self.embedder.prompts:
                known = ", ".join(self.embedder.prompts)
                raise RequestError(f"the model has no prompt {prompt_name!r}; known are {known}", param="prompt_name")
            prompt = self.embedder.prompts[prompt_name]
        return await self.embedder.read(texts, truncate=truncate, prompt=prompt, max_tokens=max_tokens)

    async def embed(self, call: Call, read: Read, outputs: Sequence[Output], *, lane: Lane | None = None) -> Answer:
        """Representations of the texts of a request, within the limits of a request."""
        self.check_outputs(outputs)
        self._check_size(read.tokens, outputs)
        answer = await self.embedder.embed(read, outputs, lane=lane, deadline_s=deadline_of(call))
        call.notes.update(model=self.embedder.card.name, texts=len(read.rows), tokens=read.tokens)
        return answer

    async def judge(
        self,
        call: Call,
        pairs: Sequence[Pair],
        *,
        truncate: bool = True,
        max_text_tokens: int | None = None,
        lane: Lane | None = None,
    ) -> Judgement:
        """Scores of pairs of texts."""
        judgement = await self.scorer.judge(
            pairs, truncate=truncate, max_text_tokens=max_text_tokens, lane=lane, deadline_s=deadline_of(call)
        )
        call.notes.update(model=self.scorer.name, texts=len(pairs), tokens=judgement.tokens)
        return judgement

    def check_outputs(self, outputs: Sequence[Output]) -> None:
        """Refuse heads that the model does not have."""
        card = self.embedder.card
        for name in outputs:
            head = "sparse" if name == "weights" else name
            if head != "hidden" and head not in card.representations:
                raise MissingHeadError(f"{card.name} has no {head} head; it has {', '.join(card.representations)}")

    def _check_size(self, tokens: int, outputs: Sequence[Output]) -> None:
        if tokens > self.config.max_request_tokens:
            raise RequestError(
                f"the request has {tokens:,} tokens, the limit is {self.config.max_request_tokens:,}. Send less at once"
            )
        if {"multi", "hidden"} & set(outputs) and tokens > self.config.max_multi_tokens:
            raise RequestError(
                f"the request has {tokens:,} tokens; with a vector for each the limit is "
                f"{self.config.max_multi_tokens:,}. Send less at once"
            )

    def cut_dense(self, vector: Floats, dimensions: int | None) -> Floats:
        """The first dimensions, at unit length again; only where the model was trained for it."""
        if dimensions is None or dimensions == len(vector):
            return vector
        cut = vector[:dimensions]
        shorter: Floats = cut / np.linalg.norm(cut)
        return shorter

    def check_dimensions(self, dimensions: int | None) -> None:
        """Refuse dimensions for which the model was not trained."""
        card = self.embedder.card
        if dimensions is None or dimensions == card.dense_dim or dimensions in card.matryoshka:
            return
        allowed = ", ".join(map(str, (card.dense_dim, *card.matryoshka)))
        why = "" if card.matryoshka else " (it was not trained for shorter vectors)"
        raise RequestError(
            f"{card.name} cannot give {dimensions} dimensions; allowed: {allowed}{why}", param="dimensions"
        )


def deadline_of(call: Call) -> float | None:
    """Seconds that the client is ready to wait, if it says so."""
    said = call.request.headers.get(TIMEOUT_HEADER)
    if said is None:
        return None
    if not said.isdigit() or not int(said):
        raise InputError(f"{TIMEOUT_HEADER} must be a number of milliseconds; got {said!r}")
    return int(said) / 1000


def _secret(call: Call) -> str | None:
    """The key of a request: `Authorization: Bearer ...`, or `x-api-key`."""
    kind, _, secret = call.request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and secret:
        return secret.strip()
    return call.request.headers.get("x-api-key")
