"""Encoders without a network that take token ids, and a server around one on a real socket."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import uvicorn
from tests.fakes import FakeEncoder

from threefold.serve.app import build
from threefold.serve.connection import http_options
from threefold.serve.server import Server
from threefold.serve.settings import ServeConfig
from threefold.text.tokenizer import Tokenizer, Tokens
from threefold.types import Floats, Output, Row

#: A text with this word makes the model fail.
POISON = "मौसम"
START_S = 30.0


class ServedEncoder(FakeEncoder):
    """The fake of `tests/fakes.py`, for texts that are tokens already. One head more or less changes no other."""

    prompts: Mapping[str, str] = {"query": "", "document": ""}
    pooling = "mean"
    weight_bytes = 1_000_000

    def encode_tokens(
        self, tokens: Tokens, outputs: Sequence[Sequence[Output]], *, between: Callable[[], None] | None = None
    ) -> list[Row]:
        return [self._row(tokens[i], wanted) for i, wanted in enumerate(outputs)]

    def _row(self, ids: Any, wanted: Sequence[Output]) -> Row:
        if self.poisoned & set(ids.tolist()):
            raise RuntimeError("secret details")
        states = self._table[ids]
        total = states.sum(axis=0, keepdims=True)
        weights = np.where(np.isin(ids, self.tokenizer.special_ids), 0.0, 0.1 + (ids % 7) / 20).astype(np.float32)
        terms = np.unique(ids[weights > 0])
        made: dict[str, Any] = {
            "dense": (total / np.linalg.norm(total, axis=1, keepdims=True)).astype(np.float32)[0],
            "sparse": (terms, (0.1 + (terms % 7) / 20).astype(np.float32)),
            "multi": states[1:],
            "hidden": 2 * states,  # twice: what is not normalised must show
            "weights": weights,
        }
        return Row(**{name: made[name] for name in wanted})

    @property
    def poisoned(self) -> set[int]:
        return {piece.id for piece in self.tokenizer.pieces(POISON)} - {
            piece.id for piece in self.tokenizer.pieces("a quick brown box of five dozen liquor")
        }


class FakeCross:
    """A cross-encoder whose logit is the number of tokens that query and text share, minus two."""

    name = "fake-cross"
    max_tokens = 64
    weight_bytes = 1_000_000

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def score_tokens(self, tokens: Tokens, *, between: Callable[[], None] | None = None) -> Floats:
        assert tokens.seconds is not None
        special = set(self.tokenizer.special_ids)
        shared = []
        for i, second in enumerate(tokens.seconds.tolist()):
            ids = tokens[i].tolist()
            shared.append(len((set(ids[:second]) & set(ids[second:])) - special) - 2.0)
        return np.array(shared, np.float32)


def make_server(encoder: ServedEncoder, config: ServeConfig | None = None, cross: FakeCross | None = None) -> Server:
    return Server(config or ServeConfig(), lambda: encoder, (lambda: cross) if cross is not None else None)


@contextmanager
def serving(server: Server) -> Iterator[str]:
    """The server on a free port of 127.0.0.1, in a thread; gives its address."""
    options = http_options(server.config.body_s)
    config = uvicorn.Config(build(server), host="127.0.0.1", port=0, log_level="warning", lifespan="on", **options)
    inside = uvicorn.Server(config)
    thread = threading.Thread(target=inside.run, daemon=True)
    started = threading.Event()
    original = inside.startup

    async def startup(*arguments: Any, **options: Any) -> None:
        await original(*arguments, **options)
        started.set()

    inside.startup = startup  # type: ignore[method-assign]
    thread.start()
    assert started.wait(START_S)
    try:
        port = inside.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        inside.should_exit = True
        thread.join(START_S)
