"""What is served and how it is: `GET /card` for our own client, /info, /health and /metrics as TEI has them."""

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
