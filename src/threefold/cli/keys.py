"""`threefold keys`: who may call the server, how much of it, and what they have used."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from threefold.cli import idle, options
from threefold.cli.show import note, out, print_json, print_table
from threefold.errors import InputError
from threefold.paths import expanded

if TYPE_CHECKING:
    from threefold.serve.keys import Key
    from threefold.serve.ledger import Ledger

keys_app = typer.Typer(
    help="API keys of the server: create, list, change, revoke; what they use, and their credit.",
    no_args_is_help=True,
)


def _named(path: Path) -> Path:
    """A place of a file, and not of a folder: "" is "." as a path."""
    if not path.name:
        raise InputError(f"--file {str(path)!r}: expected the name of a file, such as keys.json")
    return path


KeyFileOption = Annotated[
    Path, typer.Option("--file", help="The file of keys.", envvar="THREEFOLD_SERVE_KEYS_FILE", callback=_named)
]
UsageFileOption = Annotated[
    Path | None,
    typer.Option(
        "--usage-file", help="The file of usage. Default: next to the keys.", envvar="THREEFOLD_SERVE_USAGE_FILE"
    ),
]
Id = Annotated[str, typer.Argument(help="The id of the key.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_QUOTA = "True tokens that it may use per {}; 0: no limit."
_MINUTE, _DAY, _MONTH = (_QUOTA.format(period) for period in ("minute", "day (UTC)", "month (UTC)"))


@keys_app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is, for lists.")],
    file: KeyFileOption,
    scopes: Annotated[str, typer.Option(help="Some of embed,search,write,metrics,admin.")] = "embed,search",
    namespace: Annotated[str, typer.Option(help="Collections of other namespaces do not exist for it.")] = "default",
    tokens_per_minute: Annotated[int, typer.Option(help=_MINUTE)] = 0,
    tokens_per_day: Annotated[int, typer.Option(help=_DAY)] = 0,
    tokens_per_month: Annotated[int, typer.Option(help=_MONTH)] = 0,
    key_stdin: Annotated[
        bool, typer.Option("--key-stdin", help="Take the key that clients have already from standard input.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a key. It is shown once; the file keeps its hash."""
    from threefold.serve.keys import create_key

    options.require_ordinary(file)
    wanted = options.names_in(scopes)
    quotas = {
        "tokens_per_minute": tokens_per_minute,
        "tokens_per_day": tokens_per_day,
        "tokens_per_month": tokens_per_month,
    }
    brought = (sys.stdin.readline() if sys.stdin else "").rstrip("\r\n") if key_stdin else None
    secret, key = create_key(file, name, wanted, namespace, secret=brought, **quotas)
    if as_json:
        print_json(
            {"id": key.id, "key": None if key_stdin else secret, "scopes": list(key.scopes), "namespace": key.namespace}
        )
        return
    if key_stdin:
        note(f"{key.id} for {key.name}: {', '.join(key.scopes)}")
        return
    out.print(secret)
    note(f"{key.id} for {key.name}: {', '.join(key.scopes)}; it is not shown again")


@keys_app.command("list")
def list_keys(file: KeyFileOption, as_json: Json = False) -> None:
    """The keys of a file, without their secrets."""
    from threefold.serve.keys import QUOTAS, read_keys

    keys = read_keys(file)
    if as_json:
        print_json([_plain(key) for key in keys])
        return
    head = ["id", "name", "scopes", "namespace", *(name.replace("_", " ") for name in QUOTAS)]
    rows = []
    for key in keys:
        limits = (f"{getattr(key, name):,}" if getattr(key, name) else "-" for name in QUOTAS)
        rows.append((key.id, key.name, ",".join(key.scopes), key.namespace, *limits))
    print_table(head, rows, left=len(head))


@keys_app.command("revoke")
def revoke(id: Id, file: KeyFileOption, as_json: Json = False) -> None:
    """Take a key out; a running server refuses it at once."""
    from threefold.serve.keys import revoke_key

    options.require_ordinary(file)
    key = revoke_key(file, id)
    if as_json:
        print_json({"key": key.id, "revoked": True})
    else:
        note(f"{key.id} for {key.name} is revoked")


@keys_app.command("quota")
def quota(
    id: Id,
    file: KeyFileOption,
    tokens_per_minute: Annotated[int | None, typer.Option(help=_MINUTE)] = None,
    tokens_per_day: Annotated[int | None, typer.Option(help=_DAY)] = None,
    tokens_per_month: Annotated[int | None, typer.Option(help=_MONTH)] = None,
    as_json: Json = False,
) -> None:
    """Change how much a key may use; what is not given stays. A running server follows at once."""
    from threefold.serve.keys import QUOTAS, change_key, find_key

    given = dict(zip(QUOTAS, (tokens_per_minute, tokens_per_day, tokens_per_month), strict=True))
    changes = {name: value for name, value in given.items() if value is not None}
    key = change_key(file, id, **changes) if changes else find_key(file, id)
    if as_json:
        print_json(_plain(key))
        return
    limits = ", ".join(f"{name.replace('_', ' ')} {getattr(key, name) or 'without limit'}" for name in QUOTAS)
    note(f"{key.id} for {key.name}: {limits}")


@keys_app.command("credit")
def credit(
    context: typer.Context,
    id: Id,
    file: KeyFileOption,
    amount: Annotated[float, typer.Option(help="What to add, in the currency of the server; below 0 takes back.")] = 0,
    reason: Annotated[str, typer.Option("--note", help="Kept with the grant.")] = "",
    usage_file: UsageFileOption = None,
    make: Annotated[bool, typer.Option("--make", help="Make the file of usage, before the server does.")] = False,
    as_json: Json = False,
) -> None:
    """Grant credit, or show it. A key that was ever granted credit is refused when it is spent; others are not bounded.

    A server follows within a second, if the file of usage is its own: what is its usage_file is --usage-file here.
    """
    from threefold.serve.keys import find_key
    from threefold.serve.ledger import UNIT

    idle.needs(context, "--amount", amount, "reason")
    key, now = find_key(file, id), time.time()
    today = datetime.fromtimestamp(now, UTC).date().isoformat()
    place = _place(file, usage_file)
    if not math.isfinite(amount * UNIT):
        raise InputError(f"--amount {amount:g}: expected an amount of money")
    with closing(_ledger(place, make=make)) as ledger:
        if amount:
            ledger.grant(key.id, round(amount * UNIT), int(now), reason)
        balance, currency = ledger.balance(key.id, today), ledger.currency()
    if currency is None:
        note(f"no server has opened {place} yet; one reads it if its usage_file is this one")
    if as_json:
        units = {"granted": balance.granted, "spent": balance.spent, "left": balance.left}
        money = {name: None if it is None else it / UNIT for name, it in units.items()}
        print_json({"key": key.id, **money, "currency": currency, "usage_file": str(place)})
        return
    granted = (
        "no credit was granted, so none is needed"
        if balance.granted is None
        else (f"{balance.granted / UNIT:,.6g} granted, {(balance.left or 0) / UNIT:,.6g} left")
    )
    of = f" ({currency})" if currency else ""
    note(f"{key.id} for {key.name}: {granted}; {balance.spent / UNIT:,.6g} spent{of}; in {place}")


@keys_app.command("usage")
def usage(
    file: KeyFileOption,
    id: Annotated[str | None, typer.Argument(help="The id of one key. Default: all.")] = None,
    first: Annotated[
        str | None, typer.Option("--from", help="First day, such as 2026-01-01. Default: of this month.")
    ] = None,
    last: Annotated[str | None, typer.Option("--to", help="Last day. Default: today (UTC).")] = None,
    currency: Annotated[
        str | None, typer.Option(help="What to call the money. Default: what the server calls it.")
    ] = None,
    usage_file: UsageFileOption = None,
    as_json: Json = False,
) -> None:
    """What keys have used: tokens, requests and cost by day, model and route. With --json, as `GET /v1/usage`."""
    from threefold.serve.keys import read_keys
    from threefold.serve.reports import period, report

    keys = {key.id: key for key in read_keys(file)}
    begin, end = period(first, last)
    today = datetime.now(UTC).date().isoformat()
    with closing(_ledger(_place(file, usage_file))) as ledger:
        there = {*keys, *ledger.keys()}
        if id is not None and id not in there:
            raise InputError(f"there is no key {id!r}; there are {', '.join(sorted(there)) or 'none'}")
        ids = [id] if id is not None else sorted(there)
        money = currency or ledger.currency()
        found = report(ledger.usage(begin, end, id), begin, end, money, ids, keys, _on(ledger, today))
    if as_json:
        print_json(found)
        return
    _print_usage(found)


def _on(ledger: Ledger, day: str) -> Callable[[str], Any]:
    return lambda key: ledger.balance(key, day)


def _print_usage(found: dict[str, Any]) -> None:
    head = ("key", "name", "day", "model", "route", "requests", "tokens", found["currency"] or "cost")
    rows = []
    for one in found["keys"]:
        for row in one["usage"]:
            counts = (f"{row['requests']:,}", f"{row['tokens']:,}", f"{row['cost']:,.6g}")
            rows.append((one["key"], one["name"] or "-", row["day"], row["model"], row["route"], *counts))
    print_table(head, rows, left=5)
    for one in found["keys"]:
        left = one["credit"]["left"]
        rest = "" if left is None else f", {left:,.6g} left"
        note(f"{one['key'] or 'without a key'}: {one['total']['tokens']:,} tokens, {one['total']['cost']:,.6g}{rest}")


def _place(file: Path, usage_file: Path | None) -> Path:
    """Where the usage of these keys is kept."""
    from threefold.serve.keys import usage_file_of

    return expanded(usage_file or usage_file_of(file))


def _ledger(path: Path, *, make: bool = False) -> Ledger:
    """The file of usage. Opening makes it, which would turn a wrong path into usage of nothing, or into credit that no
    server reads: so it must be there.
    """
    from threefold.serve.ledger import Ledger

    if not make and not path.is_file():
        raise InputError(
            f"there is no file of usage at {path}: the server makes it when it starts, or `keys credit --make` before. "
            "If its usage_file is another one, say so with --usage-file"
        )
    return Ledger(path)


def _plain(key: Key) -> dict[str, Any]:
    return {name: value for name, value in key.to_dict().items() if name != "hash"}
