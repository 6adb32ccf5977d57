"""When a client asks a server again, and what the errors of a connection mean.

Nothing is repeated that the server may still be working at, and nothing that would go wrong the same way.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from math import inf
from typing import Final

import httpx

from threefold.errors import DeadlineError, InputError, ServeError, UnavailableError

#: Seconds before a broken connection is tried again: the first time (it doubles).
AGAIN_S = 0.5
#: What a header can carry of a key.
_KEY: Final = re.compile("[!-~]+")
#: What is tried again. Not a server that is slow: it may still be working at what it was sent.
_BROKEN = (
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.NetworkError,
    httpx.RemoteProtocolError,
    httpx.ProxyError,
)


class Attempts:
    """What both clients are told.

    retries     attempts after the first one
    max_wait_s  a server that asks for a longer wait than this is not waited for
    """

    def __init__(self, timeout_s: float, retries: int, max_wait_s: float) -> None:
        self.timeout_s = patience(timeout_s)
        if retries < 0 or not max_wait_s >= 0:
            raise InputError(f"retries and max_wait_s must be at least 0; got {retries} and {max_wait_s}")
        self.retries = retries
        self.max_wait_s = max_wait_s

    def wait_s(self, attempt: int, error: ServeError) -> float | None:
        """Seconds before the next attempt; None when there is none."""
        if attempt >= self.retries:
            return None
        if isinstance(error.__cause__, _BROKEN):
            return AGAIN_S * float(2**attempt)
        asked = error.retry_after_s
        return asked if asked is not None and asked <= self.max_wait_s else None

    @contextmanager
    def our_errors(self) -> Iterator[None]:
        """Errors of the connection become ours; their cause says which they were."""
        try:
            yield
        except (httpx.ReadTimeout, httpx.WriteTimeout) as error:
            raise DeadlineError(
                f"the server did not answer within timeout_s={self.timeout_s} (seconds). Send less, or wait longer"
            ) from error
        except httpx.HTTPError as error:
            raise UnavailableError(f"the server cannot be reached: {error}") from error


def address(base_url: str) -> httpx.URL:
    """Refused where no request could ever be sent to it."""
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise InputError(f"base_url {base_url!r} is not an address: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise InputError(
            f"base_url {base_url!r} is not an address: it begins with http:// or https://, as http://127.0.0.1:8000"
        )
    return url


def patience(timeout_s: float) -> float:
    """Refused where no server could answer in time, or is waited for without end."""
    if not 0 < timeout_s < inf:
        raise InputError(f"timeout_s must be a number of seconds above 0; got {timeout_s}")
    return timeout_s


def headers(api_key: str | None) -> dict[str, str]:
    """What every request says."""
    if api_key and not _KEY.fullmatch(api_key):
        raise InputError("the api_key has spaces or characters that are not ASCII: no header can carry it")
    return {"authorization": f"Bearer {api_key}"} if api_key else {}


def can_be_repeated(documents: object) -> bool:
    """Whether all documents are still there after they were read: a list, and not a generator."""
    return isinstance(documents, Collection)
