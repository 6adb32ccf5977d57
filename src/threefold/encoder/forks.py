"""A forked child gets none of its parent's threads, but OpenMP in it believes it has, and waits for them for ever.

`multiprocessing` forks by default on Linux before Python 3.14, and servers such as gunicorn do. With one thread per
child nothing is waited for. Spawned processes, `EncoderPool`'s among them, are not concerned.
"""

from __future__ import annotations

import os
from functools import cache

import torch


@cache
def guard_children() -> None:
    """From now on a forked child computes with one thread."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_alone)


def _alone() -> None:
    torch.set_num_threads(1)
