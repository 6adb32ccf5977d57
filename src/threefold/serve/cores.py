"""Threads that share the cores of a server: those of the matrix products and those that answer.

The threads of a product wait for each other awake for milliseconds (libgomp's default), on cores where others would
read and write requests; then each product waits for a thread that was put aside. Measured with 32 clients on two
cores: a batch of nine short texts took 79 ms, three times what it takes alone, and 112 requests/s became 140 to 150
when waiting threads sleep at once. Bulk is 2 % slower (docs/log.md, 2026-11-25).
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

#: Rounds that a waiting thread stays awake. Read by libgomp when it is loaded, that is with PyTorch.
SPIN_VARIABLE = "GOMP_SPINCOUNT"
SPIN = 1_000
#: What a user may have said about the same.
POLICY_VARIABLE = "OMP_WAIT_POLICY"


def share_cores(environment: MutableMapping[str, str] = os.environ) -> None:
    """Before PyTorch is imported. What the user has set stays."""
    if POLICY_VARIABLE not in environment:
        environment.setdefault(SPIN_VARIABLE, str(SPIN))
