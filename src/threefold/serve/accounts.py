"""What the keys of a running server use: counted in memory, written by one thread, checked before every request.

    answered request ─► memory ─► every `WRITE_S` seconds, one transaction ─► ledger
                          │                                                     │ grants, other processes
                          ╰──────────── balance of a key ◄──────────────────────╯

A process that is killed loses what it answered since the last write, less than a second. If the file cannot be
written, usage stays in memory, the log says so, and the next write has it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from threefold.errors import OverloadedError, UnavailableError
from threefold.serve.errors import CreditError
from threefold.serve.keys import Key
from threefold.serve.ledger import UNIT, Amount, Balance, Ledger, Slot, Work
from threefold.serve.prices import Price

log = logging.getLogger(__name__)

#: Seconds between two writes. What a crash loses is never older than this and the write itself.
WRITE_S = 0.5

FREE = Price()


class Accounts:
    """The balances of all keys that have called.

    prices    by model; a model without one costs nothing
    clock     unix seconds
    currency  of the prices: the file keeps it for `threefold keys`
    """

    def __init__(
        self, path: Path, prices: Mapping[str, Price], clock: Callable[[], float] = time.time, currency: str = "USD"
    ) -> None:
        self._prices = prices
        self._clock = clock
        self._ledger = Ledger(path)
        self._call_money(currency)
        self._lock = threading.Lock()  # around memory
        self._writing = threading.Lock()  # around the file
        self._pending: dict[Slot, Amount] = {}
        self._balances: dict[str, Balance] = {}
        self._day = self._today()
        self._version = self._ledger.version()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # ---- life ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to write."""
        self._thread = threading.Thread(target=self._write_always, name="threefold-accounts", daemon=True)
        self._thread.start()

    def _call_money(self, currency: str) -> None:
        before = self._ledger.currency()
        if before == currency:
            return
        if before is not None:
            log.warning("the file of usage has sums in %s; from now on they are called %s", before, currency)
        self._ledger.call_money(currency)

    def close(self) -> None:
        """Write what is left, and close the file."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._try_to_write()
        self._ledger.close()

    def _write_always(self) -> None:
        while not self._stop.wait(WRITE_S):
            self._try_to_write()

    def _try_to_write(self) -> None:
        try:
            self.write()
        except UnavailableError as error:
            log.error("usage of %d rows is not written yet: %s", len(self._pending), error)

    # ---- use -----------------------------------------------------------------------------------------------

    def use(self, key: str, model: str, route: str, kind: Work, tokens: int, *, requests: int = 1) -> int:
        """Count what was answered; gives its cost in picos."""
        amount = Amount(requests, tokens, self._prices.get(model, FREE).picos(kind, tokens))
        slot = Slot(key, self._today(), model, route, kind)
        self.balance(key)
        with self._lock:
            self._pending.setdefault(slot, Amount()).add(amount)
            if key in self._balances:  # looked up here: the writer's thread may have put another one there
                _spend(self._balances[key], amount)
        return amount.picos

    def check(self, key: Key) -> None:
        """Refuse a key that has spent its credit, or used up its day or month."""
        balance = self.balance(key.id)
        if balance.left is not None and balance.left <= 0:
            raise CreditError(
                f"this API key has spent its credit: {balance.spent / UNIT:g} of {(balance.granted or 0) / UNIT:g}. "
                "Whoever runs this server can grant more"
            )
        now = datetime.fromtimestamp(self._clock(), UTC)
        for used, most, period, ends in (
            (balance.day, key.tokens_per_day, "day", _next_day(now)),
            (balance.month, key.tokens_per_month, "month", _next_month(now)),
        ):
            if most and used >= most:
                wait = (ends - now).total_seconds()
                raise OverloadedError(f"this API key has used its {most:,} tokens per {period}", max(wait, 1.0))

    def balance(self, key: str) -> Balance:
        """Where a key stands now; read from the file when it calls first, and when the day changes."""
        self._turn_the_day()
        with self._lock:
            found = self._balances.get(key)
        if found is not None:
            return found
        with self._writing:
            fresh = {key: self._ledger.balance(key, self._day)}
            self._keep(fresh)
        return fresh[key]

    def _keep(self, fresh: dict[str, Balance]) -> None:
        """Balances as the file has them, and on top what is not in the file yet."""
        with self._lock:
            for slot, amount in self._pending.items():
                if slot.key in fresh:
                    _spend(fresh[slot.key], amount)
            self._balances.update(fresh)

    # ---- the file ------------------------------------------------------------------------------------------

    def write(self) -> None:
        """Bring the file up to date with memory, and memory with what others wrote into the file."""
        with self._writing:
            with self._lock:
                batch, self._pending = self._pending, {}
            try:
                if batch:
                    self._ledger.add(batch)
            except BaseException:
                with self._lock:  # nothing of it was written: it waits for the next time
                    for slot, amount in batch.items():
                        self._pending.setdefault(slot, Amount()).add(amount)
                raise
            self._read_what_others_wrote()

    def _read_what_others_wrote(self) -> None:
        version = self._ledger.version()
        if version == self._version:
            return
        fresh = {key: self._ledger.balance(key, self._day) for key in list(self._balances)}
        self._keep(fresh)
        self._version = version

    def usage(self, first: str, last: str, key: str | None = None) -> list[tuple[Slot, Amount]]:
        """What the file says, brought up to date."""
        self.write()
        with self._writing:
            return self._ledger.usage(first, last, key)

    def keys(self) -> list[str]:
        """Every key that has an account."""
        with self._writing:
            return self._ledger.keys()

    def _today(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).date().isoformat()

    def _turn_the_day(self) -> None:
        today = self._today()
        if today == self._day:
            return
        self._try_to_write()
        with self._writing, self._lock:  # no balance that is read just now is kept from the day before
            self._day = today
            self._balances.clear()


def _spend(balance: Balance, amount: Amount) -> None:
    balance.spent += amount.picos
    balance.day += amount.tokens
    balance.month += amount.tokens


def _next_day(now: datetime) -> datetime:
    return now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)


def _next_month(now: datetime) -> datetime:
    first = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return first.replace(year=now.year + 1, month=1) if now.month == 12 else first.replace(month=now.month + 1)
