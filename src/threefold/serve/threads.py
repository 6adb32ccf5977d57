"""Threads by purpose. Work that waits for other work must not share its threads: with one pool for all, searches that
wait for their query to be tokenized would take every thread, and none would be left to tokenize.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")


class Threads:
    """A pool for one purpose; what does not fit waits."""

    def __init__(self, name: str, most: int) -> None:
        self._pool = ThreadPoolExecutor(most, thread_name_prefix=f"threefold-{name}")

    async def run(self, call: Callable[[], T]) -> T:
        """The result of `call`, made in a thread of this pool, in the context of the caller."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, copy_context().run, call)

    def close(self) -> None:
        """Start nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)
