"""Cohere: `POST /v1/embed`, `POST /v2/embed`. Dense vectors, as numbers, base64 or one bit per dimension.

Texts are cut at the end where the request does not say (as Cohere does); `NONE` makes a long text an error. int8 and
uint8 are refused: they depend on a calibration that only Cohere's own models have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from threefold.serve import wire
from threefold.serve.encoding import Encoding, cut_dense
from threefold.serve.errors import RequestError
from threefold.serve.http import Call
from threefold.serve.inputs import texts_of
from threefold.serve.long import rows_response
from threefold.serve.models import Answer
from threefold.text.tokenizer import Truncate
from threefold.types import Floats

Kind = Literal["float", "base64", "binary", "ubinary", "int8", "uint8"]

_TRUNCATE: dict[str, Truncate] = {"NONE": "none", "START": "start", "END": "end"}


class EmbedTextsBody(BaseModel):
    """Both versions; unknown fields are ignored, as Cohere does."""

    model_config = ConfigDict(extra="ignore", strict=True)

    texts: Any
    model: str | None = None
    input_type: str | None = None
    embedding_types: Annotated[list[Kind], Field(min_length=1)] | None = None
    truncate: Literal["NONE", "START", "END"] = "END"
    output_dimension: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    priority: Annotated[int, Field(ge=0, le=999)] = 0


async def v1(call: Call) -> Response:
    """`POST /v1/embed` of Cohere: a plain list without `embedding_types`, else one list per type."""
    body = await call.read(EmbedTextsBody)
    texts, vectors, answer = await _embed(call, body)
    kinds = body.embedding_types
    said = {
        "id": call.id,
        "response_type": "embeddings_floats" if kinds is None else "embeddings_by_type",
        "embeddings": _as("float", vectors) if kinds is None else _by_type(kinds, vectors),
        "texts": texts,
        "meta": _meta("1", answer),
    }
    return rows_response(said, answer.rows)


async def v2(call: Call) -> Response:
    """`POST /v2/embed` of Cohere: one list per type, `float` if none is named."""
    body = await call.read(EmbedTextsBody)
    for name in ("model", "input_type"):
        if getattr(body, name) is None:
            raise RequestError(f"{name}: Field required", param=name)
    texts, vectors, answer = await _embed(call, body)
    embeddings = _by_type(body.embedding_types or ["float"], vectors)
    said = {"id": call.id, "embeddings": embeddings, "texts": texts, "meta": _meta("2", answer)}
    return rows_response(said, answer.rows)


async def _embed(call: Call, body: EmbedTextsBody) -> tuple[list[str], list[Floats], Answer]:
    call.server.model_of(body.model, "encoder")
    texts = texts_of(body.texts, "texts", call.server.config.max_inputs)
    for kind in body.embedding_types or []:
        if kind in ("int8", "uint8"):
            raise RequestError(
                f"{kind} vectors need a calibration that this model does not have; ask for float, base64, binary or "
                "ubinary",
                param="embedding_types",
            )
    encoding = await call.server.encoder(call, body.model)
    encoding.check_dimensions(body.output_dimension)
    answer = await call.wait_for(_run(encoding, body, texts))
    rows = [cut_dense(row.dense, body.output_dimension) for row in answer.rows if row.dense is not None]
    return texts, rows, answer


async def _run(encoding: Encoding, body: EmbedTextsBody, texts: Sequence[str]) -> Answer:
    prompt = {"search_query": "query", "search_document": "document"}.get(body.input_type or "")
    how = _TRUNCATE[body.truncate]
    read = await encoding.read(texts, truncate=how, prompt_name=prompt, max_tokens=body.max_tokens)
    return await encoding.embed(read, ["dense"], lane="bulk" if body.priority else None)


def _by_type(kinds: Sequence[Kind], vectors: Sequence[Floats]) -> dict[str, list[Any]]:
    return {kind: _as(kind, vectors) for kind in dict.fromkeys(kinds)}


def _as(kind: Kind, vectors: Sequence[Floats]) -> list[Any]:
    """Vectors (d,) as numbers, as base64 of float32, or as d / 8 numbers whose bits tell what is above 0."""
    if kind in ("float", "base64"):
        return [wire.floats(vector, as_base64=kind == "base64") for vector in vectors]
    packed = [np.packbits(vector > 0) for vector in vectors]  # the first dimension is the highest bit
    return packed if kind == "ubinary" else [(bits.astype(np.int16) - 128).astype(np.int8) for bits in packed]


def _meta(version: str, answer: Answer) -> dict[str, Any]:
    cut = [i for i, truncated in enumerate(answer.read.truncated) if truncated]
    warnings = [f"texts {', '.join(map(str, cut))} were longer than is read and were cut"] if cut else []
    return {
        "api_version": {"version": version},
        "billed_units": {"input_tokens": answer.read.tokens},
        **({"warnings": warnings} if warnings else {}),
    }
