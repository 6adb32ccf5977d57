"""OpenAI: `POST /v1/embeddings`, `GET /v1/models`; with our own fields, all optional, for the other two heads.

Without an extension field the answer is byte for byte what OpenAI's schema says. The official clients ask for base64
even where the caller did not: that is the hot path.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from threefold.serve import wire
from threefold.serve.errors import RequestError
from threefold.serve.http import Call
from threefold.serve.inputs import Inputs, inputs_of
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
    """`CreateEmbeddingRequest` of OpenAI, and our extension."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input: Any
    model: str
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None

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
    call.server.check_model(body.model)
    call.server.check_dimensions(body.dimensions)
    allowed = call.server.config.token_ids or body.input_ids_vocab is not None
    given = inputs_of(body.input, "input", call.server.config.max_inputs, ids_allowed=allowed)
    kinds: list[Kind] = body.embedding_types or ["dense"]
    answer = await call.wait_for(_embed(call, body, given, [_OUTPUT[kind] for kind in dict.fromkeys(kinds)]))
    tokens = answer.read.tokens
    return wire.json_response(
        {
            "object": "list",
            "data": [_item(call, body, answer, i) for i in range(len(answer.rows))],
            "model": body.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


async def _embed(call: Call, body: EmbeddingsBody, given: Inputs, outputs: list[Output]) -> Answer:
    if given.ids:
        read = take_ids(call, given.ids)
    else:
        prompt = {None: None, "query": "query"}.get(body.input_type, "document")
        read = await call.server.read(given.texts, truncate=body.truncate, prompt_name=prompt)
    return await call.server.embed(call, read, outputs, lane=body.priority)


def take_ids(call: Call, ids: list[list[int]]) -> Read:
    """Token ids of the model's own tokenizer, which must be one of XLM-R."""
    tokenizer = call.server.embedder.tokenizer
    if tokenizer.token(tokenizer.cls_id) != "<s>":
        raise RequestError(f"{call.server.embedder.card.name} does not read ids of xlm-roberta", param="input")
    return call.server.embedder.take(ids)


def _item(call: Call, body: EmbeddingsBody, answer: Answer, i: int) -> dict[str, Any]:
    row = answer.rows[i]
    item: dict[str, Any] = {"object": "embedding", "index": i}
    if row.dense is not None:
        dense = call.server.cut_dense(row.dense, body.dimensions)
        item["embedding"] = wire.floats(dense, as_base64=body.encoding_format == "base64")
    if row.sparse is not None:
        spelled = call.server.embedder.tokenizer if body.return_tokens else None
        item["sparse_embedding"] = wire.sparse(row.sparse, body.sparse_format, spelled)
    if row.multi is not None:
        item["multi_vector"] = wire.multi(row.multi, body.multi_vector_dtype)
    if body.model_fields_set & EXTENSION:
        item["tokens"] = len(answer.read.rows[i])
        item["truncated"] = answer.read.truncated[i]
    return item


async def models(call: Call) -> Response:
    """`GET /v1/models`."""
    return wire.json_response({"object": "list", "data": [_model(call, name) for name in call.server.names()]})


async def model(call: Call) -> Response:
    """`GET /v1/models/{id}`."""
    name = call.request.path_params["id"]
    call.server.check_model(name)
    return wire.json_response(_model(call, name))


def _model(call: Call, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": call.server.created, "owned_by": "threefold"}
