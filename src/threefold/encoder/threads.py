"""How many threads this process computes with, for callers that know no torch."""

from __future__ import annotations

import torch


def at_most(threads: int) -> None:
    """Use so many from now on, or fewer where `OMP_NUM_THREADS` or an earlier call says so."""
    torch.set_num_threads(max(1, min(threads, torch.get_num_threads())))
