"""Vertex AI, as TEI serves it: `POST /vertex` with `instances`, each a request of `/rerank` or of `/embed`."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from pydantic import Field
from starlette.responses import Response

from threefold.serve import wire
from threefold.serve.bodies import parse
from threefold.serve.http import Call
from threefold.serve.inputs import check_count, is_ids
from threefold.serve.rerank import TeiRerankBody, ranked
from threefold.serve.tei import EmbedBody, TeiBody, embedded

#: Instances that are answered at a time: beginning two thousand in one go would keep other requests waiting.
AT_ONCE = 64


class VertexBody(TeiBody):
    """`/vertex`; `parameters` are ignored, as TEI ignores them."""

    instances: Annotated[list[dict[str, Any]], Field(min_length=1)]


async def vertex(call: Call) -> Response:
    """`POST /vertex`: one prediction per instance."""
    body = await call.read(VertexBody)
    check_count(sum(map(_size, body.instances)), call.server.config.max_inputs, "instances")
    gate = asyncio.Semaphore(AT_ONCE)
    tasks = [asyncio.ensure_future(_prediction(call, instance, gate)) for instance in body.instances]
    try:
        return wire.json_response({"predictions": await asyncio.gather(*tasks)})
    finally:  # where one fails, nobody waits for the others
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _size(instance: dict[str, Any]) -> int:
    """How many texts it has; one that is wrong counts as one, and is refused when it is read."""
    given = instance.get("texts", instance.get("inputs"))
    if not isinstance(given, list) or is_ids(given):
        return 1
    return len(given)


async def _prediction(call: Call, instance: dict[str, Any], gate: asyncio.Semaphore) -> Any:
    async with gate:
        raw = wire.dumps(instance)
        if "texts" in instance:
            return (await ranked(call, parse(TeiRerankBody, raw)))[0]
        return (await embedded(call, parse(EmbedBody, raw)))[0]
