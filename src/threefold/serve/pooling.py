"""vLLM: `POST /pooling` with a task per request, and `POST /score`.

embed           the dense vector
token_embed     the multi vectors: the first token dropped, the last kept, unit rows
token_classify  the sparse weight of every token, the first and the last dropped; the client pairs them with the
                ids of /tokenize
plugin          sparse vectors by id, as the BGE-M3 plugin of vLLM's tests says them (`data` instead of `input`)
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from threefold.serve import wire
from threefold.serve.encoding import Encoding, cut_dense
from threefold.serve.errors import RequestError
from threefold.serve.http import Call
from threefold.serve.inputs import TOKENS_NEED_A_SETTING, Inputs, inputs_of
from threefold.serve.judges import Cutting, Pair
from threefold.serve.long import rows_response
from threefold.serve.models import Answer
from threefold.serve.openai import at_most, take_ids
from threefold.serve.schedule import Lane
from threefold.types import Floats, Output, Row

Task = Literal["embed", "token_embed", "token_classify"]

_OUTPUT: dict[Task, Output] = {"embed": "dense", "token_embed": "multi", "token_classify": "weights"}
_DTYPES = {"float32": "f4", "float16": "f2"}


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    model: str | None = None
    user: str | None = None
    priority: int = 0
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None


class PoolingBody(_Body):
    """`/pooling` on texts."""

    input: Any
    task: Task = "token_embed"
    encoding_format: Literal["float", "base64"] = "float"
    embed_dtype: Literal["float32", "float16"] = "float32"
    endianness: Literal["native", "little", "big"] = "native"
    add_special_tokens: Literal[True] = True
    normalize: Literal[True] | None = None
    use_activation: Literal[True] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None


class PluginData(BaseModel):
    """What the plugin reads."""

    model_config = ConfigDict(extra="ignore", strict=True)

    input: Any
    return_tokens: bool = False


class PluginBody(_Body):
    """`/pooling` through the plugin."""

    data: PluginData


class ScoreBody(_Body):
    """`/score`: two lists, under any of the names that vLLM has given them."""

    text_1: Any = None
    text_2: Any = None
    data_1: Any = None
    data_2: Any = None
    queries: Any = None
    documents: Any = None
    items: Any = None
    use_activation: bool = True


async def pooling(call: Call) -> Response:
    """`POST /pooling`."""
    body = await call.read_by(_schema)
    if isinstance(body, PluginBody):
        return await _plugin(call, body)
    encoding, inputs = await _given(call, body, body.input)
    encoding.check_dimensions(body.dimensions, [_OUTPUT[body.task]], 'ask for the task "embed"')
    answer = await call.wait_for(_embed(encoding, body, inputs, _OUTPUT[body.task]))
    data = [
        {"index": i, "object": "pooling", "data": _encoded(body, _vectors(body, row))}
        for i, row in enumerate(answer.rows)
    ]
    said = {
        "id": f"pool-{call.id}",
        "object": "list",
        "created": int(time.time()),
        "model": body.model or encoding.embedder.name,
        "data": data,
        "usage": _usage(answer.read.tokens),
    }
    return rows_response(said, answer.rows)


def _schema(given: dict[str, Any]) -> type[PluginBody | PoolingBody]:
    if "messages" in given:
        raise RequestError("messages are not taken: the model reads texts, in `input`", param="messages")
    return PluginBody if "data" in given else PoolingBody


async def _plugin(call: Call, body: PluginBody) -> Response:
    encoding, inputs = await _given(call, body, body.data.input)
    answer = await call.wait_for(_embed(encoding, body, inputs, "sparse"))
    tokenizer = encoding.embedder.tokenizer if body.data.return_tokens else None
    data = []
    for i, row in enumerate(answer.rows):
        assert row.sparse is not None
        terms = [
            {"token_id": id, "weight": weight, **({"token": tokenizer.token(id)} if tokenizer else {})}
            for id, weight in zip(row.sparse[0].tolist(), row.sparse[1], strict=True)
        ]
        data.append({"index": i, "object": "sparse-embedding", "sparse_embedding": terms})
    inner = {"data": data, "usage": _usage(answer.read.tokens)}
    return wire.json_response({"request_id": call.id, "created_at": int(time.time()), "data": inner})


async def _given(call: Call, body: _Body, given: Any) -> tuple[Encoding, Inputs]:
    call.server.model_of(body.model, "encoder")
    config = call.server.config
    inputs = inputs_of(given, "input", config.max_inputs, ids_allowed=config.token_ids, refusal=TOKENS_NEED_A_SETTING)
    return await call.server.encoder(call, body.model), inputs


async def _embed(encoding: Encoding, body: _Body, inputs: Inputs, wanted: Output) -> Answer:
    lane: Lane | None = "bulk" if body.priority > 0 else None
    if inputs.ids:
        return await encoding.embed(take_ids(encoding, inputs.ids), [wanted], lane=lane)
    cut = body.truncate_prompt_tokens
    read = await encoding.read(inputs.texts, truncate="none" if cut is None else "end", max_tokens=at_most(cut))
    return await encoding.embed(read, [wanted], lane=lane)


def _vectors(body: PoolingBody, row: Row) -> Floats:
    if row.dense is not None:
        return cut_dense(row.dense, body.dimensions)
    if row.multi is not None:
        return row.multi
    assert row.weights is not None
    return row.weights[1:-1]


def _encoded(body: PoolingBody, array: Floats) -> Any:
    if body.encoding_format == "float":
        return wire.floats(array, as_base64=False)
    dtype = {"native": "=", "little": "<", "big": ">"}[body.endianness] + _DTYPES[body.embed_dtype]
    rows = array if array.ndim == 2 else array[np.newaxis]
    return wire.Base64(rows, lambda part: bytes(np.ascontiguousarray(part, dtype)))


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}


# ---- score -------------------------------------------------------------------------------------------------


async def score(call: Call) -> Response:
    """`POST /score`: one text against several, or pairs. As rerank, by the cross-encoder or by the three heads."""
    body = await call.read(ScoreBody)
    call.server.model_of(body.model)
    pairs = _pairs(body, call.server.config.max_inputs)
    lane: Lane | None = "bulk" if body.priority > 0 else None
    cut = body.truncate_prompt_tokens
    cutting = Cutting("none" if cut is None else "end", at_most(cut))
    judgement = await call.server.judge(call, pairs, cutting, model=body.model, lane=lane)
    scores = judgement.unit if body.use_activation else judgement.raw
    return wire.json_response(
        {
            "id": f"score-{call.id}",
            "object": "list",
            "created": int(time.time()),
            "model": body.model or call.server.scorer.name,
            "data": [{"index": i, "object": "score", "score": value} for i, value in enumerate(scores)],
            "usage": _usage(judgement.tokens),
        }
    )


def _pairs(body: ScoreBody, most: int) -> list[Pair]:
    first = next((value for value in (body.text_1, body.data_1, body.queries) if value is not None), None)
    second = next((v for v in (body.text_2, body.data_2, body.documents, body.items) if v is not None), None)
    if first is None or second is None:
        raise RequestError("two sides are needed: text_1 and text_2, or queries and documents")
    left = inputs_of(first, "text_1", most, ids_allowed=False).texts
    right = inputs_of(second, "text_2", most, ids_allowed=False).texts
    if len(left) == 1:
        left = left * len(right)
    if len(left) != len(right):
        raise RequestError(f"{len(left)} texts against {len(right)}: give one against several, or as many on each side")
    return list(zip(left, right, strict=True))
