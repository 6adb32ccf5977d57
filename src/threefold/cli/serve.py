"""`threefold serve` and `threefold keys`: the HTTP server, and who may call it."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from threefold.cli.show import err, note, out, print_json
from threefold.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from threefold.serve.server import Server

keys_app = typer.Typer(help="API keys of the server: create, list, revoke.", no_args_is_help=True)

KeyFileOption = Annotated[Path, typer.Option("--file", help="The file of keys.", envvar="THREEFOLD_SERVE_KEYS_FILE")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_PACKAGES = ("starlette", "uvicorn", "pydantic", "orjson", "prometheus_client")


def serve(
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Folder or hub name. Default: the embedded threefold-mini."),
    ] = None,
    reranker: Annotated[
        str | None, typer.Option(help="Cross-encoder for rerank and score. Default: the encoder's own three heads.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1, this machine only.")
    ] = None,
    port: Annotated[int | None, typer.Option("--port", "-p", help="Default: 8000; 0 takes a free one.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16.")] = None,
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
    """Serve the model over HTTP: OpenAI, TEI, Cohere, Jina and vLLM clients work unchanged.

    Settings come from --config, then THREEFOLD_SERVE_... variables, then flags; the last one wins.

    **Sizing.** Memory is the model (BAAI/bge-m3 has 568 million numbers: 2.3 GB in float32, 1.2 GB in 16 bits), one
    batch (`batch_tokens`, and less where the model needs more than `batch_s` seconds for it), 4 bytes per waiting
    token, and the vectors of every token until they are sent (4 KB per token with bge-m3, `max_multi_tokens`).

    **Speed.** The server measures its tokens per second (`threefold_tokens_per_second` in /metrics). A request that
    finds Q tokens before it waits Q / speed seconds; `queued_tokens` bounds Q, and more is refused with 429 and that
    time in Retry-After. Queries go before bulk; they wait for one batch at most, about `batch_s` seconds.

    **More of it.** One process uses one device. For several GPUs run one process each behind any balancer: requests
    have no state. On CPUs, one process per socket, with OMP_NUM_THREADS set to its cores.
    """
    _require_packages()
    from threefold.serve.load import load_config
    from threefold.serve.run import serve as run

    flags: dict[str, Any] = {
        "model": model,
        "reranker": reranker,
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
        if not equals:
            raise InputError(f"--set {assignment}: expected name=value")
        flags[name.strip()] = value.strip()
    chosen = load_config(config, os.environ, flags)
    if show:
        print_json(chosen.to_dict())
        return
    run(chosen, _say_ready)


def _say_ready(server: Server, address: str) -> None:
    card, limits = server.embedder.card, server.config.limits
    rate = server.embedder.engine.pace.rate
    heads = ", ".join(card.representations)
    err.print(f"serving {card.name} ({card.precision}, {heads}) at {address}", soft_wrap=True)
    if server.cross is not None:
        note(f"rerank and score by {server.cross.name}")
    note(f"{rate:,.0f} tokens/s when warming up; up to {limits.queued_tokens:,} tokens wait, then 429")
    if server.keys is None:
        note("no API keys: whoever reaches this address may call (threefold keys create, --keys-file)")


def _require_packages() -> None:
    for name in _PACKAGES:
        if find_spec(name) is None:
            raise MissingExtraError(name.replace("_", "-"), "server", "threefold serve")


@keys_app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is, for lists.")],
    file: KeyFileOption,
    scopes: Annotated[str, typer.Option(help="Some of embed,search,write,metrics.")] = "embed,search",
    namespace: Annotated[str, typer.Option(help="Collections of other namespaces do not exist for it.")] = "default",
    tokens_per_minute: Annotated[int, typer.Option(help="What it may use; 0: no limit.")] = 0,
    as_json: Json = False,
) -> None:
    """Make a key. It is shown once; the file keeps its hash."""
    from threefold.serve.keys import create_key

    wanted = [scope.strip() for scope in scopes.split(",") if scope.strip()]
    secret, key = create_key(file, name, wanted, namespace, tokens_per_minute)
    if as_json:
        print_json({"id": key.id, "key": secret, "scopes": list(key.scopes), "namespace": key.namespace})
        return
    out.print(secret, markup=False, highlight=False)
    note(f"{key.id} for {key.name}: {', '.join(key.scopes)}; it is not shown again")


@keys_app.command("list")
def list_keys(file: KeyFileOption, as_json: Json = False) -> None:
    """The keys of a file, without their secrets."""
    from threefold.serve.keys import read_keys

    keys = read_keys(file)
    if as_json:
        print_json([{k: v for k, v in key.to_dict().items() if k != "hash"} for key in keys])
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("id", "name", "scopes", "namespace"):
        table.add_column(column)
    for key in keys:
        table.add_row(key.id, key.name, ",".join(key.scopes), key.namespace)
    out.print(table)


@keys_app.command("revoke")
def revoke(id: Annotated[str, typer.Argument(help="The id of the key.")], file: KeyFileOption) -> None:
    """Take a key out; a running server refuses it at once."""
    from threefold.serve.keys import revoke_key

    key = revoke_key(file, id)
    note(f"{key.id} for {key.name} is revoked")
