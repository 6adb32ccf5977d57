"""What a server is told: where it listens, what it serves, and how much it takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from threefold.config import Settings
from threefold.errors import ConfigError
from threefold.serve.queue import Limits


@dataclass(frozen=True, slots=True)
class ServeConfig(Settings):
    """The settings of `threefold serve`: one table of a TOML file, or flags, or `THREEFOLD_SERVE_...` variables.

    model, revision      the encoder; None is the embedded model
    reranker             a cross-encoder for rerank and score; None scores by the encoder's own three heads
    served_names         further names under which the encoder answers; its own always works
    keys_file            API keys (`threefold keys`); empty: no key is asked for
    cors_origins         web pages that may call: origins, or "*"
    collections          a folder for collections over HTTP; empty: there are none
    max_body_bytes       largest request body (documents are streamed and not bounded by it)
    max_inputs           texts of one request
    max_input_tokens     longest text; None: the longest that the model reads
    max_request_tokens   tokens of one request
    max_multi_tokens     tokens of one request that asks for a vector per token (4 KB each with bge-m3)
    token_ids            whether arrays of numbers are taken as token ids of the model; by default they are refused
    truncate             what TEI routes do with a text that is too long and does not say: cut it (as TEI), or refuse
    body_s               seconds in which a body must have arrived
    drain_s              seconds that running requests get when the server is told to stop
    log_format           lines for people, or JSON
    tls_cert, tls_key    PEM files; both or none
    limits               the queue
    """

    host: str = "127.0.0.1"
    port: int = 8000
    model: str | None = None
    revision: str | None = None
    device: str = "auto"
    precision: str = "auto"
    reranker: str | None = None
    served_names: tuple[str, ...] = ()
    keys_file: str = ""
    cors_origins: tuple[str, ...] = ()
    collections: str = ""
    max_body_bytes: int = 16 * 1024 * 1024
    max_inputs: int = 2_048
    max_input_tokens: int | None = None
    max_request_tokens: int = 300_000
    max_multi_tokens: int = 65_536
    token_ids: bool = False
    truncate: bool = True
    body_s: float = 60.0
    drain_s: int = 30
    log_format: Literal["text", "json"] = "text"
    tls_cert: str = ""
    tls_key: str = ""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_inputs", "max_request_tokens", "max_multi_tokens", "drain_s"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.body_s <= 0:
            raise ConfigError(f"body_s must be above 0; got {self.body_s}")
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ConfigError("tls_cert and tls_key belong together; give both or none")
        if self.max_input_tokens is not None and self.max_input_tokens < 3:
            raise ConfigError(f"max_input_tokens must be at least 3; got {self.max_input_tokens}")
        if not 0 <= self.port <= 65_535:
            raise ConfigError(f"port must be from 0 (any free one) to 65535; got {self.port}")
