"""`threefold serve`: the HTTP server."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from threefold.cli import interrupts
from threefold.cli.endings import ending_of
from threefold.cli.show import err, note, print_json
from threefold.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from threefold.serve.server import Server

log = logging.getLogger(__name__)

_PACKAGES = ("starlette", "uvicorn", "pydantic", "orjson", "prometheus_client")


def serve(
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Folder or hub name. Default: the embedded threefold-mini."),
    ] = None,
    reranker: Annotated[
        str | None, typer.Option(help="Cross-encoder for rerank and score. Default: the encoder's own three heads.")
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(help="Further encoder, loaded by the first request that names it; repeat. More in --config."),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1, this machine only.")
    ] = None,
    port: Annotated[int | None, typer.Option("--port", "-p", help="Default: 8000; 0 takes a free one.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16, int8.")] = None,
    keys_file: Annotated[
        Path | None, typer.Option(help="API keys; see `threefold keys`. Default: open to all.")
    ] = None,
    collections: Annotated[Path | None, typer.Option(help="Folder for collections over HTTP. Default: none.")] = None,
    cors: Annotated[list[str] | None, typer.Option(help="Origin of web pages that may call; repeat, or *.")] = None,
    queued_tokens: Annotated[int | None, typer.Option(help="Tokens that may wait before 429.")] = None,
    batch_tokens: Annotated[int | None, typer.Option(help="Tokens of one forward pass.")] = None,
    deadline_s: Annotated[float | None, typer.Option(help="Seconds after which a request is given up.")] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings.", envvar="THREEFOLD_SERVE_CONFIG")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Any setting: name=value; repeat.")] = None,
    show: Annotated[bool, typer.Option("--show-config", help="Print all settings as JSON and end.")] = False,
) -> None:
    """Serve models over HTTP: OpenAI, TEI, Cohere, Jina, vLLM and Ollama clients work unchanged.

    Settings come from --config, then THREEFOLD_SERVE_... variables, then flags; the last one wins.

    **Memory** is the models (BAAI/bge-m3 has 568 million numbers: 2.3 GB in float32, 1.2 GB in 16 bits), one batch of
    each (`batch_tokens`, and less where the model needs more than `batch_s` seconds for it), 4 bytes per waiting
    token, and the vectors of every token until they are sent (4 KB per token with bge-m3, `max_multi_tokens`).

    **Several models** are tables `[[serve.models]]` of the config file, loaded by the first request that names them.
    `model_memory_mb` bounds the weights that are in memory together: idle models make room, the one first that was
    not used for longest. Leave room beside it for batches, and for one model that is loaded for the first time.

    **Speed.** The server measures its tokens per second (`threefold_tokens_per_second` in /metrics). A request that
    finds Q tokens before it waits Q / speed seconds; `queued_tokens` bounds Q, and more is refused with 429 and that
    time in Retry-After. Queries go before bulk; they wait for one batch at most, about `batch_s` seconds.

    **More of it.** One process uses one device. For several GPUs run one process each behind any balancer: requests
    have no state. On CPUs, one process per socket, with OMP_NUM_THREADS set to its cores.
    """
    flags: dict[str, Any] = {
        "model": model,
        "reranker": reranker,
        "models": [{"path": path} for path in also] if also else None,
        "host": host,
        "port": port,
        "device": device,
        "precision": precision,
        "keys_file": str(keys_file) if keys_file else None,
        "collections": str(collections) if collections else None,
        "cors_origins": cors or None,
        "limits.queued_tokens": queued_tokens,
        "limits.batch_tokens": batch_tokens,
        "limits.deadline_s": deadline_s,
        "log_format": log_format,
    }
    for assignment in settings or []:
        name, equals, value = assignment.partition("=")
        if not equals or not name.strip():
            raise InputError(f"--set {assignment}: expected name=value")
        name = name.strip()
        flags[name] = value if name.endswith("_prompt") else value.strip()  # "query: " ends with a blank
    from threefold.serve.logs import format_of

    with _failing_in_json() if format_of(config, os.environ, flags["log_format"]) == "json" else nullcontext():
        _run(config, flags, show)


def _run(config: Path | None, flags: dict[str, Any], show: bool) -> None:
    require_packages("threefold serve")
    from threefold.serve.cores import share_cores

    share_cores()  # before the next lines import PyTorch
    from threefold.serve.load import load_config

    chosen = load_config(config, os.environ, flags)
    if show:
        print_json(chosen.to_dict())
        return
    from threefold.serve.run import serve as run

    run(chosen, _say_ready)


@contextmanager
def _failing_in_json() -> Iterator[None]:
    """Programs read this stream: a failure, which ends it, is a line as the others are."""
    from threefold.serve.logs import configure

    configure("json")
    try:
        yield
    except BrokenPipeError:  # nobody reads what --show-config prints
        raise
    except (Exception, KeyboardInterrupt) as error:
        ending = ending_of(error)
        if ending is None:
            log.exception("an unexpected error")
            raise typer.Exit(1) from None
        log.error("%s", ending.said)
        if ending.status == interrupts.STATUS:  # a `typer.Exit` of this status would be said again, in words
            raise SystemExit(ending.status) from None
        raise typer.Exit(ending.status) from None


def _say_ready(server: Server, address: str) -> None:
    card, limits = server.embedder.card, server.config.limits
    rate = server.embedder.engine.pace.rate
    heads = ", ".join(card.representations)
    first = f"serving {card.name} ({card.precision}, {heads}) at {address}"
    more = []
    if server.cross is not None:
        more.append(f"rerank and score by {server.cross.name}")
    if server.config.models:
        more.append(f"further models: {', '.join(one.name or one.path for one in server.config.models)}")
    if server.library is not None:
        more.append(f"a page to search the collections: {address}/ui")
    more.append(f"{rate:,.0f} tokens/s when warming up; up to {limits.queued_tokens:,} tokens wait, then 429")
    if server.keys is None:
        more.append("no API keys: whoever reaches this address may call (threefold keys create, --keys-file)")
    if server.config.log_format == "json":  # programs read this stream: every line is JSON
        for line in (first, *more):
            log.info("%s", line)
        return
    err.print(first, soft_wrap=True)
    for line in more:
        note(line)


def require_packages(command: str) -> None:
    """Refuse a command that needs what is not installed."""
    for name in _PACKAGES:
        if find_spec(name) is None:
            raise MissingExtraError(name.replace("_", "-"), "server", command)
