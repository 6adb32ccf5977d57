"""Ollama: `POST /api/embed`, `POST /api/embeddings`, and what its clients ask before: which models there are.

As Ollama does, unknown fields and options are ignored, `name` is `name:latest`, vectors have unit length, and texts
are cut at their end where the request does not say; an answer with such a text has one field more, `truncated`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from threefold import __version__
from threefold.serve import wire
from threefold.serve.catalog import Model
from threefold.serve.encoding import Encoding, cut_dense
from threefold.serve.errors import RequestError
from threefold.serve.http import Call
from threefold.serve.inputs import check_count, inputs_of
from threefold.serve.long import rows_response
from threefold.serve.models import Answer, Embedder, named
from threefold.serve.tei import unit
from threefold.text.protocol import ModelCard
from threefold.types import Floats

#: The tag of a name that says none.
LATEST = ":latest"
#: What GGUF, and so Ollama, calls the networks that are served here: BERT, RoBERTa and XLM-R, which is bge-m3.
ARCHITECTURE = "bert"
#: What Ollama calls numbers; others go by the name that they have here.
NUMBERS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
#: The shortest context: a smaller `num_ctx` counts as this one, as in Ollama.
SHORTEST = 4
#: The digest of a model that was not loaded yet: Ollama's own command line cuts 12 characters off it.
NO_DIGEST = "0" * 16
#: When models that are loaded end: never by a clock. Ollama, which has to say something, names a year like this.
NEVER = "2300-01-01T00:00:00Z"
#: What is said of its other routes, which make text or manage files, and of models to be pulled.
ELSEWHERE = "this server only embeds (POST /api/embed), with the models that it was started with"


class OllamaBody(BaseModel):
    """As in Ollama, unknown fields are ignored: `keep_alive` too, because models make room for others by need."""

    model_config = ConfigDict(extra="ignore", strict=True)


class OllamaOptions(OllamaBody):
    """Only the length of the context bears on vectors; the others steer how text is made, or the hardware."""

    num_ctx: Annotated[float, Field(allow_inf_nan=False)] | None = None


class OllamaModelBody(OllamaBody):
    """What both requests for vectors have."""

    model: str
    truncate: bool | None = None
    options: OllamaOptions | None = None


class OllamaEmbedBody(OllamaModelBody):
    """`/api/embed`; of `dimensions`, 0 and less mean all, as in Ollama."""

    input: Any = None
    dimensions: int | None = None


class OllamaPromptBody(OllamaModelBody):
    """`/api/embeddings`; Ollama refuses here what is too long, so a text is cut only where `truncate` is true."""

    prompt: str | None = None


class OllamaNameBody(OllamaBody):
    """`/api/show`, `/api/pull`; `name` is what `model` was called."""

    model: str | None = None
    name: str | None = None
    stream: bool | None = None


# ---- vectors -----------------------------------------------------------------------------------------------


async def embed(call: Call) -> Response:
    """`POST /api/embed`."""
    body = await call.read(OllamaEmbedBody)
    texts = _texts(body.input, call.server.config.max_inputs)
    encoding = await _encoding(call, body.model)
    loaded = time.perf_counter()
    if not texts:  # how clients load a model
        return wire.json_response({"model": body.model, "embeddings": []})
    size = body.dimensions if body.dimensions is not None and body.dimensions > 0 else None
    encoding.check_dimensions(size)
    answer = await call.wait_for(_run(encoding, texts, body, cutting=body.truncate is not False))
    said = {
        "model": body.model,
        "embeddings": _vectors(answer, size),
        "total_duration": _ns(time.perf_counter() - call.began),
        "load_duration": _ns(loaded - call.began),
        "prompt_eval_count": answer.read.tokens,
    }
    cut = answer.read.truncated
    return rows_response({**said, "truncated": cut} if any(cut) else said, answer.rows)


async def embeddings(call: Call) -> Response:
    """`POST /api/embeddings`: one text, the older route.

    Ollama does not touch this vector: of bge-m3 its own runner makes unit length, llama.cpp's did not. Ours always has
    it, so that vectors of both routes can be compared by inner products; cosines are the same either way.
    """
    body = await call.read(OllamaPromptBody)
    encoding = await _encoding(call, body.model)
    if not body.prompt:
        return wire.json_response({"embedding": []})
    with named(lambda _: "prompt"):
        answer = await call.wait_for(_run(encoding, [body.prompt], body, cutting=body.truncate is True))
    (vector,), (cut,) = _vectors(answer), answer.read.truncated
    return wire.json_response({"embedding": vector, "truncated": True} if cut else {"embedding": vector})


async def _run(encoding: Encoding, texts: list[str], body: OllamaModelBody, *, cutting: bool) -> Answer:
    context = body.options.num_ctx if body.options is not None else None
    most = None if context is None else max(int(context), SHORTEST)
    read = await encoding.read(texts, truncate="end" if cutting else "none", max_tokens=most)
    return await encoding.embed(read, ["dense"])


def _vectors(answer: Answer, size: int | None = None) -> list[Floats]:
    dense = [row.dense for row in answer.rows if row.dense is not None]
    return [wire.floats(unit(cut_dense(vector, size)), as_base64=False) for vector in dense]


async def _encoding(call: Call, name: str) -> Encoding:
    return await call.server.encoder(call, _served(call, name))


def _texts(given: Any, most: int) -> list[str]:
    """Nothing, one text or several. As in Ollama, an empty one is none where it is alone, and a text among others:
    whoever sends a thousand with an empty one among them gets a thousand vectors.
    """
    if given is None or given in ("", []):
        return []
    if not isinstance(given, list):
        return inputs_of(given, "input", most, ids_allowed=False).texts
    check_count(len(given), most, "input")
    for i, text in enumerate(given):
        if not isinstance(text, str):
            raise RequestError(f"invalid input type: input[{i}] must be a string", param="input")
    return given


def _ns(seconds: float) -> int:
    return round(1e9 * seconds)


# ---- models ------------------------------------------------------------------------------------------------


async def tags(call: Call) -> Response:
    """`GET /api/tags`: every name of every model that gives vectors."""
    found = [_entry(call, model, name) for model in _encoders(call) for name in model.names]
    return wire.json_response({"models": found})


async def ps(call: Call) -> Response:
    """`GET /api/ps`: those that are loaded."""
    loaded = [(model, service) for model in _encoders(call) if (service := _loaded(model)) is not None]
    running = [
        {**_entry(call, model, model.name), "expires_at": NEVER, "context_length": service.max_tokens}
        for model, service in loaded
    ]
    return wire.json_response({"models": running})


async def show(call: Call) -> Response:
    """`POST /api/show`: what a model reads and gives; loads it, because only then that is known."""
    body = await call.read(OllamaNameBody)
    embedder = (await _encoding(call, _required(body))).embedder
    return wire.json_response(
        {
            "modified_at": _started(call),
            "details": _details(embedder.card),
            "model_info": {
                "general.architecture": ARCHITECTURE,
                f"{ARCHITECTURE}.context_length": embedder.max_tokens,
                f"{ARCHITECTURE}.embedding_length": embedder.card.dense_dim,
            },
            "capabilities": ["embedding"],
        }
    )


async def pull(call: Call) -> Response:
    """`POST /api/pull`: of clients that fetch a model before they use it; what is served is there already."""
    body = await call.read(OllamaNameBody)
    _served(call, _required(body))
    done = wire.dumps({"status": "success"})
    if body.stream is False:
        return Response(done, media_type="application/json")
    return Response(done + b"\n", media_type="application/x-ndjson")


async def version(call: Call) -> Response:
    """`GET /api/version`: that of threefold."""
    return wire.json_response({"version": __version__})


def _required(body: OllamaNameBody) -> str:
    name = body.model or body.name
    if not name:
        raise RequestError("model is required", param="model")
    return name


def _encoders(call: Call) -> Iterator[Model]:
    return (model for model in call.server.catalog.models if model.kind == "encoder")


def _served(call: Call, name: str) -> str:
    """The name by which a model is served that Ollama's clients call by this one, with or without a tag."""
    for one in (name, name.removesuffix(LATEST), name + LATEST):
        if call.server.catalog.find(one) is not None:
            return one
    served = ", ".join(f'"{_tagged(one)}"' for model in _encoders(call) for one in model.names)
    message = f'model "{name}" not found: {ELSEWHERE}: {served}'
    raise RequestError(message, status=404, param="model", code="model_not_found")


def _tagged(name: str) -> str:
    """A name as clients look for it, who add the tag where there is none."""
    return name if ":" in name.rpartition("/")[2] else name + LATEST


def _entry(call: Call, model: Model, name: str) -> dict[str, Any]:
    service = _loaded(model)
    card = service.card if service is not None else None
    return {
        "name": _tagged(name),
        "model": _tagged(name),
        "modified_at": _started(call),
        "size": model.bytes,
        "digest": NO_DIGEST if card is None else card.hash,
        "details": _details(card),
    }


def _loaded(model: Model) -> Embedder | None:
    return model.service if model.state == "ready" and isinstance(model.service, Embedder) else None


def _details(card: ModelCard | None) -> dict[str, Any]:
    """Every field of Ollama, for clients that read them without asking; empty where the server does not know."""
    return {
        "parent_model": "",
        "format": "",
        "family": ARCHITECTURE,
        "families": [ARCHITECTURE],
        "parameter_size": "",
        "quantization_level": "" if card is None else NUMBERS.get(card.precision, card.precision),
    }


def _started(call: Call) -> str:
    """When a file was last changed, says Ollama; here it is since when it is served."""
    return datetime.fromtimestamp(call.server.created, UTC).isoformat()
