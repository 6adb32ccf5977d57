"""Rerank in every dialect, thin over one judge: TEI and vLLM on /rerank, Cohere v1, Jina and vLLM on /v1/rerank,
Cohere v2 on /v2/rerank.

A body with `texts` is TEI's; with `documents` it is one of the others, whose answers are parts of one another: the
answer of /v1/rerank has the fields of all three.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from threefold.serve import wire
from threefold.serve.errors import RequestError
from threefold.serve.http import Call
from threefold.serve.inputs import check_count, texts_of
from threefold.serve.judges import Cutting, Judgement
from threefold.serve.schedule import Lane
from threefold.serve.tei import Truncating, how_to_cut, judged_headers

#: Fields by which a document may be read.
RANK_FIELDS = 64
#: Documents that Cohere counts as one search.
SEARCH_UNIT_DOCUMENTS = 100


class TeiRerankBody(Truncating):
    """`/rerank` of TEI."""

    query: str
    texts: Any
    raw_scores: bool = False
    return_text: bool = False


class RerankBody(BaseModel):
    """Cohere, Jina and vLLM; unknown fields are ignored, as they do."""

    model_config = ConfigDict(extra="ignore", strict=True)

    query: str
    documents: Any
    model: str | None = None
    top_n: Annotated[int, Field(ge=0)] | None = None
    return_documents: bool | None = None
    rank_fields: Annotated[list[str], Field(max_length=RANK_FIELDS)] | None = None
    max_chunks_per_doc: int | None = None
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = None
    priority: int | None = None


async def tei_or_vllm(call: Call) -> Response:
    """`POST /rerank`."""

    def schema(given: dict[str, Any]) -> type[TeiRerankBody | RerankBody]:
        if "texts" in given or "documents" not in given:
            return TeiRerankBody
        call.dialect = "vllm"  # also of what is wrong with the body
        return RerankBody

    body = await call.read_by(schema)
    if isinstance(body, TeiRerankBody):
        return await _tei(call, body)
    texts, judgement = await _judge(call, body)
    results = [
        {"index": i, "document": {"text": texts[i], "multi_modal": None}, "relevance_score": judgement.unit[i]}
        for i in _order(judgement, body.top_n)
    ]
    return wire.json_response(
        {"id": f"rerank-{call.id}", "model": _model(call, body), "usage": _usage(judgement), "results": results}
    )


async def v1(call: Call) -> Response:
    """`POST /v1/rerank`: Cohere v1, Jina, vLLM. Documents come back unless `return_documents` is false (Jina)."""
    body = await call.read(RerankBody)
    texts, judgement = await _judge(call, body)
    return wire.json_response(
        {
            "id": call.id,
            "model": _model(call, body),
            "results": _results(body, texts, judgement, return_documents=body.return_documents is not False),
            "usage": _usage(judgement),
            "meta": _meta("1", texts, judgement),
        },
        judged_headers(call, judgement),
    )


async def v2(call: Call) -> Response:
    """`POST /v2/rerank`: Cohere v2."""
    body = await call.read(RerankBody)
    if body.model is None:
        raise RequestError("model: Field required", param="model")
    texts, judgement = await _judge(call, body)
    results = _results(body, texts, judgement, return_documents=body.return_documents is True)
    return wire.json_response({"id": call.id, "results": results, "meta": _meta("2", texts, judgement)})


async def _tei(call: Call, body: TeiRerankBody) -> Response:
    ranks, judgement = await ranked(call, body)
    return wire.json_response(ranks, judged_headers(call, judgement))


async def ranked(call: Call, body: TeiRerankBody) -> tuple[list[dict[str, Any]], Judgement]:
    """What `/rerank` of TEI answers, and where it comes from."""
    texts = texts_of(body.texts, "texts", call.server.config.max_inputs)
    _check_query(body.query)
    pairs = [(body.query, text) for text in texts]
    judgement = await call.server.judge(call, pairs, Cutting(how_to_cut(call, body)))
    scores = judgement.raw if body.raw_scores else judgement.unit
    ranks = [
        {"index": i, **({"text": texts[i]} if body.return_text else {}), "score": scores[i]}
        for i in _order(judgement, None)
    ]
    return ranks, judgement


async def _judge(call: Call, body: RerankBody) -> tuple[list[str], Judgement]:
    call.server.model_of(body.model)
    if body.max_chunks_per_doc is not None:
        raise RequestError(
            "max_chunks_per_doc is not taken: documents are read whole, up to the length that the model reads. "
            "Leave it out, or cut documents with max_tokens_per_doc",
            param="max_chunks_per_doc",
        )
    _check_query(body.query)
    texts = _documents(body, call.server.config.max_inputs)
    lane: Lane | None = "bulk" if body.priority else None
    pairs = [(body.query, text) for text in texts]
    cutting = Cutting(max_text_tokens=body.max_tokens_per_doc)
    return texts, await call.server.judge(call, pairs, cutting, model=body.model, lane=lane)


def _check_query(query: str) -> None:
    if not query:
        raise RequestError("`query` cannot be empty", param="query")


def _documents(body: RerankBody, most: int) -> list[str]:
    """Documents as texts; an object is read by `rank_fields`, or by its field `text`."""
    if not isinstance(body.documents, list):
        raise RequestError("documents must be an array", param="documents")
    check_count(len(body.documents), most, "documents")
    fields = list(dict.fromkeys(body.rank_fields or ["text"]))
    texts = []
    for i, document in enumerate(body.documents):
        if isinstance(document, dict):
            found = [document[name] for name in fields if isinstance(document.get(name), str)]
            if not found:
                raise RequestError(f"documents[{i}] has none of the fields {', '.join(fields)}", param="documents")
            document = "\n".join(found)
        texts.append(document)
    return texts_of(texts, "documents", most)


def _order(judgement: Judgement, top_n: int | None) -> list[int]:
    """Places from the best on; equal scores in the order of the request. 0 and None: all."""
    order = sorted(range(len(judgement.raw)), key=lambda i: -judgement.raw[i])
    return order[:top_n] if top_n else order


def _results(
    body: RerankBody, texts: list[str], judgement: Judgement, *, return_documents: bool
) -> list[dict[str, Any]]:
    return [
        {
            "index": i,
            "relevance_score": judgement.unit[i],
            **({"document": {"text": texts[i]}} if return_documents else {}),
        }
        for i in _order(judgement, body.top_n)
    ]


def _model(call: Call, body: RerankBody) -> str:
    return body.model or call.server.scorer.name


def _usage(judgement: Judgement) -> dict[str, int]:
    return {"prompt_tokens": judgement.tokens, "total_tokens": judgement.tokens}


def _meta(version: str, texts: list[str], judgement: Judgement) -> dict[str, Any]:
    cut = [i for i, truncated in enumerate(judgement.truncated) if truncated]
    warnings = [f"documents {', '.join(map(str, cut))} were longer than is read and were cut"] if cut else []
    warnings += ["the query was longer than is read and was cut"] if judgement.query_truncated else []
    return {
        "api_version": {"version": version},
        "billed_units": {"search_units": math.ceil(len(texts) / SEARCH_UNIT_DOCUMENTS)},
        "tokens": {"input_tokens": judgement.tokens},
        **({"warnings": warnings} if warnings else {}),
    }
