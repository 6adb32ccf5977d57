"""What keys have used, as a report in plain JSON: of `GET /v1/usage`, and of `threefold keys usage --json`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime
from typing import Any

from threefold.errors import InputError
from threefold.serve.keys import Key
from threefold.serve.ledger import UNIT, Amount, Balance, Slot

Rows = Sequence[tuple[Slot, Amount]]


def period(first: str | None, last: str | None) -> tuple[str, str]:
    """Two days, both included: by default this month up to today (UTC)."""
    today = datetime.now(UTC).date()
    begin, end = _day(first, "from") or today.replace(day=1), _day(last, "to") or today
    if begin > end:
        raise InputError(f"from {begin} is after to {end}")
    return begin.isoformat(), end.isoformat()


def _day(text: str | None, name: str) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InputError(f"{name} must be a day such as 2026-01-31; got {text!r}") from None


def report(
    rows: Rows,
    first: str,
    last: str,
    currency: str | None,
    ids: Iterable[str],
    known: dict[str, Key],
    balance: Callable[[str], Balance],
) -> dict[str, Any]:
    """The JSON of a report; money in units of the currency."""
    of_key: dict[str, list[tuple[Slot, Amount]]] = {}
    for row in rows:
        of_key.setdefault(row[0].key, []).append(row)
    return {
        "object": "usage",
        "from": first,
        "to": last,
        "currency": currency,
        "keys": [_of_key(id, known.get(id), balance(id), of_key.get(id, [])) for id in ids],
    }


def _of_key(id: str, key: Key | None, balance: Balance, rows: Rows) -> dict[str, Any]:
    total = Amount()
    for _, amount in rows:
        total.add(amount)
    return {
        "key": id,
        "name": key.name if key else None,
        "credit": {
            "granted": _units(balance.granted),
            "spent": _units(balance.spent),
            "left": _units(balance.left),
        },
        "today": {"tokens": balance.day, "limit": (key.tokens_per_day if key else 0) or None},
        "this_month": {"tokens": balance.month, "limit": (key.tokens_per_month if key else 0) or None},
        "total": _amount(total),
        "usage": [
            {"day": slot.day, "model": slot.model, "route": slot.route, "kind": slot.kind, **_amount(amount)}
            for slot, amount in rows
        ],
    }


def _amount(amount: Amount) -> dict[str, Any]:
    return {"requests": amount.requests, "tokens": amount.tokens, "cost": _units(amount.picos)}


def _units(picos: int | None) -> float | None:
    return None if picos is None else picos / UNIT
