"""`threefold keys`: who may call the server, how much of it, and what they have used."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from threefold.cli.show import note, out, print_json
from threefold.errors import InputError

if TYPE_CHECKING:
    from threefold.serve.keys import Key
    from threefold.serve.ledger import Ledger

keys_app = typer.Typer(
    help="API keys of the server: create, list, change, revoke; what they use, and their credit.",
    no_args_is_help=True,
)

KeyFileOption = Annotated[Path, typer.Option("--file", help="The file of keys.", envvar="THREEFOLD_SERVE_KEYS_FILE")]
UsageFileOption = Annotated[
    Path | None,
    typer.Option(
        "--usage-file", help="The file of usage. Default: next to the keys.", envvar="THREEFOLD_SERVE_USAGE_FILE"
    ),
]
Id = Annotated[str, typer.Argument(help="The id of the key.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

#: Most credit in one grant: the ledger counts picos of the currency in 64 bits.
MOST_CREDIT = 1_000_000
#: Bytes of a namespace, which is a folder of the server.
LONGEST_NAMESPACE = 64

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
    as_json: Json = False,
) -> None:
    """Make a key. It is shown once; the file keeps its hash."""
    from threefold.serve.keys import SCOPES, create_key

    wanted = [scope.strip() for scope in scopes.split(",") if scope.strip()]
    if not wanted:
        raise InputError(f"--scopes {scopes!r}: a key without scopes may do nothing; give some of {', '.join(SCOPES)}")
    if (long := len(namespace.encode())) > LONGEST_NAMESPACE:
        raise InputError(f"--namespace has {long} bytes, the limit is {LONGEST_NAMESPACE}: it is the name of a folder")
    quotas = {
        "tokens_per_minute": tokens_per_minute,
        "tokens_per_day": tokens_per_day,
        "tokens_per_month": tokens_per_month,
    }
    secret, key = create_key(file, name, wanted, namespace, **quotas)
    if as_json:
        print_json({"id": key.id, "key": secret, "scopes": list(key.scopes), "namespace": key.namespace})
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
    table = _table("id", "name", "scopes", "namespace", *(name.replace("_", " ") for name in QUOTAS))
    for key in keys:
        limits = (f"{getattr(key, name):,}" if getattr(key, name) else "-" for name in QUOTAS)
        table.add_row(key.id, key.name, ",".join(key.scopes), key.namespace, *limits)
    out.print(table)


@keys_app.command("revoke")
def revoke(id: Id, file: KeyFileOption, as_json: Json = False) -> None:
    """Take a key out; a running server refuses it at once."""
    from threefold.serve.keys import revoke_key

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
    id: Id,
    file: KeyFileOption,
    amount: Annotated[float, typer.Option(help="What to add, in the currency of the server; below 0 takes back.")] = 0,
    reason: Annotated[str, typer.Option("--note", help="Kept with the grant.")] = "",
    usage_file: UsageFileOption = None,
    as_json: Json = False,
) -> None:
    """Grant credit, or show it. A key that was ever granted credit is refused when it is spent; others are not bounded.

    A running server follows within a second. Next to the keys, the file of usage is made if there is none yet.
    """
    from threefold.serve.keys import find_key
    from threefold.serve.ledger import UNIT

    key, now = find_key(file, id), time.time()
    today = datetime.fromtimestamp(now, UTC).date().isoformat()
    with closing(_ledger(file, usage_file, make=usage_file is None)) as ledger:
        if not abs(amount) <= MOST_CREDIT:  # true for NaN
            raise InputError(f"--amount {amount}: expected a number, at most {MOST_CREDIT:,} at a time")
        if amount:
            ledger.grant(key.id, round(amount * UNIT), int(now), reason)
        balance = ledger.balance(key.id, today)
    if as_json:
        units = {"granted": balance.granted, "spent": balance.spent, "left": balance.left}
        print_json({"key": key.id, **{name: None if it is None else it / UNIT for name, it in units.items()}})
        return
    granted = (
        "no credit was granted, so none is needed"
        if balance.granted is None
        else (f"{balance.granted / UNIT:,.6g} granted, {(balance.left or 0) / UNIT:,.6g} left")
    )
    note(f"{key.id} for {key.name}: {granted}; {balance.spent / UNIT:,.6g} spent")


@keys_app.command("usage")
def usage(
    file: KeyFileOption,
    id: Annotated[str | None, typer.Argument(help="The id of one key. Default: all.")] = None,
    first: Annotated[
        str | None, typer.Option("--from", help="First day, such as 2026-01-01. Default: of this month.")
    ] = None,
    last: Annotated[str | None, typer.Option("--to", help="Last day. Default: today (UTC).")] = None,
    currency: Annotated[str, typer.Option(help="What the server calls its money.")] = "USD",
    usage_file: UsageFileOption = None,
    as_json: Json = False,
) -> None:
    """What keys have used: tokens, requests and cost by day, model and route. With --json, as `GET /v1/usage`."""
    from threefold.serve.keys import read_keys
    from threefold.serve.reports import period, report

    keys = {key.id: key for key in read_keys(file)}
    begin, end = period(first, last)
    today = datetime.now(UTC).date().isoformat()
    with closing(_ledger(file, usage_file)) as ledger:
        there = {*keys, *ledger.keys()}
        if id is not None and id not in there:
            raise InputError(f"there is no key {id!r}; there are {', '.join(sorted(there)) or 'none'}")
        ids = [id] if id is not None else sorted(there)
        found = report(ledger.usage(begin, end, id), begin, end, currency, ids, keys, _on(ledger, today))
    if as_json:
        print_json(found)
        return
    _print_usage(found)


def _on(ledger: Ledger, day: str) -> Callable[[str], Any]:
    return lambda key: ledger.balance(key, day)


def _print_usage(found: dict[str, Any]) -> None:
    table = _table("key", "name", "day", "model", "route", "requests", "tokens", found["currency"])
    for one in found["keys"]:
        for row in one["usage"]:
            counts = (f"{row['requests']:,}", f"{row['tokens']:,}", f"{row['cost']:,.6g}")
            table.add_row(one["key"], one["name"] or "-", row["day"], row["model"], row["route"], *counts)
    out.print(table)
    for one in found["keys"]:
        left = one["credit"]["left"]
        rest = "" if left is None else f", {left:,.6g} left"
        note(f"{one['key'] or 'without a key'}: {one['total']['tokens']:,} tokens, {one['total']['cost']:,.6g}{rest}")


def _ledger(file: Path, usage_file: Path | None, *, make: bool = False) -> Ledger:
    """The file of usage. Opening makes it, which would turn a wrong path into usage of nothing: so it must be there."""
    from threefold.serve.keys import usage_file_of
    from threefold.serve.ledger import Ledger

    path = (usage_file or usage_file_of(file)).expanduser()
    if not make and not path.is_file():
        raise InputError(
            f"there is no file of usage at {path}: the server makes it when it starts. "
            "If its usage_file is another one, say so with --usage-file"
        )
    return Ledger(path)


def _plain(key: Key) -> dict[str, Any]:
    return {name: value for name, value in key.to_dict().items() if name != "hash"}


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column)
    return table
