"""The file of what keys have used and what they were granted: SQLite, one row per key, day, model and route.

    usage      tokens, requests and cost, added up
    accounts   the sum of all costs of a key, so that a balance is one read
    facts      the currency, as the server has called it last
    grants     credit, one row per grant, kept for ever

Money is counted in picos, millionths of a millionth of the currency, as whole numbers: sums are exact, and a price
of 0.01 per million tokens is 10,000 picos per token. The cost of a token is that of the day it was used.

Several processes may write one file: every write adds to what is there. Times are unix seconds, days are UTC.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from threefold.errors import ConfigError, InputError, UnavailableError
from threefold.serve.files import create

Work = Literal["embed", "rerank"]

#: Picos of one unit of the currency.
UNIT = 10**12
#: Most credit in one grant: a row counts its picos in 64 bits.
MOST_GRANT = 1_000_000 * UNIT
#: Seconds that a writer waits for another one.
PATIENCE_S = 1.0
#: Errors of opening that waiting does not mend: the path is wrong, or what lies there.
_NEVER = {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN}

_SCHEMA = """
CREATE TABLE IF NOT EXISTS usage (
    key TEXT, day TEXT, model TEXT, route TEXT, kind TEXT, requests INTEGER, tokens INTEGER, picos INTEGER,
    PRIMARY KEY (key, day, model, route, kind)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS accounts (key TEXT PRIMARY KEY, picos INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS grants (key TEXT, at INTEGER, picos INTEGER, note TEXT);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS grants_of_a_key ON grants (key);
PRAGMA user_version = 1;
"""


class Slot(NamedTuple):
    """What is added up in one row."""

    key: str
    day: str
    model: str
    route: str
    kind: Work


@dataclass(slots=True)
class Amount:
    """How much."""

    requests: int = 0
    tokens: int = 0
    picos: int = 0

    def add(self, other: Amount) -> None:
        """Add this much."""
        self.requests += other.requests
        self.tokens += other.tokens
        self.picos += other.picos


@dataclass(slots=True)
class Balance:
    """Where a key stands.

    granted  picos of credit; None: it was never granted any, and is not bounded by it
    spent    picos, ever
    day      tokens of the day that was asked for
    month    tokens of its month
    """

    granted: int | None
    spent: int
    day: int
    month: int

    @property
    def left(self) -> int | None:
        """Picos that may still be spent; None without a bound."""
        return None if self.granted is None else self.granted - self.spent


class Ledger:
    """An open file. One thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with contextlib.suppress(OSError):  # it is there, or SQLite says why not
            os.close(create(path))
        with self._explained(opening=True):
            self._db = sqlite3.connect(path, timeout=PATIENCE_S, check_same_thread=False, isolation_level=None)
            with contextlib.ExitStack() as undo:
                undo.callback(self._db.close)
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")  # what is committed outlives a power cut
                self._db.executescript(_SCHEMA)
                undo.pop_all()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextlib.contextmanager
    def _explained(self, *, opening: bool = False) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            what = f"the file of usage {self._path} cannot be used: {error} (usage_file names another one)"
            if opening and getattr(error, "sqlite_errorcode", 0) & 0xFF in _NEVER:  # the rest of a code is its detail
                raise ConfigError(what) from error
            raise UnavailableError(what, PATIENCE_S) from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise

    # ---- writing -------------------------------------------------------------------------------------------

    def add(self, used: Mapping[Slot, Amount]) -> None:
        """Add what was used: all of it, or nothing."""
        with self._transaction():
            for slot, amount in used.items():
                self._db.execute(
                    "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                    "requests = requests + excluded.requests, tokens = tokens + excluded.tokens, "
                    "picos = picos + excluded.picos",
                    (*slot, amount.requests, amount.tokens, amount.picos),
                )
                self._db.execute(
                    "INSERT INTO accounts VALUES (?, ?) ON CONFLICT DO UPDATE SET picos = picos + excluded.picos",
                    (slot.key, amount.picos),
                )

    def grant(self, key: str, picos: int, at: int, note: str = "") -> None:
        """Give credit; less than 0 takes it back."""
        if abs(picos) > MOST_GRANT:
            raise InputError(f"a grant is at most {MOST_GRANT // UNIT:,} at a time; got {picos / UNIT:,g}")
        with self._transaction():
            self._db.execute("INSERT INTO grants VALUES (?, ?, ?, ?)", (key, at, picos, note))

    def call_money(self, currency: str) -> None:
        """Keep what the server calls its money, for whoever reads the file without it."""
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO facts VALUES ('currency', ?)", (currency,))

    # ---- reading -------------------------------------------------------------------------------------------

    def version(self) -> int:
        """A number that changes when another connection has written."""
        with self._explained():
            return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def currency(self) -> str | None:
        """What the server calls its money; None before a server has opened the file."""
        with self._explained():
            row = self._db.execute("SELECT value FROM facts WHERE name = 'currency'").fetchone()
        return row[0] if row else None

    def balance(self, key: str, day: str) -> Balance:
        """Where a key stands on a day (`2026-01-31`)."""
        with self._explained():
            grants = self._db.execute("SELECT picos FROM grants WHERE key = ?", (key,)).fetchall()
            spent = self._db.execute("SELECT SUM(picos) FROM accounts WHERE key = ?", (key,)).fetchone()[0]
            today, month = self._db.execute(
                "SELECT SUM(CASE WHEN day = ? THEN tokens END), SUM(tokens) FROM usage "
                "WHERE key = ? AND day BETWEEN ? AND ?",
                (day, key, f"{day[:7]}-01", f"{day[:7]}-31"),
            ).fetchone()
        granted = sum(picos for (picos,) in grants) if grants else None  # here: SQLite's sum ends at 64 bits
        return Balance(granted, spent or 0, today or 0, month or 0)

    def usage(self, first: str, last: str, key: str | None = None) -> list[tuple[Slot, Amount]]:
        """What was used from one day to another, both included, by one key or by all; oldest first."""
        one = "" if key is None else "AND key = ?"
        with self._explained():
            rows = self._db.execute(
                f"SELECT * FROM usage WHERE day BETWEEN ? AND ? {one} ORDER BY day, key, model, route, kind",
                (first, last) if key is None else (first, last, key),
            ).fetchall()
        return [(Slot(*row[:5]), Amount(*row[5:])) for row in rows]

    def keys(self) -> list[str]:
        """Every key that has used something or was granted something."""
        with self._explained():
            return [key for (key,) in self._db.execute("SELECT key FROM accounts UNION SELECT key FROM grants")]
