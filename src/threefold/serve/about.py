"""`GET /card`: what is served, and how much of it in one request; for our own client."""

from __future__ import annotations

import dataclasses

from starlette.responses import Response

from threefold import __version__
from threefold.serve import wire
from threefold.serve.http import Call


async def card(call: Call) -> Response:
    """The card of a model (`?model=`, else the main one) and the limits of a request."""
    server, config = call.server, call.server.config
    embedder = (await server.encoder(call, call.request.query_params.get("model"))).embedder
    found = dataclasses.asdict(embedder.card) | {"name": embedder.name}
    limits = {
        "max_inputs": config.max_inputs,
        "max_input_tokens": embedder.max_tokens,
        "max_request_tokens": config.max_request_tokens,
        "max_multi_tokens": config.max_multi_tokens,
    }
    return wire.json_response({"card": found, "limits": limits, "scorer": server.scorer.name, "version": __version__})
