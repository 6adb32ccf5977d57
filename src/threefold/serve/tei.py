"""text-embeddings-inference (TEI 1.9): /embed, /embed_sparse, /embed_all, /similarity, /predict.

As TEI does, unknown fields are ignored, texts are cut where the request does not say (setting `truncate`), and every
answer has the `x-...` headers of its times.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from threefold.serve import wire
from threefold.serve.encoding import Encoding, cut_dense
from threefold.serve.errors import RequestError
from threefold.serve.http import Call
from threefold.serve.inputs import check_count, inputs_of, is_ids, texts_of
from threefold.serve.judges import Cutting, Judgement, Pair
from threefold.serve.long import rows_response
from threefold.serve.models import Answer, Read, named
from threefold.text.tokenizer import Truncate
from threefold.types import Floats, Output, Row

Direction = Literal["left", "right", "Left", "Right"]


class TeiBody(BaseModel):
    """As in TEI, unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)


class Truncating(TeiBody):
    """What all requests with texts have."""

    truncate: bool | None = None
    truncation_direction: Direction = "right"
    prompt_name: str | None = None


class EmbedBody(Truncating):
    """`/embed`."""

    inputs: Any
    normalize: bool = True
    dimensions: int | None = None


class InputsBody(Truncating):
    """`/embed_sparse`, `/embed_all`."""

    inputs: Any


class Sentences(TeiBody):
    """What `/similarity` compares."""

    source_sentence: str
    sentences: Any


class SimilarityBody(TeiBody):
    """`/similarity`."""

    inputs: Sentences
    parameters: Truncating | None = None


class PredictBody(Truncating):
    """`/predict`."""

    inputs: Any
    raw_scores: bool = False


# ---- representations ---------------------------------------------------------------------------------------


async def embed(call: Call) -> Response:
    """`POST /embed`."""
    body = await call.read(EmbedBody)
    vectors, answer = await embedded(call, body)
    return rows_response(vectors, answer.rows, headers(call, answer))


async def embedded(call: Call, body: EmbedBody) -> tuple[list[Floats], Answer]:
    """What `/embed` answers, and where it comes from."""
    encoding = await call.server.encoder(call)
    encoding.check_dimensions(body.dimensions)
    wanted: Output = "dense" if body.normalize else "hidden"
    answer = await call.wait_for(_embed(encoding, call, body, body.inputs, wanted))
    vectors = [
        unit(cut_dense(row.dense, body.dimensions))
        if row.dense is not None
        else _pooled(encoding, row)[: body.dimensions]
        for row in answer.rows
    ]
    return [wire.floats(vector, as_base64=False) for vector in vectors], answer


def unit(vector: Floats) -> Floats:
    """At unit length, also where the model compares by inner products; what has it already stays, to the last bit."""
    length = float(np.linalg.norm(vector))
    return vector if not length or abs(length - 1) < 1e-3 else vector / length


async def embed_sparse(call: Call) -> Response:
    """`POST /embed_sparse`."""
    body = await call.read(InputsBody)
    encoding = await call.server.encoder(call)
    answer = await call.wait_for(_embed(encoding, call, body, body.inputs, "sparse"))
    return wire.json_response([_pairs(row) for row in answer.rows], headers(call, answer))


async def embed_all(call: Call) -> Response:
    """`POST /embed_all`: the states of the last layer, special tokens kept, as they leave the network."""
    body = await call.read(InputsBody)
    encoding = await call.server.encoder(call)
    answer = await call.wait_for(_embed(encoding, call, body, body.inputs, "hidden"))
    states = [wire.floats(row.hidden, as_base64=False) for row in answer.rows if row.hidden is not None]
    return rows_response(states, answer.rows, headers(call, answer))


async def similarity(call: Call) -> Response:
    """`POST /similarity`: cosine of one text to several."""
    body = await call.read(SimilarityBody)
    source = inputs_of(body.inputs.source_sentence, "source_sentence", 1, ids_allowed=False).texts
    texts = source + texts_of(body.inputs.sentences, "sentences", call.server.config.max_inputs)
    encoding, how = await call.server.encoder(call), body.parameters or Truncating()
    with named(lambda i: f"sentences[{i - 1}]" if i else "source_sentence"):
        answer = await call.wait_for(_embed(encoding, call, how, texts, "dense", len(texts)))
    rows = np.stack([row.dense for row in answer.rows if row.dense is not None])
    cosines = (rows[1:] @ rows[0]) / (np.linalg.norm(rows[1:], axis=1) * np.linalg.norm(rows[0]))
    return wire.json_response(cosines, headers(call, answer))


async def _embed(
    encoding: Encoding, call: Call, body: Truncating, inputs: Any, wanted: Output, most: int | None = None
) -> Answer:
    return await encoding.embed(await _read(encoding, call, body, inputs, most), [wanted])


async def _read(encoding: Encoding, call: Call, body: Truncating, inputs: Any, most: int | None) -> Read:
    """Texts as tokens, and ids as they are; a batch may mix them."""
    limit = most or call.server.config.max_inputs
    how = how_to_cut(call, body)
    if isinstance(inputs, list) and any(isinstance(item, list) for item in inputs):
        check_count(len(inputs), limit, "inputs")
        return _joined([await _read_one(encoding, body, how, item, i) for i, item in enumerate(inputs)])
    given = inputs_of(inputs, "inputs", limit, ids_allowed=True)
    if given.ids:
        return _take(encoding, given.ids[0], how, 0)
    return await encoding.read(given.texts, truncate=how, prompt_name=body.prompt_name)


async def _read_one(encoding: Encoding, body: Truncating, how: Truncate, item: Any, i: int) -> Read:
    """One text, or the ids of one."""
    if item in ("", []):
        raise RequestError(f"`inputs[{i}]` cannot be empty", param="inputs")
    if isinstance(item, list) and is_ids(item):
        return _take(encoding, item, how, i)
    if not isinstance(item, str):
        raise RequestError(f"inputs[{i}] must be a string or an array of token ids", param="inputs")
    with named(lambda _: f"input {i}"):
        return await encoding.read([item], truncate=how, prompt_name=body.prompt_name)


def _take(encoding: Encoding, ids: list[int], how: Truncate, i: int) -> Read:
    limit = encoding.embedder.max_tokens
    cut = ids if how == "none" else ids[-limit:] if how == "start" else ids[:limit]
    return encoding.embedder.take([cut], i)


def _joined(parts: Sequence[Read]) -> Read:
    return Read(
        [ids for part in parts for ids in part.rows],
        [cut for part in parts for cut in part.truncated],
        sum(part.characters for part in parts),
        sum(part.seconds for part in parts),
    )


def how_to_cut(call: Call, body: Truncating) -> Truncate:
    """What to do with a text that is too long."""
    wanted = call.server.config.truncate if body.truncate is None else body.truncate
    if not wanted:
        return "none"
    return "start" if body.truncation_direction.lower() == "left" else "end"


def _pooled(encoding: Encoding, row: Row) -> Floats:
    """The dense vector before it gets unit length."""
    assert row.hidden is not None
    how = encoding.embedder.pooling
    if how == "mean":
        mean: Floats = row.hidden.mean(axis=0)
        return mean
    first_or_last: Floats = row.hidden[0 if how == "cls" else -1]
    return first_or_last


def _pairs(row: Row) -> list[dict[str, Any]]:
    assert row.sparse is not None
    ids, weights = row.sparse
    return [{"index": id, "value": weight} for id, weight in zip(ids.tolist(), weights, strict=True)]


# ---- pairs -------------------------------------------------------------------------------------------------


async def predict(call: Call) -> Response:
    """`POST /predict`: only where a cross-encoder is served; it reads pairs."""
    body = await call.read(PredictBody)
    if call.server.cross is None:
        message = "model is not a classifier model: start the server with a reranker"
        raise RequestError(message, status=424, tei="Backend")
    pairs, single = _given_pairs(body.inputs, call.server.config.max_inputs)
    judgement = await call.server.judge(call, pairs, Cutting(how_to_cut(call, body)))
    scores = judgement.raw if body.raw_scores else judgement.unit
    predictions = [[{"score": score, "label": "LABEL_0"}] for score in scores]
    return wire.json_response(predictions[0] if single else predictions, judged_headers(call, judgement))


def _given_pairs(inputs: Any, most: int) -> tuple[list[Pair], bool]:
    if inputs == []:
        raise RequestError("`inputs` cannot be empty", param="inputs", tei="Empty")
    if not isinstance(inputs, list):
        raise RequestError("inputs must be a pair of strings [a, b], or an array of such pairs", param="inputs")
    single = isinstance(inputs[0], str)
    given = [inputs] if single else inputs
    check_count(len(given), most, "inputs")
    for i, pair in enumerate(given):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) and text for text in pair):
            raise RequestError(f"inputs[{i}] must be a pair of strings: a cross-encoder reads two texts together")
    return [(pair[0], pair[1]) for pair in given], single


# ---- headers -----------------------------------------------------------------------------------------------


def headers(call: Call, answer: Answer) -> dict[str, str]:
    """The headers of TEI for representations."""
    read = answer.read
    return _headers(call, read.characters, read.tokens, read.seconds, answer.queue_s, answer.run_s)


def judged_headers(call: Call, judgement: Judgement) -> dict[str, str]:
    """The headers of TEI for scores."""
    times = (judgement.tokenize_s, judgement.queue_s, judgement.run_s)
    return _headers(call, judgement.characters, judgement.tokens, *times)


def _headers(
    call: Call, characters: int, tokens: int, tokenize_s: float, queue_s: float, run_s: float
) -> dict[str, str]:
    total = _ms(time.perf_counter() - call.began)
    return {
        "x-compute-type": "threefold",
        "x-compute-time": total,
        "x-compute-characters": str(characters),
        "x-compute-tokens": str(tokens),
        "x-total-time": total,
        "x-tokenization-time": _ms(tokenize_s),
        "x-queue-time": _ms(queue_s),
        "x-inference-time": _ms(run_s),
    }


def _ms(seconds: float) -> str:
    return str(round(1000 * seconds))
