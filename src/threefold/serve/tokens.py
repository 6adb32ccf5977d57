"""Tokens of the model's own tokenizer: `POST /tokenize` of TEI and of vLLM, `POST /decode` of TEI."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from starlette.responses import Response

from threefold.serve import wire
from threefold.serve.encoding import by_deadline, check_size
from threefold.serve.errors import RequestError
from threefold.serve.http import Call
from threefold.serve.inputs import check_count, inputs_of, is_ids
from threefold.serve.models import CHUNK_CHARACTERS
from threefold.serve.tei import TeiBody
from threefold.text.tokenizer import Tokenizer

#: Tokens that a text of `CHUNK_CHARACTERS` may have only because it was cut out of a longer one.
CUT_TOKENS = 8


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


async def tokenize(call: Call) -> Response:
    """`POST /tokenize`, of TEI or of vLLM: `inputs` or `prompt`."""

    def schema(given: dict[str, Any]) -> type[VllmTokenizeBody | TokenizeBody]:
        if "prompt" not in given:
            return TokenizeBody
        call.dialect = "vllm"  # also of what is wrong with the body
        return VllmTokenizeBody

    body = await call.read_by(schema)
    if isinstance(body, VllmTokenizeBody):
        return await _tokenize_for_vllm(call, body)
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
        await _refuse_many(call, text)
        found.append(await embedder.threads.run(partial(_pieces, embedder.tokenizer, text, special)))
        check_size(call, len(found[-1]))
    return found


async def _refuse_many(call: Call, text: str) -> None:
    """Refuse a text with more tokens than are told, before they are made: a megabyte of text would take a gigabyte.

    Counted piece by piece, so that others tokenize in between.
    """
    embedder, counted = call.server.embedder, 0
    tokenizer = embedder.tokenizer
    for start in range(0, len(text), CHUNK_CHARACTERS):
        piece = text[start : start + CHUNK_CHARACTERS]
        (count,) = await embedder.threads.run(partial(tokenizer.count, [piece]))
        counted += max(int(count) - tokenizer.overhead - CUT_TOKENS, 0)
        if call.size + counted > call.server.config.max_request_tokens:
            check_size(call, counted)


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
    given = _rows(body.ids, call.server.config.max_inputs)
    check_size(call, sum(map(len, given)))
    embedder = call.server.embedder
    async with by_deadline(call):
        work = partial(_decoded, embedder.tokenizer, given, body.skip_special_tokens)
        return wire.json_response(await call.wait_for(embedder.threads.run(work)))


def _rows(ids: Any, most: int) -> list[list[int]]:
    """One array of ids, or several."""
    if ids == []:
        raise RequestError("`ids` cannot be empty", param="ids", tei="Empty")
    rows = [ids] if isinstance(ids, list) and is_ids(ids) else ids
    if not isinstance(rows, list) or not all(isinstance(row, list) and row and is_ids(row) for row in rows):
        raise RequestError("ids must be an array of token ids, or an array of such arrays, none empty", param="ids")
    check_count(len(rows), most, "ids")
    return rows


def _decoded(tokenizer: Tokenizer, rows: Sequence[Sequence[int]], skip_special: bool) -> list[str]:
    for ids in rows:
        if min(ids) < 0 or max(ids) >= tokenizer.vocab:
            raise RequestError(f"an id is outside the vocabulary of {tokenizer.vocab:,} tokens", param="ids")
    return [tokenizer.decode(ids, skip_special=skip_special) for ids in rows]
