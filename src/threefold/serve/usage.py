"""`GET /v1/usage`: what a key has used, what it cost, and what is left; for the scope `admin`, of all keys."""

from __future__ import annotations

from starlette.responses import Response

from threefold.serve import wire
from threefold.serve.errors import RequestError
from threefold.serve.http import Call
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
    accounts = server.accounts
    rows = await server.searching.run(lambda: accounts.usage(first, last, one))
    known = {key.id: key for key in server.known_keys()}
    ids = [one] if one is not None else sorted({*known, *accounts.keys()})
    found = report(rows, first, last, server.config.currency, ids, known, accounts.balance)
    return wire.json_response(found)
