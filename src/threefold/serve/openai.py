"""OpenAI: `POST /v1/embeddings`, `GET /v1/models`; with our own fields, all optional, for the other two heads.

Without an extension field the answer is byte for byte what OpenAI's schema says. The official clients ask for base64
even where the caller did not: that is the hot path.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from threefold.serve import wire
from threefold.serve.catalog import Model
from threefold.serve.encoding import Encoding, cut_dense
from threefold.serve.errors import RequestError
from threefold.serve.http import Call
from threefold.serve.inputs import TOKENS_REFUSED, Inputs, inputs_of
from threefold.serve.long import rows_response
from threefold.serve.models import Answer, Read
from threefold.serve.schedule import Lane
from threefold.text.tokenizer import Truncate
from threefold.types import Output

Kind = Literal["dense", "sparse", "multi_vector"]

#: Our fields. An answer has `tokens` and `truncated` per item if a request has any of them.
EXTENSION = frozenset(
    ("embedding_types", "sparse_format", "return_tokens", "multi_vector_dtype", "truncate", "input_type", "priority")
)

_OUTPUT: dict[Kind, Output] = {"dense": "dense", "sparse": "sparse", "multi_vector": "multi"}


class EmbeddingsBody(BaseModel):
    """`CreateEmbeddingRequest` of OpenAI, `truncate_prompt_tokens` of vLLM (mteb sends it), and our extension."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input: Any
    model: str
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None

    embedding_types: Annotated[list[Kind], Field(min_length=1)] | None = None
    sparse_format: wire.SparseFormat = "arrays"
    return_tokens: bool = False
    multi_vector_dtype: wire.MultiDtype = "float16"
    truncate: Truncate = "none"
    input_type: Literal["query", "document", "passage"] | None = None
    priority: Lane | None = None
    input_ids_vocab: Literal["xlm-roberta"] | None = None


async def embeddings(call: Call) -> Response:
    """`POST /v1/embeddings`."""
    body = await call.read(EmbeddingsBody)
    call.server.model_of(body.model, "encoder")
    allowed = call.server.config.token_ids or body.input_ids_vocab is not None
    most = call.server.config.max_inputs
    given = inputs_of(body.input, "input", most, ids_allowed=allowed, refusal=TOKENS_REFUSED)
    encoding = await call.server.encoder(call, body.model)
    kinds: list[Kind] = body.embedding_types or ["dense"]
    outputs = [_OUTPUT[kind] for kind in dict.fromkeys(kinds)]
    encoding.check_dimensions(body.dimensions, outputs, 'add "dense" to `embedding_types`')
    answer = await call.wait_for(_embed(encoding, body, given, outputs))
    tokens = answer.read.tokens
    said = {
        "object": "list",
        "data": [_item(encoding, body, answer, i) for i in range(len(answer.rows))],
        "model": body.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return rows_response(said, answer.rows)


async def _embed(encoding: Encoding, body: EmbeddingsBody, given: Inputs, outputs: list[Output]) -> Answer:
    if given.ids:
        read = take_ids(encoding, given.ids)
    else:
        prompt = {None: None, "query": "query"}.get(body.input_type, "document")
        most = body.truncate_prompt_tokens
        how = body.truncate if most is None or "truncate" in body.model_fields_set else "end"
        read = await encoding.read(given.texts, truncate=how, prompt_name=prompt, max_tokens=at_most(most))
    return await encoding.embed(read, outputs, lane=body.priority)


def at_most(truncate_prompt_tokens: int | None) -> int | None:
    """How many tokens a client of vLLM keeps; 0 and -1 mean what the model reads."""
    return truncate_prompt_tokens if truncate_prompt_tokens is not None and truncate_prompt_tokens > 0 else None


def take_ids(encoding: Encoding, ids: list[list[int]]) -> Read:
    """Token ids of the model's own tokenizer, which must be one of XLM-R."""
    tokenizer = encoding.embedder.tokenizer
    if tokenizer.token(tokenizer.cls_id) != "<s>":
        raise RequestError(f"{encoding.embedder.name} does not read ids of xlm-roberta", param="input")
    return encoding.embedder.take(ids)


def _item(encoding: Encoding, body: EmbeddingsBody, answer: Answer, i: int) -> dict[str, Any]:
    row = answer.rows[i]
    item: dict[str, Any] = {"object": "embedding", "index": i}
    if row.dense is not None:
        dense = cut_dense(row.dense, body.dimensions)
        item["embedding"] = wire.floats(dense, as_base64=body.encoding_format == "base64")
    if row.sparse is not None:
        spelled = encoding.embedder.tokenizer if body.return_tokens else None
        item["sparse_embedding"] = wire.sparse(row.sparse, body.sparse_format, spelled)
    if row.multi is not None:
        item["multi_vector"] = wire.multi(row.multi, body.multi_vector_dtype)
    if body.model_fields_set & EXTENSION:
        item["tokens"] = len(answer.read.rows[i])
        item["truncated"] = answer.read.truncated[i]
    return item


async def models(call: Call) -> Response:
    """`GET /v1/models`."""
    found = [_model(call, name, model) for model in call.server.catalog.models for name in model.names]
    return wire.json_response({"object": "list", "data": found})


async def model(call: Call) -> Response:
    """`GET /v1/models/{id}`."""
    name = call.request.path_params["id"]
    return wire.json_response(_model(call, name, call.server.model_of(name)))


def _model(call: Call, name: str, model: Model) -> dict[str, Any]:
    """Three fields more than OpenAI has: the kind, whether it is loaded, and what it reads at most, as vLLM says it."""
    created = call.server.created
    facts = {"id": name, "object": "model", "created": created, "owned_by": "threefold"}
    longest = model.service.max_tokens if model.state == "ready" and model.service is not None else None
    return {**facts, "kind": model.kind, "state": model.state, "max_model_len": longest}
