"""API keys: who may call, and what. Only hashes are kept; a key is shown once, when it is made.

A key is 256 random bits, so a plain SHA-256 is as good as any slow hash; one that is brought along must be long. The
file is read again when it changes: a key that is revoked stops at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from threefold.config import Settings
from threefold.errors import ConfigError, InputError
from threefold.serve.files import create, keep_access

#: What a key may be allowed: embed (and rerank, score), search collections, write to collections, read metrics, see
#: what all keys have used.
SCOPES = ("embed", "search", "write", "metrics", "admin")
#: The scope of routes about the key itself: every key has it, also one that is in debt.
SELF = "self"

PREFIX = "tf-"
#: Characters of a key that is brought along: with fewer, its hash could be guessed by whoever reads the file.
SHORTEST_KEY = 20
#: The most: servers refuse requests with longer headers, and a file that was piped in by accident is no key.
LONGEST_KEY = 4_096
#: Bytes of a namespace, which is a folder of the server.
LONGEST_NAMESPACE = 64
#: Seconds that a change waits for another.
LOCK_S = 10.0
#: How much a key may use.
QUOTAS = ("tokens_per_minute", "tokens_per_day", "tokens_per_month")


@dataclass(frozen=True, slots=True)
class Key(Settings):
    """One key without its secret.

    id                 shown in logs and metrics
    namespace          collections of other namespaces do not exist for it
    created            unix seconds
    tokens_per_minute  0: no limit; so for the day and the month (UTC)
    """

    id: str
    name: str
    hash: str
    scopes: tuple[str, ...]
    namespace: str = "default"
    created: int = 0
    tokens_per_minute: int = 0
    tokens_per_day: int = 0
    tokens_per_month: int = 0

    def __post_init__(self) -> None:
        unknown = [scope for scope in self.scopes if scope not in SCOPES]
        if unknown:
            raise ConfigError(f"unknown scope {unknown[0]!r}; known are {', '.join(SCOPES)}")
        if not self.namespace.replace("-", "").replace("_", "").isalnum():
            raise ConfigError(f"a namespace is letters, digits, - and _; got {self.namespace!r}")
        for name in QUOTAS:
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0; got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class KeyFile(Settings):
    """The file as it is on disk."""

    keys: tuple[Key, ...] = ()


def hashed(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Keys:
    """The keys of one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._by_hash: dict[str, Key] = {}
        self._refresh()

    def find(self, secret: str) -> Key | None:
        """The key with this secret."""
        self._refresh()
        return self._by_hash.get(hashed(secret))

    def all(self) -> tuple[Key, ...]:
        """Every key, oldest first."""
        self._refresh()
        return tuple(self._by_hash.values())

    def _refresh(self) -> None:
        try:
            facts = self._path.stat()
        except OSError as error:
            raise _unreadable(self._path, error) from error
        stamp = (facts.st_mtime_ns, facts.st_size, facts.st_ino)  # a change may have the time of the last one
        if stamp != self._stamp:
            self._by_hash = {key.hash: key for key in read_keys(self._path)}
            self._stamp = stamp


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a file, oldest first."""
    try:
        return KeyFile.from_dict(json.loads(path.read_text(encoding="utf-8")), str(path)).keys
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise ConfigError(f"{path} is not a file of API keys: {error}") from error


def _unreadable(path: Path, error: OSError) -> ConfigError:
    why = (error.strerror or str(error)).lower()
    hint = " (the user of the server should own it)" if isinstance(error, PermissionError) else ""
    return ConfigError(f"{path}: the file of API keys cannot be read: {why}{hint}")


def usage_file_of(keys_file: Path) -> Path:
    """Where the usage of these keys is kept, if nothing else was said: next to them."""
    return keys_file.with_suffix(".usage.sqlite")


def create_key(
    path: Path,
    name: str,
    scopes: Sequence[str],
    namespace: str = "default",
    *,
    secret: str | None = None,
    **quotas: int,
) -> tuple[str, Key]:
    """A new key in the file (made if needed); returns the secret, which is kept nowhere.

    secret  the key that clients have already; None: a random one
    quotas  see `QUOTAS`
    """
    if isinstance(scopes, str):
        raise InputError(f"scopes must be a list of scopes; got the text {scopes!r}")
    _check_quotas(quotas)
    if secret is not None:
        _check_secret(secret)
    secret = secret or PREFIX + secrets.token_urlsafe(32)
    made = {"id": "key-" + secrets.token_hex(4), "hash": hashed(secret), "created": int(time.time())}
    given = {"name": name, "scopes": list(scopes), "namespace": namespace, **quotas}
    key = Key.from_dict(made | given)  # as it is read: a wrong type in the file would stop every key
    _check_use(key)
    with _alone(path):
        kept = read_keys(path) if path.exists() else ()
        if same := next((one for one in kept if one.hash == key.hash), None):
            raise InputError(f"{path} has this key already: {same.id} for {same.name}")
        _write(path, (*kept, key))
    return secret, key


def _check_secret(secret: str) -> None:
    """Refuse what a client could not send as a bearer token, or what could be guessed. The key itself is not said."""
    if not all("!" <= character <= "~" for character in secret):
        raise InputError("a key is letters, digits and signs of ASCII, without spaces")
    if len(secret) < SHORTEST_KEY:
        raise InputError(
            f"the key has {len(secret)} characters; at least {SHORTEST_KEY} are needed. Leave it out for a new one"
        )
    if len(secret) > LONGEST_KEY:
        raise InputError(f"the key has {len(secret):,} characters; at most {LONGEST_KEY:,} can be sent")


def _check_use(key: Key) -> None:
    """Refuse a key that would be of no use. Not where a file is read: one such key must not stop the others."""
    if not key.name.strip():
        raise InputError("a key needs a name, so that it can be told from others")
    if not key.scopes:
        raise InputError(f"a key without scopes may do nothing; give some of {', '.join(SCOPES)}")
    if (size := len(key.namespace.encode())) > LONGEST_NAMESPACE:
        limit = f"the limit is {LONGEST_NAMESPACE}: it is the name of a folder"
        raise InputError(f"the namespace has {size} bytes, {limit}")


def _check_quotas(quotas: Mapping[str, int]) -> None:
    unknown = [name for name in quotas if name not in QUOTAS]
    if unknown:
        raise InputError(f"unknown quota {unknown[0]!r}; known are {', '.join(QUOTAS)}")


def revoke_key(path: Path, id: str) -> Key:
    """Take a key out of the file."""
    with _alone(path):
        gone = find_key(path, id)
        _write(path, tuple(key for key in read_keys(path) if key.id != id))
    return gone


def change_key(path: Path, id: str, **quotas: int) -> Key:
    """Give a key other quotas; a running server sees them at once."""
    _check_quotas(quotas)
    with _alone(path):
        changed = Key.from_dict(find_key(path, id).to_dict() | quotas)
        _write(path, tuple(changed if key.id == id else key for key in read_keys(path)))
    return changed


def find_key(path: Path, id: str) -> Key:
    """The key with this id."""
    kept = read_keys(path)
    found = next((key for key in kept if key.id == id), None)
    if found is None:
        raise InputError(f"{path} has no key {id!r}; it has {', '.join(key.id for key in kept) or 'none'}")
    return found


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One writer at a time, across processes: what another has written since it was read would be lost.

    The lock is a database of its own, empty, because the file of the keys is replaced by each writer.
    """
    if not path.parent.is_dir():
        raise ConfigError(
            f"the folder {path.parent} does not exist; create it, or choose another place for {path.name}"
        )
    place = path.with_name(f".{path.name}.lock")
    with suppress(OSError):  # it is there, or SQLite says why not
        os.close(create(place))
    try:
        with closing(sqlite3.connect(place, timeout=LOCK_S)) as lock:
            lock.execute("BEGIN EXCLUSIVE")
            yield
    except sqlite3.Error as error:
        raise ConfigError(f"{path} cannot be changed: {error}") from error


def _write(path: Path, keys: tuple[Key, ...]) -> None:
    """Whole or not at all. A new file is readable by its owner alone; a later one by whoever could read the last."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    with open(create(draft), "w", encoding="utf-8") as file:
        if path.exists():
            keep_access(file.fileno(), path.stat())
        json.dump(KeyFile(keys).to_dict(), file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
