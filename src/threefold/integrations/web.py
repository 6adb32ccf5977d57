"""Connections to endpoints of others."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from threefold.errors import MissingExtraError


class Connected:
    """What has a connection, in `_client`. A context manager; `close` ends it."""

    _client: Any

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connections."""
        self._client.close()


def connection(url: str, api_key: str | None, timeout_s: float, *, extra: str, purpose: str) -> Any:
    """An `httpx.Client` for the addresses below `url`; the key is sent as a bearer token.

    extra, purpose  what to install, and what for, where httpx is missing
    """
    try:
        import httpx
    except ImportError as error:
        raise MissingExtraError("httpx", extra, purpose) from error
    from threefold.attempts import address, headers, patience  # late: it needs httpx

    address(url)
    return httpx.Client(base_url=url.rstrip("/") + "/", headers=headers(api_key), timeout=patience(timeout_s))
