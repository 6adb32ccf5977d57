"""What the client asks a threefold server, and how it reads the answers; without sending anything.

`threefold.client` sends: once with threads' blocking calls, once with `async`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote, urlencode

import numpy as np

from threefold.characters import clean_value, listed
from threefold.config import Settings
from threefold.errors import DeadlineError, InputError, OverloadedError, ServeError, UnavailableError
from threefold.types import (
    Chunk,
    Document,
    Encoded,
    Floats,
    Hit,
    Quote,
    Ragged,
    Representation,
    Sparse,
    TermMatch,
    TokenMatch,
    Why,
)

T = TypeVar("T")

Truncate = Literal["end", "start", "none"]
Priority = Literal["interactive", "bulk"]
InputType = Literal["query", "document"]
#: Told {"documents", "chunks", "tokens"} while documents are added.
Progress = Callable[[Mapping[str, int]], None]

_KIND: Mapping[Representation, str] = {"dense": "dense", "sparse": "sparse", "multi": "multi_vector"}

#: The server's code for a request that is too large as a whole, whatever its status.
_TOO_LARGE = "request_too_large"


class TooLargeError(InputError):
    """One request was too large for the server: its texts may be sent in several."""


@dataclass(frozen=True, slots=True)
class Ask(Generic[T]):
    """One request, and how its JSON answer is read."""

    method: str
    path: str
    body: Any
    read: Callable[[Any], T]

    @property
    def content(self) -> bytes | None:
        """The body as it is sent; what JSON cannot carry is an error."""
        if self.body is None:
            return None
        with _sendable("this call"):
            return json.dumps(clean_value(self.body), ensure_ascii=False, allow_nan=False).encode()

    def answer(self, body: bytes) -> T:
        """What a good answer says."""
        try:
            return self.read(json.loads(body))
        except (ValueError, LookupError, TypeError) as error:
            raise _not_ours(body) from error


@dataclass(frozen=True, slots=True)
class Ranked:
    """A text that was reranked: its place in the request, and its score from 0 to 1."""

    index: int
    score: float


@dataclass(frozen=True, slots=True)
class Served:
    """What a server serves, and how much of it in one request."""

    model: str
    dense_dim: int
    multi_dim: int
    vocab: int
    max_inputs: int
    max_input_tokens: int
    max_request_tokens: int
    max_multi_tokens: int


def card(model: str | None) -> Ask[Served]:
    """What is served under this name, or to those who name none."""

    def read(body: Any) -> Served:
        one, limits = body["card"], body["limits"]
        return Served(one["name"], one["dense_dim"], one["multi_dim"], one["vocab"], **limits)

    return Ask("GET", f"/card?{urlencode({'model': model})}" if model else "/card", None, read)


# ---- embed -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EmbedOptions:
    """What is wanted of texts."""

    outputs: tuple[Representation, ...]
    truncate: Truncate
    input_type: InputType | None
    priority: Priority | None

    def ask(self, texts: Sequence[str], served: Served) -> Ask[Encoded]:
        """One request; the caller keeps it within the limits."""
        body = {
            "model": served.model,
            "input": list(texts),
            "encoding_format": "base64",
            "embedding_types": [_KIND[name] for name in self.outputs],
            "multi_vector_dtype": "float32",
            "truncate": self.truncate,
            "input_type": self.input_type,
            "priority": self.priority,
        }
        return Ask("POST", "/v1/embeddings", body, lambda answer: self._read(answer, served, len(texts)))

    def _read(self, answer: Any, served: Served, count: int) -> Encoded:
        items = answer["data"]
        if len(items) != count:  # the rows after it would be those of other texts
            raise ValueError(f"{len(items)} answers to {count} texts")
        return Encoded(
            np.stack([_floats(item["embedding"]) for item in items]) if "dense" in self.outputs else None,
            Sparse.of([_terms(item["sparse_embedding"]) for item in items], served.vocab)
            if "sparse" in self.outputs
            else None,
            Ragged.of([_rows(item["multi_vector"]) for item in items]) if "multi" in self.outputs else None,
            np.array([item["tokens"] for item in items], np.int32),
            np.array([item["truncated"] for item in items], np.bool_),
        )


def embed_options(
    outputs: Sequence[Representation], truncate: Truncate, input_type: InputType | None, priority: Priority | None
) -> EmbedOptions:
    """The options, checked before anything is sent."""
    unknown = [name for name in outputs if name not in _KIND]
    if unknown or not outputs or isinstance(outputs, str):
        raise InputError(f"outputs must be some of {', '.join(_KIND)}; got {outputs!r}")
    return EmbedOptions(tuple(name for name in _KIND if name in outputs), truncate, input_type, priority)


class Parts:
    """Texts in requests that the server takes: by an estimate, and halved where it says that it was wrong."""

    def __init__(self, texts: Iterable[str], options: EmbedOptions, served: Served) -> None:
        if isinstance(texts, str):
            raise InputError("expected texts, got one text; put it into a list")
        self._options = options
        self._served = served
        self._estimated = _estimated(texts, options, served)
        self._halves: list[list[str]] = []  # the next one last
        self._part: list[str] = []  # the one that was given last

    def __iter__(self) -> Iterator[Ask[Encoded]]:
        return self

    def __next__(self) -> Ask[Encoded]:
        self._part = self._halves.pop() if self._halves else next(self._estimated)
        return self._options.ask(self._part, self._served)

    @contextmanager
    def halving(self) -> Iterator[None]:
        """Around what is sent: a part that is refused as too large is given again, in halves; one text is an error."""
        try:
            yield
        except TooLargeError:
            if len(self._part) == 1:
                raise
            middle = len(self._part) // 2
            self._halves += [self._part[middle:], self._part[:middle]]


def _estimated(texts: Iterable[str], options: EmbedOptions, served: Served) -> Iterator[list[str]]:
    """A text counts its characters, and not more than is read of it.

    It may have more tokens: prompts are put before it, one character may stand for a whole phrase (U+FDFA), and some
    scripts are read byte by byte. What bounded all of that would make the requests of all others small.
    """
    most = served.max_multi_tokens if "multi" in options.outputs else served.max_request_tokens
    part: list[str] = []
    used = 0
    for i, text in enumerate(texts):
        listed([text], i)  # refuses what is no text
        cost = min(len(text) + 2, served.max_input_tokens)
        if part and (len(part) == served.max_inputs or used + cost > most):
            yield part
            part, used = [], 0
        part.append(text)
        used += cost
    if part:
        yield part


def joined(parts: Sequence[Encoded], options: EmbedOptions, served: Served) -> Encoded:
    """All parts as one answer, also for no texts."""
    if parts:
        return Encoded.concat(parts)
    return Encoded(
        np.zeros((0, served.dense_dim), np.float32) if "dense" in options.outputs else None,
        Sparse.of([], served.vocab) if "sparse" in options.outputs else None,
        Ragged.of([], served.multi_dim) if "multi" in options.outputs else None,
        np.zeros(0, np.int32),
        np.zeros(0, np.bool_),
    )


def _floats(text: str) -> Floats:
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32, copy=False)


def _terms(found: Any) -> dict[int, float]:
    return dict(zip(found["indices"], found["values"], strict=True))


def _rows(found: Any) -> Floats:
    return _floats(found["data"]).reshape(found["shape"])


def rerank(query: str, texts: Sequence[str], k: int | None, model: str | None) -> Ask[list[Ranked]]:
    """Texts from the best on; `k` of them, None: all."""
    if k is not None and k < 1:  # the server would take 0 for all, as vLLM does
        raise InputError(f"k must be at least 1; got {k}")
    body = {"query": query, "documents": listed(texts), "top_n": k, "return_documents": False, "model": model}

    def read(answer: Any) -> list[Ranked]:
        return [Ranked(one["index"], one["relevance_score"]) for one in answer["results"]]

    return Ask("POST", "/v1/rerank", body, read)


# ---- collections -------------------------------------------------------------------------------------------


def collection_path(name: str, *rest: str) -> str:
    """The path of a collection; a name that would lead elsewhere is refused here, others by the server."""
    if not isinstance(name, str) or name in ("", ".", ".."):
        raise InputError(f"{name!r} is not a name for a collection")
    return "/".join(["/collections", *(quote(part, safe="", errors="replace") for part in (name, *rest))])


def collections() -> Ask[list[str]]:
    """The names of the collections."""
    return Ask("GET", "/collections", None, lambda body: [one["name"] for one in body["collections"]])


def create(name: str, settings: Mapping[str, Any]) -> Ask[dict[str, Any]]:
    """Make a collection."""
    return Ask("PUT", collection_path(name), dict(settings), _as_it_is)


def info(name: str) -> Ask[dict[str, Any]]:
    """What a collection is."""
    return Ask("GET", collection_path(name), None, _as_it_is)


def drop(name: str) -> Ask[None]:
    """Delete a collection."""
    return Ask("DELETE", collection_path(name), None, lambda body: None)


def delete(name: str, ids: Sequence[str] | None, where: Mapping[str, Any] | None) -> Ask[int]:
    """Delete documents; one text is one id, not its characters."""
    given = [ids] if isinstance(ids, str) else None if ids is None else list(ids)
    body = {"ids": given, "where": where}
    return Ask("POST", collection_path(name, "documents", "delete"), body, lambda answer: int(answer["deleted_chunks"]))


def usage(first: str | None, last: str | None) -> Ask[dict[str, Any]]:
    """What the key has used, from one day to another."""
    query = urlencode({name: day for name, day in (("from", first), ("to", last)) if day is not None})
    return Ask("GET", f"/v1/usage?{query}" if query else "/v1/usage", None, _as_it_is)


def _as_it_is(body: Any) -> dict[str, Any]:
    found: dict[str, Any] = body
    return found


def search(name: str, query: str, options: Mapping[str, Any]) -> Ask[list[Hit]]:
    """Hits, with reasons and quotes if they were asked for."""
    return _hits(collection_path(name, "search"), {"query": query, **options})


def recommend(name: str, like: Sequence[str], unlike: Sequence[str], options: Mapping[str, Any]) -> Ask[list[Hit]]:
    """Hits, by examples."""
    return _hits(collection_path(name, "recommend"), {"like": like, "unlike": unlike, **options})


def _hits(path: str, given: Mapping[str, Any]) -> Ask[list[Hit]]:
    plain = {key: value.to_dict() if isinstance(value, Settings) else value for key, value in given.items()}
    body = {key: value for key, value in plain.items() if value is not None}
    return Ask("POST", path, body, lambda answer: [_hit(one) for one in answer["hits"]])


def _hit(found: dict[str, Any]) -> Hit:
    chunk = Chunk(**{name: found[name] for name in Chunk.__dataclass_fields__})
    why = _why(found["why"]) if "why" in found else None
    return Hit(chunk, found["score"], found["scores"], why, Quote(**found["quote"]) if "quote" in found else None)


def _why(found: dict[str, Any]) -> Why:
    terms = tuple(TermMatch(**term) for term in found["terms"])
    tokens = tuple(
        TokenMatch(**{**token, "query_span": tuple(token["query_span"]), "text_span": tuple(token["text_span"])})
        for token in found["tokens"]
    )
    return Why(found["scores"], found["contributions"], found["ranks"], terms, tokens)


def document_line(document: Document | Mapping[str, Any]) -> bytes:
    """A document as a line of the request."""
    if not isinstance(document, Document | Mapping):
        raise InputError(f"a document is a Document or a mapping with its fields; got {type(document).__name__}")
    name = document.id if isinstance(document, Document) else document.get("id")
    with _sendable(f"document {name!r}"):
        plain = asdict(document) if isinstance(document, Document) else dict(document)
        plain.pop("content_hash", None)
        return json.dumps(clean_value(plain), ensure_ascii=False).encode() + b"\n"


@contextmanager
def _sendable(what: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{what} has what JSON cannot carry: {error}") from error


def event(line: str, progress: Progress | None) -> dict[str, Any] | None:
    """A line of the answer to added documents: the report if it is that, else None; progress is told, errors raised."""
    try:
        (kind, found), *_ = json.loads(line).items()
        status = int(found.get("status", 0))
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise _not_ours(line.encode()) from error
    if kind == "error" and status:
        raise error_of(status, line.encode(), None)
    if kind == "report":
        return _as_it_is(found)
    if kind != "progress":
        raise _not_ours(line.encode())
    if progress is not None:
        progress(found)
    return None


# ---- errors ------------------------------------------------------------------------------------------------


def error_of(status: int, body: bytes, retry_after: str | None) -> ServeError | InputError:
    """The error that an answer means; the same classes as in the library."""
    error = _error(body)
    message = str(error.get("message") or "") or f"the server answered {status}"
    seconds = float(retry_after) if retry_after and retry_after.isascii() and retry_after.isdigit() else None
    if status == 429:
        return OverloadedError(message, seconds)
    if status == 503:
        return UnavailableError(message, seconds)
    if status == 504:
        return DeadlineError(message)
    if status >= 500:
        return ServeError(message)
    too_large = status == 413 or error.get("code") == _TOO_LARGE  # 413 also where a proxy says it
    return TooLargeError(message) if too_large else InputError(message)


def _not_ours(body: bytes) -> ServeError:
    """A good status, and something else than our JSON: another server, or a proxy that answers itself."""
    said = body[:200].decode("utf-8", "replace")
    return ServeError(f"the answer is not one of `threefold serve`: {said!r}. Is base_url its address?")


def _error(body: bytes) -> dict[str, Any]:
    """The error inside a body of any dialect: its message, and perhaps more."""
    try:
        found = json.loads(body)
    except ValueError:
        return {"message": body.decode("utf-8", "replace")[:200]}
    error = found.get("error", found) if isinstance(found, dict) else {}
    return error if isinstance(error, dict) else {"message": error}
