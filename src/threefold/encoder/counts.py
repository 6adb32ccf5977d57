"""How many threads and processes are too many: a library that cannot have them ends the process, without a reason."""

from __future__ import annotations

import os

from threefold.errors import InputError


def check_count(name: str, count: int) -> None:
    """Refuse none, and more than any work of this machine could use."""
    if count < 1:
        raise InputError(f"{name} must be at least 1; got {count}")
    processors = os.cpu_count() or 1
    most = max(64, 4 * processors)
    if count > most:
        raise InputError(f"{name} must be at most {most} (this machine has {processors} processors); got {count}")
