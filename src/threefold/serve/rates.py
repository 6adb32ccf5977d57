"""How many tokens a key may use per minute: one bucket per key, paid afterwards.

A request is let in while its key is not in debt, and its true tokens are taken when it is answered. So nobody is
refused for a guess, and a large request is paid for by waiting before the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from threefold.errors import OverloadedError
from threefold.serve.keys import Key

MINUTE_S = 60.0


@dataclass(slots=True)
class _Bucket:
    level: float  # tokens that may be used; below 0 is debt
    at: float


class Rates:
    """The buckets of all keys. A key without a limit has none."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def check(self, key: Key) -> None:
        """Refuse a key that is in debt, with the time until it is not."""
        left = self.left(key)
        if left is None or left > 0:
            return
        wait = (1.0 - left) / key.tokens_per_minute * MINUTE_S
        raise OverloadedError(f"this API key has used its {key.tokens_per_minute:,} tokens per minute", max(wait, 1.0))

    def charge(self, key: Key, tokens: int) -> None:
        """Take what a request has used."""
        bucket = self._bucket(key)
        if bucket is not None:
            bucket.level -= tokens

    def left(self, key: Key) -> int | None:
        """Tokens that the key may use now; None without a limit."""
        bucket = self._bucket(key)
        return None if bucket is None else int(bucket.level)

    def _bucket(self, key: Key) -> _Bucket | None:
        if not key.tokens_per_minute:
            return None
        now, full = self._clock(), float(key.tokens_per_minute)
        bucket = self._buckets.setdefault(key.id, _Bucket(full, now))
        bucket.level = min(full, bucket.level + (now - bucket.at) / MINUTE_S * full)
        bucket.at = now
        return bucket
