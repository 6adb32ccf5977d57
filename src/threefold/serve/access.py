"""Whose request it is: the key that it carries, and whether that may do what is asked."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from threefold.errors import ConfigError, UnavailableError
from threefold.serve.errors import RequestError
from threefold.serve.keys import SELF, Key, Keys

if TYPE_CHECKING:
    from threefold.serve.http import Call

log = logging.getLogger(__name__)

#: Seconds after which to ask again where the file of keys cannot be read.
KEYS_AGAIN_S = 5.0


def key_of(call: Call, keys: Keys, scope: str) -> Key:
    """The key of a request, which must allow `scope`. Noted as soon as it is known: also refusals are somebody's."""
    secret = _secret(call)
    if secret is None:
        raise RequestError("no API key: send the header Authorization: Bearer <key>", status=401)
    with reading_keys():
        found = keys.find(secret)
    if found is None:
        raise RequestError("the API key is not known, or was revoked", status=401)
    call.key = found
    if scope not in (SELF, *found.scopes):
        raise RequestError(f"this API key may not {scope}; it may {', '.join(found.scopes)}", status=403)
    return found


@contextmanager
def reading_keys() -> Iterator[None]:
    """Who calls is not known yet, and need not know where the keys are; the log does."""
    try:
        yield
    except ConfigError as error:
        log.error("%s", error)
        raise UnavailableError("the API keys cannot be read", KEYS_AGAIN_S) from error


def _secret(call: Call) -> str | None:
    """The key of a request: `Authorization: Bearer ...`, or `x-api-key`."""
    kind, _, secret = call.request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and secret:
        return secret.strip()
    return call.request.headers.get("x-api-key")
