"""`GET /v1/usage`: what a key has used, what it cost, and what is left; for the scope `admin`, of all keys."""

from __future__ import annotations

from functools import partial

from starlette.responses import Response

from threefold.serve import wire
from threefold.serve.accounts import Accounts
from threefold.serve.errors import RequestError
from threefold.serve.http import Call
from threefold.serve.keys import Key
from threefold.serve.reports import period, report


async def usage(call: Call) -> Response:
    """`GET /v1/usage?from=2026-01-01&to=2026-01-31`: what the key has used; `?key=` and everything for admins."""
    server = call.server
    if server.accounts is None:
        raise RequestError("this server keeps no usage; start it with keys_file or usage_file", status=404)
    asked = call.request.query_params
    first, last = period(asked.get("from"), asked.get("to"))
    everything = call.key is None or "admin" in call.key.scopes
    one = asked.get("key") if everything else call.key.id if call.key else None
    if not everything and asked.get("key") not in (None, one):
        raise RequestError("this API key may see its own usage; that of others needs the scope admin", status=403)
    known = {key.id: key for key in server.known_keys()}
    found = partial(_found, server.accounts, server.config.currency, first, last, one, known)
    return await server.searching.run(found)


def _found(
    accounts: Accounts, currency: str, first: str, last: str, one: str | None, known: dict[str, Key]
) -> Response:
    """In a thread: many keys have many rows, and their balances may have to be read."""
    rows = accounts.usage(first, last, one)
    there = {*known, *accounts.keys()}
    if one is not None and one not in there:
        raise RequestError(f"there is no key {one!r}", status=404, param="key")
    ids = [one] if one is not None else sorted(there)
    return wire.json_response(report(rows, first, last, currency, ids, known, accounts.balance))
