"""text-embeddings-inference (TEI 1.9): /embed, /embed_sparse, /embed_all, /similarity, /predict, /tokenize, /decode.

As TEI does, unknown fields are ignored, texts are cut where the request does not say (setting `truncate`), and every
answer has the `x-...` headers of its times.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from threefold import __version__
from threefold.serve import wire
from threefold.serve.encoding import Encoding, by_deadline, check_size, cut_dense
from threefold.serve.errors import RequestError
from threefold.serve.http import Call, parse, parse_any
from threefold.serve.inputs import inputs_of, texts_of
from threefold.serve.judges import Cutting, Judgement, Pair
from threefold.serve.models import Answer, Read, TooLongError
from threefold.text.tokenizer import Tokenizer, Truncate
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


class TokenizeBody(TeiBody):
    """`/tokenize`."""

    inputs: Any
    add_special_tokens: bool = True
    prompt_name: str | None = None


class VllmTokenizeBody(TeiBody):
    """`/tokenize` of vLLM, which has `prompt` for `inputs`."""

    prompt: str
    add_special_tokens: bool = True


class DecodeBody(TeiBody):
    """`/decode`."""

    ids: Any
    skip_special_tokens: bool = True


# ---- representations ---------------------------------------------------------------------------------------


async def embed(call: Call) -> Response:
    """`POST /embed`."""
    body = await call.read(EmbedBody)
    vectors, answer = await embedded(call, body)
    return wire.json_response(vectors, headers(call, answer))


async def embedded(call: Call, body: EmbedBody) -> tuple[list[Floats], Answer]:
    """What `/embed` answers, and where it comes from."""
    encoding = await call.server.encoder(call)
    encoding.check_dimensions(body.dimensions)
    wanted: Output = "dense" if body.normalize else "hidden"
    answer = await call.wait_for(_embed(encoding, call, body, body.inputs, wanted))
    vectors = [
        cut_dense(row.dense, body.dimensions) if row.dense is not None else _pooled(encoding, row)[: body.dimensions]
        for row in answer.rows
    ]
    return [wire.floats(vector, as_base64=False) for vector in vectors], answer


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
    return wire.json_response(states, headers(call, answer))


async def similarity(call: Call) -> Response:
    """`POST /similarity`: cosine of one text to several."""
    body = await call.read(SimilarityBody)
    texts = texts_of(body.inputs.sentences, "sentences", call.server.config.max_inputs)
    everything = inputs_of([body.inputs.source_sentence, *texts], "inputs", len(texts) + 1, ids_allowed=False).texts
    encoding, how = await call.server.encoder(call), body.parameters or Truncating()
    answer = await call.wait_for(_embed(encoding, call, how, everything, "dense", len(everything)))
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
        return await _read_mixed(encoding, call, body, inputs, limit)
    given = inputs_of(inputs, "inputs", limit, ids_allowed=True)
    if given.ids:
        return encoding.embedder.take([_cut(ids, how, encoding.embedder.max_tokens) for ids in given.ids])
    return await encoding.read(given.texts, truncate=how, prompt_name=body.prompt_name)


async def _read_mixed(encoding: Encoding, call: Call, body: Truncating, inputs: list[Any], limit: int) -> Read:
    if len(inputs) > limit:
        raise RequestError(f"batch size {len(inputs)} > maximum allowed batch size {limit}", param="inputs")
    parts = []
    for i, item in enumerate(inputs):
        if item == []:
            raise RequestError(f"`inputs[{i}]` cannot be empty", param="inputs")
        try:
            parts.append(await _read(encoding, call, body, item, 1))
        except TooLongError as error:
            raise error.of(f"input {i}") from None
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


def _cut(ids: list[int], how: Truncate, limit: int) -> list[int]:
    if how == "none":
        return ids
    return ids[-limit:] if how == "start" else ids[:limit]


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
    if len(given) > most:
        raise RequestError(f"batch size {len(given)} > maximum allowed batch size {most}", param="inputs")
    for i, pair in enumerate(given):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) and text for text in pair):
            raise RequestError(f"inputs[{i}] must be a pair of strings: a cross-encoder reads two texts together")
    return [(pair[0], pair[1]) for pair in given], single


# ---- tokens ------------------------------------------------------------------------------------------------


async def tokenize(call: Call) -> Response:
    """`POST /tokenize`, of TEI or of vLLM: `inputs` or `prompt`."""
    raw = await call.raw()
    if "prompt" in parse_any(raw):
        call.dialect = "vllm"
        return await _tokenize_for_vllm(call, parse(VllmTokenizeBody, raw))
    body = parse(TokenizeBody, raw)
    texts = inputs_of(body.inputs, "inputs", call.server.config.max_inputs, ids_allowed=False).texts
    prompt = (await call.server.encoder(call)).prompt(body.prompt_name)
    return wire.json_response(await _tokenized(call, [prompt + text for text in texts], body.add_special_tokens))


async def _tokenize_for_vllm(call: Call, body: VllmTokenizeBody) -> Response:
    (pieces,) = await _tokenized(call, [body.prompt], body.add_special_tokens)
    ids = [piece["id"] for piece in pieces]
    return wire.json_response({"count": len(ids), "max_model_len": call.server.embedder.max_tokens, "tokens": ids})


async def _tokenized(call: Call, texts: Sequence[str], special: bool) -> list[list[dict[str, Any]]]:
    """The tokens of every text, made in a thread; refused as soon as there are too many."""
    async with by_deadline(call):
        return await call.wait_for(_all_pieces(call, texts, special))


async def _all_pieces(call: Call, texts: Sequence[str], special: bool) -> list[list[dict[str, Any]]]:
    embedder, found = call.server.embedder, []
    for text in texts:
        found.append(await embedder.threads.run(partial(_pieces, embedder.tokenizer, text, special)))
        check_size(call, len(found[-1]))
    return found


def _pieces(tokenizer: Tokenizer, text: str, special: bool) -> list[dict[str, Any]]:
    """The tokens of a text; places in characters, none for special tokens."""
    pieces = [
        {"id": one.id, "text": text[one.start : one.end], "special": False, "start": one.start, "stop": one.end}
        for one in tokenizer.pieces(text)
    ]
    if not special:
        return pieces
    first, last = (
        {"id": id, "text": tokenizer.token(id), "special": True, "start": None, "stop": None}
        for id in (tokenizer.cls_id, tokenizer.sep_id)
    )
    return [first, *pieces, last]


async def decode(call: Call) -> Response:
    """`POST /decode`."""
    body = await call.read(DecodeBody)
    given = inputs_of(body.ids, "ids", call.server.config.max_inputs, ids_allowed=True).ids
    if not given:
        raise RequestError("ids must be an array of token ids, or an array of such arrays", param="ids")
    check_size(call, sum(map(len, given)))
    embedder = call.server.embedder
    async with by_deadline(call):
        work = partial(_decoded, embedder.tokenizer, given, body.skip_special_tokens)
        return wire.json_response(await call.wait_for(embedder.threads.run(work)))


def _decoded(tokenizer: Tokenizer, rows: Sequence[Sequence[int]], skip_special: bool) -> list[str]:
    for ids in rows:
        if min(ids) < 0 or max(ids) >= tokenizer.vocab:
            raise RequestError(f"an id is outside the vocabulary of {tokenizer.vocab:,} tokens", param="ids")
    return [tokenizer.decode(ids, skip_special=skip_special) for ids in rows]


# ---- about the server --------------------------------------------------------------------------------------


async def info(call: Call) -> Response:
    """`GET /info`."""
    server = call.server
    card, config = server.embedder.card, server.config
    return wire.json_response(
        {
            "model_id": card.name,
            "model_sha": card.revision or None,
            "model_dtype": card.precision,
            "served_model_name": (*config.served_names, card.name)[0],
            "model_type": {"embedding": {"pooling": server.embedder.pooling}},
            "max_concurrent_requests": config.limits.queued_tokens,
            "max_input_length": server.embedder.max_tokens,
            "max_batch_tokens": config.limits.batch_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": config.max_inputs,
            "auto_truncate": config.truncate,
            "tokenization_workers": 1,
            "version": __version__,
            "sha": None,
            "docker_label": None,
        }
    )


async def health(call: Call) -> Response:
    """`GET /health`: 200 when requests are answered, 503 with the reason when not."""
    problem = call.server.problem()
    if problem is None:
        return Response()
    return wire.json_response({"error": problem, "error_type": "Unhealthy"}, status=503)


async def alive(call: Call) -> Response:
    """`GET /health/live`: the process answers."""
    return Response()


async def metrics(call: Call) -> Response:
    """`GET /metrics`: for Prometheus. With API keys it needs one, because it counts by key."""
    return Response(call.server.meters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


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
