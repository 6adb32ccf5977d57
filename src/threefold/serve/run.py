"""Run a server until it is told to stop: load the models, listen, drain.

SIGTERM and SIGINT: no new connections, running requests get `drain_s` seconds, exit status 0. A GPU that is lost ends
it too, with an error: only a new process can use it again.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import uvicorn
from starlette.applications import Starlette

from threefold.encoder.cross import CrossEncoder
from threefold.encoder.encoder import Encoder
from threefold.encoder.precision import Precision
from threefold.errors import ConfigError, InputError, WorkerError
from threefold.serve import logs
from threefold.serve.app import CONTRACTS, Contract, build
from threefold.serve.connection import http_options
from threefold.serve.draining import Listener
from threefold.serve.making import Load, LoadCross
from threefold.serve.memory import bound_caches
from threefold.serve.server import Server
from threefold.serve.settings import ModelSettings, ServeConfig

if TYPE_CHECKING:
    from threefold.serve.traces import Traces

#: Connections that the system holds before they are taken.
BACKLOG = 2_048
#: Seconds between two looks at the devices.
LOOK_S = 1.0


def make_server(config: ServeConfig) -> Server:
    """The server that the settings describe; its models are loaded when it starts, and when a worker dies."""
    precision = cast(Precision, config.precision)

    def load() -> Encoder:
        return Encoder(
            config.model,
            device=config.device,
            precision=precision,
            revision=config.revision,
            query_prompt=config.query_prompt,
            document_prompt=config.document_prompt,
            graphs=config.graphs,
        )

    def load_cross() -> CrossEncoder:
        return CrossEncoder(cast(str, config.reranker), device=config.device, precision=precision)

    def load_more(one: ModelSettings) -> Encoder | CrossEncoder:
        how = cast(Precision, one.precision or config.precision)
        place = one.device or config.device
        if one.kind == "cross-encoder":
            return CrossEncoder(one.path, device=place, precision=how, revision=one.revision)
        return Encoder(
            one.path,
            device=place,
            precision=how,
            revision=one.revision,
            query_prompt=one.query_prompt,
            document_prompt=one.document_prompt,
        )

    with_cross: LoadCross | None = load_cross if config.reranker else None
    with_encoder: Load = load
    return Server(config, with_encoder, with_cross, load_more, _traces(config))


def _traces(config: ServeConfig) -> Traces | None:
    if not config.otlp_endpoint:
        return None
    from threefold.serve.traces import Traces

    return Traces.to(config.otlp_endpoint)


def serve(
    config: ServeConfig,
    on_ready: Callable[[Server, str], None],
    contracts: Sequence[Contract] = CONTRACTS,
    *,
    private: bool = False,
) -> None:
    """Run until SIGTERM or SIGINT. `on_ready` is told the address when requests are answered, by these routes.

    private  see `app.build`
    """
    bound_caches()
    logs.configure(config.log_format)
    server = make_server(config)
    asyncio.run(_serve(server, build(server, contracts, private=private), on_ready))


def _check_certificate(config: ServeConfig) -> None:
    """Before a model is loaded and an address is said that nobody will answer."""
    if not config.tls_cert:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(config.tls_cert, config.tls_key or None)
    except OSError as error:  # SSLError is one
        files = f"tls_cert {config.tls_cert!r}" + (f" and tls_key {config.tls_key!r}" if config.tls_key else "")
        raise ConfigError(f"{files} cannot be used: {error}") from error


async def _serve(server: Server, app: Starlette, on_ready: Callable[[Server, str], None]) -> None:
    config = server.config
    _check_certificate(config)
    listener = listen(config)
    with listener:
        await server.start()  # before anything listens: what cannot be loaded ends the command with one line
        inside = Listener(
            uvicorn.Config(
                app,
                log_config=None,
                **http_options(config.body_s),
                lifespan="on",
                backlog=BACKLOG,
                timeout_graceful_shutdown=config.drain_s,
                ssl_certfile=config.tls_cert or None,
                ssl_keyfile=config.tls_key or None,
            ),
            server,
        )
        listener.listen(BACKLOG)  # from here on nobody is turned away
        host, port = listener.getsockname()[:2]
        name = f"[{host}]" if ":" in host else host
        on_ready(server, f"{'https' if config.tls_cert else 'http'}://{name}:{port}")
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)  # uvicorn repeats it when it is done; by then it is answered
        watch = asyncio.create_task(_end_when_lost(server, inside))
        await inside.serve([listener])
        watch.cancel()
    if (why := server.lost()) is not None:
        raise WorkerError(f"the device is lost, and with it this process: {why}. Start the server again")


async def _end_when_lost(server: Server, inside: uvicorn.Server) -> None:
    """A GPU that failed works again in a new process only: whoever started this one starts the next."""
    while server.lost() is None:
        await asyncio.sleep(LOOK_S)
    inside.should_exit = True


def listen(config: ServeConfig) -> socket.socket:
    """The socket, bound before the models are loaded, so that a port that is taken is known at once."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    # The protocol by name: asyncio sends small answers at once (TCP_NODELAY) only where it is TCP by name, and
    # waits 40 ms for the other side's acknowledgement where it is not.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        where = f"{config.host}:{config.port}"
        raise InputError(f"cannot listen on {where}: {error.strerror}. Choose another --port") from error
    return listener
