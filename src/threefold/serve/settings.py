"""What a server is told: where it listens, what it serves, and how much it takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Literal
from urllib.parse import urlsplit

from threefold.config import Settings
from threefold.errors import ConfigError
from threefold.serve.prices import Price
from threefold.serve.queue import Limits


@dataclass(frozen=True, slots=True)
class ModelSettings(Settings):
    """A further model of a server: a table `[[serve.models]]`.

    path               a folder, or a name on the hub
    name, aliases      what requests call it; without a name, as its path
    kind               encoder (embeddings; rerank by its heads) or cross-encoder (rerank and score)
    device, precision  empty: those of the server
    query_prompt, document_prompt
                       put before queries and documents, where the model's files do not say it (encoders only)
    preload            load it at the start and keep it; else the first request loads it
    """

    path: str
    name: str = ""
    aliases: tuple[str, ...] = ()
    kind: Literal["encoder", "cross-encoder"] = "encoder"
    revision: str | None = None
    device: str = ""
    precision: str = ""
    query_prompt: str | None = None
    document_prompt: str | None = None
    preload: bool = False

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("path must be the folder of a model, or its name on the hub")
        if self.kind == "cross-encoder" and (self.query_prompt or self.document_prompt):
            raise ConfigError(
                "query_prompt and document_prompt are for encoders; a cross-encoder reads texts as they are"
            )


#: Values per text of a request that a body may have beside one per token: the fields of documents to rerank.
VALUES_PER_INPUT = 16


@dataclass(frozen=True, slots=True)
class ServeConfig(Settings):
    """The settings of `threefold serve`: one table of a TOML file, or flags, or `THREEFOLD_SERVE_...` variables.

    model, revision      the encoder; None is the embedded model
    query_prompt, document_prompt
                         put before queries and documents by requests that say which they are; None: as its files say
    default_prompt       what texts are of which a request says nothing, for every model: "query" or "document"; empty:
                         neither, and nothing is put before them
    graphs               on a CUDA GPU: single short queries to it run as recorded graphs (`Encoder(graphs=True)`)
    reranker             a cross-encoder for rerank and score; None scores by the encoder's own three heads
    served_names         further names under which the encoder answers; its own always works
    models               further models, by name
    model_memory_mb      weights that may be in memory together, in megabytes; 0: no bound. Idle models make room
    keys_file            API keys (`threefold keys`); empty: no key is asked for
    usage_file           what was used, by key, day, model and route; empty: next to the keys, or none without keys
    prices, currency     per million tokens, by model; what is not named costs nothing
    cors_origins         web pages that may call: origins, or "*"
    collections          a folder for collections over HTTP; empty: there are none
    max_body_bytes       largest request body (documents are streamed and not bounded by it)
    max_inputs           texts of one request
    max_input_tokens     longest text; None: the longest that the model reads
    max_request_tokens   tokens of one request
    max_multi_tokens     tokens of one request that asks for a vector per token (4 KB each with bge-m3)
    token_ids            whether arrays of numbers are taken as token ids of the model; by default they are refused
    truncate             what TEI routes do with a text that is too long and does not say: cut it (as TEI), or refuse
    body_s               seconds in which the head of a request must have arrived, and then its body; for documents
                         that are streamed, without any part of it
    drain_s              seconds that running requests get when the server is told to stop
    log_format           lines for people, or JSON
    otlp_endpoint        a collector of OpenTelemetry traces, such as http://127.0.0.1:4318; empty: no traces
    tls_cert, tls_key    PEM files; both or none
    limits               the queue
    """

    host: str = "127.0.0.1"
    port: int = 8000
    model: str | None = None
    revision: str | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    default_prompt: Literal["", "query", "document"] = ""
    device: str = "auto"
    precision: str = "auto"
    graphs: bool = False
    reranker: str | None = None
    served_names: tuple[str, ...] = ()
    models: tuple[ModelSettings, ...] = ()
    model_memory_mb: int = 0
    keys_file: str = ""
    usage_file: str = ""
    prices: dict[str, Price] = field(default_factory=dict)
    currency: str = "USD"
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
    otlp_endpoint: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    limits: Limits = field(default_factory=Limits)

    @property
    def max_values(self) -> int:
        """Items and fields that the JSON of a request may have."""
        return self.max_request_tokens + VALUES_PER_INPUT * self.max_inputs

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_inputs", "max_request_tokens", "max_multi_tokens", "drain_s"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.model_memory_mb < 0:
            raise ConfigError(f"model_memory_mb must be at least 0; got {self.model_memory_mb}")
        if not 0 < self.body_s < inf:  # false for NaN
            raise ConfigError(f"body_s must be above 0 and finite; got {self.body_s}")
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ConfigError("tls_cert and tls_key belong together; give both or none")
        if self.max_input_tokens is not None and self.max_input_tokens < 3:
            raise ConfigError(f"max_input_tokens must be at least 3; got {self.max_input_tokens}")
        if not 0 <= self.port <= 65_535:
            raise ConfigError(f"port must be from 0 (any free one) to 65535; got {self.port}")
        if self.otlp_endpoint and not _is_web_address(self.otlp_endpoint):
            expected = "an address such as http://127.0.0.1:4318"
            raise ConfigError(f"otlp_endpoint must be {expected}; got {self.otlp_endpoint!r}")


def _is_web_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, half a bracket
        return False
